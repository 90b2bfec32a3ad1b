"""A tracker gets what metrics.jsonl gets."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from irdm.log import MetricsLog, read_log
from irdm.overrides import override
from irdm.presets import PRESETS
from irdm.tracker import numbers, require

LINES = [
    {"step": step, "loss": 1 / step, "scores": {"a": step, "b": float("nan")}, "check": {"held_in": 1.5, "alarm": True}}
    for step in range(1, 5)
]


def test_the_numbers_of_a_line():
    line = {"step": 3, "loss": 0.5, "scores": {"a": 2}, "check": {"alarm": True, "each": {"x": 1.0}}, "note": "no"}
    assert dict(numbers(line)) == {"loss": 0.5, "scores/a": 2, "check/alarm": 1, "check/each/x": 1}


def test_tensorboard_holds_the_lines_of_the_file_and_forgets_those_that_come_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path / "metrics.jsonl", 0, tracker="tensorboard")
    for line in LINES:
        log.write(line)
    again = MetricsLog(tmp_path / "metrics.jsonl", 2, tracker="tensorboard")
    again.write({**LINES[2], "loss": 9.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    kept, _ = read_log(tmp_path / "metrics.jsonl")
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(k["step"], k["loss"]) for k in kept]
    assert [e.value for e in events.Scalars("scores/a")] == [1, 2, 3]
    assert [e.value for e in events.Scalars("check/alarm")] == [1, 1, 1]
    assert "scores/b" not in events.Tags()["scalars"], "null in the file"


def test_wandb_gets_each_line_and_one_run_a_directory(tmp_path, monkeypatch):
    seen: list = []
    fake = ModuleType("wandb")
    fake.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    fake.init = lambda **told: seen.append(told) or SimpleNamespace(log=lambda row, step: seen.append((step, row)))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for place, step in ((tmp_path / "run", 0), (tmp_path / "run", 1), (tmp_path / "other", 0)):
        place.mkdir(exist_ok=True)
        MetricsLog(place / "metrics.jsonl", step, tracker="wandb").write(LINES[step])
    first, line, second, _, other, _ = seen
    assert line == (1, {"loss": 1.0, "scores/a": 1.0, "check/held_in": 1.5, "check/alarm": 1.0})
    assert first == second and first["name"] == "run" and first["resume"] == "allow" and Path(first["dir"]).is_dir()
    assert other["id"] != first["id"]


def test_nothing_is_tracked_unless_asked_and_what_is_missing_is_said(tmp_path, monkeypatch):
    MetricsLog(tmp_path / "metrics.jsonl", 0).write(LINES[0])
    MetricsLog(tmp_path / "off.jsonl", 0, write=False, tracker="wandb").write(LINES[0])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    monkeypatch.setattr("irdm.tracker.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--tracker wandb needs a package: pip install .*'\.\[wandb\]'"):
        require(override(PRESETS["digits"](), {"tracker": ["wandb"]}).tracker)
    require(None)
