"""The panel: fourteen pretrained encoders, ten that train and four held out, as one table (arXiv 2607.02375, Table 5).
Beside it those that published metrics are defined with, where the panel has them not, or in another form.

Where `revision` or `sha256` is None, no published value was at hand when the table was written: `irdm encoders fetch`
records what it gets the first time, and every load is compared with that record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from irdm.config import Config, free
from irdm.data.base import Dataset
from irdm.encoders.base import Battery
from irdm.encoders.families import BYTES, CLIP, HALF, IMAGENET, NONE, PanelEntry, load_encoder
from irdm.encoders.weights import WeightFile, WeightSource
from irdm.files import hash_of

DINO = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
DREAMSIM = (
    "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/dreamsim_ensemble_checkpoint.zip"
)
FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
CODE_VERSION = 1  # Part of the fingerprint: raise it when the code changes an encoder's numbers.
SAFE = WeightFile("model.safetensors")


def _timm(
    name: str,
    model: str,
    resolution: int,
    dim: int,
    pooling: str,
    normalisation: tuple,
    licence: str,
    gigabytes: float,
    *,
    held_out: bool = False,
    revision: str | None = None,
    file: WeightFile = SAFE,
    sized: bool = True,
    repo: str | None = None,
) -> PanelEntry:
    """A row of the timm family; `sized` models are built for one resolution."""
    return PanelEntry(
        name=name,
        family="timm",
        model=model,
        resolution=resolution,
        dim=dim,
        pooling=pooling,
        normalisation=normalisation,
        held_out=held_out,
        weights=WeightSource((file,), gigabytes, licence, repo=repo or f"timm/{model}", revision=revision),
        arguments={"img_size": resolution} if sized else {},
    )


_ROWS = (
    PanelEntry(
        name="inception",
        family="inception",
        model="pt_inception-2015-12-05-6726825d",
        resolution=299,
        dim=2048,
        pooling="spatial mean",
        normalisation=BYTES,
        resize="tf1",
        precision="float32",  # bfloat16 inflates its FID by more than half
        held_out=False,
        weights=WeightSource(
            (
                WeightFile(
                    "pt_inception-2015-12-05-6726825d.pth",
                    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                    url=FID,
                ),
            ),
            gigabytes=0.096,
            licence="Apache-2.0",
        ),
    ),
    _timm(
        *("convnext", "convnextv2_base.fcmae_ft_in22k_in1k", 224, 1024, "spatial mean", IMAGENET),
        *("CC-BY-NC-4.0", 0.355),
        revision="fd9ecee0e451efa79b60d20e9cf7caecd42b00d7",
        sized=False,
    ),
    _timm(
        *("mae", "vit_large_patch16_224.mae", 224, 1024, "patch mean", IMAGENET),
        *("CC-BY-NC-4.0", 1.21),
        revision="4b308043edaf05585fd5762ea4fb78cf75d9ac4c",
        file=WeightFile("model.safetensors", sha256="d58a1a547a07c3c41917c23069dcaadab6f469a8cf793a3cba5fe404c344ab68"),
    ),
    _timm(
        *("clip", "vit_large_patch14_clip_224.openai", 256, 1024, "class token", CLIP),
        *("Apache-2.0", 1.71),
        revision="46ce2a809729f52bd4ecbcb20e97a78d81ff0e45",
        file=WeightFile("pytorch_model.bin"),  # this revision has no safetensors; it holds the text tower too
    ),
    _timm(
        # timm itself would average the patches of this one.
        *("dinov3_l", "vit_large_patch16_dinov3.lvd1689m", 224, 1024, "class token", IMAGENET),
        *("DINOv3 licence", 1.21),
    ),
    _timm(
        *("pe_core_l", "vit_pe_core_large_patch14_336.fb", 224, 1024, "attention pool", HALF),
        *("Apache-2.0", 1.27),
    ),
    _timm(
        *("siglip2", "vit_so400m_patch16_siglip_256.v2_webli", 224, 1152, "attention pool", HALF),
        *("Apache-2.0", 1.71),
    ),
    _timm(
        *("aimv2_huge", "aimv2_huge_patch14_224.apple_pt", 224, 1536, "patch mean", CLIP),
        *("Apple ASCL", 2.72),
    ),
    PanelEntry(
        name="webssl_dino_1b",
        family="transformers",
        model="webssl-dino1b-full2b-224",
        resolution=224,
        dim=1536,
        pooling="pooler output",
        normalisation=IMAGENET,
        held_out=False,
        weights=WeightSource(
            (WeightFile("config.json"), SAFE),
            gigabytes=4.5,
            licence="CC-BY-NC-4.0",
            repo="facebook/webssl-dino1b-full2b-224",
        ),
    ),
    PanelEntry(
        name="dreamsim",
        family="dreamsim",
        model="DreamSim ensemble (DINO, CLIP, OpenCLIP)",
        resolution=224,
        dim=1792,
        pooling="embedding",
        normalisation=NONE,  # each of the three networks has its own, inside
        held_out=False,
        weights=WeightSource(
            (
                WeightFile("dino_vitbase16_pretrain.pth", url=DINO),
                WeightFile("dreamsim_ensemble_checkpoint.zip", url=DREAMSIM),
            ),
            gigabytes=1.4,  # estimated from the sizes of the networks
            licence="MIT, Apache-2.0 (DINO)",
        ),
        arguments={"embed_dim": 768, "depth": 12, "num_heads": 12},
    ),
    _timm(
        *("dinov2", "vit_large_patch14_dinov2.lvd142m", 256, 1024, "class token", IMAGENET),
        *("Apache-2.0", 1.22),
        held_out=True,
        revision="7eb792a1b3aabe5d55f3da6ff9e2e084744e25f9",
    ),
    _timm(
        *("siglip_v1", "vit_so400m_patch14_siglip_384.webli", 384, 1152, "attention pool", HALF),
        *("Apache-2.0", 1.71),
        held_out=True,
    ),
    _timm(
        # The variant that resizes position embeddings as nvidia/C-RADIOv3-L does; the plain one is exact at 512 only.
        *("cradiov3_l", "naflexvit_large_patch16_radio_v3.c_radio", 256, 3072, "summary tokens", CLIP),
        *("NVIDIA Open Model", 1.28),
        held_out=True,
        sized=False,
    ),
    PanelEntry(
        name="flux_vae",
        family="vae",
        model="FLUX.1-schnell, vae",
        resolution=256,
        dim=1024,
        pooling="patch mean",
        normalisation=HALF,
        resize="bilinear",
        held_out=True,
        weights=WeightSource(
            (
                WeightFile("vae/config.json"),
                WeightFile(
                    "vae/diffusion_pytorch_model.safetensors",
                    sha256="f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3",
                ),
            ),
            gigabytes=0.168,
            licence="Apache-2.0",
            repo="black-forest-labs/FLUX.1-schnell",
            revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
            gated=True,  # asks for an account; the same bytes lie in many public copies, and the sha256 tells
        ),
    ),
)
PANEL: dict[str, PanelEntry] = {row.name: row for row in _ROWS}
METRICS_ONLY: dict[str, PanelEntry] = {
    # For the Inception score: the logits of the same network.
    "inception_logits": replace(
        PANEL["inception"],
        name="inception_logits",
        dim=1008,
        pooling="logits",
        held_out=True,
        shares="inception",
    ),
    # For FD-DINOv2, as dgm-eval computes it (Stein et al., 2023).
    "dinov2_224": replace(
        PANEL["dinov2"],
        name="dinov2_224",
        family="dinov2",
        resolution=224,
        resize="pillow",
        precision="float32",
        arguments={"img_size": 224},
        shares="dinov2",
    ),
    # For CMMD (Jayasumana et al., 2024).
    "clip_336": replace(
        _timm(
            *("clip_336", "vit_large_patch14_clip_quickgelu_336.openai", 336, 768, "projection", CLIP),
            *("MIT", 1.22),
            held_out=True,
            repo="timm/vit_large_patch14_clip_336.openai",
        ),
        resize="pillow square",
        precision="float32",
    ),
}
"""Encoders of published metrics. They judge and never train: the last two round images to 8 bits on the way."""
LITERATURE = ("inception", "inception_logits", "dinov2_224", "clip_336")
"""What FID, KID, the Inception score, FD-DINOv2 and CMMD need."""
GROUPS: dict[str, tuple[str, ...]] = {"panel": tuple(PANEL), "literature": LITERATURE}
"""Several encoders by one word."""


def expanded(names: Sequence[str], groups: Mapping[str, Sequence[str]] = GROUPS) -> tuple[str, ...]:
    """The names, with the encoders of a group in place of its word, each once."""
    return tuple(dict.fromkeys(name for word in names for name in groups.get(word, (word,))))


def entries(names: Sequence[str]) -> list[PanelEntry]:
    """Rows of the panel, or of `METRICS_ONLY`, by name. Raises ValueError naming those that are in neither."""
    known = PANEL | METRICS_ONLY
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"The panel has no encoder {unknown}; choose from {list(known)}.")
    return [known[name] for name in names]


def fingerprint(entry: PanelEntry, folder: Path | None = None) -> str:
    """sha256 of all that decides an encoder's features: the row of the table and the sha256 of each weight file.

    Features stored under it may be read again. Raises ValueError when a file has no known sha256 yet.
    """
    weights = entry.located(folder)
    digests = weights.expected()
    if unknown := [file.name for file in entry.weights.files if file.name not in digests]:
        raise ValueError(f"The sha256 of {unknown} of the encoder '{entry.name}' is not known yet: {weights.mend}.")
    row = {key: value for key, value in asdict(entry).items() if key not in ("weights", "held_out", "shares")}
    return hash_of([row, sorted(digests.items()), CODE_VERSION])


class PanelBatteryConfig(Config):
    """Pretrained encoders for colour images: ten that train the generator and four that only judge it."""

    kind: Literal["panel"] = "panel"
    """Name of this kind of battery."""
    held_in: tuple[str, ...] = tuple(row.name for row in _ROWS if not row.held_out)
    """Encoders that train the generator."""
    held_out: tuple[str, ...] = tuple(row.name for row in _ROWS if row.held_out)
    """Encoders that only judge it."""
    weights: Path | None = free(None)
    """Folder of the weights, FOLDER/<encoder>/<file>; unset means $IRDM_WEIGHTS, else irdm's cache."""
    compile: bool = free(True)
    """Compile each encoder with torch.compile on CUDA; slower to start, faster after."""
    offload: bool = free(False)
    """Keep encoders in main memory, and bring one after another to the GPU for each micro-batch, uncompiled: for cards
    that do not hold them all."""

    @field_validator("held_in", "held_out")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(entry.name for entry in entries(names))

    @field_validator("held_in")
    @classmethod
    def _can_train(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if judges := [name for name in names if name in METRICS_ONLY]:
            raise ValueError(f"{', '.join(judges)} can judge and never train; name it in held_out.")
        return names

    @property
    def names(self) -> tuple[str, ...]:
        """Every encoder asked for."""
        return self.held_in + self.held_out

    def some(self, names: Sequence[str], weights: Path | None = None) -> PanelBatteryConfig:
        """Some of these encoders, each on the side that it is on. Raises ValueError for one that is not among them."""
        if unknown := [name for name in names if name not in self.names]:
            raise ValueError(f"There is no encoder {', '.join(unknown)}; choose from {', '.join(self.names)}.")
        held_in, held_out = (tuple(n for n in side if n in names) for side in (self.held_in, self.held_out))
        weights = weights or self.weights
        return self.model_copy(update={"held_in": held_in, "held_out": held_out, "weights": weights})

    def fit(
        self,
        dataset: Dataset | None = None,
        *,
        cache_dir: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Battery:
        """The battery, loaded: nothing is fitted to the dataset or cached. Exactly the encoders asked for.

        Raises ValueError for images that are not in colour, or naming every encoder that cannot be loaded and why.
        """
        if dataset is not None and dataset.image_shape[0] != 3:
            raise ValueError(
                f"The panel looks at colour images; {dataset.name} has {dataset.image_shape[0]} channel(s). "
                "Use the local battery: --battery.kind local"
            )
        say = progress or (lambda line: None)
        encoders, problems = {}, []
        for entry in entries(self.names):
            try:
                encoders[entry.name] = load_encoder(entry, self.weights, self.compile, self.offload)
                say(f"loaded the encoder '{entry.name}'")
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError(
                f"{len(problems)} of the {len(self.names)} encoders cannot be loaded, and a smaller panel would give "
                "other numbers:\n  " + "\n  ".join(problems)
            )
        return Battery(encoders, self.held_in, self.held_out)
