"""Text to image in the captioned world: a student of one step beside its teacher, and what it owes to which part."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from irdm.against import evaluate_run
from irdm.conditions import to_bytes
from irdm.controller import ControllerConfig
from irdm.encoders.local import CAPTIONS, MIXTURES, LocalBatteryConfig
from irdm.evaluation import Result
from irdm.experiments.base import Claim, Numbers, Study, Table, scores
from irdm.experiments.draw import bars, grid
from irdm.files import replaced_folder
from irdm.generators import Generator
from irdm.generators.klein_folder import WORLD, open_folder
from irdm.generators.klein_teacher import load_pipeline
from irdm.presets import RunConfig, world
from irdm.run import load_run
from irdm.teacher.judged import STEPS, rates
from irdm.train import train
from irdm.world.captions import CATEGORIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JUDGED = 1200  # pictures of each side that the exact judge reads
SHORT = 125  # steps of the changes
STUDENT = "student, 1 step"
BASE, MARGINAL, ALONE = "three mixtures", "marginal", "one encoder, caption"
HARD = (*CATEGORIES, "two_object", "position", "color_attr")
SHOWN = (
    "a red circle", "a white triangle and a green circle", "three crosses", "a disc to the left of a red box",
    "two yellow squares", "a pyramid above a plus", "four boxes", "a purple cross",
)  # fmt: skip


@dataclass(frozen=True)
class WorldCell:
    """A student of the world, and perhaps its teacher at several numbers of steps, judged alike."""

    config: RunConfig
    teacher: bool = False
    scratch: bool = False
    """Start from a transformer that has learned nothing."""

    @property
    def key(self) -> str:
        """The configuration, the teacher's weights, and what is judged."""
        return json.dumps([self.config.identity(), open_folder(WORLD).hashes, self.teacher, self.scratch, JUDGED])

    def run(self, name: str, out: Path, seed: int) -> dict[str, Numbers]:
        """Train, then judge."""
        config = self.config.model_copy(update={"seed": seed})
        if self.scratch:
            folder = out.with_name(out.name + "-untrained")
            generator = config.generator.model_copy(update={"model": _untrained(folder, seed)})
            config = config.model_copy(update={"generator": generator})
        result = train(config, out, command="irdm experiment")
        loaded = load_run(out)
        rows = {name: _numbers(result, loaded.generator)}
        for steps in STEPS if self.teacher else ():
            judged = evaluate_run(out, out=out / f"teacher-{steps}", teacher=steps)
            row = f"teacher, {steps} step{'s' if steps > 1 else ''}"
            rows[row] = _numbers(judged, loaded.teacher(steps).generator)
        return rows


def _untrained(folder: Path, seed: int) -> Path:
    """The shipped pipeline with a transformer of random weights."""
    if not folder.is_dir():
        shipped = open_folder(WORLD)
        transformer = shipped.load_transformer(torch.float32)
        torch.manual_seed(seed)
        transformer = type(transformer).from_config(transformer.config)
        pipeline = load_pipeline(shipped.path, torch.float32, transformer=transformer)
        nn.init.zeros_(pipeline.transformer.proj_out.weight)
        with replaced_folder(folder) as partial:
            pipeline.save_pretrained(partial)
            (partial / "world.json").write_bytes((open_folder(WORLD).path / "world.json").read_bytes())
    return folder


