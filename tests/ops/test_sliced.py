import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irdm.ops.sliced import (
    quantile_means,
    sliced_wasserstein2,
    sorted_rows,
    unit_directions,
    wasserstein2_squared_sorted,
)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_one_dimension_is_exact_for_any_two_sizes(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(size, 2, generator=generator, dtype=torch.float64).sort(dim=0).values for size in (n, m))
    expected = [ot.wasserstein_1d(a[:, p].numpy(), b[:, p].numpy(), p=2) for p in range(2)]
    torch.testing.assert_close(
        wasserstein2_squared_sorted(a, b), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("m", [40, 63])
def test_agrees_with_an_independent_library(m):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(m, 5, generator=generator, dtype=torch.float64) + 0.4
    directions = unit_directions(5, 70, seed=1, dtype=torch.float64)
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.numpy())
    assert sliced_wasserstein2(x, y, directions).item() == pytest.approx(expected, rel=1e-6)


def test_directions_are_unit_seeded_and_drawn_64_columns_at_a_time():
    directions = unit_directions(9, 130, seed=4)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(130))
    assert torch.equal(directions, unit_directions(9, 130, seed=4))
    assert torch.equal(directions[:, :64], unit_directions(9, 64, seed=4))
    assert not torch.equal(directions, unit_directions(9, 130, seed=5))


def test_bad_shapes_are_named(unchecked):
    with pytest.raises(ValueError, match="same encoder"):
        sliced_wasserstein2(torch.zeros(3, 4), torch.zeros(3, 5), unit_directions(4, 2, seed=0))
    with pytest.raises(ValueError, match="at least 1"):
        unit_directions(0, 3, seed=0)


@pytest.mark.parametrize("n", [1, 20, 40, 53, 80, 106])
def test_means_of_quantiles_give_the_distance_to_any_sample_of_a_size(n):
    x, y = (torch.randn(7, count, dtype=torch.float64).sort(dim=1).values for count in (n, 53))
    means, within = quantile_means(y, n)
    torch.testing.assert_close((x - means).square().mean(1) + within, wasserstein2_squared_sorted(x.T, y.T))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("learns", [True, False])
def test_rows_are_sorted_whatever_their_type_and_gradient(dtype, learns):
    rows = torch.randn(5, 40).to(dtype).requires_grad_(learns)
    found = sorted_rows(rows)
    assert torch.equal(found, rows.sort(dim=1).values) and found.requires_grad == learns


@pytest.mark.parametrize("shape", [(3, 1), (40, 7), (5, 60_000)])
def test_a_sort_of_numbers_of_every_size_has_the_gradient_of_torchs(shape):
    rows = torch.randn(shape) * torch.logspace(-44, 36, shape[1])[torch.randperm(shape[1])]
    rows[0, 0], rows[1, 0], rows[2, 0] = torch.inf, -torch.inf, 0.0
    rows[:, -1] = -0.0
    rows.requires_grad_()
    weights = torch.randn(shape)
    ours, theirs = sorted_rows(rows), rows.sort(dim=1, stable=True).values
    assert torch.equal(ours, theirs)
    found, expected = (torch.autograd.grad(sorted_, rows, weights)[0] for sorted_ in (ours, theirs))
    once = rows != 0  # the order of 0 and -0, and of what rounds to them, is free
    assert torch.equal(found[once], expected[once])
    torch.testing.assert_close(found.sum(1), weights.sum(1))


def test_a_row_that_is_not_a_number_is_not_lost():
    rows = torch.randn(2, 30)
    rows[1, 4], rows[0, 3] = torch.nan, -torch.nan
    assert sorted_rows(rows.requires_grad_()).isnan().sum(1).tolist() == [1, 1]
