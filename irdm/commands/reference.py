"""`irdm reference build | import | show`: the real side of training and of evaluation, made once, on disk."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from irdm.commands import Command, Count, Device, Out, Seed
from irdm.commands.train import start
from irdm.config import Config
from irdm.fields import UsageError, no_option
from irdm.overrides import Options, others, override, own_options, word

if TYPE_CHECKING:
    from irdm.presets import RunConfig

REFERENCES = Path("references")


def plain_name(name: str) -> str:
    """Refuses a name that is no folder's."""
    if not name.isprintable() or set(name) & {"/", "\\"} or name.startswith("."):
        raise ValueError("should be a plain name such as flowers-64, which becomes a folder; --out puts it elsewhere")
    return name


class Build(Config):
    """Builds a reference: real images under a battery of encoders, with the distances, floors and tables that follow
    from them, in one directory, hashed. Training and evaluation compare with it. A build that was interrupted goes on
    when the same command is given again; under torchrun several processes share the work, and with --engine ray many
    machines do.

      irdm reference build flowers --train flowers/train --val flowers/val
      irdm reference build flowers --train flowers --judge-only    (to judge with; half of the images are held out)
      irdm reference build digits --preset digits      (then: irdm train digits --reference references/digits)
    """

    name: str = word()
    """What the reference is called in results."""
    train: Path | None = None
    """A folder of images (perhaps one folder a class), a .zip, .tar, .npz or .npy, or a folder of .tar."""
    val: Path | None = None
    """Real images of the same kind that are not in train; unset, a third of train is held out, or half with
    --judge-only."""
    preset: str | None = None
    """In place of train and val: the data, the encoders and the distance of a preset."""
    panel: tuple[str, ...] = ()
    """local: encoders fitted to the train images, no weights needed; lite: two small pretrained ones, which the extra
    lite brings; lite+local: both; panel: the fourteen pretrained ones; literature: those of FID, KID, the Inception
    score, FD-DINOv2 and CMMD; or names, such as inception,dinov2; unset, local."""
    size: Annotated[int | None, Field(ge=4)] = None
    """Side of the centre crop in pixels; unset, images stay as they are, which must then be of one size. Published
    metrics are defined on images as they are."""
    limit: Annotated[int | None, Field(ge=2)] = None
    """Only N random images of each place, for a trial."""
    seed: Seed | None = None
    """Seed of every draw and fit; unset, 0."""
    rollout: Annotated[int | None, Field(ge=2)] = None
    """Images a step of the training that floors are for; unset, 5120, or that of the preset."""
    battery_steps: Count | None = None
    """Optimizer steps of each local encoder that learns; unset, 200, or those of the preset."""
    judge_only: bool = False
    """Fit nothing for training, neither distances nor floors: faster, and enough for irdm eval."""
    weights: Path | None = None
    """Folder of the weights of pretrained encoders (see irdm encoders)."""
    micro_batch: Count = 64
    """Images embedded at once."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    engine: Literal["plain", "ray"] = "plain"
    """What reads and embeds: plain, this process or those of torchrun; ray, a cluster of Ray (the extra ray), whose
    machines see the images under the same path. The bytes are the same."""
    address: str | None = None
    """Of the Ray cluster, such as 10.0.0.1:6379; unset, $RAY_ADDRESS, or one is started on this machine."""
    out: Out | None = None
    """The directory; unset, references/NAME."""
    fields: Options = others()
    """Fields of `irdm train PRESET --help` under data, battery and distance."""

    _plain = field_validator("name")(plain_name)


class Import(Config):
    """Reads the joint bundles that the authors of RDM publish, {Z, alpha, sigma, k_rr, beta} under each encoder, into a
    reference to train against; no code in such a file is run. It has no floors, so only --controller.kind uniform
    trains with it, and no real images, so a run is judged by its own data.

      irdm reference import headline nystrom_joint/     (then: irdm train klein --reference references/headline)
    """

    name: str = word()
    """What the reference is called."""
    bundles: tuple[Path, ...] = word()
    """Files such as mae_joint_M8192.pt, named for their encoders, or a folder of them."""
    out: Out | None = None
    """The directory; unset, references/NAME."""

    _plain = field_validator("name")(plain_name)


class Show(Config):
    """Says which images and encoders a reference holds, with counts, seeds, floors and hashes."""

    reference: Path = word()
    """The directory of a reference, or its name in references/."""


def show(given: Show, command: str) -> int:
    """Print the description."""
    from irdm.reference import describe, open_reference
    from irdm.reference.imported import ImportedReference, describe_imported, is_imported

    path = find_reference(given.reference)
    imported = is_imported(path)
    print("\n".join(describe_imported(ImportedReference(path)) if imported else describe(open_reference(path))))
    return 0


def import_bundles(given: Import, command: str) -> int:
    """Read, check and write."""
    from irdm.reference.imported import describe_imported, import_reference

    out = given.out or REFERENCES / given.name
    print("\n".join(describe_imported(import_reference(given.name, given.bundles, out, print))))
    print(f"\ntrain against it: irdm train klein --reference {out}")
    return 0


def build(given: Build, command: str) -> int:
    """Open the images, fit or load the encoders, build the rest."""
    from irdm.build import reference_of, resolve_device
    from irdm.distributed import Ranks
    from irdm.progress import silent
    from irdm.store import plain
    from irdm.store.ray_data import on_ray

    config = configured(given)
    if given.address and given.engine != "ray":
        raise UsageError("--address is of a Ray cluster; give --engine ray too")
    engine = on_ray(given.address) if given.engine == "ray" else plain
    device = resolve_device(given.device)
    ranks = Ranks.start(device)
    say = partial(print, flush=True) if ranks.is_main else silent
    out = given.out or REFERENCES / given.name
    reference = reference_of(
        config,
        given.name,
        out,
        judge_only=given.judge_only,
        micro_batch=given.micro_batch,
        device=device,
        ranks=ranks,
        command=command,
        progress=say,
        engine=engine,
    )
    say(f"\nreference {given.name} of {len(reference.names)} encoders: {out}{os.sep}")
    say(f"judge images against it: irdm eval SOURCE --against {out}")
    if given.preset and not given.judge_only:
        say(f"train against it: irdm train {given.preset} --reference {out}, with the same fields")
    return 0


def configured(given: Build) -> RunConfig:
    """The run whose real side the reference is. Raises UsageError for what does not fit together."""
    fields = dict(given.fields)
    if odd := [name for name in fields if name.partition(".")[0] not in ("data", "battery", "distance", "joint")]:
        raise no_option(odd[0], [*own_options(Build)])
    if given.preset is None:
        if given.train is None:
            raise UsageError("--train is missing: give --train SOURCE, real images, or --preset PRESET")
        from irdm.presets import run_of_images

        base = run_of_images(given.train, given.val, names=given.panel, judge_only=given.judge_only)
        seeds = ("seed", "battery.seed")
    else:
        base, seeds = start(given.preset, None), ("seed",)
        if both := [f"--{name}" for name in ("train", "val", "panel") if getattr(given, name)]:
            raise UsageError(f"{both[0]} is for images of your own; a preset has its own data and encoders")
    asked = {"data.size": given.size, "data.limit": given.limit, "rollout": given.rollout}
    asked |= {"battery.steps": given.battery_steps, "battery.weights": given.weights}
    asked |= {name: given.seed for name in seeds if name == "seed" or "seed" in type(base.battery).model_fields}
    fields |= {name: [str(value)] for name, value in asked.items() if value is not None}
    return override(base, fields)


def find_reference(reference: Path) -> Path:
    """The directory of a reference given by path or by name."""
    named = REFERENCES / reference
    return named if not reference.exists() and named.is_dir() else reference


COMMAND = {
    "build": Command(Build, build), "import": Command(Import, import_bundles), "show": Command(Show, show)
}  # fmt: skip
