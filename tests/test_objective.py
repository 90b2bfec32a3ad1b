"""The objective: gradients in float64, self-normalisation, guard and gate; and ranks against one process."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch.utils.flop_counter import FlopCounterMode

from irdm.distances import AnyDistance, NystromMMD
from irdm.distributed import Ranks
from irdm.objective import GUARD, Objective
from irdm.ops.sampling import generator_for


@pytest.fixture
def setting():
    torch.manual_seed(0)
    real = {"a": torch.randn(40, 3, dtype=torch.float64), "b": torch.randn(40, 2, dtype=torch.float64)}
    fake = {"a": torch.randn(9, 3, dtype=torch.float64) + 1, "b": torch.randn(9, 2, dtype=torch.float64) * 2}
    distances = {name: NystromMMD().fit(rows, seed=0) for name, rows in real.items()}
    return distances, fake


def test_the_gradient_is_that_of_the_weighted_log(setting):
    distances, fake = setting
    objective = Objective(distances, dict.fromkeys(distances, 0.0))
    outcome = objective(fake, None, {"a": 2.0, "b": 0.5}, 0)
    for name, weight in {"a": 2.0, "b": 0.5}.items():
        leaf = fake[name].clone().requires_grad_()
        (expected,) = torch.autograd.grad(weight * distances[name](leaf).abs().log(), leaf)
        torch.testing.assert_close(outcome.gradients[name], expected, rtol=1e-4, atol=1e-12)


def test_finite_differences_of_the_plain_objective(setting):
    distances, fake = setting
    objective = Objective(distances, dict.fromkeys(distances, 0.0), self_normalise=False)
    weights = {"a": 2.0, "b": 0.5}
    gradient = objective(fake, None, weights, 0).gradients["a"]
    step = 1e-5
    for index in [(0, 0), (4, 2), (8, 1)]:
        moved = []
        for sign in (1, -1):
            x = fake["a"].clone()
            x[index] += sign * step
            moved.append(objective({**fake, "a": x}, None, weights, 0).terms[0].item())
        assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(gradient[index].item(), rel=1e-6, abs=1e-10)


def test_weight_zero_gives_a_score_and_no_gradient(setting):
    distances, fake = setting
    outcome = Objective(distances, dict.fromkeys(distances, 0.0))(fake, None, {"a": 0.0, "b": 1.0}, 0)
    assert set(outcome.scores) == {"a", "b"} and set(outcome.gradients) == {"b"}


def test_the_guard_bounds_the_gradient_near_zero(setting):
    distances, fake = setting
    floor = 1e6
    outcome = Objective(distances, dict.fromkeys(distances, floor))(fake, None, {"a": 1.0, "b": 0.0}, 0)
    plain = Objective(distances, dict.fromkeys(distances, floor), self_normalise=False)
    raw = plain(fake, None, {"a": 1.0, "b": 0.0}, 0).gradients["a"]
    torch.testing.assert_close(outcome.gradients["a"], raw / (GUARD * floor), rtol=1e-6, atol=0)


def test_without_a_floor_a_term_is_divided_by_its_own_value(setting):
    distances, fake = setting
    weights = {"a": 2.0, "b": 0.0}
    unknown, zero = (
        Objective(distances, dict.fromkeys(distances, floor))(fake, None, weights, 0) for floor in (None, 0.0)
    )
    torch.testing.assert_close(unknown.gradients["a"], zero.gradients["a"], rtol=0, atol=0)
    assert unknown.terms[0].item() == pytest.approx(2.0, rel=1e-5)


def test_joint_rows_are_compared_with_their_conditions(setting):
    _, fake = setting
    tau = torch.eye(3, dtype=torch.float64)[torch.arange(40) % 3]
    distance = NystromMMD().fit(torch.randn(40, 3, dtype=torch.float64), tau)
    found = Objective({"a": distance}, {"a": None}, self_normalise=False)(fake, tau[:9], {"a": 1.0}, 0)
    assert found.terms[0].item() == found.scores["a"] == distance(fake["a"], tau[:9]).item()


def test_only_joint_distances_see_conditions(setting):
    distances, fake = setting
    tau = torch.eye(3, dtype=torch.float64)[torch.arange(40) % 3]
    mixed = distances | {"a": NystromMMD().fit(torch.randn(40, 3, dtype=torch.float64), tau)}
    assert mixed["a"].tau_width and not mixed["b"].tau_width
    objective = Objective(mixed, dict.fromkeys(mixed))
    found = objective(fake, tau[:9], dict.fromkeys(mixed, 1.0), 0)
    assert found.scores == {"a": mixed["a"](fake["a"], tau[:9]).item(), "b": mixed["b"](fake["b"]).item()}


def test_every_rank_scores_all_rows_and_keeps_the_gradient_of_its_own(setting):
    """A rank that holds rows 2 to 5 of 9, as the others' rows come from `gather`."""
    distances, fake = setting

    class Middle(Ranks):
        def gather(self, rows, n):
            return fake["a" if rows.shape[1] == 3 else "b"].clone()

        def share(self, n):
            return slice(2, 6) if n == 9 else slice(0, n)

    objective, weights = Objective(distances, dict.fromkeys(distances, 0.1)), {"a": 1.0, "b": 1.0}
    alone = objective(fake, None, weights, 0)
    own = objective({name: rows[2:6] for name, rows in fake.items()}, None, weights, 0, Middle(), 9)
    assert own.scores == alone.scores and own.terms[0] == alone.terms[0]
    for name in fake:
        assert torch.equal(own.gradients[name], alone.gradients[name][2:6])


