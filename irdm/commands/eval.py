"""`irdm eval`: any images against real ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irdm.commands import Command, Count, Device, Out, Seed
from irdm.commands.reference import find_reference
from irdm.config import Config
from irdm.fields import UsageError
from irdm.overrides import Options, others, override, word

if TYPE_CHECKING:
    from irdm.data.image_source import ImageSource
    from irdm.distributed import Ranks
    from irdm.evaluation import EvaluationConfig, Result


class Eval(Config):
    """Judges images against real ones under every encoder, and writes result.json, samples.npz and report.html. Beside
    each score stands what fresh real images get. Under torchrun several processes share the work.

      irdm eval runs/digits                                  a run again, on its own data or reference
      irdm eval runs/digits --reference references/digits    a run against a reference
      irdm eval images.zip --reference runs/digits           any images against the data of a run
    """

    source: Path = word()
    """A run directory, a folder of images, or a .zip, .tar, .npz or .npy of images."""
    reference: Path | None = None
    """What to compare with: a reference from `irdm reference build`, by its directory or its name in references/, or a
    run, which stands for its data, its encoders and its way to judge; unset, SOURCE must be a run, and is judged on its
    own."""
    panel: tuple[str, ...] = ()
    """Only these encoders, such as inception,dinov2; means are then named partial."""
    weights: Path | None = None
    """Folder of the weights of pretrained encoders (see irdm encoders)."""
    out: Out | None = None
    """Where to write; unset, evaluations/SOURCE-against-REF, or for a run on its own the run itself."""
    seed: Seed | None = None
    """Short for --evaluation.seed: of the noise and of every draw."""
    micro_batch: Count | None = None
    """Short for --evaluation.micro-batch: images embedded at once."""
    count: Count | None = None
    """Images to draw from a run; unset, --evaluation.draws full draws."""
    prompts: Path | None = None
    """Adds PickScore to a folder or an archive: a file of a line an image, in the order of the images' names, or of one
    line with {class} in it."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    fields: Options = others("evaluation.")
    """How to judge; unset, as the run that is compared with, or as published."""


def run(given: Eval, command: str) -> int:
    """Judge, then print the scores."""
    from irdm.build import resolve_device
    from irdm.distributed import Ranks

    is_run = (given.source / "config.json").is_file()
    reference = find_reference(given.reference) if given.reference else None
    if not is_run and not given.source.exists():
        raise ValueError(f"There is no {given.source}; give a run directory, a folder or an archive of images.")
    if not is_run and reference is None:
        raise UsageError(f"{given.source} is no run; give --reference REF, what its images are compared with")
    if not is_run and given.count:
        raise UsageError("--count is for a run, whose images are drawn; those of a folder or an archive are all judged")
    if is_run and given.prompts:
        raise UsageError(
            f"--prompts is for a folder or an archive; write images with `irdm sample {given.source} --format files "
            "--count N` and judge that folder"
        )
    config = configured(given, reference or given.source)
    device = resolve_device(given.device)
    ranks = Ranks.start(device)
    say = (lambda text: print(text, flush=True)) if ranks.is_main else (lambda text: None)
    out = given.out or (_named(given.source, reference) if reference else given.source)
    shared = {"config": config, "ranks": ranks, "command": command, "progress": say, "device": device}
    if is_run:
        from irdm.against import evaluate_run

        result = evaluate_run(
            given.source,
            reference,
            out,
            names=given.panel or None,
            weights=given.weights,
            count=given.count,
            **shared,  # pyright: ignore[reportArgumentType]
        )
    else:
        assert reference is not None
        result = _judge_source(given, reference, out, **shared)  # pyright: ignore[reportArgumentType]
    if result is not None:
        from irdm.commands.scores import score_table

        print(f"\n{score_table(result)}\n\nresult: {out / 'result.json'}\nreport: {out / 'report.html'}")
    return 0


def configured(given: Eval, like: Path) -> EvaluationConfig:
    """How to judge: as the run at `like` does, else as published; and what was typed on top."""
    from irdm.evaluation import EvaluationConfig

    class Judged(Config):
        evaluation: EvaluationConfig = EvaluationConfig()

    base = Judged()
    if (like / "config.json").is_file():
        from irdm.run import read_config

        base = Judged(evaluation=read_config(like / "config.json").evaluation or EvaluationConfig())
    typed = {"seed": given.seed, "micro_batch": given.micro_batch}
    typed = {f"evaluation.{name}": [str(value)] for name, value in typed.items() if value is not None}
    if twice := typed.keys() & given.fields.keys():
        raise UsageError(f"--{min(twice)} is given twice, once by its short name; keep one")
    return override(base, {**given.fields, **typed}).evaluation


def _judge_source(
    given: Eval,
    reference: Path,
    out: Path,
    *,
    config: EvaluationConfig,
    ranks: Ranks,
    command: str,
    progress: Callable[[str], None],
    device: str,
) -> Result | None:
    """A folder or an archive against a reference or a run."""
    from irdm.against import open_real
    from irdm.data.sources import open_source
    from irdm.evaluation import evaluate_source
    from irdm.report import write_report

    with ranks.together():
        source = open_source(given.source)
        prompts = read_prompts(given.prompts, source) if given.prompts else None
    against = open_real(
        reference, None, config, given.panel or None, given.weights, ranks=ranks, device=device, progress=progress
    )
    result = evaluate_source(
        source,
        against.real,
        dict(against.battery.encoders.items()),
        out,
        config=config,
        image_shape=against.image_shape,
        reference=against.about,
        missing=against.missing,
        pictures=against.pictures,
        prompts=prompts if ranks.is_main else None,
        scorer=_scorer(given.weights, device) if prompts and ranks.is_main else None,
        device=device,
        ranks=ranks,
        command=command,
        progress=progress,
    )
    if result is not None:
        write_report(out)
    return result


def read_prompts(path: Path, source: ImageSource) -> list[str]:
    """The prompt of each image of a source. Raises ValueError unless there is one line an image, or a template."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) == 1 and "{class}" in lines[0]:
        return [lines[0].replace("{class}", caption) for caption in source.conditions.captions()]
    if len(lines) != len(source):
        raise ValueError(
            f"{path} has {len(lines)} lines and {source.path} {len(source)} images; give a line an image, in the order "
            "of the images' names, or a single line such as: a photo of a {class}"
        )
    return lines


def _scorer(weights: Path | None, device: str) -> Any:
    from irdm.encoders.weights import weights_folder
    from irdm.metrics.pickscore import PickScore

    local = weights_folder(weights) / "pickscore"
    return PickScore.load(local if local.is_dir() else None, device=device)


def _named(source: Path, reference: Path) -> Path:
    """evaluations/SOURCE-against-REF, in letters that any file system and library can write."""
    names = (re.sub(r"[^\w.-]", "_", path.resolve().stem) for path in (source, reference))
    return Path("evaluations") / "-against-".join(names)


def settings(words: list[str], options: dict[str, list[str]]) -> str:
    """Every field of --evaluation with its default."""
    from irdm.commands.help import describe
    from irdm.evaluation import EvaluationConfig

    return describe(EvaluationConfig, EvaluationConfig().model_dump(), "evaluation")


COMMAND = Command(Eval, run, settings)
