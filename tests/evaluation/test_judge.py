"""The judge: copies are found out, fresh images score one, a new metric is one line, memory and disk agree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from metrics.tables import classed, gaussian, numbers, real_side, table
from tiny_reference import tiny_battery, tiny_dataset
from torch import nn

from irdm import metrics
from irdm.compare import compare
from irdm.conditions import Unconditional, draw
from irdm.data import DigitsConfig
from irdm.data.base import Dataset, TensorSplit
from irdm.distributed import Ranks
from irdm.encoders.base import Battery, Encoder
from irdm.evaluation import QuickCheck, embed, evaluate, evaluate_tables, judge, read_result, real_of, write_result
from irdm.evaluation.result import protocol, warnings
from irdm.generators.base import Generator
from irdm.metrics import METRICS, EvaluationConfig, Score
from irdm.metrics.score import Estimate

CONFIG = EvaluationConfig(directions=64, rff_features=256, resamples=16, quick_rows=256)
DATA = DigitsConfig().build()


def battery(held_out=("two",)):
    torch.manual_seed(0)
    encoders = {
        name: Encoder(name, 16, nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)))
        for name in ("zero", "one", "two")
    }
    return Battery(encoders, [name for name in encoders if name not in held_out], held_out)


BATTERY = battery()
ENCODERS = dict(BATTERY.encoders.items())


@pytest.fixture(scope="module")
def real():
    return real_of(DATA, BATTERY, CONFIG)


def some(split, count, haze=0.0):
    """Images of a split drawn as a generator is asked to draw, mixed with grey."""
    rows = draw(split.conditions, count, "test", 0)
    return TensorSplit(split.images[rows] * (1 - haze) + 0.5 * haze, split.conditions[rows])


class Replay(Generator):
    """Images of a split, of the class asked for, chosen by the noise; `haze` mixes in grey."""

    noise_shape = (2,)

    def __init__(self, split, haze=0.0):
        super().__init__()
        self.split, self.haze = split, haze

    def forward(self, noise, labels):
        images = torch.empty(len(labels), 1, 8, 8)
        for label in labels.unique():
            pool, wanted = self.split.images[self.split.conditions.labels == label], labels == label
            images[wanted] = pool[(torch.special.ndtr(noise[wanted, 0]) * len(pool)).long().clamp(max=len(pool) - 1)]
        return images * (1 - self.haze) + 0.5 * self.haze


def test_copies_of_train_look_better_than_real_except_where_copies_are_looked_for(real):
    stages: list[str] = []
    generated, scores = evaluate(some(DATA.train, 600), real, ENCODERS, CONFIG, progress=stages.append)
    values = {name: score.mean.value for name, score in scores.items() if score.mean}
    assert len(generated) == 600 and any("judging: sw_ratio" in stage for stage in stages)
    assert values["sw_ratio"] < 1 and 0.85 < values["sw_ratio_unseen"] < 1.2
    assert 0.8 < scores["sw_ratio"].mean.control < 1.25
    assert values["nearest_neighbour_ratio"] == 0 and values["near_copies"] > 0.9 and values["closeness"] == 1
    assert scores["near_copies"].mean.p_real < 1e-9 and "thumbnails" in scores["near_copies"].encoders
    assert scores["near_copies"].held_out.value == scores["near_copies"].encoders["two"].value
    assert values["authenticity"] == 0 and values["label_accuracy"] > 0.9
    assert scores["sw_ratio"].notes["law"] == "stratified"
    assert scores["sw_ratio"].held_out.value == scores["sw_ratio"].encoders["two"].value


def test_hazy_images_score_worse_than_fresh_ones_and_fresh_ones_about_one(real):
    fresh, hazy = (evaluate(some(DATA.val, 400, haze), real, ENCODERS, CONFIG)[1] for haze in (0.0, 0.4))
    for name in ("sw_ratio", "sw_ratio_unseen", "mmd_ratio", "frechet_ratio"):
        assert hazy[name].mean.value > 2 * fresh[name].mean.value
        assert 0.4 < fresh[name].mean.value < 2


@pytest.mark.parametrize("haze", [0.0, 0.4])
def test_replicates_average_to_the_score_whichever_it_is(real, haze):
    """The contract of irdm.metrics.score, on which every comparison stands."""
    scores = evaluate(some(DATA.val, 400, haze), real, ENCODERS, CONFIG)[1]
    for name, score in scores.items():
        for where, found in {"mean": score.mean, **score.encoders}.items():
            if found is not None and found.replicates:
                mean = sum(found.replicates) / len(found.replicates)
                assert mean == pytest.approx(found.value, rel=1e-6, abs=1e-9), f"{name}, {where}"


@pytest.mark.parametrize("size", [97, 4096])
def test_features_depend_on_neither_the_micro_batch_nor_the_order_of_reading(size):
    rows = torch.randperm(len(DATA.val))[:150]
    found = embed(DATA.val, ENCODERS, micro_batch=size, rows=rows)
    for name, encoder in ENCODERS.items():
        torch.testing.assert_close(found.features[name], encoder(DATA.val.images[rows]), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.conditions.labels, DATA.val.conditions.labels[rows])


class Half:
    """One of two ranks: what it gathers is its own share alone."""

    size = 2

    def __init__(self, rank):
        self.rank = rank

    def share(self, n):
        return slice(self.rank * n // 2, (self.rank + 1) * n // 2)

    def gather(self, rows, n):
        return rows


def test_ranks_embed_a_share_each(unchecked):
    whole = embed(DATA.val, ENCODERS).features
    halves = [embed(DATA.val, ENCODERS, micro_batch=64, ranks=Half(rank)).features for rank in (0, 1)]
    for name, rows in whole.items():
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), rows, rtol=1e-5, atol=1e-6)


def test_ranks_divide_the_metrics_and_all_get_the_scores():
    """What one rank hears of the others is what these found."""
    sides = table(gaussian(80, 2)), real_side(gaussian(100, 0), gaussian(100, 1))
    parts = {}

    class Telling(Ranks):
        def any(self, flag):
            return flag

        def exchange(self, value):
            parts[self.rank] = value
            return [parts[rank] for rank in range(self.size)]

    alone = judge(*sides, CONFIG)
    for rank in (1, 2):  # alone, they miss what is not told yet
        with pytest.raises(KeyError):
            judge(*sides, CONFIG, ranks=Telling(rank, 3))
    assert judge(*sides, CONFIG, ranks=Telling(0, 3)) == alone
    names = [set(part) for part in parts.values()]
    assert set.union(*names) == set(METRICS) and sum(map(len, names)) == len(METRICS)
    assert max(map(len, names)) - min(map(len, names)) <= 1


def test_a_long_embedding_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr("irdm.progress.EVERY", 0)
    said = []
    embed(DATA.val, ENCODERS, micro_batch=200, progress=said.append)
    assert said[0].startswith(f"features: 200 of {len(DATA.val)} images, ") and said[0].endswith(" left")


def test_the_real_side_holds_a_random_part_and_the_moments_of_all(real):
    few = real_of(DATA, BATTERY, CONFIG.model_copy(update={"table_rows": 100}))
    assert (len(few.train), len(few.val)) == (100, 100)
    for name in ENCODERS:
        assert few.moments[name].count == len(DATA.train)
        torch.testing.assert_close(few.moments[name].covariance, real.moments[name].covariance)
        torch.testing.assert_close(few.train.features[name], real.train.features[name][:100])
    assert few.train.conditions.labels.bincount().min() > 0, "of every class"
    assert few.identity != real.identity
    assert real_of(DATA, BATTERY, CONFIG).identity == real.identity


def test_other_weights_of_the_same_encoders_are_another_real_side(real):
    other = battery()
    with torch.no_grad():
        other.encoders["one"].network[1].weight[0, 0] += 1e-3
    mine, theirs = (side.identity["encoders"] for side in (real, real_of(DATA, other, CONFIG)))
    assert {name for name in mine if mine[name] != theirs[name]} == {"one"}


def test_memory_and_disk_are_one_real_side(built, pictures):
    """A run judged on its own data, and the same images judged against a reference on disk: the same numbers."""
    data, own = tiny_dataset(pictures), tiny_battery()
    in_memory, on_disk = real_of(data, own, CONFIG), built.real()
    generated = embed(some(data.train, 120, 0.1), dict(own.encoders.items()))
    found = [judge(generated, side, CONFIG) for side in (in_memory, on_disk)]
    assert numbers(found[0]) == pytest.approx(numbers(found[1]), rel=1e-4, abs=1e-5)
    assert protocol(generated, in_memory, CONFIG) == protocol(generated, on_disk, CONFIG)


def test_unlike_encoders_are_refused(real):
    generated = embed(some(DATA.val, 50), {name: ENCODERS[name] for name in ("zero", "one")})
    with pytest.raises(ValueError, match="not under the same encoders: two of one side alone"):
        judge(generated, real, CONFIG)


def brightness(generated, real, config):
    """A metric of somebody's own."""
    values = {name: generated.features[name][0:9].mean().item() for name in real.encoders}
    estimates = {name: Estimate(value=value, replicates=(value,) * 4) for name, value in values.items()}
    score = Score(label="own metric", direction="higher", says="A number.", mean=estimates["a"], encoders=estimates)
    return {"brightness": score}


