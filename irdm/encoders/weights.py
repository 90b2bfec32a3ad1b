"""Where the weights of a pretrained encoder are read from, and proof that they are the right ones.

They lie in a folder, `FOLDER/<encoder>/<file>` (`$IRDM_WEIGHTS`), or in the hub's own cache. Nothing is loaded whose
sha256 is not known: from the table of the panel, or, where that has none, from the `manifest.json` that `fetch` wrote
beside the file the first time it saw it. Loading never touches the network; `fetch` does.
"""

from __future__ import annotations

import importlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load, load_file

from irdm.files import cache_dir, read_json, sha256_of, write_atomic

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class WeightFile:
    """One file: its path in the repository or release, its sha256 where published, its address when not on the hub."""

    name: str
    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class WeightSource:
    """What an encoder is loaded from: on the hub a `repo` at the commit `revision` (None: that of the first fetch)."""

    files: tuple[WeightFile, ...]
    gigabytes: float
    licence: str
    repo: str | None = None
    revision: str | None = None
    gated: bool = False


def weights_folder(folder: Path | None = None) -> Path:
    """`folder`, else $IRDM_WEIGHTS, else `weights` in irdm's cache ($IRDM_CACHE, else ~/.cache/irdm)."""
    return folder or Path(os.environ.get("IRDM_WEIGHTS") or cache_dir() / "weights")


