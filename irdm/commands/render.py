"""`irdm render`: pictures of prompts by the four-step teacher, the best of several seeds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from irdm.commands import Command, Count, Device, Out, Seed
from irdm.config import Config
from irdm.fields import UsageError
from irdm.overrides import word


class Render(Config):
    """Draws each prompt several times with FLUX.2 [klein] as it was published, and keeps the pictures that a scorer
    likes best. The folder is then images with captions: irdm train klein --data.path OUT. A render that was interrupted
    goes on when the same command is given again; under torchrun several processes share the work.

      irdm render prompts.txt --model FLUX.2-klein-4B --out renders --seeds 24 --top 3 --scorer pickscore
      irdm render evaluation_metadata.jsonl --model FLUX.2-klein-4B --out correct --seeds 100 --scorer geneval
    """

    prompts: Path = word()
    """A file of prompts: .txt of a line each, .jsonl, .csv or COCO's .json; repeated ones are drawn once."""
    model: Path = Field()
    """The diffusers folder of the distilled model; `tiny` is one of random weights that draws 32x32 pixels."""
    out: Out = Field()
    """The folder to write."""
    seeds: Count = 1
    """Pictures drawn of each prompt."""
    top: Count | None = None
    """Pictures kept of each prompt; unset, all."""
    scorer: str | None = None
    """Which are best: pickscore; geneval, which leaves out what GenEval's rules find wrong, of prompts with its tags;
    exact, the same in the captioned world; or a function of your own, module:function, of (pictures, prompts), that
    returns a number each, minus infinity to leave a picture out."""
    detector: Path | None = None
    """Folder of a Mask2Former for COCO's instances, which geneval looks with."""
    clip: Path | None = None
    """Weights of CLIP ViT-L-14 of OpenAI, which tells geneval colours; unset, the cache of open_clip."""
    size: int = Field(default=512, ge=16, le=4096)
    """Height and width in pixels."""
    length: int = Field(default=48, ge=8, le=512)
    """Tokens of text, as --generator.length of the training."""
    steps: int = Field(default=4, ge=1, le=1000)
    """Steps of the sampler."""
    seed: Seed = 0
    """The first seed."""
    limit: Count | None = None
    """Only the first N prompts, for a trial."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the teacher."""
    contexts: Path | None = None
    """A folder of contexts made by irdm contexts; unset reads every prompt by the text encoder."""
    noise_device: Literal["cpu", "cuda"] = "cpu"
    """Where noise is drawn: that of the CPU is the same everywhere."""
    micro_batch: Count = 8
    """Images drawn at once."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""


def run(given: Render, command: str) -> int:
    """Look at everything, then draw."""
    from irdm.build import resolve_device
    from irdm.data.captions import read_captions
    from irdm.distributed import Ranks
    from irdm.generators.klein_folder import open_folder
    from irdm.generators.klein_teacher import Teacher
    from irdm.geneval.choosing import Verdicts
    from irdm.progress import silent
    from irdm.render import open_scorer, render

    rows = [text for _, text in read_captions(given.prompts)]
    prompts = list(dict.fromkeys(rows))[: given.limit]
    if given.top is not None and given.top > given.seeds:
        raise UsageError(f"--top is {given.top}, of {given.seeds} pictures a prompt; raise --seeds, or lower --top")
    if given.top not in (None, given.seeds) and given.scorer is None:
        raise UsageError(f"--top {given.top} of {given.seeds} needs a --scorer that says which")
    device = resolve_device(given.device)
    if odd := [name for name in ("detector", "clip") if getattr(given, name) and given.scorer != "geneval"]:
        raise UsageError(f"--{odd[0]} is for --scorer geneval; leave it out")
    judging = (prompts, given.prompts, given.detector, given.clip)
    scorer = open_scorer(given.scorer, device, *judging) if given.scorer else None
    shape = (3, given.size, given.size)
    made = {"steps": given.steps, "length": given.length, "precision": given.precision}
    teacher = Teacher(
        given.model, shape, **made, contexts=given.contexts, device=device, noise_device=given.noise_device
    )
    ranks = Ranks.start(device)
    say = partial(print, flush=True) if ranks.is_main else silent
    if said := teacher.texts.encoder.check_cut(prompts, 0.01):
        say(said)
    say(f"{len(prompts)} different prompts of {len(rows)} in {given.prompts}, {given.seeds} pictures each")
    identity = {**made, "size": given.size, "scorer": given.scorer, "noise": given.noise_device}
    if isinstance(scorer, Verdicts):
        identity["verdicts"] = scorer.identity
    identity["model"] = open_folder(given.model).hashes
    settings = {"seeds": given.seeds, "top": given.top, "scorer": scorer, "seed": given.seed}
    render(prompts, given.out, teacher, identity, **settings, micro_batch=given.micro_batch, ranks=ranks, progress=say)
    say(f"train on them: irdm train klein --data.path {given.out}")
    return 0


COMMAND = Command(Render, run)
