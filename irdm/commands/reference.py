"""`irdm reference build | show`: the real side of training and of evaluation, made once, on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from irdm.commands import Command, Count, Device, Out, Seed
from irdm.commands.train import start
from irdm.config import Config
from irdm.fields import UsageError, nearest, no_option, validate
from irdm.overrides import Options, others, override, own_options, word

if TYPE_CHECKING:
    from irdm.encoders import PanelBatteryConfig
    from irdm.presets import RunConfig

REFERENCES = Path("references")
LOCAL, PANEL, PANEL_SIZE = "local", "panel", 256
FEWEST = 50  # images of train and of val: irdm.store.real.MIN_IMAGES, which is not imported for --help


class Build(Config):
    """Builds a reference: real images under a battery of encoders, with the distances, floors and tables that follow
    from them, in one directory, hashed. Training and evaluation compare with it. A build that was interrupted goes on
    when the same command is given again; under torchrun several processes share the work.

      irdm reference build flowers --train flowers/train --val flowers/val
      irdm reference build digits --preset digits      (then: irdm train digits --reference references/digits)
    """

    name: str = word()
    """What the reference is called in results."""
    train: Path | None = None
    """A folder of images (perhaps one folder a class), a .zip, .tar, .npz or .npy, or a folder of .tar."""
    val: Path | None = None
    """Real images of the same kind that are not in train."""
    preset: str | None = None
    """In place of train and val: the data, the encoders and the distance of a preset."""
    panel: tuple[str, ...] = ()
    """local: encoders fitted to the train images, no weights needed; panel: the fourteen pretrained ones; or names of
    those, such as inception,dinov2; unset, local."""
    size: Annotated[int | None, Field(ge=4)] = None
    """Side of the centre crop in pixels; unset, that of the images when all have the same, and 256 for pretrained
    encoders."""
    limit: Annotated[int | None, Field(ge=FEWEST)] = None
    """Only N random images of train and of val, for a trial."""
    seed: Seed | None = None
    """Seed of every draw and fit; unset, 0."""
    rollout: Annotated[int | None, Field(ge=2)] = None
    """Images a step of the training that floors are for; unset, 5120, or that of the preset."""
    battery_steps: Count | None = None
    """Optimizer steps of each local encoder; unset, 300, or those of the preset."""
    only_judge: bool = False
    """Skip the distances and floors of training: faster, and enough for irdm eval."""
    weights: Path | None = None
    """Folder of the weights of pretrained encoders (see irdm encoders)."""
    micro_batch: Count = 64
    """Images embedded at once."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    out: Out | None = None
    """The directory; unset, references/NAME."""
    fields: Options = others()
    """Fields of `irdm train PRESET --help` under data, battery and distance."""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not name.isprintable() or set(name) & {"/", "\\"} or name.startswith("."):
            raise ValueError(
                "should be a plain name such as flowers-64, which becomes a folder; --out puts it elsewhere"
            )
        return name


class Show(Config):
    """Says which images and encoders a reference holds, with counts, seeds, floors and hashes."""

    reference: Path = word()
    """The directory of a reference, or its name in references/."""


def show(given: Show, command: str) -> int:
    """Print the description."""
    from irdm.reference import describe, open_reference

    print("\n".join(describe(open_reference(find_reference(given.reference)))))
    return 0


def build(given: Build, command: str) -> int:
    """Open the images, fit or load the encoders, build the rest."""
    from irdm.build import cache_dir, resolve_device
    from irdm.data.base import shared
    from irdm.distributed import Ranks
    from irdm.reference import ReferenceConfig, build_reference

    config = configured(given)
    device = resolve_device(given.device)
    ranks = Ranks.start(device)
    say = (lambda text: print(text, flush=True)) if ranks.is_main else (lambda text: None)
    with ranks.together():
        dataset = config.data.build()
        shared(dataset.train, dataset.val)  # refused before encoders are fitted; the build counts what is left
        for side, split in (("train", dataset.train), ("val", dataset.val)):
            if len(split) < FEWEST:
                raise ValueError(f"{split.name} has {len(split)} {side} images; a reference needs at least {FEWEST}.")
    battery = ranks.main_first(lambda: config.battery.fit(dataset, cache_dir=cache_dir(), progress=say))
    out = given.out or REFERENCES / given.name
    reference = build_reference(
        given.name,
        dataset,
        battery,
        out,
        ReferenceConfig(
            seed=config.seed,
            rollout=config.rollout,
            distance=config.distance,
            joint=config.joint,
            only_judge=given.only_judge,
        ),
        battery_config=config.battery,
        weights=getattr(config.battery, "weights", None),
        micro_batch=given.micro_batch,
        device=device,
        ranks=ranks,
        command=command,
        progress=say,
    )
    say(f"\nreference {given.name} of {len(reference.names)} encoders: {out}{os.sep}")
    say(f"judge images against it: irdm eval SOURCE --reference {out}")
    if given.preset and not given.only_judge:
        say(f"train against it: irdm train {given.preset} --reference {out}, with the same fields")
    return 0


def configured(given: Build) -> RunConfig:
    """The run whose real side the reference is. Raises UsageError for what does not fit together."""
    folders = {"--train": given.train, "--val": given.val}
    fields = dict(given.fields)
    if odd := [name for name in fields if name.partition(".")[0] not in ("data", "battery", "distance", "joint")]:
        raise no_option(odd[0], [*own_options(Build)])
    if given.preset is None:
        if absent := [name for name, path in folders.items() if path is None]:
            raise UsageError(f"{' and '.join(absent)} missing: give --train and --val SOURCE, or --preset PRESET")
        base, seeds = _of_folders(given), ("seed", "battery.seed")
    else:
        base, seeds = start(given.preset, None), ("seed",)
        if both := [name for name, path in {**folders, "--panel": given.panel}.items() if path]:
            raise UsageError(f"{both[0]} is for images of your own; a preset has its own data and encoders")
    asked = {"data.size": given.size, "data.limit": given.limit, "rollout": given.rollout}
    asked |= {"battery.steps": given.battery_steps, "battery.weights": given.weights}
    asked |= {name: given.seed for name in seeds if name == "seed" or base.battery.kind == LOCAL}
    fields |= {name: [str(value)] for name, value in asked.items() if value is not None}
    return override(base, fields)


def _of_folders(given: Build) -> RunConfig:
    """The run of two sources of images."""
    from irdm.data import ImagesConfig
    from irdm.encoders import LocalBatteryConfig
    from irdm.presets import RunConfig

    local = [*given.panel] in ([], [LOCAL])
    own = {} if local else {"size": PANEL_SIZE, "channels": 3}
    data = validate(ImagesConfig, {"train": given.train, "val": given.val, **own}, "--data.")
    battery = LocalBatteryConfig() if local else pretrained(given.panel)
    return RunConfig(data=data, battery=battery, rollout=5120, joint=False)


def pretrained(names: tuple[str, ...]) -> PanelBatteryConfig:
    """The panel, or the encoders of it that are named, each on its own side. Raises UsageError for an unknown name."""
    from irdm.encoders import PanelBatteryConfig

    full = PanelBatteryConfig()
    if names == (PANEL,):
        return full
    if unknown := [name for name in names if name not in full.names]:
        raise UsageError(f"--panel has no encoder '{unknown[0]}'{nearest(unknown[0], [LOCAL, PANEL, *full.names])}")
    return full.some(names)


def find_reference(reference: Path) -> Path:
    """The directory of a reference given by path or by name."""
    named = REFERENCES / reference
    return named if not reference.exists() and named.is_dir() else reference


COMMAND = {"build": Command(Build, build), "show": Command(Show, show)}