def _numbers(result: Result | None, generator: Generator) -> Numbers:
    """Scores of the run's own captions, and what the exact judge says of fresh ones."""
    assert result is not None
    generator.eval()

    @torch.no_grad()
    def draws(captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        noise = [torch.randn(*generator.noise_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return generator(torch.stack(noise), to_bytes(list(captions)))

    seen, held = rates(draws, "seen", JUDGED), rates(draws, "held-out", JUDGED)
    found = scores(result.scores) | {"right": seen["mean"], "right_held": held["mean"], "ms": seen["ms"]}
    found |= {f"right_{category}": seen[category] for category in CATEGORIES}
    assert result.verdict is not None
    found["gamed"] = float(result.verdict.gamed is not None)
    if joint := result.scores.get("joint_ratio"):
        assert joint.mean is not None
        found["joint"] = joint.mean.value
    return found


def cells(scale: float) -> dict[str, WorldCell]:
    """The preset, beside its teacher."""
    preset = world()
    return {STUDENT: WorldCell(shortened(preset, preset.steps * scale), teacher=True)}


def changes(scale: float) -> dict[str, WorldCell]:
    """Few steps of the preset with three mixtures in place of one, and one change each of that."""
    preset = world()
    distance, battery = preset.distance, preset.battery
    assert isinstance(battery, LocalBatteryConfig)
    rest = [name for name in battery.held_in if name not in (*MIXTURES, *CAPTIONS)]

    def matched(*mixtures: str) -> LocalBatteryConfig:
        return battery.model_copy(update={"held_in": (*rest, *mixtures, *CAPTIONS)})

    base = preset.model_copy(update={"battery": matched(*MIXTURES)})

    def changed(rollout: int | None = None, **fields) -> WorldCell:
        return WorldCell(shortened(base, SHORT * scale, rollout, **fields))

    return {
        BASE: changed(),
        MARGINAL: changed(joint=False),
        "no residual": changed(distance=distance.model_copy(update={"residual": False})),
        "no mixtures": changed(battery=matched()),
        "equal weights": changed(controller=ControllerConfig(kind="uniform")),
        "LoRA, rank 16": changed(generator=preset.generator.model_copy(update={"lora_rank": 16})),
        "without a teacher": WorldCell(shortened(base, SHORT * scale), scratch=True),
        "hard captions twice": changed(data=preset.data.model_copy(update={"mix": HARD})),
        **{f"rollout {rollout}": changed(rollout) for rollout in (64, 1024)},
        ALONE: changed(battery=battery.model_copy(update={"held_in": CAPTIONS[:1]}), joint=True),
    }


def shortened(config: RunConfig, steps: float, rollout: int | None = None, **fields) -> RunConfig:
    """The run with as many pictures as its own rollout would have in these steps, whatever the rollout."""
    rollout = rollout or config.rollout
    steps = max(2, round(steps * config.rollout / rollout))
    schedule = {"rollout": rollout, "steps": steps, "warmup": min(config.warmup, steps // 2), "check_every": steps}
    schedule["micro_batch"] = min(rollout, config.micro_batch or rollout)
    return RunConfig.model_validate(config.model_copy(update=schedule | fields).model_dump())


def figure(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """Captions above pictures: the teacher in four steps, the student in one, real."""
    from irdm.world import picture

    loaded = load_run(folder(STUDENT, 0))
    noise = torch.stack(
        [
            torch.randn(*loaded.generator.noise_shape, generator=torch.Generator().manual_seed(k))
            for k in range(len(SHOWN))
        ]
    )
    with torch.no_grad():
        rows = {
            "teacher, 4 steps": loaded.teacher(4).generator(noise, to_bytes(list(SHOWN))),
            "student, 1 step": loaded.generator(noise, to_bytes(list(SHOWN))),
            "real": picture(SHOWN, torch.Generator().manual_seed(0)),
        }
    fig, axes = grid(len(rows), len(SHOWN), size=1.1, height=1.15)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image, caption in zip(line, images, SHOWN, strict=True):
            axis.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if line is axes[0]:
                axis.set_title("\n".join(_broken(caption)), fontsize=6)
        line[0].set_ylabel(name, fontsize=7)
    return fig


def _broken(text: str, width: int = 16) -> list[str]:
    lines = [""]
    for word in text.split():
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [lines[-1], word]
    return lines


def bars_of(table: Table, folder: Callable[[str, int], Path]) -> Figure:
    """How often each is right, and how far it is from real."""
    fig, ((right,), (far,)) = grid(2, 1, size=11, height=2.6)
    sides = [("right", "captions trained on"), ("right_held", "compositions held out")]
    bars(right, table, list(table), sides, real=False)
    bars(far, table, list(table), [("sw_held_in", "held in"), ("sw_held_out", "held out")])
    right.set_ylabel("right")
    far.set_ylabel("SW ratio (real = 1)")
    for axis in (right, far):
        axis.set_xticks(range(len(table)), ["\n".join(_broken(name, 14)) for name in table])
        axis.legend(frameon=False, fontsize=8, ncols=2)
    return fig


def claims(table: Table) -> list[Claim]:
    """One step beats its own four."""
    student, four = table[STUDENT], table["teacher, 4 steps"]
    loss = student["right"].mean - student["right_held"].mean
    return [
        Claim(
            "The student in one step beats its teacher in four by the exact judge",
            "GenEval 0.826 in one step, 0.794 in four",
            f"{student['right']} against {four['right']}",
            student["right"].mean > four["right"].mean,
        ),
        Claim(
            "It does on compositions that no caption of training has",
            "not reported",
            f"{student['right_held']} against {four['right_held']}; it loses {loss:.3f} to those trained on",
            student["right_held"].mean > four["right_held"].mean,
        ),
        Claim(
            "It does by the SW ratio of the encoders that judge alone",
            "not reported",
            f"{student['sw_held_out']} against {four['sw_held_out']}",
            student["sw_held_out"].mean < four["sw_held_out"].mean,
        ),
        Claim(
            "It does by the SW ratio of all encoders",
            "not reported",
            f"{student['sw']} against {four['sw']}",
            student["sw"].mean < four["sw"].mean,
        ),
    ]


def claims_of_changes(table: Table) -> list[Claim]:
    """Joint against marginal, and what one encoder does alone."""
    joint, marginal, alone = table[BASE]["right"], table[MARGINAL]["right"], table[ALONE]
    return [
        Claim(
            "Only joint matching ties a picture to its caption",
            "GenEval 0.826 joint, 0.801 marginal",
            f"{joint} joint under the captions, {marginal} marginal",
            joint.mean > marginal.mean,
        ),
        Claim(
            "A single encoder is gamed, and the verdict says so",
            "any single representation can be gamed",
            f"SW ratio {alone['sw_held_in']} held in, {alone['sw_held_out']} held out",
            alone["gamed"].mean == 1,
        ),
    ]


COLUMNS = {
    "right": "right, seen",
    "right_held": "right, held out",
    "sw_held_out": "SW ratio, held out",
    "sw_held_in": "held in",
    "sw": "all",
    "joint": "joint ratio",
    "ms": "core-ms a picture",
}
NOTES = f"Rates are of {JUDGED} pictures, the mean of six categories, as the exact judge reads them."
STUDY = Study(
    name="world",
    title="text to image in the captioned world, from four steps to one",
    question="Does one step beat the four of its teacher, by a judge that cannot be gamed?",
    columns=COLUMNS,
    cells=cells,
    figure=figure,
    claims=claims,
    notes=NOTES + " The teacher is one network, judged each time with the same captions and noise: it has no spread.",
)
CHANGES = Study(
    name="world-changes",
    title="what the student of the captioned world owes to which part",
    question="Which part of the recipe of the captioned world does what?",
    columns=COLUMNS,
    cells=changes,
    figure=bars_of,
    claims=claims_of_changes,
    notes=NOTES + f" Every row is {SHORT} steps, with one change of the first.",
)
