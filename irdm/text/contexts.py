"""What FLUX.2 [klein] reads of a caption: hidden states of Qwen3, made on the fly or once into a store on disk.

A caption is one user turn of the chat template, padded or cut to a fixed length, and the states after layers 9, 18 and
27 stand side by side, a row a token. The network that reads them has no mask: rows of padding are seen too, so the
length is part of a model.

Letters: n captions, l tokens, d numbers a token (three times the width of the text encoder).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from irdm.conditions import to_bytes, to_texts
from irdm.files import (
    claimed,
    hash_of,
    read_manifest,
    read_sealed,
    read_tensors,
    sealed_folder,
    sha256_of,
    write_tensors,
)
from irdm.progress import Meter, Say

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer, Qwen3Model

LAYERS = (9, 18, 27)
KEPT = max(LAYERS) + 1  # layers that are loaded: the states after the last one would be normalised
PART = 512  # captions of a folder of the store: what an interrupted build may lose
BATCH = 32  # captions encoded at once
PLAN, KIND = "plan.json", "store of text contexts"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ContextEncoder:
    """`encoder(captions) -> contexts [n, l, d]`, by the text encoder of a diffusers folder of klein.

    The tokenizer is read at once, the network when a caption is first encoded.
    """

    def __init__(self, folder: Path, length: int, dtype: torch.dtype = torch.bfloat16):
        """Raises ValueError when the folder has no text encoder of this kind."""
        self.folder, self.length, self.dtype = folder, length, dtype
        config = _config(folder / "text_encoder")
        self.width = len(LAYERS) * config["hidden_size"]

    @cached_property
    def tokenizer(self) -> Qwen2Tokenizer:
        """Pads on the right; special tokens are those of the template."""
        from transformers import Qwen2Tokenizer

        return Qwen2Tokenizer.from_pretrained(self.folder / "tokenizer")

    @cached_property
    def network(self) -> Qwen3Model:
        """The layers that are needed, frozen and without a head."""
        from transformers import Qwen3Config, Qwen3Model

        path = self.folder / "text_encoder"
        config = Qwen3Config.from_pretrained(path)
        config.num_hidden_layers, config.layer_types = KEPT, (config.layer_types or [])[:KEPT] or None
        options: Any = {"config": config, "dtype": self.dtype, "output_loading_info": True, "local_files_only": True}
        with _quiet():
            loaded: Any = Qwen3Model.from_pretrained(path, **options)
        network, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{path} lacks {', '.join(missing[:5])}; it is not whole. Fetch it again.")
        return network.eval().requires_grad_(False)

    @property
    def parameters(self) -> int:
        """Numbers of the layers that are needed and of the table of tokens; norms are left out."""
        config = _config(self.folder / "text_encoder")
        heads = config["num_attention_heads"] + config["num_key_value_heads"]
        layer = 2 * heads * config["head_dim"] + 3 * config["intermediate_size"]
        return config["hidden_size"] * (KEPT * layer + config["vocab_size"])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers: weights, tokenizer, template, layers, precision; the length stands beside it."""
        return {
            "encoder": hash_files(self.folder / "text_encoder"),
            "tokenizer": hash_files(self.folder / "tokenizer", ("*.json", "*.txt", "*.jinja")),
            "template": self.rendered("CAPTION"),
            "layers": [*LAYERS],
            "dtype": str(self.dtype).removeprefix("torch."),
            "width": self.width,
        }

    def rendered(self, caption: str) -> str:
        """A caption as the text encoder is given it."""
        turn = [{"role": "user", "content": caption}]
        text = self.tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert isinstance(text, str)
        return text

    def tokens(self, captions: Sequence[str]) -> Int64[Tensor, " n"]:
        """How many tokens each caption takes with its template, before any cut."""
        if not captions:
            return torch.empty(0, dtype=torch.int64)
        ids = self.tokenizer([self.rendered(caption) for caption in captions])["input_ids"]
        return torch.tensor([len(row) for row in ids])

    def check_cut(self, captions: Sequence[str], most: float) -> str | None:
        """How many captions are longer than the length and lose their end, as a line; None when none is.

        Raises ValueError when they are more than the share `most`.
        """
        distinct = list(dict.fromkeys(captions))
        lengths = dict(zip(distinct, self.tokens(distinct).tolist(), strict=True))
        cut = sum(lengths[caption] > self.length for caption in captions)
        if not cut:
            return None
        longest = max(lengths, key=lambda caption: lengths[caption])
        said = (
            f"{cut} of {len(captions)} captions are longer than {self.length} tokens and are cut, together with the "
            f"end of the template; the longest has {lengths[longest]}: {longest[:80]!r}"
        )
        if cut > most * len(captions):
            raise ValueError(
                f"{said}. At most a share of {most:g} may be cut: raise --generator.length, shorten or leave out those "
                "captions, or allow more with --generator.max-cut."
            )
        return said

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Float[Tensor, "n l d"]:
        """Contexts on the device, to which the network moves. A row does not depend on the others."""
        texts = [self.rendered(caption) for caption in captions]
        batch = self.tokenizer(
            texts, return_tensors="pt", padding="max_length", truncation=True, max_length=self.length
        ).to(device)
        network: Any = self.network
        states = network.to(device)(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        return torch.cat([states[layer] for layer in LAYERS], dim=2)


class ContextStore:
    """Contexts of distinct captions on disk, mapped into memory; one of a longer length serves shorter ones.

    A folder of parts, each of some captions and sealed with its hashes, so that a build goes on where it was stopped
    and captions can be added later.
    """

    def __init__(self, path: Path, encoder: ContextEncoder):
        """Raises ValueError when there is no store, or it is of another encoder, template, precision or length."""
        self.path, self.length = path, encoder.length
        mend = "Give another folder, or delete this one and build it again."
        try:
            plan = read_manifest(path / PLAN, mend)
        except FileNotFoundError:
            raise ValueError(f"{path} is no {KIND} (no {PLAN} in it); make one with `irdm contexts`.") from None
        odd = [name for name, value in encoder.identity.items() if plan.get(name) != value]
        if odd:
            lines = [f"  {name}: {plan.get(name)} there, {encoder.identity[name]} now" for name in odd]
            raise ValueError("\n".join([f"{path} is a {KIND} of something else:", *lines, mend]))
        if plan["length"] < encoder.length:
            raise ValueError(
                f"{path} holds contexts of {plan['length']} tokens, and {encoder.length} are asked for. Lower "
                f"--generator.length to {plan['length']}, or build another store."
            )
        self.parts: list[Tensor] = []
        self.places: dict[str, tuple[int, int]] = {}
        for folder in _parts(path):
            record = read_sealed(
                folder, f"Delete {folder} and build the store again: the rest of it stays.", content=False
            )
            if record.get("of") != hash_of(plan):
                raise ValueError(f"{folder} is a part of another store. {mend}")
            tensors, _ = read_tensors(folder / "contexts.safetensors", mend)
            for row, caption in enumerate(to_texts(tensors["captions"])):
                self.places[caption] = len(self.parts), row
            self.parts.append(tensors["contexts"])

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, caption: str) -> bool:
        return caption in self.places

    def missing(self, captions: Sequence[str]) -> list[str]:
        """The distinct captions that are not there, in order."""
        return [caption for caption in dict.fromkeys(captions) if caption not in self.places]

    def read(self, captions: Sequence[str]) -> Float[Tensor, "n l d"]:
        """Contexts of captions that are there."""
        places = [self.places[caption] for caption in captions]
        return torch.stack([self.parts[part][row, : self.length] for part, row in places])


