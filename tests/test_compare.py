"""Comparing two results: which is better, how sure, and what may not be compared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from metrics.tables import gaussian, real_side, table

from irdm.compare import _rows, compare
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
        assert found["metrics"][name]["held_out"]["p"] == found["metrics"][name]["per_encoder"]["b"]["p"]
    assert found["metrics"]["frechet_distance"]["mean"] is None
    assert found["metrics"]["frechet_distance"]["per_encoder"]["a"]["better"] == "b", "no mean: encoders are compared"
    assert compare(results[1], results[0])["metrics"]["sw_ratio"]["mean"]["better"] == "a"


def test_the_verdict_is_the_distance_and_of_a_run_that_of_the_held_out_encoders(results):
    found = compare(*results)["verdict"]
    assert (found["score"], found["group"], found["better"]) == ("whitened_ratio", "mean", "b")
    found = compare(results[0].model_copy(update={"step": 5}), results[1])
    part = found["metrics"]["whitened_ratio"]["held_out"]
    assert found["verdict"] | {"says": ""} == {
        "says": "", "score": "whitened_ratio", "group": "held_out", "p": part["corrected"], "better": "b", "copies": [],
    }  # fmt: skip
    assert found["verdict"]["says"].startswith("B is better (SW_w2, held-out encoders: ")
    assert part["corrected"] == pytest.approx(2 * part["p"]), "half of the error is the verdict's"
    assert compare(results[1], result(seed=5))["verdict"]["says"].startswith("Neither is surely better (SW_w2")


def test_a_result_does_not_differ_from_itself(results):
    part = compare(results[0], results[0])["metrics"]["sw_ratio"]["mean"]
    assert (part["difference"], part["ci95"], part["better"], part["p"]) == (0, [0, 0], None, 1)


def test_the_p_of_a_difference_is_that_of_scipy(results):
    for part in compare(*results)["metrics"]["sw_ratio"]["per_encoder"].values():
        assert part["corrected"] is None and part["better"] is None, "the groups are compared, not each encoder"
    a, b = (side.scores["mmd_ratio"].mean.replicates for side in results)
    part, far = compare(*results)["metrics"]["mmd_ratio"]["mean"], results[0].scores["mmd_ratio"].mean.p_real
    assert part["p"] == pytest.approx(max(far, scipy.stats.ttest_rel(a, b).pvalue))
    low, high = scipy.stats.ttest_rel(b, a).confidence_interval()
    assert part["ci95"] == pytest.approx([low, high])


def copying(result, share, p):
    """The same result with a share of near copies under one encoder."""
    encoders = {"a": Estimate(value=share, control=0.01, p_real=p, replicates=(share,) * 10)}
    encoders["b"] = Estimate(value=0.01, control=0.01, p_real=0.8, replicates=(0.01,) * 10)
    score = Score(label="near copies of train", direction="real", says="", mean=encoders["a"], encoders=encoders)
    return result.model_copy(update={"scores": result.scores | {"near_copies": score}})


def test_near_copies_veto(results):
    worse, better = results
    found = compare(copying(worse, 0.01, 0.6), copying(better, 0.05, 1e-6))
    assert (found["verdict"]["better"], found["verdict"]["copies"]) == (None, ["b"])
    assert found["verdict"]["says"].startswith("B is nearer to train, and not better: it copies (SW_w2")
    assert found["verdict"]["says"].endswith("B holds 5.0% near copies of train, of fresh real images 1.0% (a).")
    assert all(part["better"] != "b" for metric in found["metrics"].values() for part in _rows(metric).values())
    assert compare(copying(worse, 0.05, 1e-6), copying(better, 0.01, 0.6))["verdict"]["better"] == "b"
    assert compare(copying(worse, 0.01, 0.6), copying(better, 0.012, 0.2))["verdict"]["better"] == "b"


def equal_pairs(references, sources):
    """Pairs of draws from one law under one reference each: in how many some row, and the verdict, finds a winner."""
    some = verdicts = pairs = 0
    for reference in range(references):
        side = real_side(gaussian(400, 1000 * reference), gaussian(300, 1000 * reference + 1), ["b"])
        drawn = [
            evaluate_tables(table(gaussian(200, 1000 * reference + seed)), side, CONFIG, source={}, reference={})
            for seed in range(2, 2 + sources)
        ]
        for one, two in itertools.combinations(drawn, 2):
            found, pairs = compare(one, two), pairs + 1
            rows = [part for m in found["metrics"].values() for part in _rows(m).values()]
            some += any(part["better"] for part in rows)
            verdicts += found["verdict"]["better"] is not None
    return some, verdicts, pairs


def test_of_equal_sources_hardly_any_row_looks_better():
    some, verdicts, pairs = equal_pairs(references=3, sources=4)
    assert pairs == 18 and some <= 4 and verdicts <= 3  # 0.9 and 0.45 expected at most


@pytest.mark.slow
def test_of_equal_sources_one_in_twenty_looks_better_at_most():
    some, verdicts, pairs = equal_pairs(references=40, sources=4)
    print(f"of {pairs} pairs of equal sources {some} have a winner in some row, {verdicts} in the verdict")
    assert pairs == 240 and some <= 20 and verdicts <= 12  # 12 and 6 expected at most


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


DEFECTS = {
    "blur": lambda rows, train: rows * 0.93,
    "noise": lambda rows, train: rows + 0.3 * torch.randn(rows.shape),
    "contrast": lambda rows, train: rows.mean(0) + 1.05 * (rows - rows.mean(0)),
    "shift": lambda rows, train: rows + 0.2,
    "near copies": lambda rows, train: torch.cat([train[: len(rows) // 4] + 0.005, rows[len(rows) // 4 :]]),
}


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_no_defect_makes_images_better(defect):
    """The same rows, whole and with a defect: no row of the table prefers the defect."""
    train, clean = gaussian(400, 0), gaussian(200, 2)
    side = real_side(train, gaussian(300, 1), ["b"])
    damaged = {name: DEFECTS[defect](rows, train[name]) for name, rows in clean.items()}
    pair = [evaluate_tables(table(rows), side, CONFIG, source={}, reference={}) for rows in (clean, damaged)]
    found = compare(*pair)
    assert not [name for name, m in found["metrics"].items() for part in _rows(m).values() if part["better"] == "b"]
    assert found["verdict"]["copies"] == (["b"] if defect == "near copies" else [])
