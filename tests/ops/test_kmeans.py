import pytest
import torch

from irdm.ops.kmeans import kmeans
from irdm.ops.sampling import generator_for


def test_finds_separated_clusters():
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = corners.repeat_interleave(50, dim=0) + 0.1 * torch.randn(150, 2, generator=generator_for(0))
    best = min(
        torch.cdist(corners, kmeans(rows, 3, generator_for(seed))).min(dim=1).values.max().item() for seed in range(5)
    )
    assert best < 0.1


def test_is_seeded_and_blockwise():
    rows = torch.randn(200, 3, generator=generator_for(0), dtype=torch.float64)
    centres = kmeans(rows, 10, generator_for(1))
    assert torch.equal(centres, kmeans(rows, 10, generator_for(1)))
    torch.testing.assert_close(centres, kmeans(rows, 10, generator_for(1), block=17))
    assert not torch.equal(centres, kmeans(rows, 10, generator_for(2)))


def test_an_empty_cluster_is_moved_to_a_far_row():
    rows = torch.cat([torch.zeros(97, 2), torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])])
    centres = kmeans(rows, 4, generator_for(0))
    torch.testing.assert_close(torch.cdist(rows, centres).min(dim=1).values, torch.zeros(100))


def test_more_centres_than_rows_is_an_error():
    with pytest.raises(ValueError, match="5 centres for 3 rows"):
        kmeans(torch.zeros(3, 2), 5, generator_for(0))
