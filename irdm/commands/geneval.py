"""`irdm geneval prompts | render | score | golden`: GenEval's prompts drawn by a run, and judged by a scorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from irdm.commands import Command, Count, Device, Out
from irdm.config import Config
from irdm.fields import UsageError
from irdm.overrides import word

if TYPE_CHECKING:
    from irdm.geneval.layout import Samples, TeacherSamples
    from irdm.geneval.verdicts import Scorer
    from irdm.metrics.pickscore import PickScore

Share = Annotated[float, Field(ge=0, le=1)]


class Prompts(Config):
    """Writes prompts of the captioned world (--data.kind world) in GenEval's format, for `irdm geneval render` and the
    scorer exact: of compositions that are trained on, or of those that no training caption has.
    """

    out: Out = word()
    """The file, such as prompts.jsonl."""
    side: Literal["seen", "held-out"] = "held-out"
    """Compositions."""


class Render(Config):
    """Draws the images of GenEval's prompts from a trained run, or from FLUX.2 [klein] as it was published, in the
    folder that the official scorer reads. Sample s of prompt i starts from noise of seed 46,000,000 + 100 i + s.
    Interrupted, the same command draws what is missing; under torchrun several processes share the images.
    """

    source: Path = word()
    """A run directory, such as runs/klein, or a diffusers folder of the teacher."""
    prompts: Path
    """GenEval's evaluation_metadata.jsonl, which is not part of irdm."""
    samples: Annotated[int, Field(ge=1, le=100)] = 4
    """Images a prompt; the published score is of 4."""
    noise_device: Literal["cpu", "cuda"] = "cpu"
    """Where noise is drawn: cpu is the same on every machine; cuda repeats what the authors of RDM drew."""
    steps: Count | None = None
    """Steps of the teacher's sampler; unset, 4."""
    size: Annotated[int | None, Field(ge=16, le=4096)] = None
    """Height and width of the teacher's images; unset, 512."""
    length: Annotated[int | None, Field(ge=8, le=512)] = None
    """Tokens of text that the teacher is given; unset, 48."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the teacher; unset, bfloat16."""
    micro_batch: Count = 8
    """Images drawn at once."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    out: Out | None = None
    """The folder; unset, SOURCE/geneval, which the teacher's folder needs."""


