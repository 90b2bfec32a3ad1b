"""The families of pretrained encoders: each turns normalised images into features, from verified weight files.

A family is a function of an PanelEntry and its files that returns a module, [n, 3, r, r] -> [n, d]. What all share is
here too, once: normalisation, precision, and the checks; resizing is in `resizing`.

Letters: n rows, h height, w width, r the encoder's resolution, t tokens, d feature numbers.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from irdm.encoders.base import Encoder, Visiting
from irdm.encoders.resizing import RESIZES, Images
from irdm.encoders.weights import Weights, WeightSource, read_state, require

Features = Float[Tensor, "n d"]
Triple = tuple[float, float, float]

IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP: tuple[Triple, Triple] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF: tuple[Triple, Triple] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
MIDDLE = (128 / 255, 128 / 255, 128 / 255)
BYTES: tuple[Triple, Triple] = MIDDLE, MIDDLE  # (byte - 128) / 128
DINOV2_PATCH = 14  # pixels
NONE: tuple[Triple, Triple] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class PanelEntry:
    """A row of the panel: everything that decides an encoder's numbers. `arguments` go to the architecture."""

    name: str
    family: Literal["timm", "dinov2", "transformers", "inception", "vae", "dreamsim"]
    model: str
    resolution: int
    dim: int
    pooling: str
    normalisation: tuple[Triple, Triple]
    held_out: bool
    weights: WeightSource
    resize: Literal["bicubic", "bilinear", "tf1", "pillow", "pillow square"] = "bicubic"
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shares: str | None = None
    """The encoder in whose folder the weights lie, where one file makes two encoders."""

    def located(self, folder: Path | None = None) -> Weights:
        """The weight files, in the folder of all weights or in the hub's cache."""
        return Weights(self.shares or self.name, self.weights, folder)


