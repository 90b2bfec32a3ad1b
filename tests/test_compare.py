"""Comparing two results: which is better, how sure, and what may not be compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metrics.tables import gaussian, real_side, table

from irdm.compare import compare
from irdm.evaluation import Result, evaluate_tables
from irdm.metrics import EvaluationConfig, Score
from irdm.metrics.pickscore import pickscore, win_rate
from irdm.metrics.score import Estimate

CONFIG = EvaluationConfig(rows=100, directions=32, rff_features=64, resamples=8)
IDENTITY = {
    "train": {"count": 400, "fingerprint": "a" * 64},
    "val": {"count": 300, "fingerprint": "b" * 64},
    "encoders": {"a": "c" * 64, "b": "d" * 64},
    "held_out": ["b"],
}


def result(rows=200, shift=0.0, seed=2, config=CONFIG, **identity):
    side = real_side(gaussian(400, 0), gaussian(300, 1), ["b"])
    object.__setattr__(side, "identity", IDENTITY | identity)
    return evaluate_tables(table(gaussian(rows, seed, shift)), side, config, source={}, reference={})


@pytest.fixture(scope="module")
def results():
    """A generator that is off, and one that is as good as real."""
    return result(shift=0.6), result()


def test_the_better_one_is_found(results):
    found = compare(*results)
    assert list(found["metrics"]) == list(results[0].scores)
    for name in ("sw_ratio", "sw_ratio_unseen", "mmd_ratio", "frechet_ratio"):
        mean, scores = found["metrics"][name]["mean"], [side.scores[name] for side in results]
        assert mean["better"] == "b"
        assert (mean["a"], mean["b"]) == tuple(score.mean.value for score in scores)
        assert mean["difference"] == pytest.approx(mean["b"] - mean["a"])
        assert mean["ci95"][0] < mean["difference"] < mean["ci95"][1] < 0
        assert set(found["metrics"][name]["per_encoder"]) == {"a", "b"}
        assert found["metrics"][name]["held_out"] == found["metrics"][name]["per_encoder"]["b"]
    assert found["metrics"]["frechet_distance"]["mean"] is None
    assert found["metrics"]["frechet_distance"]["per_encoder"]["a"]["better"] == "b"
    assert compare(results[1], results[0])["metrics"]["sw_ratio"]["mean"]["better"] == "a"


def test_a_result_does_not_differ_from_itself(results):
    part = compare(results[0], results[0])["metrics"]["sw_ratio"]["mean"]
    assert (part["difference"], part["ci95"], part["better"]) == (0, [0, 0], None)


def of(direction, control, **replicates):
    """Two results of one score with these replicates."""
    pair = []
    for values in replicates.values():
        mean = Estimate(value=float(np.mean(values)), control=control, replicates=tuple(values))
        score = Score(label="x", direction=direction, says="y", mean=mean)
        pair.append(Result(source={}, reference={}, protocol={}, scores={"x": score}))
    return compare(*pair)["metrics"]["x"]["mean"]["better"]


NEAR = np.array([-0.01, 0.0, 0.01, 0.0, 0.01, -0.01])


@pytest.mark.parametrize(
    ("direction", "a", "b", "better"),
    [
        ("lower", 1.0, 2.0, "a"),
        ("higher", 1.0, 2.0, "b"),
        ("real", 0.96, 0.99, "a"),  # precision above that of real images: blurred, not better
        ("real", 0.5, 0.9, "b"),
        ("real", 0.9, 0.5, "a"),
        ("real", 0.95, 1.28, "a"),  # on both sides of real images, one much further
        ("real", 0.90, 1.02, None),  # as far below as the other is above
    ],
)
def test_what_is_good_is_lower_higher_or_as_real_images(direction, a, b, better):
    assert of(direction, 0.96, a=a + NEAR, b=b + NEAR[::-1]) == better


def test_unlike_protocols_are_refused_with_every_difference_in_words(results):
    other = result(
        150,
        config=CONFIG.model_copy(update={"seed": 7, "directions": 1024}),
        train={"count": 400, "fingerprint": "e" * 64},
        encoders={"a": "f" * 64, "b": "d" * 64},
    )
    with pytest.raises(ValueError) as error:
        compare(results[1], other)
    for expected in (
        f"other training images, real.train.fingerprint: {'a' * 12} in A, {'e' * 12} in B",
        f"other encoders, real.encoders.a: {'c' * 12} in A, {'f' * 12} in B",
        "other settings, settings.seed: 0 in A, 7 in B",
        "other settings, settings.directions: 32 in A, 1024 in B",  # the default is not written, and still told
        "another number of judged images, images: 200 in A, 150 in B",
    ):
        assert expected in str(error.value)
    assert "real.encoders.b" not in str(error.value) and "held-out" not in str(error.value)
    assert max(map(len, str(error.value).splitlines())) < 120


def test_the_notes_and_the_scores_must_agree(results):
    less = results[0].model_copy(update={"scores": {k: v for k, v in results[0].scores.items() if k != "recall"}})
    with pytest.raises(ValueError, match="a score that only A has: recall"):
        compare(results[0], less)
    score = results[0].scores["recall"]
    other = score.model_copy(update={"notes": score.notes | {"neighbours": 3}})
    changed = results[0].model_copy(update={"scores": results[0].scores | {"recall": other}})
    with pytest.raises(ValueError, match="recall.neighbours: 5 in A, 3 in B"):
        compare(results[0], changed)


def test_every_score_of_any_evaluation_can_be_compared():
    """Even of the fewest rows: the jackknife has ten folds, or as many as there are rows."""
    pair = [result(50, shift) for shift in (0.0, 0.1)]
    for metric in compare(*pair)["metrics"].values():
        assert all(part["ci95"][0] <= part["ci95"][1] for part in metric["per_encoder"].values())


def test_shared_luck_cancels():
    """Rows of two scorers share most of their noise: the paired interval is far narrower than that of either."""
    luck = torch.randn(200, dtype=torch.float64)
    one, two = luck + 0.05 * torch.randn(200), luck + 0.05 * torch.randn(200) + 0.05
    pair = [Result(source={}, reference={}, protocol={}, scores=pickscore(side)) for side in (one, two)]
    part = compare(*pair)["metrics"]["pickscore"]["mean"]
    assert part["better"] == "b"
    assert np.ptp(part["ci95"]) < 0.2 * np.ptp(pair[0].scores["pickscore"].mean.ci95)
    assert win_rate(two, one)[0].ci95[0] > 0.5


def test_too_few_replicates_are_refused():
    with pytest.raises(ValueError, match=r"x, mean has 3 and 3 replicates.*4 or more"):
        of("lower", None, a=[1, 2, 3], b=[1, 2, 3])
