"""The convolutional generator keeps the generator's contract, at any size, and refines what its coarse map draws."""

import pytest
import torch
from spec import classes

from irdm.conditions import NoSpec
from irdm.generators import ConvConfig
from irdm.generators.conv import sides

SMALL = {"noise_dim": 6, "style": 24, "coarse": 8, "width": 4, "most": 8}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 17, 40), (1, 8, 8)])
def test_contract(shape):
    torch.manual_seed(0)
    generator = ConvConfig(**SMALL).build(shape, classes(4))
    noise, labels = torch.randn(9, *generator.noise_shape), torch.arange(9) % 4
    images = generator(noise, labels)
    assert images.shape == (9, *shape) and images.is_contiguous() and images.min() >= 0 and images.max() <= 1
    assert not torch.allclose(images, generator(noise, (labels + 1) % 4)), "labels must matter"
    assert not torch.allclose(images, generator(-noise, labels)), "noise must matter"
    assert torch.allclose(images[3:5], generator(noise[3:5], labels[3:5]), atol=1e-5)
    images.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.parameters())


def test_noise_is_global_and_a_map_for_each_convolution():
    torch.manual_seed(0)
    generator = ConvConfig(**SMALL).build((1, 28, 28), NoSpec())
    assert generator.noise_shape == (6 + 2 * (14 * 14 + 28 * 28),)
    noise = torch.randn(1, *generator.noise_shape)
    moved = noise.clone()
    moved[0, 6 + 2 * 14 * 14 + 28 * 28 + 10 * 28 + 20] += 1  # the finest map, row 10, column 20
    with torch.no_grad():
        rows, columns = (generator(moved) - generator(noise))[0, 0].abs().gt(1e-7).nonzero().T.tolist()
    assert rows and max(abs(row - 10) for row in rows) <= 2 and max(abs(column - 20) for column in columns) <= 2


def test_sides_are_halved_down_to_the_coarsest():
    assert sides(28, 28, 8) == [(7, 7), (14, 14), (28, 28)]
    assert sides(32, 64, 8) == [(8, 16), (16, 32), (32, 64)]
    assert sides(8, 8, 8) == [(8, 8)]


@pytest.mark.parametrize(("shape", "fewer"), [((1, 28, 28), True), ((3, 64, 64), True), ((1, 8, 8), False)])
def test_condensed_it_draws_the_same_with_fewer_numbers(shape, fewer):
    torch.manual_seed(0)
    generator = ConvConfig(style_rate=0.5).build(shape, classes(10)).eval()
    small = generator.condensed()
    numbers, left = (sum(p.numel() for p in each.parameters()) for each in (generator, small))
    assert (left < numbers) == fewer == (small is not generator) and left < 1_500_000, "a page holds no more"
    noise, labels = torch.randn(10, *generator.noise_shape), torch.arange(10)
    with torch.no_grad():
        assert torch.allclose(small(noise, labels), generator(noise, labels), atol=1e-5)


def test_images_that_are_too_large_are_refused():
    ConvConfig(**SMALL).build((1, 128, 100), NoSpec())
    with pytest.raises(ValueError, match="at most 128 pixels a side, and these have 100 x 129.*--data.size 32"):
        ConvConfig(**SMALL).build((1, 129, 100), NoSpec())


def test_every_field_is_used():
    def size(**fields):
        return sum(p.numel() for p in ConvConfig(**fields).build((1, 28, 28), classes(10)).parameters())

    changes = [
        {},
        {"noise_dim": 8},
        {"style": 64},
        {"style_depth": 2},
        {"coarsest": 4},
        {"coarse": 32},
        {"width": 8},
        {"most": 16},
        {"depth": 1},
    ]
    assert len({size(**change) for change in changes}) == len(changes)


def test_the_style_learns_at_its_share_of_the_learning_rate():
    """Numbers four times as large draw the same pictures, and one step of Adam moves them no further."""
    torch.manual_seed(0)
    noise, labels, drawn, kept = torch.randn(8, 6 + 2 * (14 * 14 + 28 * 28)), torch.arange(8) % 4, [], []
    for rate in (1.0, 0.25):
        torch.manual_seed(1)
        generator = ConvConfig(**SMALL, style_rate=rate).build((1, 28, 28), classes(4))
        kept.append({name: parameter.detach().clone() for name, parameter in generator.named_parameters()})
        drawn.append(generator(noise, labels))
        drawn[-1].square().sum().backward()
        torch.optim.AdamW(generator.parameters(), lr=1e-3, weight_decay=0).step()
        for name, parameter in generator.named_parameters():
            assert (parameter.detach() - kept[-1][name]).abs().max().item() == pytest.approx(1e-3, rel=0.02), name
    assert torch.allclose(*drawn, atol=1e-6)
    for name, numbers in kept[0].items():
        slow = name.startswith(("embed", "hidden", "to_map")) or "modulate" in name
        assert torch.equal(kept[1][name], numbers / 0.25 if slow else numbers), name


def test_without_a_condition_noise_is_all_there_is():
    generator = ConvConfig(**SMALL).build((1, 16, 16), NoSpec())
    assert (
        generator(torch.randn(3, *generator.noise_shape)).shape == (3, 1, 16, 16)
        and "embed_label.weight" not in generator.trained()
    )


def test_pixels_are_drawn_with_their_neighbours():
    """What the perceptron lacks: near pixels of an untrained network's images are alike, far ones are not."""
    torch.manual_seed(0)
    with torch.no_grad():
        generator = ConvConfig().build((1, 32, 32), NoSpec())
        images = generator(torch.randn(64, *generator.noise_shape))
    images = images - images.mean(0)
    near = (images[..., 1:] * images[..., :-1]).mean() / images.square().mean()
    far = (images[..., 12:] * images[..., :-12]).mean() / images.square().mean()
    assert near > 0.8 and far < 0.5 * near