def build_contexts(
    path: Path, encoder: ContextEncoder, captions: Sequence[str], *, device: str = "cpu", progress: Say = print
) -> ContextStore:
    """The store in the folder `path` with all these captions: made, gone on with, or added to.

    Raises ValueError when the folder holds something else, or another process is building it.
    """
    plan = {**encoder.identity, "length": encoder.length}
    with claimed(path, PLAN, plan, KIND):
        store = ContextStore(path, encoder)
        todo, kept = store.missing(captions), len(store)
        del store  # which maps the files
        meter = Meter("text contexts", len(todo), "captions", progress)
        number = max((_number(folder) for folder in _parts(path)), default=-1) + 1
        for first in range(0, len(todo), PART):
            some = todo[first : first + PART]
            rows = []
            for start in range(0, len(some), BATCH):
                batch = some[start : start + BATCH]
                rows.append(encoder(batch, device).cpu())
                meter(len(batch))
            with sealed_folder(path / f"part-{number:05d}", {"of": hash_of(plan)}) as (folder, record):
                tensors = {"captions": to_bytes(some), "contexts": torch.cat(rows)}
                record["files"]["contexts.safetensors"] = write_tensors(folder / "contexts.safetensors", tensors)
            number += 1
    progress(f"{path}: {kept} contexts were there, {len(todo)} are new")
    return ContextStore(path, encoder)


def _parts(path: Path) -> list[Path]:
    return sorted(path.glob("part-*"), key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("part-"))


def _config(path: Path) -> Mapping[str, Any]:
    """config.json of a text encoder. Raises ValueError when it is none that klein can have."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / 'config.json'} cannot be read ({error}); fetch the whole folder of klein.") from None
    if config.get("model_type") != "qwen3" or config.get("num_hidden_layers", 0) < KEPT:
        raise ValueError(
            f"{path} is a {config.get('model_type')} of {config.get('num_hidden_layers')} layers; klein reads the "
            f"layers {LAYERS} of a qwen3 of at least {KEPT}."
        )
    return config


def hash_files(folder: Path, patterns: Sequence[str] = ("config.json", "*.safetensors")) -> str:
    """sha256 of files of a folder and their names: as a rule, the weights and the configuration of a network."""
    return hash_of({file.name: hash_file(file) for pattern in patterns for file in folder.glob(pattern)})


def hash_file(path: Path) -> str:
    """sha256 of a file, read once while it stays as it is."""
    return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Read once, for some gigabytes take a while."""
    return sha256_of(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers says nothing of layers that are left out on purpose."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