def test_encoders_side_by_side_find_what_they_find_in_turn(setting, monkeypatch):
    distances, fake = setting
    used, compare = set(), NystromMMD._compare

    def watched(self, *arguments):
        used.add(threading.get_ident())
        time.sleep(0.05)  # so that the other thread takes the other encoder
        return compare(self, *arguments)

    monkeypatch.setattr(NystromMMD, "_compare", watched)
    found = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            objective = Objective(distances, dict.fromkeys(distances, 0.1))
            used.clear()
            found.append(objective(fake, None, {"a": 2.0, "b": 0.5}, 0))
            assert len(used) == threads and torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    torch.testing.assert_close(found[1].terms, found[0].terms)
    torch.testing.assert_close(found[1].gradients, found[0].gradients)


def test_missing_features_are_refused(setting):
    distances, fake = setting
    with pytest.raises(ValueError, match="no features of"):
        Objective(distances, dict.fromkeys(distances, 0.0))({"a": fake["a"]}, None, {"a": 1.0, "b": 1.0}, 0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What each rank of 1, 2, 3 and 4 found: {(rank, size): ...}."""
    out = tmp_path_factory.mktemp("shared")
    command = [sys.executable, Path(__file__).with_name("shared_loss.py"), out]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240)
    ranks = [(rank, size) for size in (1, 2, 3, 4) for rank in range(size)]
    return {(rank, size): torch.load(out / f"{rank}-of-{size}.pt", weights_only=True) for rank, size in ranks}


def close(found, expected, share):
    """Alike but for a share of the largest number: finite precision has no other scale."""
    torch.testing.assert_close(found, expected, rtol=0, atol=share * expected.abs().max().item())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_of_uneven_shares_find_what_one_process_finds(shared, size):
    """Every distance, joint, in float64: references and floors, values and gradients, and those of the weights."""
    one = shared[0, 1]
    for rank in range(size):
        found = shared[rank, size]
        for what in ("value", "floors", "weights"):
            close(found[what], one[what], 1e-9)
            assert torch.equal(found[what], shared[0, size][what]), "all ranks have the same numbers to the bit"
        for name, gradient in one["gradients"].items():
            close(found["gradients"][name], gradient, 1e-9)
            for key, tensor in one["fitted"][name].items():
                close(found["fitted"][name][key], tensor, 1e-7)


class Part(Ranks):
    """A rank without the others: what it does is counted."""

    def sum(self, x):
        return x


@pytest.mark.parametrize("kind", ["nystrom-mmd", "exact-mmd", "rff-mmd", "frechet", "sliced-wasserstein", "drifting"])
def test_the_operations_of_a_rank_fall_as_its_share(kind):
    """Multiplications in matrix products, forward and backward, at a rollout of 2048."""
    fields = {"nystrom-mmd": {"landmarks": 512}, "rff-mmd": {"features": 512}}.get(kind, {})
    distance = TypeAdapter(AnyDistance).validate_python({"kind": kind, **fields}).build()
    distance.fit(torch.randn(600, 16, generator=generator_for("real")))
    fake = torch.randn(2048, 16, generator=generator_for("fake"))

    def operations(rank, size):
        leaf = fake.clone().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            distance(leaf, step=1, ranks=Part(rank, size)).backward()
        return counter.get_total_flops()

    whole, most = operations(0, 1), max(operations(rank, 4) for rank in range(4))
    assert most <= 0.28 * whole, f"{most / whole:.3f} of one process's"
