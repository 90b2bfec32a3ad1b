"""The panel made small: each entry with its own model shrunk and random weights that are written here.

Everything else of an entry is the real one: its family, model id, pooling, normalisation, file names and key names.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from irdm.encoders.panel import PANEL, entries

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TIMM = {
    "convnext": (64, 64, {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}),
    "mae": (32, 32, VIT),
    "clip": (28, 32, VIT),
    "dinov3_l": (32, 32, VIT),
    "pe_core_l": (28, 32, VIT),
    "siglip2": (32, 32, VIT),
    "aimv2_huge": (28, 32, VIT),
    "dinov2": (28, 32, VIT),
    "siglip_v1": (28, 32, VIT),
    "dinov2_224": (28, 32, VIT),
    "clip_336": (28, 768, VIT),
    "cradiov3_l": (32, 96, VIT | {"pos_embed_grid_size": (8, 8)}),
}  # name: (resolution, dim, arguments)


def tiny(name: str):
    """The entry, shrunk; nothing is written."""
    (entry,) = entries([name])
    source = replace(entry.weights, files=tuple(replace(file, sha256=None) for file in entry.weights.files))
    if name in TIMM:
        resolution, dim, arguments = TIMM[name]
        if "img_size" in entry.arguments:
            arguments = arguments | {"img_size": resolution}
        return replace(entry, weights=source, resolution=resolution, dim=dim, arguments=arguments)
    resolution, dim, arguments = {
        "inception": (75, 2048, {}),
        "inception_logits": (75, 1008, {}),
        "webssl_dino_1b": (28, 32, {}),
        "flux_vae": (64, 64, {}),
        "dreamsim": (32, 32 + 2 * 16, {"embed_dim": 32, "depth": 12, "num_heads": 2, "img_size": [32]}),
    }[name]
    return replace(entry, weights=source, resolution=resolution, dim=dim, arguments=arguments)


def write_tiny(name: str, folder: Path):
    """The entry, shrunk, with its weights in `folder/name` and their sha256 recorded by `fetch`."""
    entry = tiny(name)
    place = folder / (entry.shares or name)
    if place.exists():  # written for the encoder that it shares them with
        return entry
    place.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(name) + 1000 * len(entry.model))
        {
            "timm": _timm,
            "dinov2": _timm,
            "inception": _inception,
            "transformers": _webssl,
            "vae": _vae,
            "dreamsim": _dreamsim,
        }[entry.family](entry, place)
    entry.located(folder).fetch()
    return entry


def shake(module: nn.Module) -> nn.Module:
    """Random values where initialisation leaves zeros, ones or 1e-5, so that every parameter matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.eval()


def timm_model(entry, **arguments):
    """The shrunk model as timm builds it, random."""
    import timm

    return timm.create_model(entry.model, **{**entry.arguments, **arguments})


def _timm(entry, place: Path):
    if entry.name == "clip":  # as published: OpenAI's names, both towers, and another grid of positions
        state = openai_names(shake(timm_model(entry, img_size=56)).state_dict())
        torch.save(state | {"logit_scale": torch.ones(()), "token_embedding.weight": torch.ones(3, 4)}, place / FILE)
    elif entry.model.endswith("dinov2.lvd142m"):  # as published: a larger grid of positions
        save_file(shake(timm_model(entry, img_size=56)).state_dict(), place / "model.safetensors")
    else:
        save_file(shake(timm_model(entry)).state_dict(), place / "model.safetensors")


FILE = PANEL["clip"].weights.files[0].name


def openai_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A timm CLIP's tensors under the names that OpenAI gave them."""
    renamed = {"visual.proj": state["head.weight"].T.contiguous()}
    for key, value in state.items():
        if key.startswith("head."):
            continue
        for timm_name, openai_name in (
            ("patch_embed.proj", "conv1"),
            ("pos_embed", "positional_embedding"),
            ("cls_token", "class_embedding"),
            ("norm_pre", "ln_pre"),
            ("blocks.", "transformer.resblocks."),
            ("attn.qkv.", "attn.in_proj_"),
            ("attn.proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            (".norm1", ".ln_1"),
            (".norm2", ".ln_2"),
        ):
            key = key.replace(timm_name, openai_name)
        key = "ln_post." + key.removeprefix("norm.") if key.startswith("norm.") else key
        if key in ("class_embedding", "positional_embedding"):
            value = value[0, 0] if key == "class_embedding" else value[0]
        renamed["visual." + key] = value.clone()
    return renamed


def _inception(entry, place: Path):
    from torch_fidelity import feature_extractor_inceptionv3 as library

    with (
        mock.patch.object(library, "load_state_dict_from_url"),
        mock.patch.object(library.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        model = library.FeatureExtractorInceptionV3("inception", ["2048"])
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # else the picture is lost after ninety layers
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0, 0.3)
            module.running_var += 0.1 * torch.rand_like(module.running_var)
    torch.save(model.state_dict(), place / entry.weights.files[0].name)


def _webssl(entry, place: Path):
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}
    shake(Dinov2Model(Dinov2Config(**sizes, use_swiglu_ffn=True))).save_pretrained(place)


def _vae(entry, place: Path):
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (4, 4, 4, 8), "norm_num_groups": 2, "layers_per_block": 1, "latent_channels": 16}
    vae = AutoencoderKL(**blocks, **sizes, use_quant_conv=False, use_post_quant_conv=False)
    shake(vae).save_pretrained(place / "vae")


def dreamsim_vit(index: int, arguments: dict) -> nn.Module:
    """One of DreamSim's three networks, as the package defines it, random."""
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    sizes = {"patch_size": 16, "qkv_bias": True} | arguments
    vit = VisionTransformer(**sizes, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    if index:
        vit.pos_drop = nn.LayerNorm(vit.embed_dim)
    return shake(vit)


def _dreamsim(entry, place: Path):
    vits = [dreamsim_vit(index, dict(entry.arguments)) for index in range(3)]
    width, depth, rank = vits[0].embed_dim, len(vits[0].blocks), 4
    torch.save(vits[0].state_dict(), place / "dino_vitbase16_pretrain.pth")
    adapter = {}
    for index in range(3):
        for block in range(depth):
            key = f"base_model.model.extractor_list.{index}.model.blocks.{block}.attn.qkv.lora_"
            adapter[key + "A.weight"] = 0.3 * torch.randn(rank, width)
            adapter[key + "B.weight"] = 0.3 * torch.randn(3 * width, rank)
    settings = {"r": rank, "lora_alpha": 2.0, "lora_dropout": 0.0, "bias": "none", "target_modules": ["qkv"]}
    with zipfile.ZipFile(place / "dreamsim_ensemble_checkpoint.zip", "w") as release:
        for name, vit in zip(("clip_vitb16", "open_clip_vitb16"), vits[1:], strict=True):
            buffer = io.BytesIO()
            torch.save({"state_dict": vit.state_dict() | {"proj": torch.randn(width, 16)}}, buffer)
            release.writestr(f"{name}_pretrain.pth.tar", buffer.getvalue())
        release.writestr("ensemble_lora/adapter_config.json", json.dumps(settings | {"peft_type": "LORA"}))
        release.writestr("ensemble_lora/adapter_model.safetensors", save(adapter))
