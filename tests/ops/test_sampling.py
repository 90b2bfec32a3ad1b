import pytest
import torch

from irdm.ops.rows import Rows, row_blocks, sample_rows
from irdm.ops.sampling import generator_for, sample_indices, seed_for


def test_seeds_are_a_function_of_every_key_and_its_type():
    seeds = [seed_for(0, 1), seed_for(1, 0), seed_for(0, 1, 0), seed_for("0", 1), seed_for("01"), seed_for(0)]
    assert len(set(seeds)) == len(seeds)
    assert seed_for(0, 1) == seed_for(0, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(ValueError, match="no keys"):
        seed_for()


def test_samples_are_distinct_seeded_and_not_the_first_rows():
    rows = torch.arange(1000.0)[:, None]
    first, again = (sample_rows(rows, 50, generator_for(3, "x")) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first.unique()) == 50
    assert first.max() > 500
    assert torch.equal(sample_rows(rows, 2000, generator_for(3)), rows)
    assert torch.equal(sample_indices(4, 9, generator_for(0)), torch.arange(4))


def test_blocks_cover_the_rows_in_order():
    rows = torch.randn(25, 2)
    assert isinstance(rows, Rows)
    assert torch.equal(torch.cat(list(row_blocks(rows, 7))), rows)
