"""`irdm export`: a trained klein for diffusers, Black Forest Labs' code or ComfyUI."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from irdm.commands import Command, Device, Out
from irdm.config import Config
from irdm.overrides import verbatim, word


class Export(Config):
    """Writes the averaged weights of a run of klein in the format of another program, with a card that says what they
    are, how they were trained, what they score, and the lines that draw its images again.
    """

    run: Path = word()
    """A run directory, such as runs/klein."""
    to: Literal["diffusers", "bfl", "lora", "lora-bfl"]
    """diffusers: the transformer of a pipeline; bfl: one file under Black Forest Labs' names; lora: adapters for
    diffusers; lora-bfl: adapters for ComfyUI. The first two merge adapters into the weights."""
    whole: bool = False
    """With text encoder, tokenizer, VAE and scheduler: a folder that a pipeline opens without another (diffusers)."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights in the file; unset, that of the run, and float32 for adapters."""
    base: str | None = None
    """Where the card's lines get the other parts from; unset, the published model, or else the run's own folder."""
    prompts: tuple[str, ...] = verbatim(())
    """Texts of the images on the card; unset, two of the run's captions."""
    device: Device = "auto"
    """Where to draw them; auto takes CUDA when there is one."""
    out: Out | None = None
    """A new folder; unset, RUN/export/FORMAT."""


def run(given: Export, command: str) -> int:
    """Write, say where."""
    from irdm.export import export_run
    from irdm.run import resolve_device

    out = export_run(
        given.run,
        given.to,
        given.out,
        whole=given.whole,
        dtype=given.dtype,
        base=given.base,
        prompts=given.prompts,
        device=resolve_device(given.device),
        progress=print,
    )
    print(f"wrote {out}; its README.md says how to use it")
    return 0


COMMAND = Command(Export, run)
