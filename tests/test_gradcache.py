"""The gradient cache against one backward through everything at once."""

import pytest
import torch
from torch import nn

from irdm.gradcache import GradientCache
from irdm.memory import free_memory, physical_memory

N = 13


@pytest.fixture
def parts():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    encoders = {"a": nn.Linear(4, 5).double(), "b": nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()}
    for encoder in encoders.values():
        encoder.requires_grad_(False)
    return generator, encoders, torch.randn(N, 3, dtype=torch.float64)


def coupled_loss(features):
    """A loss in which every row meets every other."""
    return sum((x @ x.T).tanh().mean() + x.mean(0).square().sum() for x in features.values())


def feature_gradients(features):
    leaves = {name: x.clone().requires_grad_() for name, x in features.items()}
    return dict(zip(leaves, torch.autograd.grad(coupled_loss(leaves), list(leaves.values())), strict=True))


def accumulate(generate, encoders, gradients, n, micro_batch, *, idle=(), graph_bytes=0):
    """All three passes; returns how many micro-batches kept their graph."""
    cache = GradientCache(encoders, micro_batch, graph_bytes)
    features = cache.forward(generate, n, idle)
    kept = sum(chunk.graph is not None for chunks in cache.micro_batches for chunk in chunks)
    cache.backward(gradients(features))
    return kept