class PanelNetwork(nn.Module):
    """Images in [0, 1] -> features: resize, normalise, then the family's module, on CUDA in the entry's precision.

    The resize is not clamped: a bicubic overshoot beyond [0, 1] stays, and so does its gradient. An image that is not
    square is squeezed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, entry: PanelEntry, features: nn.Module, compile: bool = False):
        super().__init__()
        self.entry, self.features = entry, features
        for name, values in zip(("mean", "std"), entry.normalisation, strict=True):
            self.register_buffer(name, torch.tensor(values).reshape(3, 1, 1), persistent=False)
        self.compiled = torch.compile(features.forward) if compile else None

    def forward(self, images: Float[Tensor, "n c h w"]) -> Features:
        if images.shape[1] != 3:
            raise ValueError(
                f"The encoder '{self.entry.name}' looks at colour images, [n, 3, h, w] in [0, 1]; these have "
                f"{images.shape[1]} channel(s). Repeat a grey channel three times, or use the local battery."
            )
        inputs = (RESIZES[self.entry.resize](images.float(), self.entry.resolution) - self.mean) / self.std
        run = self.compiled if self.compiled and images.is_cuda else self.features
        half = images.is_cuda and self.entry.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            return run(inputs).float()


def load_encoder(
    entry: PanelEntry, folder: Path | None = None, compile: bool = False, offload: bool = False
) -> Encoder:
    """The frozen encoder of a row of the panel, its weights verified. `compile` acts on CUDA only.

    `offload`: its weights stay in main memory, and are not compiled.

    Raises ValueError when a package or a weight file is missing, a file was altered, its keys do not fit the
    architecture, or the features have another dimension than the table says.
    """
    files = entry.located(folder).verify()
    try:
        features = FAMILIES[entry.family](entry, list(files.values())).eval().requires_grad_(False)
    except (RuntimeError, KeyError, zipfile.BadZipFile) as error:  # what load_state_dict and a look into the file raise
        raise ValueError(
            f"The weights of the encoder '{entry.name}' do not fit its architecture, {entry.model}: {error}\n"
            f"If another file was given the name of {', '.join(map(str, files.values()))}, replace it."
        ) from error
    network = PanelNetwork(entry, Visiting(features) if offload else features, compile and not offload)
    with torch.no_grad():
        shape = tuple(network(torch.zeros(1, 3, entry.resolution, entry.resolution)).shape)
    if shape != (1, entry.dim):
        raise ValueError(
            f"The encoder '{entry.name}' gives features of shape {list(shape)} for one image; the table says "
            f"[1, {entry.dim}]. Its model, pooling or resolution in the table does not belong to these weights."
        )
    return Encoder(entry.name, entry.dim, network)


class TimmFeatures(nn.Module):
    """A timm model and a pooling of its tokens, the same for every model whatever timm pools by default."""

    model: Any

    def __init__(self, model: nn.Module, pooling: str):
        super().__init__()
        self.model, self.pool = model, TIMM_POOLINGS[pooling]

    def forward(self, images: Images) -> Features:
        return self.pool(self.model, self.model.forward_features(images))


# Each takes the model and what its forward_features returns: tokens [n, t, d], or a grid [n, d, h, w]. Means are taken
# in float32, whatever the precision of what they average.
TIMM_POOLINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "class token": lambda model, tokens: tokens[:, 0],
    "projection": lambda model, tokens: model.forward_head(tokens),
    "patch mean": lambda model, tokens: tokens[:, model.num_prefix_tokens :].float().mean(1),
    "spatial mean": lambda model, grid: grid.float().mean((2, 3)),
    "attention pool": lambda model, tokens: model.forward_head(tokens, pre_logits=True),
    # C-RADIO has one class token a teacher; the fourth teacher, SAM, has no summary.
    "summary tokens": lambda model, tokens: tokens[:, :3].flatten(1),
}


def timm_features(entry: PanelEntry, files: list[Path]) -> nn.Module:
    """A model of timm, by its own filter of checkpoints, which resamples position embeddings; keys are strict."""
    return _timm_model(entry, read_state(files[0]))


def dinov2_features(entry: PanelEntry, files: list[Path]) -> nn.Module:
    """DINOv2 with the position embeddings that its authors' code gives it at this resolution; timm's differ a little.

    They resample the grid of the checkpoint by a bicubic interpolation without antialiasing, and by a factor that is
    0.1 patches too large.
    """
    state = read_state(files[0])
    grid = entry.resolution // DINOV2_PATCH
    first, patches = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if side != grid:
        square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        square = F.interpolate(square, scale_factor=((grid + 0.1) / side,) * 2, mode="bicubic")
        patches = square.permute(0, 2, 3, 1).flatten(1, 2)
    return _timm_model(entry, {**state, "pos_embed": torch.cat([first, patches], 1)})


def _timm_model(entry: PanelEntry, state: dict[str, Any]) -> TimmFeatures:
    # With the classifier that the checkpoint has, timm is strict; told to leave it out, it forgives any missing key.
    overlay = {"state_dict": state}
    model = require("timm").create_model(
        entry.model, pretrained=True, pretrained_cfg_overlay=overlay, **dict(entry.arguments)
    )
    return TimmFeatures(model, entry.pooling)


class PoolerOutput(nn.Module):
    """The pooler output of a transformers model: for DINOv2 its class token after the last normalisation."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Features:
        return self.model(pixel_values=images).pooler_output


def transformers_features(entry: PanelEntry, files: list[Path]) -> nn.Module:
    """WebSSL, which transformers loads as a DINOv2; never remote code."""
    model, report = require("transformers").Dinov2Model.from_pretrained(
        files[0].parent, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    _account_for(report)
    return PoolerOutput(model)


class LatentPatches(nn.Module):
    """The mean of a VAE's latent, averaged over patches of 4 x 4 and flattened."""

    vae: Any

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, images: Images) -> Features:
        mean = self.vae.encode(images).latent_dist.mean
        return F.avg_pool2d(mean.float(), 4).flatten(1)


