"""A reference on disk, opened for judging: its encoders, and the real images as an evaluation sees them.

    REF/plan.json             what decides everything below; written first, it claims the directory
    REF/train/, REF/val/      the features of all images (irdm.store.reader); judging needs neither
    REF/encoders/             the weights of a local battery; pretrained encoders are named by their hashes
    REF/rows/                 conditions and thumbnails of the rows that are kept, and some val images for reports
    REF/real/<encoder>/       what evaluation compares with (irdm.store.real)
    REF/ladder/               which defects of real images the scores see (irdm.evaluation.sensitivity)
    REF/training/<encoder>/   a fitted distance and its floor (irdm.reference); not there when built to judge only
    REF/manifest.json         name, address, plan, and the hash of every part; written last

The parts, all but the plan and the stores, are sealed folders (irdm.files): each records the hashes of its files when
it appears. The address is the hash of the plan: references of one address hold the same numbers, whatever their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from irdm.conditions import Conditions, ConditionSpec, Spec
from irdm.data.base import Shape, TensorSplit
from irdm.encoders import AnyBattery, PanelBatteryConfig
from irdm.encoders.base import Battery, encoder_identity
from irdm.files import MANIFEST, read_manifest, read_sealed, read_tensors, sha256_of, whole
from irdm.metrics.tables import Real, Table
from irdm.store.reader import FeatureStore, restored
from irdm.store.real import FILE, read_real

FORMAT = 3  # part of the plan: raise it when the files of one plan change
PLAN, ENCODERS, ROWS, SAMPLES, WEIGHTS = "plan.json", "encoders", "rows", "samples.safetensors", "weights.safetensors"
THUMBNAILS, LADDER = "thumbnails", "ladder"
REAL = ("train", "val", "image_shape", "encoders", "held_out", "table_rows", "seed", "resized")


class StoredReference:
    """A finished reference. Sizes of files are compared on opening, the sha256 of a file when it is first read."""

    has_images = True
    """What was imported (`irdm.reference.imported`) has distances alone."""

    def __init__(self, path: Path, device: str = "cpu"):
        """Raises ValueError when `path` holds no finished reference, or a part is missing, cut short or altered."""
        self.path, self.device = Path(path), device
        try:
            self.manifest = read_manifest(self.path / MANIFEST, "Repeat the command that built the reference.")
            if "imported" in self.manifest:
                raise ValueError(
                    f"{self.path} was imported: it has distances to train with and no real images to judge by. Compare "
                    "with real images, or with a reference that `irdm reference build` made of them."
                )
            self.plan: dict[str, Any] = self.manifest["plan"]
            self.name: str = self.manifest["name"]
            self.address: str = self.manifest["address"]
            self._mend = (
                "Repeat the command that built the reference: what is damaged is made again. It was: "
                f"{self.manifest['command'] or 'a library call'}"
            )
            if self.plan["format"] != FORMAT:
                raise ValueError(
                    f"{self.path} is a reference of version {self.plan['format']}; this irdm reads version {FORMAT}. "
                    "Build it again, or use the irdm that made it."
                )
            self.names: tuple[str, ...] = tuple(self.plan["encoders"])
            self.held_out: tuple[str, ...] = tuple(self.plan["held_out"])
            self.image_shape: Shape = tuple(self.plan["image_shape"])  # type: ignore[assignment]
            specs: TypeAdapter[Spec] = TypeAdapter(ConditionSpec)
            self.spec = specs.validate_python(self.plan["specs"]["train"])
            self._parts = {part: self._open(part, digest) for part, digest in self.manifest["parts"].items()}
        except FileNotFoundError:
            what = "an unfinished reference" if (self.path / PLAN).exists() else "no reference"
            raise ValueError(f"{self.path} is {what}: build it, to its end, with `irdm reference build`.") from None
        except (KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ValueError(
                f"{self.path / MANIFEST} is not one of this irdm ({error!r}). Build the reference again."
            ) from None
        self._checked: set[Path] = set()

    def chosen(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The names in the reference's order; None is all. Raises ValueError for encoders that it does not have."""
        if unknown := [name for name in names or () if name not in self.names]:
            raise ValueError(
                f"The reference {self.name} ({self.path}) has no encoder {', '.join(unknown)}: it has "
                f"{', '.join(self.names)}. Choose among these, or build a reference of the encoders you want."
            )
        return tuple(name for name in self.names if names is None or name in names)

    def battery(
        self, names: Sequence[str] | None = None, weights: Path | None = None, offload: bool = False
    ) -> Battery:
        """The encoders that made the reference, all or some, on its device; those of the panel perhaps in main memory.

        Raises ValueError when weights are missing or not those of the reference, or the encoders were somebody's own.
        """
        chosen, made = self.chosen(names), self.plan["battery"]
        if made["kind"] == "own":
            raise ValueError(f"The reference {self.name} was built with encoders of your own; pass them.")
        config = TypeAdapter(AnyBattery).validate_python(made)
        if isinstance(config, PanelBatteryConfig):
            battery = config.some(chosen, weights).model_copy(update={"offload": offload}).fit()
        else:
            state = self.tensors(ENCODERS, WEIGHTS)[0] if ENCODERS in self._parts else {}
            battery = config.restore(self.image_shape, state).only(chosen)[0]
        self.check(dict(battery.encoders.items()), weights)
        return battery.to(self.device)

    def check(self, encoders: Mapping[str, nn.Module], weights: Path | None = None) -> None:
        """Raises ValueError unless each encoder is the one that made the reference, to the byte."""
        self.chosen(list(encoders))
        known = self.plan["encoders"]
        if odd := [name for name, encoder in encoders.items() if encoder_identity(encoder, weights) != known[name]]:
            raise ValueError(
                f"The encoders {', '.join(odd)} are not those that made the reference {self.name}: their weights or "
                "their settings differ, so features cannot be compared. Use the weights of the reference, or build it "
                "again with these."
            )

    def real(self, names: Sequence[str] | None = None) -> Real:
        """The real images under all or some of the encoders, mapped from the disk. Raises ValueError when damaged."""
        chosen = self.chosen(names)
        read = {name: read_real(self.tensors(f"real/{name}", FILE)[0]) for name in chosen}
        train, val = (
            Table(
                {name: getattr(real, side) for name, real in read.items()},
                self._conditions(side, f"{side}.safetensors", min(self.plan[side]["count"], self.plan["table_rows"])),
                self.plan.get("resized"),
                self.tensors(ROWS, f"{side}.safetensors")[0].get(THUMBNAILS),
            )
            for side in ("train", "val")
        )
        moments = {name: real.moments for name, real in read.items()}
        held_out = tuple(name for name in chosen if name in self.held_out)
        return Real(train, val, moments, held_out, {key: self.plan[key] for key in REAL if key in self.plan})

    def samples(self) -> TensorSplit:
        """A few val images, for reports."""
        images = self.tensors(ROWS, SAMPLES)[0]["images"].float() / 255
        return TensorSplit(images, self._conditions("val", SAMPLES, len(images)), f"{self.name} (val)")

    def _conditions(self, side: str, name: str, count: int) -> Conditions:
        return restored(self.plan["specs"][side], count, self.tensors(ROWS, name)[0])

    def store(self, split: str) -> FeatureStore:
        """The features of the images of `train` or `val`.

        Raises ValueError when it is damaged, was removed, or is not the one that the reference was built from.
        """
        store = FeatureStore(self.path / split)
        if store.address != self.manifest["stores"][split]:
            raise ValueError(f"{store.path} is not the store that {self.path} was built from. {self._mend}")
        return store

    def tensors(self, part: str, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors of a file of a part, mapped into memory, and its notes. Raises ValueError when it was altered."""
        path = self.path / part / name
        if path not in self._checked:
            if problem := whole(path, self._parts[part]["files"][name]):
                raise ValueError(f"{path} {problem}. {self._mend}")
            self._checked.add(path)
        return read_tensors(path, self._mend)

    def _open(self, part: str, digest: str) -> dict[str, Any]:
        manifest = self.path / part / MANIFEST
        if not manifest.is_file() or sha256_of(manifest) != digest:
            what = "was altered" if manifest.is_file() else "is missing"
            raise ValueError(f"{manifest} {what}. {self._mend}")
        return read_sealed(self.path / part, self._mend, content=False)
