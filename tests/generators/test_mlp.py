"""The perceptron generator keeps the generator's contract."""

import pytest
import torch
from spec import classes

from irdm.conditions import NoSpec
from irdm.generators import MLPConfig


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_contract(shape):
    torch.manual_seed(0)
    generator = MLPConfig(width=32, depth=2, noise_dim=6).build(shape, classes(4))
    assert generator.noise_shape == (6,)
    noise, labels = torch.randn(9, 6), torch.arange(9) % 4
    images = generator(noise, labels)
    assert images.shape == (9, *shape) and images.min() >= 0 and images.max() <= 1
    assert not torch.allclose(images, generator(noise, (labels + 1) % 4)), "labels must matter"
    assert not torch.allclose(images, generator(-noise, labels)), "noise must matter"
    assert torch.allclose(images[3:5], generator(noise[3:5], labels[3:5]), atol=1e-6)
    images.sum().backward()
    assert all(p.grad is not None for p in generator.parameters())


def test_every_field_is_used():
    def size(**fields):
        return sum(p.numel() for p in MLPConfig(**fields).build((1, 8, 8), classes(10)).parameters())

    assert len({size(), size(width=64), size(depth=2), size(noise_dim=8)}) == 4


def test_without_a_condition_noise_is_all_there_is():
    generator = MLPConfig(width=16, depth=2, noise_dim=6).build((1, 4, 4), NoSpec())
    assert generator(torch.randn(3, 6)).shape == (3, 1, 4, 4) and "embed_label.weight" not in generator.trained()
