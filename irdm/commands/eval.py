"""`irdm eval`: any images against real ones."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from irdm.commands import Command, Count, Device, Out, Seed
from irdm.commands.reference import find_reference
from irdm.config import Config
from irdm.fields import UsageError
from irdm.overrides import Options, others, override, word

if TYPE_CHECKING:
    from irdm.data.image_source import ImageSource
    from irdm.evaluation import EvaluationConfig, Result
    from irdm.metrics.text_scorer import TextScorer


class Eval(Config):
    """Judges images against real ones under every encoder, and writes result.json, samples.npz and report.html. Beside
    each score stands what fresh real images get. Under torchrun several processes share the work.

      irdm eval generated --against real                  a folder or an archive against another of real images
      irdm eval generated --against references/flowers    against a reference, which is made once
      irdm eval images.zip --against runs/digits          against the data of a run
      irdm eval runs/digits                               a run again, on its own data or reference
    """

    source: Path = word()
    """A run directory, a folder of images, or a .zip, .tar, .npz or .npy of images."""
    against: Path | None = None
    """What to compare with. A folder or an archive of real images: half of them stand for what a generator learns, the
    others for fresh images; encoders are fitted to them once, and kept in irdm's cache. A reference from `irdm
    reference build`, by its directory or its name in references/. A run, for its data, its encoders and its way to
    judge. Published statistics, an .npz of mu and sigma, for a Frechet distance alone: --panel then names the encoder
    that made them. Unset, SOURCE must be a run, and is judged on its own."""
    panel: tuple[str, ...] = ()
    """Only these encoders, such as inception,dinov2; means over some of a reference's or a run's are named partial."""
    size: Annotated[int | None, Field(ge=4)] = None
    """Side of the centre crop in pixels of a folder of real images; unset, their own when all have one size."""
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
    teacher: Count | None = None
    """Judge in place of a run of klein its teacher in so many steps, from the noise and captions of the run itself; the
    result is in RUN/teacher-STEPS."""
    prompts: Path | None = None
    """What the images of a folder or an archive were asked for: a file of a line an image, in the order of the images'
    names, or of one line with {class} in it; or a .jsonl, .csv or .json of captions by name, as `irdm sample --format
    files` writes it. Adds what --prompt-scores names."""
    prompt_scores: tuple[Literal["pickscore", "clipscore"], ...] = ("pickscore",)
    """How images are compared with their prompts: pickscore, clipscore, or both."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    fields: Options = others("evaluation.")
    """How to judge; unset, as the run that is compared with, or as published."""


def run(given: Eval, command: str) -> int:
    """Judge, then print the scores."""
    from irdm.build import resolve_device
    from irdm.distributed import Ranks
    from irdm.evaluation.statistics import is_statistics
    from irdm.progress import silent

    is_run = (given.source / "config.json").is_file()
    against = find_reference(given.against) if given.against else None
    if not is_run and not given.source.exists():
        raise ValueError(f"There is no {given.source}; give a run directory, a folder or an archive of images.")
    if not is_run and against is None:
        raise UsageError(
            f"{given.source} is no run; say what its images are compared with: irdm eval {given.source} --against "
            "REAL, where REAL is a folder or an archive of real images, a reference or a run"
        )
    if not is_run and against is not None and given.source.resolve() == against.resolve():
        raise UsageError(f"{given.source} is compared with itself; give other real images to --against")
    if is_run and against is not None and is_statistics(against):
        raise UsageError(
            f"{against} is of statistics, and a run draws images: write some with `irdm sample {given.source} --format "
            "files --count N` and judge that folder"
        )
    if not is_run and given.count:
        raise UsageError("--count is for a run, whose images are drawn; those of a folder or an archive are all judged")
    if not is_run and given.teacher:
        raise UsageError("--teacher is for a run, and draws what its generator began from")
    if is_run and given.prompts:
        raise UsageError(
            f"--prompts is for a folder or an archive; write images with `irdm sample {given.source} --format files "
            "--count N` and judge that folder"
        )
    device = resolve_device(given.device)
    ranks = Ranks.start(device)
    say = partial(print, flush=True) if ranks.is_main else silent
    source = given.source / f"teacher-{given.teacher}" if given.teacher else given.source
    out = given.out or (_named(source, against) if against else source)
    shared: dict[str, Any] = {
        "config": configured(given, against or given.source),
        "names": given.panel or None,
        "weights": given.weights,
        "size": given.size,
        "ranks": ranks,
        "command": command,
        "progress": say,
        "device": device,
    }
    if against is not None and is_statistics(against):
        result = _judge_by_statistics(given.source, against, out, **shared)
    elif is_run:
        from irdm.against import evaluate_run

        result = evaluate_run(given.source, against, out, count=given.count, teacher=given.teacher, **shared)
    else:
        result = _judge_source(given, against, out, **shared)
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
    against: Path | None,
    out: Path,
    *,
    names: tuple[str, ...] | None,
    weights: Path | None,
    size: int | None,
    **shared: Any,
) -> Result | None:
    """A folder or an archive against real images."""
    from irdm.against import open_real
    from irdm.data.checks import check_judged
    from irdm.data.sources import open_source
    from irdm.evaluation import evaluate_source
    from irdm.progress import once
    from irdm.report import write_report

    ranks, device = shared["ranks"], shared["device"]
    shared["progress"] = once(shared["progress"])  # notes on the images come before anything is fitted, and when judged
    with ranks.together():
        source = open_source(given.source)
        prompts = read_prompts(given.prompts, source) if given.prompts else None
        if ranks.is_main:
            check_judged(source, shared["progress"])
    real = open_real(against, None, names=names, weights=weights, size=size, judged=source, **shared)
    result = evaluate_source(
        source,
        real.real,
        dict(real.battery.encoders.items()),
        out,
        image_shape=real.image_shape,
        reference=real.about,
        missing=real.missing,
        pictures=real.pictures,
        ladder=real.ladder,
        prompts=prompts if ranks.is_main else None,
        scorers=_scorers(given.prompt_scores, weights, device) if prompts and ranks.is_main else (),
        **shared,
    )
    if result is not None:
        write_report(out)
    return result


