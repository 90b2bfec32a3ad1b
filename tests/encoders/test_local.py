"""The local battery: frozen, differentiable, seeded, cached, and quick to name what is broken."""

import pytest
import torch
from torch import nn

from irdm.data import DigitsConfig
from irdm.data.base import SplitConfig, split_dataset
from irdm.encoders import Battery, Encoder, LocalBatteryConfig

QUICK = LocalBatteryConfig(steps=2, batch=16, dim=16, width=4)
SMALL = QUICK.model_copy(update={"held_in": ("masked", "pixels"), "held_out": ("pca",)})


@pytest.fixture(scope="module")
def digits():
    return DigitsConfig().build()


@pytest.fixture(scope="module")
def battery(digits):
    return QUICK.fit(digits)


def test_default_battery_has_the_parts_the_recipe_needs():
    config = LocalBatteryConfig()
    assert len(config.held_in) >= 5 and len(config.held_out) >= 3
    assert not set(config.held_in) & set(config.held_out)


def test_encoders_are_frozen_and_differentiable(battery, digits):
    images = digits.val.images[:5].clone().requires_grad_()
    battery.train()
    for name, encoder in battery.encoders.items():
        features = encoder(images)
        assert features.shape == (5, encoder.dim) and features.dtype == torch.float32 and encoder.name == name
        (gradient,) = torch.autograd.grad(features.square().sum(), images)
        assert gradient.isfinite().all() and gradient.any()
        assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


def test_rows_do_not_see_each_other(battery, digits):
    images = digits.val.images[:6]
    for encoder in battery.encoders.values():
        assert torch.allclose(encoder(images)[2:4], encoder(images[2:4]), atol=1e-5)


def test_fit_is_seeded_and_leaves_the_global_seed_alone(battery, digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = QUICK.fit(digits)
    assert torch.equal(torch.rand(3), expected)
    for name, value in battery.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_an_encoder_does_not_depend_on_its_company(battery, digits):
    alone = QUICK.model_copy(update={"held_in": ("masked",), "held_out": ("pca",)}).fit(digits)
    images = digits.val.images[:4]
    assert torch.equal(alone["masked"](images), battery["masked"](images))


def test_training_teaches_the_class(digits):
    battery = LocalBatteryConfig(steps=60, batch=128, held_in=("supervised_mlp",), held_out=("pixels",)).fit(digits)
    train, val = (battery["supervised_mlp"](part.images) for part in (digits.train, digits.val))
    nearest = digits.train.labels[torch.cdist(val, train).argmin(1)]
    assert (nearest == digits.val.labels).float().mean() > 0.9


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 9, 14), (3, 4, 4)])
def test_any_image_size(shape):
    images = torch.rand(60, *shape, generator=torch.Generator().manual_seed(0))
    dataset = split_dataset("noise", images, torch.arange(60) % 2, ("a", "b"), SplitConfig())
    for encoder in QUICK.model_copy(update={"steps": 1}).fit(dataset).encoders.values():
        assert encoder(images[:2]).shape == (2, encoder.dim)


def test_cache_is_read_when_nothing_changed(battery, digits, tmp_path):
    lines = []
    SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert len(lines) == 3 and len(list(tmp_path.iterdir())) == 1
    cached = SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert len(lines) == 4 and lines[-1].startswith("read 3 encoders")
    images = digits.val.images[:4]
    for name, encoder in cached.encoders.items():
        assert torch.equal(encoder(images), battery[name](images)), name
    SMALL.model_copy(update={"seed": 1}).fit(digits, cache_dir=tmp_path)
    SMALL.fit(DigitsConfig(split_seed=1).build(), cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_cache_is_named_and_refitted(battery, digits, tmp_path, damage):
    SMALL.fit(digits, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes({"flip": content, "cut": content[:5000], "empty": b""}[damage])
    lines = []
    again = SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert str(path) in lines[0] and "damaged" in lines[0]
    assert torch.equal(again["masked"](digits.val.images[:2]), battery["masked"](digits.val.images[:2]))
    SMALL.fit(digits, cache_dir=tmp_path, progress=lines.append)
    assert lines[-1].startswith("read 3 encoders")


def test_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="no local encoder \\['sift'\\]"):
        LocalBatteryConfig(held_in=("sift",))


class Broken(nn.Module):
    def forward(self, images):
        return (images.flatten(1) - 2).sqrt()


def test_non_finite_encoder_is_named():
    encoder = Encoder("broken", 16, Broken())
    with pytest.raises(ValueError, match="'broken' returned NaN or infinity for 2 of 2"):
        encoder(torch.rand(2, 1, 4, 4))
    assert encoder(torch.full((2, 1, 4, 4), torch.nan)).isnan().all(), "bad images are the generator's failure"


def test_battery_checks_its_division(battery):
    with pytest.raises(ValueError, match="exactly one"):
        Battery({"masked": battery["masked"]}, ("masked",), ("masked",))
