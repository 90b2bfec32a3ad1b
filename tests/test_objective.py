"""The objective: gradients in float64, self-normalisation, guard and gate; and ranks against one process."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from irdm.distances import NystromMMD
from irdm.distributed import Ranks
from irdm.objective import GUARD, Objective


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
            moved.append(objective({**fake, "a": x}, None, weights, 0).value)
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
    assert unknown.value == pytest.approx(2.0, rel=1e-5)


def test_joint_rows_are_compared_with_their_conditions(setting):
    _, fake = setting
    tau = torch.eye(3, dtype=torch.float64)[torch.arange(40) % 3]
    distance = NystromMMD().fit(torch.randn(40, 3, dtype=torch.float64), tau)
    found = Objective({"a": distance}, {"a": None}, self_normalise=False)(fake, tau[:9], {"a": 1.0}, 0)
    assert found.value == found.scores["a"] == distance(fake["a"], tau[:9]).item()


def test_every_rank_scores_all_rows_and_keeps_the_gradient_of_its_own(setting):
    """A rank that holds rows 2 to 5 of 9, as the others' rows come from `gather`."""
    distances, fake = setting

    class Middle(Ranks):
        def gather(self, rows):
            return fake["a" if rows.shape[1] == 3 else "b"].clone(), slice(2, 6)

    objective, weights = Objective(distances, dict.fromkeys(distances, 0.1)), {"a": 1.0, "b": 1.0}
    alone = objective(fake, None, weights, 0)
    own = objective({name: rows[2:6] for name, rows in fake.items()}, None, weights, 0, Middle())
    assert own.scores == alone.scores and own.value == alone.value
    for name in fake:
        assert torch.equal(own.gradients[name], alone.gradients[name][2:6])


def test_missing_features_are_refused(setting):
    distances, fake = setting
    with pytest.raises(ValueError, match="no features of"):
        Objective(distances, dict.fromkeys(distances, 0.0))({"a": fake["a"]}, None, {"a": 1.0, "b": 1.0}, 0)


SCRIPT = textwrap.dedent("""
    import sys, torch
    from torch import nn
    from irdm.distances import NystromMMD
    from irdm.distributed import Ranks
    from irdm.gradcache import GradientCache
    from irdm.objective import Objective
    ranks = Ranks.start("cpu")
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    encoders = {"a": nn.Linear(4, 5).double().requires_grad_(False)}
    noise, real = torch.randn(13, 3).double(), torch.randn(30, 5).double()
    objective = Objective({"a": NystromMMD().fit(real, seed=0)}, {"a": 0.1})
    own = ranks.share(13)
    mine = noise[own]
    cache = GradientCache(encoders, 4, 0)
    features = cache.forward(lambda rows: generator(mine[rows]), len(mine))
    cache.backward(objective(features, None, {"a": 1.0}, 0, ranks).gradients)
    ranks.sum_gradients(generator.parameters())
    if ranks.is_main:
        torch.save(torch.cat([p.grad.flatten() for p in generator.parameters()]), sys.argv[1])
""")


def test_two_ranks_give_the_gradient_of_one_process(tmp_path):
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, tmp_path / "one.pt"], check=True, env=env, timeout=120)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*launcher, script, tmp_path / "two.pt"], check=True, env=env, timeout=180)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-14)
