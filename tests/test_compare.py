"""Comparing two results: which is better, how sure, and what may not be compared."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from metrics.tables import gaussian
from test_evaluate import DATA, Replay, battery

from irdm.compare import compare
from irdm.evaluate import EvaluationConfig, evaluate
from irdm.metrics.frechet_distance import frechet_distances, table_moments
from irdm.metrics.pickscore import win_rate

CONFIG = EvaluationConfig(directions=32, replicates=4, rff_features=64, resamples=8, unseen_draws=2)


@pytest.fixture(scope="module")
def results():
    """A hazy generator and a clear one, as result.json holds them."""
    pair = (evaluate(Replay(DATA.test, haze), battery(), DATA, CONFIG).result for haze in (0.2, 0.0))
    return [json.loads(json.dumps(result, allow_nan=False)) for result in pair]


def test_the_clear_generator_beats_the_hazy_one(results):
    found = compare(*results)
    assert list(found["metrics"]) == [
        "sw_ratio", "sw_ratio_unseen", "mmd_ratio", "nearest_neighbour_ratio", "label_accuracy",
    ]  # fmt: skip
    for name in ("sw_ratio", "sw_ratio_unseen", "mmd_ratio"):
        mean = found["metrics"][name]["mean"]
        assert mean["better"] == "b"
        assert mean["a"] == pytest.approx(results[0][name]["mean"])
        assert mean["b"] == pytest.approx(results[1][name]["mean"])
        assert mean["difference"] == pytest.approx(mean["b"] - mean["a"])
        assert mean["ci95"][0] < mean["difference"] < mean["ci95"][1] < 0
        assert set(found["metrics"][name]["per_encoder"]) == {"zero", "one", "two"}
        assert found["metrics"][name]["held_out"] == found["metrics"][name]["per_encoder"]["two"]
    near = found["metrics"]["nearest_neighbour_ratio"]
    assert near["value"]["better"] is None  # neither a high nor a low one is good in itself
    assert near["value"]["a"] == pytest.approx(results[0]["nearest_neighbour_ratio"]["value"])
    accuracy = found["metrics"]["label_accuracy"]["value"]
    assert accuracy["a"] == pytest.approx(results[0]["label_accuracy"]["generated"])
    assert compare(results[1], results[0])["metrics"]["sw_ratio"]["mean"]["better"] == "a"


def test_a_result_does_not_differ_from_itself(results):
    part = compare(results[0], results[0])["metrics"]["sw_ratio"]["mean"]
    assert (part["difference"], part["ci95"], part["better"]) == (0, [0, 0], None)


def test_unlike_protocols_are_refused_with_every_difference_named(results):
    other = copy.deepcopy(results[0])
    other["protocol"]["reference"] = "elsewhere"
    other["protocol"]["settings"]["seed"] = 7
    other["protocol"]["panel"]["two"] = "retrained"
    del other["label_accuracy"]
    with pytest.raises(ValueError) as error:
        compare(results[0], other)
    for expected in ("protocol.reference: ", "settings.seed: 0 in the first, 7", "panel.two", "label_accuracy: only"):
        assert expected in str(error.value)


def test_other_weights_of_the_same_encoders_are_another_panel(results):
    panel = battery()
    with torch.no_grad():
        panel.encoders["one"].network[1].weight[0, 0] += 1e-3
    result = evaluate(Replay(DATA.test), panel, DATA, CONFIG).result
    with pytest.raises(ValueError, match=r"protocol\.panel\.one") as error:
        compare(results[0], result)
    assert "panel.two" not in str(error.value)


def test_the_conditions_of_a_single_metric_count_too():
    real = {name: table_moments(name, rows) for name, rows in gaussian(300, 0).items()}

    def result(rows, shift, **options):
        return {"protocol": {"reference": "x"}} | frechet_distances(gaussian(rows, 1, shift), real, **options)

    found = compare(result(100, 0.0), result(100, 0.8))["metrics"]["frechet_distance"]
    assert found["mean"] is None
    assert found["per_encoder"]["a"]["better"] == "a"
    with pytest.raises(ValueError, match="frechet_distance.rows.generated: 100 in the first, 120"):
        compare(result(100, 0.0), result(120, 0.0))


def test_shared_luck_cancels():
    """Rows of two scorers share most of their noise: the paired interval is far narrower than that of either."""
    luck = torch.randn(200, dtype=torch.float64)
    one, two = luck + 0.05 * torch.randn(200), luck + 0.05 * torch.randn(200) + 0.05
    pair = [{"protocol": {}, "pickscore": {"direction": "higher", "replicates": side.tolist()}} for side in (one, two)]
    part = compare(*pair)["metrics"]["pickscore"]["value"]
    assert part["better"] == "b"
    assert np.ptp(part["ci95"]) < 0.1 * luck.std().item()
    assert win_rate(two, one)["ci95"][0] > 0.5


def test_incomparable_results_are_refused(results):
    few = copy.deepcopy(results[0])
    few["label_accuracy"]["replicates"] = few["label_accuracy"]["replicates"][:3]
    with pytest.raises(ValueError, match="label_accuracy has 3 and 3 replicates.*4 or more"):
        compare(few, few)
    with pytest.raises(ValueError, match="second result has no metrics"):
        compare(results[0], {"protocol": {}})
    old = {name: value for name, value in results[0].items() if name != "protocol"}
    with pytest.raises(ValueError, match="first result has no protocol"):
        compare(old, results[0])


def test_a_score_that_does_not_exist_is_null(results):
    single = copy.deepcopy(results[0])
    single["label_accuracy"] |= {"generated": None, "replicates": None}
    assert compare(single, single)["metrics"]["label_accuracy"]["value"] is None