def read_state(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """The tensors of a safetensors file or of a plain PyTorch one (never unpickled), by name.

    A training checkpoint gives {"state_dict": tensors by name}, without what else is in it. With `data` these bytes are
    read instead: those of a member of an archive, which `path` names.

    Raises ValueError naming the path when it holds anything else, or cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path) if data is None else load(data)
        state = torch.load(path if data is None else io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError:  # whose text advises to read the file unsafely
        raise ValueError(f"{path} holds no weights, or other objects beside them: not read. Fetch it again.") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} holds no weights that can be read ({error}); fetch it again.") from error
    checkpoint = isinstance(state, dict) and "state_dict" in state
    tensors = state["state_dict"] if checkpoint else state
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        raise ValueError(f"{path} holds a {type(tensors).__name__} of other things than named tensors; fetch it again.")
    return {"state_dict": tensors} if checkpoint else tensors


class Weights:
    """The weight files of one encoder, `name`, in a folder or in the hub's cache."""

    def __init__(self, name: str, source: WeightSource, folder: Path | None = None):
        self.name, self.source = name, source
        self.folder = weights_folder(folder) / name
        self.mend = f"run `irdm encoders fetch {name}`"

    def locate(self) -> dict[str, Path]:
        """The path of each file, there or not: in the folder when it holds any of them, else in the hub's cache."""
        local = {file.name: self.folder / file.name for file in self.source.files}
        if any(path.is_file() for path in local.values()):
            return local
        return {file.name: self._cached(file) or local[file.name] for file in self.source.files}

    def expected(self) -> dict[str, str]:
        """The sha256 of each file that has one, from the table or the manifest.

        Raises ValueError when the manifest cannot be read.
        """
        known = self._manifest().get("sha256", {})
        known |= {file.name: file.sha256 for file in self.source.files if file.sha256}
        return {file.name: known[file.name] for file in self.source.files if file.name in known}

    def verify(self) -> dict[str, Path]:
        """The path of each file, after comparing its sha256.

        Raises ValueError when one is missing, was altered, or has no known sha256; it says which and how to mend it.
        """
        paths, expected = self.locate(), self.expected()
        for name, path in paths.items():
            if not path.is_file():
                raise ValueError(
                    f"The encoder '{self.name}' has no weights: {path} is missing, and the hub's cache does not have "
                    f"it. With a network, {self.mend}; without one, copy the file there, or set IRDM_WEIGHTS to a "
                    "folder that has it."
                )
            if name not in expected:
                raise ValueError(
                    f"The encoder '{self.name}' has weights, {path}, but nothing says what they should be. "
                    f"To record their sha256 once, {self.mend}."
                )
            if (found := sha256_of(path)) != expected[name]:
                raise ValueError(
                    f"The encoder '{self.name}' has altered weights: {path} has the sha256 {found[:16]}..., expected "
                    f"{expected[name][:16]}... To replace the file, {self.mend}."
                )
        return paths

    def fetch(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Make every file present and recorded: what is right stays, what is missing or altered is downloaded.

        Raises ValueError when a file cannot be had, or is not the published one.
        """
        expected = self.expected()
        found = {name: sha256_of(path) for name, path in self.locate().items() if path.is_file()}
        if any(found.get(file.name, "") != expected.get(file.name, found.get(file.name)) for file in self.source.files):
            revision = self.source.revision or self._manifest().get("revision") or self._newest()
            for file in self.source.files:
                path = self.folder / file.name
                digest = sha256_of(path) if path.is_file() else None
                if digest is None or digest != expected.get(file.name, digest):
                    say(f"{self.name}: fetching {file.name} from {file.url or self.source.repo}")
                    self._download(file, revision)
                    digest = sha256_of(path)
                found[file.name] = digest
        else:
            revision = self.source.revision or self._manifest().get("revision") or _snapshot(self.locate())
        for name, digest in found.items():
            if digest != expected.get(name, digest):
                raise ValueError(
                    f"{name} of the encoder '{self.name}' came with the sha256 {digest}, expected {expected[name]}: "
                    "its publisher changed it, or it was damaged on the way. It is not used; fetch it again."
                )
        body = {"repo": self.source.repo, "revision": revision, "sha256": found}
        write_atomic(self.folder / MANIFEST, json.dumps(body, indent=1))
        say(f"{self.name}: {len(found)} files verified and recorded in {self.folder / MANIFEST}")

    def _manifest(self) -> dict:
        path = self.folder / MANIFEST
        if not path.is_file():
            return {}
        mend = f"Delete it, then {self.mend}."
        body = read_json(path, mend)
        revision, digests = body.get("revision"), body.get("sha256")
        texts = isinstance(digests, dict) and all(isinstance(digest, str) for digest in digests.values())
        if not texts or not isinstance(revision, str | None):
            raise ValueError(f"{path} was altered: it holds no record of weights. {mend}")
        if self.source.revision and revision not in (None, self.source.revision):
            raise ValueError(
                f"{path} records the revision {revision}, expected {self.source.revision}: these are the weights of "
                f"another version of irdm. Delete {self.folder}, then {self.mend}."
            )
        return body

    def _cached(self, file: WeightFile) -> Path | None:
        """The file in the hub's own cache, at the pinned or recorded revision."""
        if self.source.repo is None or file.url:
            return None
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        revision = self.source.revision or self._manifest().get("revision")
        path = try_to_load_from_cache(self.source.repo, file.name, revision=revision)
        return Path(path) if isinstance(path, str) else None

    def _newest(self) -> str | None:
        """The commit that the hub serves now."""
        if self.source.repo is None:
            return None
        return self._online(lambda hub: hub.HfApi().model_info(self.source.repo).sha)

    def _download(self, file: WeightFile, revision: str | None) -> None:
        target = self.folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        url, repo = file.url, self.source.repo
        if url:
            self._online(lambda hub: torch.hub.download_url_to_file(url, str(target), progress=True))
        else:
            # Forced, because a damaged file would count as fetched.
            place = {"revision": revision, "local_dir": self.folder, "force_download": True}
            self._online(lambda hub: hub.hf_hub_download(repo, file.name, **place))

    def _online(self, action: Callable):
        """What `action(huggingface_hub)` returns, or a ValueError that says what a user without the file can do."""
        hub = require("huggingface_hub")
        try:
            return action(hub)
        except Exception as error:  # half a dozen libraries lie below, each with its own kinds of failure
            gate = (
                f" It is gated: accept its licence on the page of {self.source.repo}, log in with `hf auth login`."
                if self.source.gated
                else ""
            )
            raise ValueError(
                f"The weights of '{self.name}' could not be fetched ({type(error).__name__}: {error}).{gate} Without "
                f"a network, copy {', '.join(file.name for file in self.source.files)} into {self.folder}, then "
                f"{self.mend}."
            ) from error


def require(module: str):
    """A package of the panel. Raises ValueError that says how to install it, or what it was not built for."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"This needs the package {module.partition('.')[0]} ({error}). Install it: pip install 'irdm[panel]'"
        ) from error
    except RuntimeError as error:  # what torchvision says beside a torch that it was not built for
        raise ValueError(
            f"The package {module.partition('.')[0]} cannot be imported ({error}). If that is about torchvision, "
            f"install the torchvision that was built for torch {torch.__version__}."
        ) from error


def _snapshot(paths: dict[str, Path]) -> str | None:
    """The commit that files in the hub's cache belong to: .../snapshots/<commit>/<file>."""
    parts = next(iter(paths.values())).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
