"""FLUX.2 [klein] as a one-step generator: x = z - v(z, t = 1), and the VAE behind it.

Transformer and VAE are diffusers' own. One Euler step from sigma 1 to 0 is what `Flux2KleinPipeline` does with
`num_inference_steps=1`, to the bit, but with a gradient. Text enters as contexts (`irdm.text.contexts`).

Letters: n images of h x w pixels; k channels of a token, r x q tokens; l text tokens of d numbers; b bytes of text.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from irdm.conditions import Conditions, PromptSpec, Spec, to_texts
from irdm.config import Config, free
from irdm.generators.base import Generator
from irdm.generators.klein_folder import TINY, KleinFolder, open_folder
from irdm.generators.klein_lora import add_lora
from irdm.generators.klein_weights import load_student
from irdm.generators.pmf import to_unit_range
from irdm.generators.weights import check_file
from irdm.text.contexts import DTYPES, ContextEncoder, ContextStore
from irdm.world import read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import Flux2Transformer2DModel

KEPT_BYTES = 2**31  # contexts made on the fly that are kept for the second pass over a rollout
READING = threading.Lock()  # tokenizers are not for several threads at once, nor is what is kept


class KleinConfig(Config):
    """FLUX.2 [klein] in one step, all weights or low-rank adapters trained. Without a folder, a tiny random one."""

    kind: Literal["klein"] = "klein"
    """Name of this kind of generator."""
    model: Path = TINY
    """The diffusers folder of the distilled model; `tiny` is one of random weights that draws 32x32 pixels, `world` the
    teacher of the captioned world, for --length 12."""
    length: int = Field(default=48, ge=8, le=512)
    """Tokens of text, 12 of them the template's. Part of the model: train, judge and use it at one length."""
    max_cut: float = Field(default=0.01, ge=0, le=1)
    """Share of the captions that may be longer than that, and are cut."""
    contexts: Path | None = free(None)
    """A folder of contexts made by `irdm contexts`; unset reads every caption again, by the text encoder."""
    lora_rank: int | None = Field(default=None, ge=1, le=3072)
    """Rank of adapters (LoRA) on every linear map of the blocks, which alone are trained; unset trains all weights."""
    base: Path | None = None
    """A file whose transformer stands in place of the folder's below adapters, such as a student's: .safetensors, .pth
    or .pt. It must be there whenever the run is opened."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic, and what is frozen; weights that are trained stay float32."""
    gradient_checkpointing: bool = free(False)
    """Recompute each block in the backward pass: the same gradient in less memory and a third more time."""
    compile: bool = False
    """Compile the blocks of the transformer: the same numbers up to the rounding of the precision."""
    weights: Path | None = None
    """A .safetensors, .pth or .pt file to start from: a student's transformer, or adapters of this rank."""
    weights_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The sha256 that file must have; unset takes any."""

    @model_validator(mode="after")
    def _stands(self) -> KleinConfig:
        if self.base and self.lora_rank is None:
            raise ValueError(
                f"base is {self.base}, on which adapters are trained, and lora_rank is unset; set it, or give the file "
                "as weights, which training of all weights starts from."
            )
        return self

    def build(self, image_shape: tuple[int, int, int], spec: Spec) -> Klein:
        """The network as the folder has it, or with `weights`; fresh adapters are random (the caller seeds torch).

        On the meta device shapes only. Raises ValueError when the folder, the images, the conditions, the store of
        contexts or the weights are not those of a distilled klein.
        """
        if not isinstance(spec, PromptSpec):
            raise ValueError(
                "klein draws captions, and these images have none. Give --data.kind captioned, or another generator."
            )
        return Klein(self, open_folder(self.model, self.base), image_shape)

    def encoder(self) -> ContextEncoder:
        """What reads the captions. Raises ValueError when the folder is not that of a distilled klein."""
        return ContextEncoder(open_folder(self.model).path, self.length, DTYPES[self.precision])


class Klein(Generator):
    """`forward(noise [n, k, r, q], captions [n, b]) -> images [n, 3, h, w]` in [0, 1].

    VAE and text encoder are frozen.
    """

    transformer: Flux2Transformer2DModel
    vae: Any  # diffusers types its configuration as a dictionary

    def __init__(self, config: KleinConfig, folder: KleinFolder, image_shape: tuple[int, int, int]):
        super().__init__()
        self.noise_shape, self.max_cut = folder.noise_shape(image_shape), config.max_cut
        self.image_shape = image_shape
        self.folder, self.lora_rank, self.dtype = folder, config.lora_rank, DTYPES[config.precision]
        self.texts = Contexts(ContextEncoder(folder.path, config.length, self.dtype), config.contexts)
        if config.weights and not torch.empty(0).is_meta:  # before what takes a while
            check_file(config.weights, None)
        self.transformer = folder.load_transformer(torch.float32 if config.lora_rank is None else self.dtype)
        self.vae = folder.load_vae(self.dtype).requires_grad_(False).eval()
        if config.lora_rank is not None:
            add_lora(self.transformer, config.lora_rank)
        elif self.dtype != torch.float32:
            keep_masters(self.transformer)
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
            self.vae.enable_gradient_checkpointing()
        if config.compile:
            self.transformer.compile_repeated_blocks(fullgraph=True)
        on_meta = next(self.transformer.parameters()).is_meta
        if config.weights and not on_meta:
            load_student(self, config.weights, config.weights_sha256)
        self.counted = on_meta

    def forward(self, noise: Float[Tensor, "n k r q"], captions: UInt8[Tensor, "n b"]) -> Float[Tensor, "n 3 h w"]:
        """One evaluation of the transformer and one of the decoder."""
        if self.counted:  # only its cost is asked for
            return self.draw(noise, noise.new_zeros(len(noise), self.texts.length, self.texts.width, dtype=self.dtype))
        return self.draw(noise, self.texts(to_texts(captions), noise.device))

    def written(self, conditions: Conditions) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
        """Captions as contexts, read beforehand."""
        return self.draw, {"context": self.texts(conditions.captions(), torch.device("cpu"))}

    def draw(self, noise: Float[Tensor, "n k r q"], context: Float[Tensor, "n l d"]) -> Float[Tensor, "n 3 h w"]:
        """Images from contexts, computed in the precision of these."""
        noise = noise.to(context.dtype)
        rows, columns = noise.shape[2:]
        image_ids, text_ids = positions(rows, columns, context.shape[1], noise.device)
        tokens = noise.flatten(2).mT
        velocity = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=context,
            timestep=noise.new_ones(len(noise)),  # sigma: the model itself multiplies by 1000
            img_ids=image_ids,
            txt_ids=text_ids,
            guidance=None,
            return_dict=False,
        )[0]
        return self.decode((tokens - velocity).mT.reshape(noise.shape))

    def decode(self, latents: Float[Tensor, "n k r q"]) -> Float[Tensor, "n 3 h w"]:
        """Images of latents, float32; a pixel out of range keeps the part of its gradient that leads back in."""
        std = (self.vae.bn.running_var + self.vae.config.batch_norm_eps).sqrt()
        latents = latents * std.to(latents)[:, None, None] + self.vae.bn.running_mean.to(latents)[:, None, None]
        images = self.vae.decode(F.pixel_shuffle(latents, 2), return_dict=False)[0]
        return to_unit_range(images * 0.5 + 0.5).float()

    @property
    def rounded(self) -> torch.dtype | None:
        """The precision of the blocks, whose masters are float32; adapters compute in float32."""
        return None if self.lora_rank or self.dtype == torch.float32 else self.dtype

    @property
    def bytes_aside(self) -> int:
        """The text encoder, where there is no store of contexts."""
        return 0 if self.texts.store else self.texts.encoder.parameters * self.dtype.itemsize

    @property
    def built_on(self) -> dict[str, str]:
        """VAE, text encoder and, below adapters, the transformer."""
        return {part: found for part, found in self.folder.hashes.items() if part != "transformer" or self.lora_rank}

    def teacher(self, steps: int) -> Generator:
        """Klein as the folder has it, by diffusers' sampler."""
        from irdm.generators.klein_teacher import Stepwise, Teacher

        precision = str(self.dtype).removeprefix("torch.")
        teacher = Teacher(
            self.folder.path, self.image_shape, length=self.texts.length, steps=steps, precision=precision,
            device=str(next(self.vae.parameters()).device),
        )  # fmt: skip
        teacher.texts = self.texts  # one text encoder, and each text read once
        return Stepwise(teacher, self.noise_shape)

    def divisible(self) -> list[nn.Module]:
        """Block by block, then the transformer."""
        net = self.transformer
        return [*net.transformer_blocks, *net.single_transformer_blocks, net]

    def look_at(self, conditions: Conditions) -> list[str]:
        """How many captions are cut.

        Raises ValueError when they are too many, when a teacher of the captioned world cannot read one or, of those to
        be trained on, some are not in the store of contexts.
        """
        captions = conditions.captions()
        if self.folder.is_world:
            for caption in dict.fromkeys(captions):
                read(caption)
        if self.training:  # a trained network reads a text that somebody types on the fly
            self.texts.check(captions)
        said = self.texts.encoder.check_cut(captions, self.max_cut)
        return [said] if said else []

    def train(self, mode: bool = True) -> Klein:
        """The VAE stays as it is."""
        super().train(mode)
        self.vae.eval()
        return self


