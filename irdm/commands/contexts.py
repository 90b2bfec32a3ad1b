"""`irdm contexts`: what klein reads of a run's captions, encoded once."""

from __future__ import annotations

from pathlib import Path

from irdm.commands import Command, Out
from irdm.commands.train import configured
from irdm.config import Config
from irdm.fields import UsageError
from irdm.overrides import Options, others, word


class Contexts(Config):
    """Encodes the captions of a run of klein once, each distinct one, into a folder that --generator.contexts then
    names: training needs no text encoder. Takes the fields of `irdm train`. Interrupted, the same command goes on;
    with other data it adds the captions that are new. A longer --generator.length serves shorter ones too.
    """

    preset: str | None = word(None)
    """What to start from; `irdm --help` lists the presets."""
    config: Path | None = None
    """A JSON configuration in place of a preset."""
    limit: int | None = None
    """As `irdm train --limit`."""
    out: Out | None = None
    """The folder; unset, that of --generator.contexts."""
    fields: Options = others()
    """Any field of the run."""


def run(given: Contexts, command: str) -> int:
    """Read the captions, count those that are cut, encode."""
    config = configured(given.preset, given.config, given.fields, given.limit)
    from irdm.generators import KleinConfig
    from irdm.run import resolve_device
    from irdm.text.contexts import build_contexts

    generator = config.generator
    if not isinstance(generator, KleinConfig):
        raise UsageError(f"the generator of {config.preset} is '{generator.kind}'; contexts are for klein")
    out = given.out or generator.contexts
    if out is None:
        raise UsageError("--out is missing: give the folder to write")
    encoder = generator.encoder()
    dataset = config.data.build()
    captions = [*dataset.train.conditions.captions(), *dataset.val.conditions.captions()]
    if cut := encoder.check_cut(captions, generator.max_cut):
        print(cut)
    store = build_contexts(out, encoder, captions, device=resolve_device(config.device), progress=print)
    print(f"{out}: {len(store)} contexts of {encoder.length} tokens; train with --generator.contexts {out}")
    return 0


COMMAND = Command(Contexts, run)