def vae_features(entry: PanelEntry, files: list[Path]) -> nn.Module:
    """The encoder half of diffusers' AutoencoderKL."""
    vae, report = require("diffusers").AutoencoderKL.from_pretrained(
        files[0].parent, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    _account_for(report)
    vae.decoder = None
    return LatentPatches(vae.float())


def _account_for(report: Mapping[str, Any]) -> None:
    """Raise RuntimeError when a checkpoint and its model disagree: these loaders only warn."""
    wrong = {kind: sorted(map(str, report.get(kind, ()))) for kind in ("missing_keys", "unexpected_keys")}
    wrong["mismatched_keys"] = sorted(str(key) for key in report.get("mismatched_keys", ()))
    if any(wrong.values()):
        raise RuntimeError("; ".join(f"{kind.replace('_', ' ')}: {keys}" for kind, keys in wrong.items() if keys))


def inception_features(entry: PanelEntry, files: list[Path]) -> nn.Module:
    """FID's Inception-v3 up to its last average pool, or to its logits without their bias, of torch-fidelity's blocks.

    torch-fidelity's own extractor takes bytes, so no gradient can reach the image, and unpickles its weights; the same
    blocks in the same order take any numbers and are given the verified tensors.
    """
    blocks = require("torch_fidelity.feature_extractor_inceptionv3")
    conv, a, c = blocks.BasicConv2d, blocks.InceptionA, blocks.InceptionC
    network = nn.Sequential()
    for name, block in {
        "Conv2d_1a_3x3": conv(3, 32, kernel_size=3, stride=2),
        "Conv2d_2a_3x3": conv(32, 32, kernel_size=3),
        "Conv2d_2b_3x3": conv(32, 64, kernel_size=3, padding=1),
        "MaxPool_1": nn.MaxPool2d(3, stride=2),
        "Conv2d_3b_1x1": conv(64, 80, kernel_size=1),
        "Conv2d_4a_3x3": conv(80, 192, kernel_size=3),
        "MaxPool_2": nn.MaxPool2d(3, stride=2),
        "Mixed_5b": a(192, pool_features=32),
        "Mixed_5c": a(256, pool_features=64),
        "Mixed_5d": a(288, pool_features=64),
        "Mixed_6a": blocks.InceptionB(288),
        "Mixed_6b": c(768, channels_7x7=128),
        "Mixed_6c": c(768, channels_7x7=160),
        "Mixed_6d": c(768, channels_7x7=160),
        "Mixed_6e": c(768, channels_7x7=192),
        "Mixed_7a": blocks.InceptionD(768),
        "Mixed_7b": blocks.InceptionE_1(1280),
        "Mixed_7c": blocks.InceptionE_2(2048),
        "AvgPool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
    }.items():
        network.add_module(name, block)
    state = read_state(files[0])
    if entry.pooling == "logits":
        network.add_module("fc", nn.Linear(2048, entry.dim, bias=False))
        state.pop("fc.bias")
    else:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    network.load_state_dict(state)
    return network


class DreamSim(nn.Module):
    """DINO's last class token before its normalisation, beside the projected embeddings of CLIP and OpenCLIP.

    Not centred and not divided by its norm, as dreamsim's distance does with it: features are never normalised.
    """

    dino: Any
    clip_projection: Tensor
    open_clip_projection: Tensor
    dino_mean: Tensor
    dino_std: Tensor
    clip_mean: Tensor
    clip_std: Tensor

    def __init__(self, parts: list[nn.Module], projections: list[Tensor]):
        super().__init__()
        self.dino, self.clip, self.open_clip = parts
        for name, projection in zip(("clip_projection", "open_clip_projection"), projections, strict=True):
            self.register_buffer(name, projection)
        for kind, (mean, std) in {"dino": IMAGENET, "clip": CLIP}.items():
            self.register_buffer(f"{kind}_mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
            self.register_buffer(f"{kind}_std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def forward(self, images: Images) -> Features:
        tokens = self.dino.prepare_tokens((images - self.dino_mean) / self.dino_std)
        for block in self.dino.blocks:
            tokens = block(tokens)
        images = (images - self.clip_mean) / self.clip_std
        clips = self.clip(images) @ self.clip_projection, self.open_clip(images) @ self.open_clip_projection
        return torch.cat([tokens[:, 0], *clips], 1)


def dreamsim_features(entry: PanelEntry, files: list[Path]) -> nn.Module:
    """The DreamSim ensemble, its low-rank updates merged into the weights.

    `files`: the weights of DINO ViT-B/16, and the ensemble's release, a zip with the two CLIPs and the updates.
    dreamsim itself would run DINO's code from the network; the same network is in the package that is installed.
    """
    vit = require("dreamsim.feature_extraction.vision_transformer").VisionTransformer
    quick_gelu = require("dreamsim.feature_extraction.load_clip_as_dino").QuickGELU
    sizes = {"patch_size": 16, "qkv_bias": True} | dict(entry.arguments)
    with zipfile.ZipFile(files[1]) as release:
        states = [read_state(files[0])]
        for name in ("clip_vitb16_pretrain.pth.tar", "open_clip_vitb16_pretrain.pth.tar"):
            states.append(_unzipped(release, name)["state_dict"])
        settings = json.loads(release.read("ensemble_lora/adapter_config.json"))
        safe = "ensemble_lora/adapter_model.safetensors"
        adapter = _unzipped(release, safe if safe in release.namelist() else "ensemble_lora/adapter_model.bin")
    projections = [state.pop("proj") for state in states[1:]]
    updates = _low_rank_updates(adapter, settings["lora_alpha"] / settings["r"])
    parts = []
    for index, state in enumerate(states):
        part = vit(**sizes, norm_layer=partial(nn.LayerNorm, eps=1e-5 if index else 1e-6))
        if index:
            part.pos_drop = nn.LayerNorm(part.embed_dim, eps=1e-5)  # CLIP normalises the tokens before the first block
        if index == 1:
            for block in part.blocks:
                block.mlp.act = quick_gelu()
        part.load_state_dict(state)
        for key, update in updates.pop(index, {}).items():
            part.get_parameter(key).data += update
        parts.append(part)
    if updates:
        raise RuntimeError(f"the ensemble has three networks, numbered from 0; there are updates of {sorted(updates)}")
    return DreamSim(parts, projections)


def _low_rank_updates(adapter: dict[str, Tensor], scale: float) -> dict[int, dict[str, Tensor]]:
    """{network: {parameter: scale * B A}} from an adapter of peft. Raises RuntimeError for any key but these pairs."""
    updates: dict[int, dict[str, Tensor]] = {}
    for key in [key for key in adapter if ".lora_A." in key]:
        a, b = adapter.pop(key), adapter.pop(key.replace(".lora_A.", ".lora_B."))
        index, _, parameter = key.removeprefix("base_model.model.extractor_list.").partition(".model.")
        updates.setdefault(int(index), {})[parameter.replace(".lora_A.", ".")] = scale * b @ a
    if adapter:
        raise RuntimeError(f"the low-rank updates have keys that nothing here uses: {sorted(adapter)}")
    return updates


def _unzipped(release: zipfile.ZipFile, name: str) -> dict[str, Any]:
    """The tensors of one member of a zip."""
    return read_state(Path(str(release.filename), name), release.read(name))


FAMILIES: dict[str, Callable[[PanelEntry, list[Path]], nn.Module]] = {
    "timm": timm_features,
    "dinov2": dinov2_features,
    "transformers": transformers_features,
    "inception": inception_features,
    "vae": vae_features,
    "dreamsim": dreamsim_features,
}