class Contexts:
    """`contexts(captions, device) -> [n, l, d]`: from the store where they are there, else read on the fly."""

    def __init__(self, encoder: ContextEncoder, store: Path | None):
        """Raises ValueError for a store that does not fit the encoder."""
        self.encoder, self.length, self.width = encoder, encoder.length, encoder.width
        self.store = ContextStore(store, encoder) if store else None
        self.kept: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Float[Tensor, "n l d"]:
        """Each distinct caption is read once; the last ones stay for the second pass over a rollout."""
        with READING:
            return self._rows(captions, device).to(device)

    def _rows(self, captions: Sequence[str], device: torch.device | str) -> Tensor:
        stored = [caption for caption in dict.fromkeys(captions) if self.store is not None and caption in self.store]
        rows = dict(zip(stored, self.store.read(stored), strict=True)) if self.store is not None and stored else {}
        if fresh := [
            caption for caption in dict.fromkeys(captions) if caption not in rows and caption not in self.kept
        ]:
            self.kept |= dict(zip(fresh, self.encoder(fresh, device).cpu(), strict=True))
        rows |= {caption: self.kept[caption] for caption in captions if caption not in rows}
        size = self.length * self.width * self.encoder.dtype.itemsize
        while len(self.kept) * size > KEPT_BYTES:
            del self.kept[next(iter(self.kept))]
        return torch.stack([rows[caption] for caption in captions])

    def check(self, captions: Sequence[str]) -> None:
        """Raises ValueError when there is a store and some captions are not in it."""
        if self.store is not None and (missing := self.store.missing(captions)):
            raise ValueError(
                f"{self.store.path} lacks the contexts of {len(missing)} captions, such as {missing[0][:80]!r}. Add "
                "them with `irdm contexts`, or leave --generator.contexts out to read every caption on the fly."
            )


