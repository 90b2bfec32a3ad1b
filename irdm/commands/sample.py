"""`irdm sample`: images from a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from irdm.commands import Command, Count, Device, Out, Seed
from irdm.config import Config
from irdm.fields import UsageError
from irdm.overrides import verbatim, word


class Sample(Config):
    """Draws images from a trained run, each in one evaluation of the network. Image i depends on the seed, i and its
    class or prompt alone: a longer draw begins with the shorter one.

      irdm sample runs/klein --prompt "a red cube on a blue sphere" --count 16
    """

    run: Path = word()
    """A run directory, such as runs/digits."""
    classes: tuple[str, ...] = verbatim(())
    """Classes to draw, taking turns; unset, all of them."""
    prompt: tuple[str, ...] = verbatim(())
    """Texts to draw, taking turns, of a run that was trained on captions; unset, some of its captions."""
    count: Count | None = None
    """Images in all; unset, ten of each class or prompt."""
    seed: Seed = 0
    """Seed of the noise."""
    format: Literal["grid", "files", "npz"] = "grid"
    """grid: one PNG; files: PNGs in a folder a class, or in one folder with captions.jsonl; npz: arrays `images` (uint8
    [n, c, h, w]) and `labels`, or `captions` (UTF-8, uint8 [n, b])."""
    judged: bool = False
    """The very images that the run was judged on, in place of --classes, --prompt, --count and --seed: as an npz they
    score what the run scores."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    out: Out | None = None
    """Where to write; unset, RUN/samples/seed-S..."""


def run(given: Sample, command: str) -> int:
    """Draw, write, say where."""
    from irdm.sample import sample_run

    if given.judged and (given.classes or given.prompt or given.count or given.seed):
        raise UsageError("--judged draws what the run was judged on; leave --classes, --prompt, --count and --seed out")
    if given.classes and given.prompt:
        raise UsageError("--classes is for a run of classes and --prompt for one of captions; give one of the two")
    options = {"format": given.format, "out": given.out, "device": given.device, "judged": given.judged}
    path = sample_run(given.run, given.classes or given.prompt or None, given.count, given.seed, **options)
    print(f"wrote {path}")
    return 0


COMMAND = Command(Sample, run)
