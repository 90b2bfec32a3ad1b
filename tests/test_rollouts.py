"""What a step asks for is drawn ahead and is what (seed, step) decide; and the host waits once for a device."""

import threading
from functools import partial

import pytest
import torch
from torch import nn

from irdm.conditions import Classes, draw
from irdm.distances import RFFMMD, ExactMMD, NystromMMD, SlicedWasserstein
from irdm.distributed import ALONE
from irdm.gradcache import GradientCache
from irdm.objective import Objective
from irdm.ops.sampling import normal_rows
from irdm.rollouts import Rollouts

CONDITIONS = Classes(torch.arange(90) % 3, ("a", "b", "c"))
SETTINGS = {"seed": 5, "steps": 4, "joint": True, "device": "cpu"}


def test_a_rollout_is_decided_by_seed_and_step_whatever_was_asked_before():
    share = slice(3, 9)
    with Rollouts(CONDITIONS, (2, 2), 10, share, **SETTINGS) as rollouts:
        for step in (0, 1, 3, 2, 3):
            found = rollouts(step)
            asked = CONDITIONS[draw(CONDITIONS, 10, "train", 5, step)[share]]
            assert torch.equal(found.noise, normal_rows(share, (2, 2), "train", 5, step))
            assert torch.equal(found.inputs["labels"], asked.labels) and torch.equal(found.tau, asked.tau[0:6])
    with Rollouts(CONDITIONS, (2, 2), 10, share, **SETTINGS | {"joint": False}) as rollouts:
        assert rollouts(0).tau is None


def test_the_next_is_drawn_while_a_step_computes_and_none_after_the_last(monkeypatch):
    drawn, there = [], threading.Event()

    def noting(rows, shape, kind, seed, step):
        drawn.append((step, threading.current_thread() is threading.main_thread()))
        if step == 1:
            there.set()
        return normal_rows(rows, shape, kind, seed, step)

    monkeypatch.setattr("irdm.rollouts.normal_rows", noting)
    with Rollouts(CONDITIONS, (2,), 10, slice(0, 10), **SETTINGS) as rollouts:
        rollouts(0)
        assert there.wait(30), "before it is asked for"
        for step in (1, 2, 3):
            rollouts(step)
    assert drawn == [(step, False) for step in range(4)]


def test_what_fails_in_the_thread_is_raised_where_it_is_asked_for(monkeypatch):
    def failing(rows, shape, kind, seed, step):
        if step:
            raise OSError("the store of captions is gone")
        return normal_rows(rows, shape, kind, seed, step)

    monkeypatch.setattr("irdm.rollouts.normal_rows", failing)
    with Rollouts(CONDITIONS, (2,), 10, slice(0, 10), **SETTINGS) as rollouts:
        rollouts(0)
        with pytest.raises(OSError, match="captions is gone"):
            rollouts(1)


# `numpy` is none of them: it refuses a tensor of a device, and only views one in main memory.
READS = ("item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")


def test_a_step_reads_the_device_once(monkeypatch):
    """Every way to read a tensor from Python counts, but of the numbers that a distance keeps in main memory.

    Tensors say that they are not in main memory, where reading one waits for nothing.
    """
    real, tau = torch.randn(60, 8), CONDITIONS.tau[0:60]
    kinds = (NystromMMD(landmarks=20), ExactMMD(), RFFMMD(features=32), SlicedWasserstein(directions=4))
    distances = {type(distance).__name__: distance.fit(real, tau) for distance in kinds}
    generator = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
    objective = Objective(distances, dict.fromkeys(distances, 0.1))
    cache = GradientCache(dict.fromkeys(distances, nn.Linear(8, 8).requires_grad_(False)), 4, 0)
    optimizer = torch.optim.AdamW(generator.parameters())
    kept = [buffer for distance in kinds for buffer in distance.buffers() if not buffer.ndim]
    counted = []

    def counting(name, plain, tensor, *args, **options):
        main = threading.current_thread() is threading.main_thread()  # another draws the next rollout
        if main and not any(tensor is number for number in kept):
            counted.append(name)
        return plain(tensor, *args, **options)

    with Rollouts(CONDITIONS, (6,), 12, slice(0, 12), **SETTINGS) as rollouts:
        asked = rollouts(0)
        asked.inputs.clear()
        monkeypatch.setattr(torch.Tensor, "is_cpu", False)
        for name in READS:
            wrapped = partial(counting, name, getattr(torch.Tensor, name))
            monkeypatch.setattr(torch.Tensor, name, lambda *args, wrapped=wrapped, **options: wrapped(*args, **options))
        features = cache.forward(partial(asked.images, generator), 12)
        loss = objective(features, asked.tau, dict.fromkeys(distances, 1.0), 0)
        cache.backward(loss.gradients)
        norm = nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        assert counted == []
        (value, *scores, length), finite, stop = ALONE.read([loss.terms, norm], False)
        assert counted == ["tolist"]
        monkeypatch.undo()
    optimizer.step()
    assert finite and not stop and len(scores) == 4 and length > 0 and value == loss.terms[0]


def test_numbers_of_a_distance_stay_in_main_memory():
    distance = NystromMMD(landmarks=20).fit(torch.randn(60, 8)).to("meta")
    kept = {name: buffer.device.type for name, buffer in distance.named_buffers()}
    assert kept.pop("landmarks") == kept.pop("alpha") == kept.pop("center") == "meta"
    assert set(kept.values()) == {"cpu"} and {"sigma", "beta", "seed", "tau_width"} <= set(kept)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_and_whether_to_stop_are_read_together(bad):
    numbers = [torch.tensor([1.0, 2.0]), torch.tensor(3.0)]
    assert ALONE.read(numbers, False) == ([1.0, 2.0, 3.0], True, False)
    assert ALONE.read(numbers, True) == ([1.0, 2.0, 3.0], True, True)
    assert ALONE.read([numbers[0], torch.tensor(bad)], False)[1:] == (False, False)
