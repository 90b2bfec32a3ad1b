"""What a run needs, and whether it is there: everything that is missing, in one list, before anything is started."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path

import torch

from irdm.data import Dataset
from irdm.data.images import physical_memory
from irdm.encoders.panel import PANEL, PanelBatteryConfig, entries
from irdm.encoders.weights import Weights, weights_folder
from irdm.estimate import FLOAT, Estimate, estimate, matmul_rate, step_seconds
from irdm.judging import ReferenceFolder
from irdm.presets import RunConfig
from irdm.run import cache_dir, resolve_device

BYTES_A_PARAMETER = 16  # a checkpoint holds float32 weights, their average and two moments
SPARE = 64 * 2**20  # the battery, samples, metrics and the report
GIB = 2**30


def check(config: RunConfig, out: Path) -> Iterator[tuple[str, bool, str]]:
    """(what, whether it is there, what was found or how to mend it), one after the other; none stops the rest."""
    needs = Needs(config, out)
    looks: dict[str, Callable[[], str]] = {
        "packages": needs.packages,
        "device": needs.device_name,
        "data": needs.data,
        "output": lambda: _writable(out),
        "cache": lambda: _writable(cache_dir()),
        "disk": needs.disk,
    }
    if getattr(config.generator, "weights", None):
        looks["weights"] = needs.weights
    if needs.panel:
        looks |= {"encoders": needs.encoders, "memory": needs.memory, "time": needs.time}
    if needs.panel or config.reference:
        looks["reference"] = needs.reference
    for name, look in looks.items():
        try:
            yield name, True, look()
        except (ValueError, OSError) as error:
            yield name, False, str(error)


class Needs:
    """The parts of `check`: each returns what was found, or raises ValueError with what is missing and its mend."""

    def __init__(self, config: RunConfig, out: Path):
        self.config, self.out = config, out
        self.panel = config.battery if isinstance(config.battery, PanelBatteryConfig) else None

    @cached_property
    def dataset(self) -> Dataset:
        """The data, opened once."""
        return self.config.data.build()

    @cached_property
    def shape(self) -> tuple[tuple[int, int, int], int]:
        """(image shape, classes): those of the data, or of ImageNet while the pictures are not there."""
        try:
            return self.dataset.image_shape, self.dataset.num_classes
        except (ValueError, OSError):
            size = getattr(self.config.data, "size", None)
            if size is None:
                raise
            return (3, size, size), 1000

    @property
    def devices(self) -> int:
        """How many devices torchrun could use here."""
        return max(1, torch.cuda.device_count()) if self.device.startswith("cuda") else 1

    @cached_property
    def device(self) -> str:
        """Where the run would compute."""
        return resolve_device(self.config.device)

    @cached_property
    def cost(self) -> Estimate:
        """Memory and arithmetic of a step."""
        return estimate(self.config, *self.shape, self.devices)

    def packages(self) -> str:
        """Versions of what irdm depends on, and of the panel's packages where it is used."""
        wanted = "panel" if self.panel else None
        try:
            required = [r for r in metadata.requires("irdm") or [] if _extra(r) in (None, wanted)]
        except metadata.PackageNotFoundError:
            raise ValueError("irdm itself is not installed. Install it: pip install -c constraints.txt .") from None
        names = [match[0] for r in required if (match := re.match(r"[\w.-]+", r))]
        found: dict[str, str] = {}
        for name in names:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        if missing := [name for name in names if name not in found]:
            mend = f"'.[{wanted}]'" if wanted else "."
            raise ValueError(
                f"not installed: {', '.join(missing)}. Install them: pip install -c constraints.txt {mend}"
            )
        return ", ".join(f"{name} {version}" for name, version in found.items())

    def device_name(self) -> str:
        """The device and how many there are."""
        if self.device.startswith("cuda"):
            return f"{self.devices} x {torch.cuda.get_device_name(self.device)}"
        return f"{self.device}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"

    def data(self) -> str:
        """Sizes of the splits."""
        dataset = self.dataset
        present = len(dataset.train.labels.unique())
        if self.config.rollout < present:
            raise ValueError(f"the rollout is {self.config.rollout} but there are {present} classes; raise --rollout.")
        sizes = f"{len(dataset.train)} train, {len(dataset.val)} val, {len(dataset.test)} test"
        return f"{dataset.name}: {sizes}, {dataset.num_classes} classes, {'x'.join(map(str, dataset.image_shape))}"

    def weights(self) -> str:
        """The file that training starts from."""
        path: Path = getattr(self.config.generator, "weights")  # noqa: B009 (not every generator has one)
        if not path.is_file():
            raise ValueError(
                f"there is no {path}, the weights to start from: give --generator.weights FILE, a released .pth or "
                ".safetensors, or --generator.weights none to start from nothing."
            )
        return f"{path}, {path.stat().st_size / GIB:.1f} GiB"

    def encoders(self) -> str:
        """Whether the files of every encoder are there; `irdm encoders check` compares their sha256."""
        assert self.panel
        rows = entries(self.panel.names)
        folder = self.panel.weights
        located = {row.name: Weights(row.name, row.weights, folder).locate().values() for row in rows}
        missing = [row for row in rows if not all(path.is_file() for path in located[row.name])]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(rows)} encoders have no weights: {', '.join(row.name for row in missing)}, "
                f"{sum(row.weights.gigabytes for row in missing):.1f} GB. Run `irdm encoders fetch "
                f"{' '.join(row.name for row in missing)}`, or copy them to {weights_folder(folder)}/<encoder>."
            )
        return f"{len(rows)} encoders, {sum(row.weights.gigabytes for row in rows):.1f} GB"

    def reference(self) -> str:
        """The prebuilt reference, or room to fit one in memory."""
        config = self.config
        if config.reference:
            folder = ReferenceFolder(config.reference)
            if self.panel and (missing := {*self.panel.names} - {*folder.plan["encoders"]}):
                raise ValueError(f"{config.reference} lacks the encoders {', '.join(sorted(missing))}; build it anew.")
            return f"{folder.name}, {folder.plan['train']['count']} images, {len(folder.plan['encoders'])} encoders"
        assert self.panel
        width = sum(PANEL[name].dim for name in self.panel.held_in)
        pixels = torch.Size(self.shape[0]).numel()
        mend = "`irdm reference build NAME --train DIR --val DIR --panel panel`, then --reference references/NAME"
        try:
            rows = len(self.dataset.train) + len(self.dataset.val)
        except (ValueError, OSError):
            raise ValueError(f"none, and no data to make one from: {mend}") from None
        needed = FLOAT * (pixels + width) * rows
        text = f"none: real images are held and encoded at each start, {needed / GIB:.1f} GiB in memory"
        if needed > physical_memory() / 2:
            raise ValueError(f"{text}, of {physical_memory() / GIB:.1f} there are. Build one: {mend}")
        return text

    def disk(self) -> str:
        """Room for the checkpoints."""
        (image_shape, classes), config = self.shape, self.config
        with torch.device("meta"):
            network = config.generator.build(image_shape, classes)
        parameters = sum(p.numel() for p in network.parameters())
        needed = SPARE + (config.keep_checkpoints + 1) * BYTES_A_PARAMETER * parameters
        free = shutil.disk_usage(_existing(self.out)).free
        text = f"{free / GIB:.1f} GiB free, about {needed / GIB:.1f} GiB needed for {parameters / 1e6:.2f}M parameters"
        if free < needed:
            raise ValueError(f"{text}; free some, choose another --out, or lower --keep_checkpoints.")
        return text

    def memory(self) -> str:
        """What a device will hold, part by part."""
        on_cuda = self.device.startswith("cuda")
        there = torch.cuda.get_device_properties(self.device).total_memory if on_cuda else physical_memory()
        needed = sum(self.cost.memory.values())
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.cost.memory.items() if size)
        text = f"estimate: {needed / GIB:.1f} GiB a device, of {there / GIB:.1f} there are ({parts})"
        if needed > there:
            raise ValueError(f"{text}; lower --micro_batch, hold fewer encoders, or use a larger device.")
        return text

    def time(self) -> str:
        """Seconds of a step, from one measured matrix product."""
        rate = matmul_rate(self.device)
        seconds = step_seconds(self.cost.flops, rate, self.devices)
        days = seconds * self.config.steps / 86400
        where = f"{self.devices} x {rate / 1e12:.3g} TFLOP/s" if self.device != "cpu" else f"{rate / 1e9:.3g} GFLOP/s"
        text = f"estimate: {self.cost.flops / 1e15:.3g} PFLOP a step, {seconds:,.3g} s at half of {where} measured"
        if self.device == "cpu" and days > 1:
            return f"{text}: on this CPU the run would take {days:,.0f} days. It needs a GPU; --limit 64 tries it out"
        return f"{text}: about {days:,.2g} days for {self.config.steps} steps"


def _extra(requirement: str) -> str | None:
    """The extra that a requirement belongs to."""
    match = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
    return match[1] if match else None


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _writable(path: Path) -> str:
    with tempfile.TemporaryFile(dir=_existing(path)):
        return f"{path} can be written"
