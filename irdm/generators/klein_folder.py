"""The diffusers folder of FLUX.2 [klein]: looked at before anything is loaded, and read part by part."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import irdm.world
from irdm.files import cache_dir, replaced_folder
from irdm.generators.klein_tiny import cached_tiny
from irdm.generators.klein_weights import read_transformer
from irdm.generators.weights import check_file
from irdm.text.contexts import hash_file, hash_files
from irdm.world import signature

if TYPE_CHECKING:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

TINY, WORLD = Path("tiny"), Path("world")
CARD = "world.json"  # of a teacher of the captioned world
SHIPPED = Path(irdm.world.__file__).parent / "teacher"
PIPELINE = "Flux2KleinPipeline"
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
FETCH = "Fetch it whole: hf download black-forest-labs/FLUX.2-klein-4B --local-dir DIR, and give --generator.model DIR."
INSTALL = "pip install -c constraints.txt '.[klein]'"
PATCH = 2  # latents along a side of a token
PUBLISHED: dict[str, dict[str, Any]] = {
    "transformer": {
        "in_channels": 128,
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "axes_dims_rope": [32, 32, 32, 32],
        "guidance_embeds": False,
    },
    "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 32},
    "text_encoder": {
        "model_type": "qwen3",
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "tokenizer": {},
    "scheduler": {},
}
"""The sizes of klein 4B."""


@dataclass(frozen=True)
class KleinFolder:
    """A folder that holds a distilled klein, all parts of it there and of sizes that fit each other."""

    path: Path
    transformer: Mapping[str, Any]
    """The configuration of the transformer."""
    vae: Mapping[str, Any]
    """The configuration of the VAE."""
    base: Path | None = None
    """A file whose transformer stands in place of the folder's."""

    @property
    def is_world(self) -> bool:
        """Whether it is a teacher of the captioned world, which knows the words of that alone."""
        return (self.path / CARD).is_file()

    @property
    def pixels(self) -> int:
        """Along a side of a token."""
        return PATCH * 2 ** (len(self.vae["block_out_channels"]) - 1)

    def noise_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Of one image: the channels of a token, and tokens down and across. Raises ValueError for other sizes."""
        channels, height, width = image_shape
        if channels != 3:
            raise ValueError(
                f"klein draws images in colour, and these have {channels} channel(s). Set --data.channels 3."
            )
        if height % self.pixels or width % self.pixels:
            raise ValueError(
                f"The images are {width}x{height}; klein draws multiples of {self.pixels} pixels a side. Set "
                f"--data.size to one, such as {max(self.pixels, round(height / self.pixels) * self.pixels)}."
            )
        return self.transformer["in_channels"], height // self.pixels, width // self.pixels

    @cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of the weights and configuration of each network, or of the file that stands in its place."""
        found = {part: hash_files(self.path / part) for part in ("transformer", "vae", "text_encoder")}
        return found | ({"transformer": hash_file(self.base)} if self.base else {})

    def load_transformer(self, dtype: torch.dtype) -> Flux2Transformer2DModel:
        """The transformer; on the meta device, when that is torch's default, its shapes alone."""
        kind = self._transformer_class()
        if self.base is None or torch.empty(0).is_meta:
            return self._load(kind, "transformer", dtype)
        with torch.device("meta"):
            network = self._load(kind, "transformer", dtype)
        state = read_transformer(self.base, {name: tensor.shape for name, tensor in network.state_dict().items()})
        network.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
        return network

    def load_vae(self, dtype: torch.dtype) -> AutoencoderKLFlux2:
        """The VAE, as `load_transformer`."""
        from diffusers import AutoencoderKLFlux2

        return self._load(AutoencoderKLFlux2, "vae", dtype)

    @property
    def tells_pictures(self) -> bool:
        """Whether its transformer is one of irdm's own, which other programs do not know."""
        return self.transformer.get("_class_name") == "PictureTransformer"

    def _transformer_class(self) -> type[Flux2Transformer2DModel]:
        from diffusers import Flux2Transformer2DModel

        if not self.tells_pictures:
            return Flux2Transformer2DModel
        from irdm.generators.klein_picture import PictureTransformer

        return PictureTransformer

    def _load(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        path = self.path / part
        if torch.empty(0).is_meta:
            return nn.Module.to(kind.from_config(kind.load_config(path)), dtype)
        try:
            with warnings.catch_warnings():  # of the name of an argument, which changes between versions
                warnings.simplefilter("ignore", FutureWarning)
                model, info = kind.from_pretrained(
                    path, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} cannot be loaded ({str(error).splitlines()[0]}). {FETCH}") from error
        if odd := [f"{why.replace('_', ' ')} {sorted(map(str, names))[:3]}" for why, names in info.items() if names]:
            raise ValueError(
                f"{path} does not hold the weights that its config.json asks for: {'; '.join(odd)}. {FETCH}"
            )
        return model


def require() -> None:
    """Raises ValueError when packages of the extra `klein` are missing."""
    if missing := [name for name in ("transformers", "diffusers", "peft", "accelerate") if find_spec(name) is None]:
        raise ValueError(f"klein needs the packages {', '.join(missing)}: {INSTALL}")


def open_folder(model: Path, base: Path | None = None) -> KleinFolder:
    """The folder of klein, or of one of the names `tiny` and `world`; `base`, a file with another transformer.

    Raises ValueError when there is none, it is of another model, of the base model or of another world, a part is
    missing, or the parts do not fit each other.
    """
    require()
    if base is not None:
        check_file(base, None)
    path = cached_tiny() if model == TINY else SHIPPED if model == WORLD else model
    if not path.is_dir():
        raise ValueError(f"--generator.model is {model}, and there is no such folder. {FETCH}")
    index = _json(path / "model_index.json")
    if (kind := index.get("_class_name")) != PIPELINE:
        raise ValueError(f"{path} is the folder of a {kind}, expected a {PIPELINE}. {FETCH}")
    if index.get("is_distilled") is not True:
        raise ValueError(
            f"{path} is the base model of klein (is_distilled is {index.get('is_distilled')}), which needs some 50 "
            "steps and guidance: its one step is far from an image. Give the distilled one, FLUX.2-klein-4B, not "
            "FLUX.2-klein-base-4B."
        )
    if missing := [part for part in PARTS if not (path / part).is_dir()]:
        raise ValueError(f"{path} lacks {', '.join(missing)}. {FETCH}")
    folder = KleinFolder(path, _json(path / "transformer" / "config.json"), _json(path / "vae" / "config.json"), base)
    text = _json(path / "text_encoder" / "config.json")
    sizes = {
        "channels of a token": (folder.transformer["in_channels"], PATCH**2 * folder.vae["latent_channels"]),
        "numbers of a text token": (folder.transformer["joint_attention_dim"], 3 * text.get("hidden_size", 0)),
    }
    for what, (wanted, found) in sizes.items():
        if wanted != found:
            raise ValueError(
                f"The parts of {path} are of different models: the transformer takes {wanted} {what}, and gets {found}."
                f" {FETCH}"
            )
    if folder.is_world and (found := _json(path / CARD).get("world")) != signature():
        raise ValueError(
            f"{path} is the teacher of another world: it learned {found}, this is {signature()}, with other shapes, "
            "captions or ones held out. Train one of this world: irdm train world-teacher."
        )
    return folder


def published_sizes() -> Path:
    """A folder with the sizes of klein 4B alone, in irdm's cache: what a run will cost is known without its weights."""
    folder = cache_dir() / "klein-4b-sizes-1"
    if not folder.is_dir():
        with replaced_folder(folder) as partial:
            for part, sizes in PUBLISHED.items():
                (partial / part).mkdir()
                (partial / part / "config.json").write_text(json.dumps(sizes))
            (partial / "model_index.json").write_text(json.dumps({"_class_name": PIPELINE, "is_distilled": True}))
    return folder


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {FETCH}") from None
