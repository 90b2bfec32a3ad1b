"""Saved ratio banks: POT and the kernel's closed form, the published protocol, saving, few rows, honest intervals."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from metrics.tables import gaussian, numbers, stored
from safetensors.torch import load, save

from irdm.metrics.base import EvaluationConfig
from irdm.metrics.mmd import FourierBank
from irdm.metrics.ratio_bank import RatioBank, RatioProtocol, draw_sizes
from irdm.metrics.sliced_wasserstein import SlicedBank
from irdm.ops.sliced import unit_directions

CONFIG = EvaluationConfig(rows=128, directions=64, rff_features=256, resamples=16)
TRAIN, FRESH = gaussian(500, 0), gaussian(300, 1)
BANKS = {kind: RatioBank.build(kind, TRAIN, FRESH, ["b"], CONFIG) for kind in ("sw_ratio", "mmd_ratio")}
KINDS = pytest.mark.parametrize("kind", list(BANKS))


def test_the_published_protocol_is_the_default():
    config = EvaluationConfig()
    assert (config.rows, config.directions, config.rff_features, config.rff_seed) == (16384, 1024, 4096, 99999)
    assert BANKS["mmd_ratio"].protocol.draw_seed == 99999
    assert draw_sizes(16384) == [16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8]


def test_a_full_draw_is_scored_as_pot_would():
    """Everything is taken when the tables have exactly the rows: SW(gen, train) / SW(one half of fresh, train)."""
    train, fresh, fake = gaussian(64, 0), gaussian(128, 1), gaussian(64, 2, 0.5)
    bank = RatioBank.build("sw_ratio", train, fresh, [], CONFIG.model_copy(update={"rows": 64}))
    result = bank.score(fake)
    for name in ("a", "b"):
        directions = unit_directions(fake[name].shape[1], 64, 0, torch.float64).numpy()

        def distance(rows, name=name, directions=directions):
            return ot.sliced_wasserstein_distance(
                rows.double().numpy(), train[name].double().numpy(), projections=directions, p=2
            )

        row = result["per_encoder"][name]
        assert row["value"] * row["real_distance"] == pytest.approx(distance(fake[name]), rel=1e-5)
        halves = bank.fresh[name].denominator[0].item(), bank.fresh[name].control[0].item()
        assert row["real_distance"] == halves[0]
        assert row["real_control"] == pytest.approx(halves[1] / halves[0])
        # Two disjoint halves: their mixture is the whole, whose distance is at most the root mean square of theirs.
        assert distance(fresh[name]) ** 2 <= np.mean(np.square(halves)) * (1 + 1e-5)
    assert result["mean"] == pytest.approx(np.mean([row["value"] for row in result["per_encoder"].values()]))


@KINDS
def test_the_distances_are_those_of_the_evaluation_in_memory(kind):
    in_memory = SlicedBank(TRAIN, 64, 0) if kind == "sw_ratio" else FourierBank(TRAIN, 256, 99999)
    whole = RatioBank.build(kind, TRAIN, gaussian(1000, 1), [], CONFIG.model_copy(update={"rows": 500}))
    fake = gaussian(500, 2, 0.3)
    result = whole.score(fake)["per_encoder"]
    found = [row["value"] * row["real_distance"] for row in result.values()]
    assert found == pytest.approx(in_memory.distances(fake).tolist(), rel=1e-5)


@KINDS
def test_a_bank_survives_saving_and_refuses_other_tensors(kind):
    bank, fake = BANKS[kind], gaussian(128, 2)
    tensors = load(save(bank.state_dict()))
    protocol = RatioProtocol.model_validate_json(bank.protocol.model_dump_json())
    assert RatioBank.load(protocol, tensors).score(fake) == bank.score(fake)
    tensors["c.center"] = tensors.pop("b.center")
    with pytest.raises(ValueError, match=r"without \['b.center'\].*unknown \['c.center'\]"):
        RatioBank.load(protocol, tensors)


@KINDS
def test_tables_may_be_stores_and_come_in_the_order_of_their_classes(kind):
    def ordered(tables):
        order = tables["a"][:, 0].argsort()
        return {name: rows[order] for name, rows in tables.items()}

    few = RatioBank.build(kind, stored(TRAIN, 128), stored(FRESH, 300), ["b"], CONFIG)
    fake = gaussian(400, 2)
    assert numbers(few.score(stored(fake, 128))) == pytest.approx(numbers(BANKS[kind].score(fake)), rel=1e-5)
    sorted_bank = RatioBank.build(kind, ordered(TRAIN), ordered(FRESH), ["b"], CONFIG)
    low, high = sorted_bank.score(ordered(fake))["ci95"]
    assert low < 1 < high


@KINDS
def test_fewer_rows_than_a_full_draw_are_compared_with_real_draws_as_small_and_say_so(kind):
    for rows, size in ((500, 128), (128, 128), (127, 64), (40, 32), (9, 8)):
        result = BANKS[kind].score(gaussian(rows, 2))
        assert 0.4 < result["mean"] < 2.5
        assert result["rows"] == {"given": rows, "used": rows // size * size, "draw": size, "full": 128}
        assert (result["warning"] is None) == (size == 128)
    assert "9 generated rows: compared 8 at a time instead of 128" in result["warning"]
    with pytest.raises(ValueError, match="Got 7 generated rows; a ratio needs at least 8"):
        BANKS[kind].score(gaussian(7, 2))
    assert BANKS[kind].score(gaussian(128, 2, 1.0))["ci95"][0] > 2


@pytest.mark.parametrize("rows", [32, 17])
def test_intervals_cover_one_for_real_draws(rows):
    config = CONFIG.model_copy(update={"rows": 32, "directions": 32})
    hits = 0
    for seed in range(100, 190, 3):
        bank = RatioBank.build("sw_ratio", gaussian(200, seed), gaussian(80, seed + 1), [], config)
        low, high = bank.score(gaussian(rows, seed + 2))["ci95"]
        hits += low < 1 < high
    assert hits >= 25  # of 30, 28.5 expected at 95%; fewer than 25 has probability 0.003


def test_more_rows_give_a_narrower_interval():
    one, eight = (BANKS["sw_ratio"].score(gaussian(rows, 2, 0.3))["ci95"] for rows in (128, 1024))
    assert eight[1] / eight[0] < one[1] / one[0]


def test_names_groups_and_partial_panels():
    bank, fake = BANKS["sw_ratio"], gaussian(128, 2)
    whole = bank.score(fake)
    assert (whole["name"], whole["direction"], whole["missing"]) == ("SW_r2", "lower", [])
    assert whole["held_in"] == whole["per_encoder"]["a"]["value"]
    assert whole["held_out"] == whole["per_encoder"]["b"]["value"]
    with pytest.raises(ValueError, match=r"\['b'\] have no features"):
        bank.score({"a": fake["a"]})
    partial = bank.score({"a": fake["a"]}, partial=True)
    assert (partial["name"], partial["missing"], partial["held_out"]) == ("SW_r1", ["b"], None)
    assert partial["per_encoder"]["a"] == whole["per_encoder"]["a"]


@KINDS
def test_the_replicates_have_the_spread_of_many_draws(kind):
    scores = [BANKS[kind].score(gaussian(128, seed, 0.4)) for seed in range(10, 40)]
    values = [score["per_encoder"]["a"]["value"] for score in scores]
    replicates = np.array([score["per_encoder"]["a"]["replicates"] for score in scores])
    np.testing.assert_allclose(replicates.mean(1), values)
    error = np.sqrt(np.mean(replicates.var(1, ddof=1) / 10))
    assert 0.7 < error / np.std(values, ddof=1) < 1.6


def test_bad_tables_are_named():
    with pytest.raises(ValueError, match="10 fresh real rows"):
        RatioBank.build("sw_ratio", TRAIN, gaussian(10, 1), [], CONFIG)
    with pytest.raises(ValueError, match="held_out names"):
        RatioBank.build("sw_ratio", TRAIN, FRESH, ["c"], CONFIG)
    with pytest.raises(ValueError, match="Encoder 'a' gives every real image the same"):
        RatioBank.build("sw_ratio", {"a": torch.ones(50, 8)}, {"a": FRESH["a"]}, [], CONFIG)
    fake = gaussian(128, 2)
    fake["b"][5] = torch.nan
    with pytest.raises(ValueError, match="Encoder 'b': 1 rows of features hold NaN"):
        BANKS["sw_ratio"].score(fake)
    with pytest.raises(ValueError, match=r"Encoder 'b': features \(128, 8\), expected \[n >= 8, 5\]"):
        BANKS["sw_ratio"].score({"a": fake["a"], "b": fake["a"]})