def test_a_new_metric_is_one_line_and_is_seen_everywhere(monkeypatch, tmp_path):
    monkeypatch.setitem(metrics.METRICS, "brightness", brightness)
    side = real_side(gaussian(100, 0), gaussian(100, 1))
    results = []
    for seed in (2, 3):
        generated = table(gaussian(60, seed))
        assert judge(generated, side, CONFIG)["brightness"].label == "own metric"
        result = evaluate_tables(generated, side, CONFIG, source={"path": "x"}, reference={"name": "y"})
        write_result(tmp_path / "result.json", result)
        results.append(read_result(tmp_path))
        assert results[-1].scores["brightness"] == brightness(generated, side, CONFIG)["brightness"]
    part = compare(*results)["metrics"]["brightness"]["mean"]
    assert part["difference"] == pytest.approx(results[1].scores["brightness"].mean.value - part["a"])
    assert part["better"] == ("b" if part["difference"] > 0 else "a")


def test_two_metrics_may_not_share_a_score(monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "again", metrics.METRICS["sw_ratio"])
    with pytest.raises(AssertionError, match="again gives scores of another metric"):
        judge(table(gaussian(60, 2)), real_side(gaussian(100, 0), gaussian(100, 1)), CONFIG)


def test_what_a_reader_must_know_is_said():
    side = real_side(gaussian(200, 0), gaussian(200, 1), ["b"])
    few = table(gaussian(40, 2))
    scores = judge(few, side, CONFIG)
    far = Estimate(value=1.0, control=1.4)
    told = " ".join(
        warnings(few, side, CONFIG, scores | {"sw_ratio": scores["sw_ratio"].model_copy(update={"mean": far})}, ["c"])
    )
    for said in (
        "2 of the reference's 3 encoders were asked for, without c",
        "40 images: the ratios compare that many with as many fresh real ones instead of 100",
        "Fresh real images themselves score 1.40 here",
    ):
        assert said in told
    cut = dataclasses.replace(
        side, moments={name: dataclasses.replace(m, count=999) for name, m in side.moments.items()}
    )
    assert "compare with 200 random train images of 999" in " ".join(warnings(few, cut, CONFIG, scores, []))
    wide = judge(table({"a": torch.randn(30, 40)}), real_side({"a": torch.randn(99, 40)}, {"a": torch.randn(99, 40)}))
    assert "Frechet distances of a: there are fewer images than dimensions" in " ".join(
        warnings(few, side, CONFIG, wide, [])
    )
    skewed = classed(torch.zeros(60, dtype=torch.int64).index_fill(0, torch.arange(9), 1), 3)
    halved = real_side(classed(torch.arange(200) % 2, 0), classed(torch.arange(200) % 2, 1))
    assert "without regard to classes" in " ".join(warnings(skewed, halved, CONFIG, {}, []))
    enough = classed(torch.arange(200) % 2, 4)
    assert warnings(enough, halved, CONFIG, {}, []) == []