def gradients_of(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("graph_bytes", [0, 3000, 1 << 30])
@pytest.mark.parametrize("micro_batch", [1, 4, 5, 13])
def test_equals_one_backward_for_any_micro_batch_and_memory(parts, micro_batch, graph_bytes):
    generator, encoders, noise = parts
    images = generator(noise)
    coupled_loss({name: encoder(images) for name, encoder in encoders.items()}).backward()
    expected = gradients_of(generator)
    generator.zero_grad()
    accumulate(
        lambda rows: generator(noise[rows]), encoders, feature_gradients, N, micro_batch, graph_bytes=graph_bytes
    )
    torch.testing.assert_close(gradients_of(generator), expected, rtol=1e-12, atol=1e-14)


def test_dropout_replays_the_same_mask(parts):
    _, encoders, noise = parts
    generator = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 4)).double()
    found = []
    for graph_bytes in (0, 1 << 30):  # run again with replayed masks, or graphs kept from the only run
        torch.manual_seed(7)
        generator.zero_grad()
        accumulate(lambda rows: generator(noise[rows]), encoders, feature_gradients, N, 4, graph_bytes=graph_bytes)
        found.append((gradients_of(generator), torch.rand(1)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-14)
    assert found[0][1] == found[1][1], "the outer random stream must not notice the replay"


class Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


def test_kept_graphs_need_no_second_forward_and_idle_encoders_are_not_run_again(parts):
    generator, encoders, noise = parts
    generator = Counting(generator)
    counted = {name: Counting(encoder) for name, encoder in encoders.items()}

    def only_a(features):
        return {"a": feature_gradients(features)["a"]}

    def run(graph_bytes):
        for module in (generator, *counted.values()):
            module.calls = 0
        kept = accumulate(
            lambda rows: generator(noise[rows]), counted, only_a, N, 4, idle=["b"], graph_bytes=graph_bytes
        )
        return kept, generator.calls, counted["a"].calls, counted["b"].calls

    assert run(0) == (0, 9, 9, 5), "a first micro-batch is tried"
    assert run(1 << 30) == (4, 5, 5, 5)
    kept = {}
    for graph_bytes in range(100, 10_000, 100):
        count, generator_calls, *_ = run(graph_bytes)
        assert generator_calls == 9 - count
        kept[count] = graph_bytes
    assert kept.keys() == {0, 1, 2, 3, 4}, "a larger budget holds the graphs of more micro-batches"


def test_no_gradients_leave_the_generator_alone(parts):
    generator, encoders, noise = parts
    accumulate(lambda rows: generator(noise[rows]), encoders, lambda features: {}, N, 4)
    assert all(p.grad is None for p in generator.parameters())


def test_a_micro_batch_below_one_is_refused(parts):
    with pytest.raises(ValueError, match="at least 1"):
        GradientCache(parts[1], 0)


def test_without_a_budget_half_of_the_free_memory_is_taken_once_the_first_micro_batch_is_measured(parts, monkeypatch):
    generator, encoders, noise = parts
    kept = []
    for there in (0, 2000, 1 << 40):
        monkeypatch.setattr("irdm.memory.free_memory", lambda device, there=there: there)
        cache = GradientCache(encoders, 4)
        cache.forward(lambda rows: generator(noise[rows]), N)
        rows = sum(c.rows.stop - c.rows.start for chunks in cache.micro_batches for c in chunks if c.graph)
        assert cache.budget.limit == int(0.5 * (there + 4 * cache.budget.row_bytes))
        assert rows * cache.budget.row_bytes <= cache.budget.limit
        first = cache.budget.limit
        cache.forward(lambda rows: generator(noise[rows]), N)
        assert cache.budget.limit == first, "measured once"
        kept.append(rows)
    assert kept[0] < 4 <= kept[1] < kept[2] == N
    assert 0 < free_memory("cpu") <= physical_memory()


def test_a_gradient_for_an_idle_encoder_is_refused(parts):
    generator, encoders, noise = parts
    with pytest.raises(ValueError, match="idle"):
        accumulate(lambda rows: generator(noise[rows]), encoders, feature_gradients, N, 4, idle=["a"])


@pytest.fixture
def threads(monkeypatch):
    """Three threads, which share even small micro-batches."""
    monkeypatch.setattr("irdm.ops.threads.PART", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def beside(parts, micro_batch, budget, generator=None):
    """The gradients by parts side by side, and how many parts the micro-batches had."""
    generator, encoders, noise = generator or parts[0], *parts[1:]
    generator.zero_grad()
    cache = GradientCache(encoders, micro_batch, budget, list(generator.parameters()))
    features = cache.forward(lambda rows: generator(noise[rows]), N)
    counts = [len(chunks) for chunks in cache.micro_batches]
    cache.backward(feature_gradients(features))
    return gradients_of(generator), counts


@pytest.mark.parametrize("budget", [0, 1500, None])
@pytest.mark.parametrize(("micro_batch", "counts"), [(1, [1] * N), (5, [3, 3, 3]), (N, [3])])
def test_parts_side_by_side_add_up_to_the_same_gradient_each_time(parts, threads, micro_batch, counts, budget):
    generator, encoders, noise = parts
    accumulate(lambda rows: generator(noise[rows]), encoders, feature_gradients, N, micro_batch, graph_bytes=budget)
    expected = gradients_of(generator)
    found, how_many = beside(parts, micro_batch, budget)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert how_many == counts
    for _ in range(5):
        assert beside(parts, micro_batch, budget)[0].equal(found), "threads end in any order, and add up in one"
    assert torch.get_num_threads() == 3


def test_what_draws_random_numbers_is_not_taken_apart(parts, threads):
    _, encoders, noise = parts
    generator = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 4)).double()
    torch.manual_seed(7)
    accumulate(lambda rows: generator(noise[rows]), encoders, feature_gradients, N, 4)
    expected = gradients_of(generator), torch.rand(1)
    torch.manual_seed(7)
    found, counts = beside(parts, 4, 0, generator)
    assert counts == [1, 1, 1, 1] and found.equal(expected[0]) and torch.rand(1) == expected[1]


def test_side_by_side_adds_to_the_gradient_there_is_and_leaves_unused_parameters_alone(parts, threads):
    generator, encoders, noise = parts
    unused, scale = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(4, dtype=torch.float64))
    cache = GradientCache(encoders, 6, None, [*generator.parameters(), scale, unused])
    for turn in (1, 2):
        features = cache.forward(lambda rows: generator(noise[rows]) + scale.expand(len(noise[rows]), 4), N)
        cache.backward(feature_gradients(features))
        if turn == 1:
            first = gradients_of(generator).clone(), scale.grad.clone()
    torch.testing.assert_close(gradients_of(generator), 2 * first[0])
    torch.testing.assert_close(scale.grad, 2 * first[1])
    assert unused.grad is None


def test_what_goes_wrong_in_a_thread_is_told(parts, threads):
    generator, encoders, noise = parts
    cache = GradientCache(encoders, 6, 0, list(generator.parameters()))

    def fails(rows):
        if rows.start > 6:
            raise ValueError("no such row")
        return generator(noise[rows])

    with pytest.raises(ValueError, match="no such row"):
        cache.forward(fails, N)
    assert torch.get_num_threads() == 3
