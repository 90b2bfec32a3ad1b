"""The controller against the published implementation's numbers, and its promises."""

import json
import math
from pathlib import Path

import pytest

from irdm.controller import Controller, ControllerConfig

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "controller.json").read_text())


def fixture_controller():
    config = ControllerConfig(
        smoothing=FIXTURE["ema_beta"],
        temperature=FIXTURE["temperature"],
        excess_clip=FIXTURE["excess_clip"],
        budget=FIXTURE["budget"],
    )
    return Controller(config, FIXTURE["floors"])


def test_agrees_with_the_fixture_at_every_step():
    controller = fixture_controller()
    assert set(controller.weights.values()) == {1.0}
    for step in FIXTURE["steps"]:
        assert controller.update(step["scores"]) == pytest.approx(step["weights"], rel=1e-6, abs=1e-9)


def test_violators_share_the_budget_and_the_satisfied_get_nothing():
    controller = Controller(ControllerConfig(), {"a": 1.0, "b": 1.0, "c": 1.0})
    weights = controller.update({"a": 0.5, "b": 1.5, "c": 3.0})
    assert weights["a"] == 0
    assert 0 < weights["b"] < weights["c"]
    assert sum(weights.values()) == pytest.approx(3)
    for _ in range(50):
        weights = controller.update({"a": 0.5, "b": 0.9, "c": 1.0})
    assert weights["b"] == 0
    for _ in range(100):
        weights = controller.update(dict.fromkeys("abc", 0.5))
    assert set(weights.values()) == {0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_changes_nothing(bad):
    controller, twin = fixture_controller(), fixture_controller()
    for step in FIXTURE["steps"][:5]:
        controller.update(step["scores"])
        twin.update(step["scores"])
        controller.update(step["scores"] | {"a": bad})
    assert controller.state_dict() == twin.state_dict()


def test_resumes_exactly():
    controller = fixture_controller()
    for step in FIXTURE["steps"][:20]:
        controller.update(step["scores"])
    resumed = fixture_controller()
    resumed.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    for step in FIXTURE["steps"][20:]:
        assert resumed.update(step["scores"]) == controller.update(step["scores"])


def test_uniform_weights_stay_one():
    controller = Controller(ControllerConfig(kind="uniform"), {"a": 0.0, "b": 0.0})
    assert controller.update({"a": -1.0, "b": 9.0}) == {"a": 1.0, "b": 1.0}


def test_only_uniform_weights_do_without_a_floor():
    with pytest.raises(ValueError, match=r"found {'b': None}.*kind uniform"):
        Controller(ControllerConfig(), {"a": 0.1, "b": None})
    controller = Controller(ControllerConfig(kind="uniform"), {"a": 0.1, "b": None})
    assert controller.update({"a": 1.0, "b": 2.0}) == {"a": 1.0, "b": 1.0}


def test_other_encoders_and_broken_floors_are_refused():
    with pytest.raises(ValueError, match="expected those of"):
        fixture_controller().update({"a": 1.0})
    for kind in ("lagrangian", "uniform"):
        with pytest.raises(ValueError, match="real features are broken"):
            Controller(ControllerConfig(kind=kind), {"a": math.nan})
    with pytest.raises(ValueError, match="expected"):
        fixture_controller().load_state_dict({"scores": {}, "weights": {"z": 1.0}})