def test_labels_of_a_part_of_the_encoders_say_so():
    side, generated = real_side(gaussian(100, 0), gaussian(100, 1)), table(gaussian(60, 2))
    result = evaluate_tables(generated, side, CONFIG, source={}, reference={}, missing=["c"])
    assert {score.label[-9:] for score in result.scores.values()} == {"(partial)"} and result.missing == ("c",)


def test_the_quick_check_follows_the_generator():
    check = QuickCheck(DATA, BATTERY, CONFIG)
    fresh, hazy = check(Replay(DATA.val)), check(Replay(DATA.val, haze=0.5))
    assert fresh == check(Replay(DATA.val)) != check(Replay(DATA.val), seed=1)
    assert set(fresh) == {"held_in", "held_out"}
    assert all(0.7 < fresh[group] < 1.8 and hazy[group] > 2 * fresh[group] for group in fresh)
    assert set(QuickCheck(DATA, battery(held_out=()), CONFIG)(some(DATA.val, 100))) == {"held_in"}
    plain = Dataset("plain", *(TensorSplit(s.images, Unconditional(len(s))) for s in (DATA.train, DATA.val)))
    held_out = TensorSplit(DATA.val.images, Unconditional(len(DATA.val)))
    assert QuickCheck(plain, BATTERY, CONFIG)(held_out)["held_in"] == pytest.approx(1, abs=0.5)


def test_a_quick_check_needs_images_on_both_sides():
    few = TensorSplit(DATA.val.images[:5], DATA.val.conditions[torch.arange(5)])
    with pytest.raises(ValueError, match="5 held-out images; a check needs 8"):
        QuickCheck(Dataset("few", DATA.train, few), BATTERY, CONFIG)
    same = some(DATA.train, 300)
    with pytest.raises(ValueError, match="Held-out images are the training images"):
        QuickCheck(Dataset("same", same, same), BATTERY, CONFIG.model_copy(update={"quick_rows": 300}))


def test_a_result_holds_plain_numbers(real):
    found = numbers(evaluate(some(DATA.val, 100), real, ENCODERS, CONFIG)[1])
    assert len(found) > 500 and np.isfinite(list(found.values())).all()
