"""The training of the world's teacher, from nothing to a diffusers folder with its numbers.

Flow matching makes a network of many steps, and distillation one of four. Of what each finishes nothing is done again.

    OUT/plan.json        what decides the weights; written first
    OUT/start/           the folder as it was before the first step, its text encoder trained
    OUT/flow/            the first training: checkpoints and metrics
    OUT/base/            the network of many steps that it makes, a diffusers folder in half precision
    OUT/distillation/    the second training, which begins with that
    OUT/klein/           the teacher, with world.json, its card
    OUT/result.json      the card again, written last
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from irdm.files import claimed, read_manifest, replaced_folder, write_manifest
from irdm.generators.klein_world import world_pipeline
from irdm.process import keep_freed_memory
from irdm.progress import Say
from irdm.teacher.config import TeacherConfig
from irdm.teacher.distillation import Distillation
from irdm.teacher.flow import Flow
from irdm.teacher.judged import judged_teacher
from irdm.teacher.reader import teach_to_read
from irdm.teacher.training import save_pipeline
from irdm.world import make, signature

PLAN, CARD = "plan.json", "world.json"


def train_teacher(config: TeacherConfig, out: Path, say: Say = print) -> dict[str, Any]:
    """Both trainings to the end of their times, resuming from the newest checkpoint in `out`; returns the card.

    Raises ValueError when `out` holds something else, KeyboardInterrupt or SystemExit after Ctrl-C or SIGTERM, when the
    state has been saved.
    """
    keep_freed_memory()
    plan = {"teacher": config.identity(), "world": signature()}
    start, base, teacher = out / "start", out / "base", out / "klein"
    with claimed(out, PLAN, plan, "teacher of the world"):
        if not start.is_dir():
            with replaced_folder(start) as folder:
                _write_start(config, folder, say)
        if not base.is_dir():
            flow = Flow(config.flow, config.seed, start)
            took = flow.train(out / "flow", say)
            with replaced_folder(base) as folder:
                flow.write(folder)
                write_manifest(folder / CARD, {"world": signature(), "flow": took})
        distillation = Distillation(config.distillation, config.seed, base)
        took = distillation.train(out / "distillation", say)
        with replaced_folder(teacher) as folder:
            distillation.write(folder)
            write_manifest(folder / CARD, {"world": signature()})
        card = {
            "world": signature(),
            "teacher": config.model_dump(),
            "flow": read_manifest(base / CARD, "its card")["flow"],
            "distillation": took,
            "judged": judged_teacher(teacher, config.judged, say),
        }
        for place in (teacher / CARD, out / "result.json"):
            write_manifest(place, card)
    return card


def _write_start(config: TeacherConfig, folder: Path, say: Say) -> None:
    torch.manual_seed(config.seed)
    pipeline = world_pipeline(config.width, config.heads, config.blocks)
    read = teach_to_read(pipeline, config.reading_steps, config.seed, say)
    pixels = F.pixel_unshuffle(make(6000, config.seed, "seen")[0] * 2 - 1, 2)
    bn = pipeline.vae.bn
    for k in range(3):  # a colour has one mean and one variance, wherever it stands in a token
        one = pixels[:, 4 * k : 4 * k + 4]
        bn.running_mean[4 * k : 4 * k + 4], bn.running_var[4 * k : 4 * k + 4] = one.mean(), one.var()
    save_pipeline(pipeline, folder)
    write_manifest(folder / CARD, {"world": signature(), "sentences_read": read})