class Scoring(Config):
    """What both actions that judge have in common."""

    folder: Path = word()
    """A rendered folder."""
    scorer: Literal["official", "transformers", "exact"] = "official"
    """official: GenEval's own script, the published metric; transformers: the same rules on another detector, which
    needs no mmdet and is another metric; exact: for pictures of the captioned world, read without a network."""
    python: Path | None = None
    """The Python of the environment that has mmdet (official)."""
    repo: Path | None = None
    """A checkout of GenEval, with evaluation/evaluate_images.py (official)."""
    config: Path | None = None
    """mmdet's configuration of the very weights (official)."""
    weights: Path | None = None
    """The detector: mmdet's .pth file (official), or a folder of a Mask2Former (transformers)."""
    clip: Path | None = None
    """Weights of CLIP ViT-L-14 of OpenAI, which tells colours; unset, the cache of open_clip (transformers)."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""


class Score(Scoring):
    """Judges a rendered folder: six rates, their mean, intervals by bootstrap over prompts, and PickScore of the same
    images. Refuses a folder that is half rendered or of other prompts, and a scorer that writes too few verdicts, or
    finds hardly any single object, or fails on a golden set.
    """

    prompts: Path
    """The file that the folder was rendered from."""
    floor: Share = 0.9
    """Share of single objects below which the scorer is not believed."""
    golden: Path | None = None
    """A folder with a golden set, on which the scorer is tried first."""
    agreement: Share = 0.98
    """Share of its verdicts that the scorer must repeat."""
    pickscore: Path | None = None
    """Folder of PickScore's weights; unset, $IRDM_WEIGHTS/pickscore or the hub's cache, where they are there."""


class Golden(Scoring):
    """Compares the verdicts of this build of a scorer with those recorded, image by image. Exits with 1 when fewer than
    --agreement are the same. With --record, writes them down: the folder is a golden set then.
    """

    record: bool = False
    """Record the verdicts, of a build that you trust."""
    agreement: Share = 0.98
    """Share of verdicts that must be repeated."""


def prompts(given: Prompts, command: str) -> int:
    """Write the file."""
    from irdm.geneval.exact import write_world_prompts

    print(f"{given.out}: {write_world_prompts(given.out, given.side)} prompts")
    return 0


def render(given: Render, command: str) -> int:
    """Read the prompts, open what draws them, draw."""
    from irdm.distributed import Ranks
    from irdm.geneval import read_prompts
    from irdm.geneval import render as render_folder
    from irdm.progress import silent
    from irdm.run import resolve_device

    prompts = read_prompts(given.prompts)
    if given.noise_device == "cuda":
        resolve_device("cuda")
    device = resolve_device(given.device)
    ranks = Ranks.start(device)
    say = print if ranks.is_main else silent
    texts = [prompt.prompt for prompt in prompts.prompts]
    is_teacher = (given.source / "model_index.json").is_file()
    images, about = ranks.in_turn(lambda: (_of_teacher if is_teacher else _of_run)(given, texts, device))
    out = given.out or given.source / "geneval"
    say(f"{prompts}, {given.samples} images each, from {given.source}")
    drawn = render_folder(images, prompts, out, micro_batch=given.micro_batch, ranks=ranks, about=about, progress=say)
    say(f"{out}: {drawn} images drawn, the others were there; judge them: irdm geneval score {out}")
    return 0


OF_TEACHER = ("steps", "size", "length", "precision")


def _of_run(given: Render, texts: list[str], device: str) -> tuple[Samples, dict[str, Any]]:
    from irdm.geneval import Samples
    from irdm.run import load_run

    if odd := [name for name in OF_TEACHER if getattr(given, name)]:
        raise UsageError(f"--{odd[0]} is of the teacher; {given.source} is a run, which has its own")
    loaded = load_run(given.source, device)
    images = Samples(
        loaded.generator, loaded.spec, loaded.image_shape, texts, given.samples,
        device=device, noise_device=given.noise_device, identity=loaded.weights, name=str(given.source),
    )  # fmt: skip
    for note in loaded.generator.look_at(images.conditions):
        print(note)
    return images, {"weights": loaded.weights, "step": loaded.step, "generator": loaded.config.generator.kind}


def _of_teacher(given: Render, texts: list[str], device: str) -> tuple[TeacherSamples, dict[str, Any]]:
    from irdm.generators.klein_folder import open_folder
    from irdm.generators.klein_teacher import Teacher
    from irdm.geneval.layout import TeacherSamples

    if given.out is None:
        raise UsageError("--out is missing: the folder of the teacher is not written to")
    unset = {"steps": 4, "size": 512, "length": 48, "precision": "bfloat16"}
    made = {name: getattr(given, name) or value for name, value in unset.items()}
    shape = (3, made["size"], made["size"])
    teacher = Teacher(
        given.source, shape, device=device, noise_device=given.noise_device,
        **{name: made[name] for name in ("steps", "length", "precision")},
    )  # fmt: skip
    if said := teacher.texts.encoder.check_cut(texts, 0.01):
        print(said)
    about = {"weights": open_folder(given.source).hashes, **made}
    identity = json.dumps(about, sort_keys=True)
    return TeacherSamples(
        teacher, shape, texts, given.samples, noise_device=given.noise_device, identity=identity
    ), about  # fmt: skip


def score(given: Score, command: str) -> int:
    """Open the scorer, try it on the golden set, judge, print."""
    from irdm.geneval import read_prompts, rendered, score_folder
    from irdm.geneval.summary import table

    prompts = read_prompts(given.prompts)
    rendered(given.folder, prompts)  # before a scorer is opened
    scored, path = score_folder(
        given.folder,
        prompts,
        opened(given),
        floor=given.floor,
        golden=given.golden,
        agreement=given.agreement,
        pickscore=_pickscore(given),
        progress=print,
    )
    print("\n".join(["", *table(scored), "", f"result: {path}"]))
    return 0


def golden(given: Golden, command: str) -> int:
    """Record, or compare image by image."""
    from irdm.geneval import record_golden, rendered, try_golden
    from irdm.geneval.scoring import check_agreement

    rendered(given.folder, None)
    scorer = opened(given)
    if given.record:
        print(f"wrote {record_golden(given.folder, scorer, print)}")
        return 0
    found = try_golden(given.folder, scorer, print)
    for name in found.differing:
        print(f"another verdict: {name}")
    check_agreement(found, given.agreement, given.folder)
    print(f"{found.share:.1%} of {found.images} verdicts are those that were recorded")
    return 0


def opened(given: Scoring) -> Scorer:
    """The scorer. Raises UsageError for options of the other one, ValueError when something of it is missing."""
    from irdm.run import resolve_device

    of_official = ("python", "repo", "config")
    of_other = {"official": ("clip",), "transformers": of_official, "exact": ("weights", "clip", *of_official)}
    if odd := [name for name in of_other[given.scorer] if getattr(given, name)]:
        raise UsageError(f"--{odd[0]} is not for --scorer {given.scorer}; leave it out")
    if given.scorer == "official":
        from irdm.geneval.official import OfficialScorer

        return OfficialScorer(given.python, given.repo, given.config, given.weights)
    if given.scorer == "exact":
        from irdm.geneval.exact import ExactScorer

        return ExactScorer()
    from irdm.geneval.detector import TransformersScorer

    return TransformersScorer.load(given.weights, given.clip, resolve_device(given.device))


def _pickscore(given: Score) -> PickScore | str:
    """The other judge, or why there is none; what was asked for by name must be there."""
    from irdm.encoders.weights import weights_folder
    from irdm.metrics.pickscore import PickScore
    from irdm.run import resolve_device

    place = given.pickscore or weights_folder(None) / PickScore.folder
    try:
        return PickScore.load(place if given.pickscore or place.is_dir() else None, device=resolve_device(given.device))
    except ValueError as error:
        if given.pickscore:
            raise
        return " ".join(str(error).split("\n")[-1].split())


COMMAND: dict[str, Any] = {
    "prompts": Command(Prompts, prompts),
    "render": Command(Render, render),
    "score": Command(Score, score),
    "golden": Command(Golden, golden),
}