def _judge_by_statistics(
    path: Path,
    against: Path,
    out: Path,
    *,
    names: tuple[str, ...] | None,
    weights: Path | None,
    **shared: Any,
) -> Result | None:
    """A folder or an archive against the mean and covariance of somebody's features."""
    from irdm.data.checks import check_judged
    from irdm.data.sources import open_source
    from irdm.encoders.panel import METRICS_ONLY, PANEL, fingerprint, load_encoder
    from irdm.evaluation.statistics import evaluate_against_statistics, open_statistics
    from irdm.report import write_report

    known = {**PANEL, **METRICS_ONLY}
    if names is None or len(names) != 1 or names[0] not in known:
        raise UsageError(
            f"{against} does not say which encoder made it; name that one with --panel, such as --panel inception, of "
            f"{', '.join(known)}"
        )
    ranks = shared["ranks"]
    with ranks.together():
        statistics, source = open_statistics(against), open_source(path)
        if ranks.is_main:
            check_judged(source, shared["progress"])
    (name,) = names
    encoder = load_encoder(known[name], weights, compile=True).to(shared["device"])
    result = evaluate_against_statistics(source, statistics, encoder, fingerprint(known[name], weights), out, **shared)
    if result is not None:
        write_report(out)
    return result


def read_prompts(path: Path, source: ImageSource) -> list[str]:
    """The prompt of each image of a source: by its name from a .jsonl, .csv or .json of captions, else line by line.

    Raises ValueError unless there is one for each image, or a template.
    """
    if path.suffix in (".jsonl", ".csv", ".json"):
        from irdm.data.captions import captions_of

        return captions_of(source, path)[0]
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) == 1 and "{class}" in lines[0]:
        return [lines[0].replace("{class}", caption) for caption in source.conditions.captions()]
    if len(lines) != len(source):
        raise ValueError(
            f"{path} has {len(lines)} lines and {source.path} {len(source)} images; give a line an image, in the order "
            "of the images' names, or a single line such as: a photo of a {class}"
        )
    return lines


def _scorers(names: tuple[str, ...], weights: Path | None, device: str) -> list[TextScorer]:
    from irdm.encoders.weights import weights_folder
    from irdm.metrics.clipscore import ClipScore
    from irdm.metrics.pickscore import PickScore

    chosen = [scorer for scorer in (PickScore, ClipScore) if scorer.folder in names]
    places = [weights_folder(weights) / scorer.folder for scorer in chosen]
    return [
        scorer.load(place if place.is_dir() else None, device=device)
        for scorer, place in zip(chosen, places, strict=True)
    ]


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
