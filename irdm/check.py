"""What a run needs, and whether it is there: everything that is missing, in one list, before anything is started."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path

import torch

from irdm.build import resolve_device
from irdm.cards import Cards, ways
from irdm.conditions import ClassSpec, PromptSpec, Spec
from irdm.data import CaptionedConfig, Dataset
from irdm.data.base import Shape
from irdm.encoders.lite import LITE, require_shipped
from irdm.encoders.panel import PanelBatteryConfig, entries
from irdm.encoders.weights import weights_folder
from irdm.estimate import FLOAT, Estimate, encoder_costs, estimate, expected, matmul_rate, step_seconds
from irdm.files import cache_dir
from irdm.generators import KleinConfig
from irdm.memory import physical_memory
from irdm.presets import SMOKE_IMAGES, RunConfig
from irdm.progress import duration
from irdm.reference.imported import ImportedReference, is_imported
from irdm.store.reference import StoredReference

BYTES_A_PARAMETER = 16  # a checkpoint holds float32 weights, their average and two moments
SPARE = 64 * 2**20  # the battery, samples, metrics and the report
GIB = 2**30
TAU = 1152  # numbers of SigLIP2's text embedding
DAY = 86_400.0  # seconds


def check(config: RunConfig, out: Path, cards: Cards | None = None) -> Iterator[tuple[str, bool, str]]:
    """(what, whether it is there, what was found or how to mend it), one after the other; none stops the rest.

    With `cards`, what the run would take on those is said too, whatever there is here; of klein, else on the GPUs here.
    """
    needs = Needs(config, out)
    looks: dict[str, Callable[[], str]] = {
        "packages": needs.packages,
        "device": needs.device_name,
        "data": needs.data,
        "output": lambda: _writable(out),
        "cache": lambda: _writable(cache_dir()),
        "generator": needs.generator,
        "disk": needs.disk,
        "memory": needs.memory,
        "time": needs.time,
        "reference": needs.reference,
    }
    if getattr(config.generator, "weights", None):
        looks["weights"] = needs.weights
    if needs.panel or needs.shipped:
        looks["encoders"] = needs.encoders
    if cards or needs.can_choose:
        looks["cards"] = lambda: "\n".join(ways(config, *needs.shape, cards or needs.cards))
    said: dict[str, str] = {}
    for name, look in looks.items():
        try:
            yield name, True, look()
        except (ValueError, OSError) as error:
            first = said.setdefault(str(error), name)
            yield name, False, str(error) if first == name else f"not known without {first}"


class Needs:
    """The parts of `check`: each returns what was found, or raises ValueError with what is missing and its mend."""

    def __init__(self, config: RunConfig, out: Path):
        self.config, self.out = config, out
        self.panel = config.battery if isinstance(config.battery, PanelBatteryConfig) else None
        self.shipped = [name for name in getattr(config.battery, "names", ()) if name in LITE]

    @cached_property
    def dataset(self) -> Dataset:
        """The data, opened once."""
        return self.config.data.build()

    @cached_property
    def shape(self) -> tuple[Shape, Spec]:
        """Image shape and conditions: those of the data, or of ImageNet while the pictures are not there."""
        try:
            return self.dataset.image_shape, self.dataset.train.conditions.spec
        except (ValueError, OSError):
            if self.panel is None or not (size := getattr(self.config.data, "size", None)):
                raise
            if isinstance(self.config.data, CaptionedConfig):
                return (3, size, size), PromptSpec(embedder=self.config.data.embedder, width=TAU)
            return (3, size, size), ClassSpec(names=tuple(map(str, range(1000))))

    @property
    def devices(self) -> int:
        """How many devices torchrun could use here."""
        return max(1, torch.cuda.device_count()) if self.device.startswith("cuda") else 1

    @cached_property
    def device(self) -> str:
        """Where the run would compute."""
        return resolve_device(self.config.device)

    @property
    def can_choose(self) -> bool:
        """Whether there are GPUs, and more than one way to train on them."""
        return isinstance(self.config.generator, KleinConfig) and torch.cuda.is_available()

    @property
    def cards(self) -> Cards:
        """The GPUs here."""
        one = torch.cuda.get_device_properties(self.device)
        return Cards(self.devices, one.name, one.total_memory, matmul_rate(self.device), here=True)

    @cached_property
    def cost(self) -> Estimate:
        """Memory and arithmetic of a step."""
        return estimate(self.config, *self.shape, self.devices)

    def packages(self) -> str:
        """Versions of what irdm depends on, with the panel's and klein's packages where they are used: all imported."""
        wanted = ["klein"] * (self.config.generator.kind == "klein") + ["panel"] * bool(self.panel)
        try:
            required = [r for r in metadata.requires("irdm") or [] if _extra(r) in (None, *wanted)]
        except metadata.PackageNotFoundError:
            raise ValueError("irdm itself is not installed. Install it: pip install -c constraints.txt .") from None
        modules: dict[str, list[str]] = {}
        for module, names in metadata.packages_distributions().items():
            for name in names if module.isidentifier() and not module.startswith("_") else ():
                modules.setdefault(_normal(name), []).append(module)
        found, missing, imported = {}, [], {}
        for name in (match[0] for r in required if (match := re.match(r"[\w.-]+", r))):
            try:
                found[name] = f"{name} {metadata.version(name)}"
                there = modules.get(_normal(name), [name])
                imported[next((m for m in there if _normal(m) == _normal(name)), there[0])] = name
            except metadata.PackageNotFoundError:
                missing.append(name)
        broken = [f"{found[imported[module]]} ({problem})" for module, problem in not_importable(imported).items()]
        if missing or broken:
            mend = f"'.[{','.join(wanted)}]'" if wanted else "."
            parts = [f"not installed: {', '.join(missing)}"] * bool(missing)
            parts += [f"installed, but cannot be imported: {', '.join(broken)}"] * bool(broken)
            raise ValueError(f"{'; '.join(parts)}. Install them: pip install -c constraints.txt {mend}")
        return ", ".join(found.values())

    def device_name(self) -> str:
        """The device and how many there are."""
        if self.device.startswith("cuda"):
            return f"{self.devices} x {torch.cuda.get_device_name(self.device)}"
        return f"{self.device}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"

    def data(self) -> str:
        """Sizes of the splits."""
        dataset, spec = self.dataset, self.dataset.train.conditions.spec
        shape = "x".join(map(str, dataset.image_shape))
        sizes = f"{dataset.name}: {len(dataset.train)} train, {len(dataset.val)} val, {spec.says}, {shape}"
        return "; ".join([sizes, *dataset.notes])

    @cached_property
    def parameters(self) -> int:
        """Numbers of the generator that are trained."""
        with torch.device("meta"):
            network = self.config.generator.build(*self.shape)
        return sum(parameter.numel() for parameter in network.trained().values())

    def generator(self) -> str:
        """The network, which must be able to draw images of this size."""
        return f"{self.config.generator.kind}, {self.parameters / 1e6:.2f}M parameters"

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
        if self.panel is None:
            require_shipped(self.shipped)
            return f"{', '.join(self.shipped)}: the files of their packages, sha256 compared"
        rows = entries(self.panel.names)
        folder = self.panel.weights
        located = {row.name: row.located(folder).locate().values() for row in rows}
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
            if is_imported(config.reference):
                imported = ImportedReference(config.reference)
                imported.check(self.shape[1])
                return f"{imported.name}, imported, {len(imported.names)} encoders, no floors"
            stored = StoredReference(config.reference)
            if self.panel and (missing := {*self.panel.names} - {*stored.names}):
                raise ValueError(f"{config.reference} lacks the encoders {', '.join(sorted(missing))}; build it anew.")
            return f"{stored.name}, {stored.plan['train']['count']} images, {len(stored.names)} encoders"
        image_shape, spec = self.shape
        width = sum(dim for _, dim in encoder_costs(config.battery, image_shape, spec).values())
        mend = f"`irdm reference build NAME --train DIR --val DIR --panel panel --size {image_shape[1]}`, then "
        mend += "--reference references/NAME"
        try:
            rows = len(self.dataset.train) + len(self.dataset.val)
        except (ValueError, OSError):
            raise ValueError(f"none, and no data to make one from: {mend}") from None
        needed = FLOAT * (torch.Size(image_shape).numel() + width) * rows
        text = f"none: real images are held and encoded at each start, {needed / GIB:.1f} GiB in memory"
        if needed > physical_memory() / 2:
            raise ValueError(f"{text}, of {physical_memory() / GIB:.1f} there are. Build one: {mend}")
        return text

    def disk(self) -> str:
        """Room for the checkpoints."""
        needed = SPARE + (self.config.keep_checkpoints + 1) * BYTES_A_PARAMETER * self.parameters
        free = shutil.disk_usage(_existing(self.out)).free
        text = f"{free / GIB:.1f} GiB free, about {needed / GIB:.1f} GiB needed for checkpoints and the report"
        if free < needed:
            raise ValueError(f"{text}; free some, choose another --out, or lower --keep-checkpoints.")
        return text

    def memory(self) -> str:
        """What a device will hold, part by part."""
        on_cuda = self.device.startswith("cuda")
        there = torch.cuda.get_device_properties(self.device).total_memory if on_cuda else physical_memory()
        needed = sum(self.cost.memory.values())
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.cost.memory.items() if size > GIB / 20)
        text = f"estimate: {needed / GIB:.1f} GiB a device, of {there / GIB:.1f} there are"
        text += f" ({parts})" if parts else ""
        if needed > there:
            raise ValueError(f"{text}; lower --micro-batch, hold fewer encoders, or use a larger device.")
        return text

    def time(self) -> str:
        """How long the run will take: from its own networks, timed, or from one measured matrix product."""
        if self.panel is None and (found := expected(self.config, self.dataset, self.device, self.devices)):
            return f"estimate: {found}"
        rate = matmul_rate(self.device)
        seconds = step_seconds(self.cost.flops, rate, self.devices)
        whole = seconds * self.config.steps
        where = f"{self.devices} x {_flops(rate)}" if self.devices > 1 else _flops(rate)
        text = f"estimate: {_flops(self.cost.flops)} a step, {seconds:,.3g} s at half of {where}/s measured"
        if self.device == "cpu" and whole > DAY:
            text += f": on this CPU the run would take {duration(whole)}. It needs a GPU"
            return f"{text}; --limit {SMOKE_IMAGES} tries it out"
        return f"{text}: about {duration(whole)} for {self.config.steps} steps"


IMPORT = """
import importlib, sys
sys.path[:] = [path for path in sys.path if path]
for name in sys.argv[1:]:
    print("irdm", name, "it ended the process", sep="\\t", flush=True)
    try:
        importlib.import_module(name)
        said = ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
    print("irdm", name, said, sep="\\t", flush=True)
"""


def not_importable(modules: Iterable[str]) -> dict[str, str]:
    """{module: the first line of its failure} of those that another Python, which may crash, cannot import."""
    found, left = {}, [*modules]
    while left:
        done = subprocess.run([sys.executable, "-c", IMPORT, *left], capture_output=True, text=True, check=False)
        lines = (line.split("\t", 2) for line in done.stdout.splitlines() if line.startswith("irdm\t"))
        found |= {name: problem for _, name, problem in lines} or {left[0]: "no Python could be started"}
        left = [name for name in left if name not in found]
    return {name: problem for name, problem in found.items() if problem}


def _flops(number: float) -> str:
    power = min(max(int(math.log10(max(number, 1)) // 3), 3), 5)
    return f"{number / 1000**power:,.3g} {'GTP'[power - 3]}FLOP"


def _normal(name: str) -> str:
    """The name of a package as it compares: torch_fidelity is torch-fidelity."""
    return re.sub(r"[-_.]+", "-", name).lower()


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