def positions(rows: int, columns: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 (time, row, column, token) of the image tokens [rows * columns, 4] and of the text tokens [length, 4]."""
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    down, across, along = (torch.arange(size, device=device) for size in (rows, columns, length))
    return torch.cartesian_prod(zero, down, across, zero), torch.cartesian_prod(zero, zero, zero, along)


class MasterLinear(nn.Linear):
    """A linear map without bias whose weights are float32 and whose arithmetic is in the type of what it is given."""

    def forward(self, input: Tensor) -> Tensor:
        """W x, W rounded."""
        return F.linear(input, self.weight.to(input.dtype))


class MasterRMSNorm(nn.RMSNorm):
    """Likewise of a normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        """x / rms(x) * weight, the weight rounded."""
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def keep_masters(network: nn.Module) -> None:
    """A float32 network computes in the precision of its inputs, exactly as a copy of it in that precision would.

    Steps that are smaller than half a unit of bfloat16's last place would be lost in weights of that type. Unlike
    autocast, what is drawn is to the bit what the exported weights draw.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert module.bias is None
            module.__class__ = MasterLinear
        elif isinstance(module, nn.RMSNorm):
            module.__class__ = MasterRMSNorm
        else:
            assert not list(module.parameters(recurse=False)), f"{type(module).__name__} has parameters of its own"
