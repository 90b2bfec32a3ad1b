"""What the local battery must notice: each defect raises an encoder that trains, and one that judges, above real draws.

A draw is seen as defective when its SW2 from train images lies more than three standard deviations above the mean of
fresh real draws.
"""

from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_sample_images

from irdm.conditions import Classes
from irdm.data import DigitsConfig
from irdm.data.base import Dataset, TensorSplit
from irdm.encoders import LocalBatteryConfig
from irdm.encoders.base import Battery
from irdm.evaluation.defects import DEFECTS
from irdm.metrics.sliced_wasserstein import SlicedTarget

DRAWS = 8


def crops(count, side=32, seed=0):
    """Squares of two photographs, some mirrored, as dark as 40%; their class is the photograph and a fifth."""
    source = torch.Generator().manual_seed(seed)
    photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    _, h, w = photographs[0].shape
    which, mirrored = torch.randint(2, (2, count), generator=source)
    top, left = (torch.randint(pixels - side, (count,), generator=source) for pixels in (h, w))
    light = 0.4 + 0.6 * torch.rand(count, generator=source)
    images = torch.stack(
        [
            photographs[p][:, y : y + side, x : x + side].flip(2 if m else ())
            for p, m, y, x in zip(which, mirrored, top, left, strict=True)
        ]
    )
    images = (images * light[:, None, None, None]).round() / 255
    return images, 5 * which + 5 * left // (w - side)


@dataclass
class Judged:
    """A battery, and by encoder the distance of real draws from train images."""

    battery: Battery
    targets: dict[str, SlicedTarget]
    real: dict[str, torch.Tensor]
    base: TensorSplit
    """Real images, in none of the draws."""

    def distance(self, name, images):
        with torch.no_grad():
            return self.targets[name].distance(torch.cat([self.battery[name](part) for part in images.split(250)]))

    def seen_by(self, names, images):
        """The encoders under which the images are further from train than real draws are."""
        limits = {name: self.real[name].mean() + 3 * self.real[name].std() for name in names}
        return {name for name in names if self.distance(name, images) > limits[name]}


def judged(images, labels, train, count, config):
    """The first images are train; draws of real images are disjoint as far as they go."""
    classes = Classes(labels, tuple(str(label) for label in range(int(labels.max()) + 1)))
    split = TensorSplit(images[:train], classes[torch.arange(train)])
    battery = config.fit(Dataset("judged", split, split))
    base, rest = torch.arange(train, train + count), torch.arange(train + count, len(images))
    source = torch.Generator().manual_seed(0)
    if len(rest) >= DRAWS * count:
        draws = rest[: DRAWS * count].split(count)
    else:
        draws = [rest[torch.randperm(len(rest), generator=source)[:count]] for _ in range(DRAWS)]
    found = Judged(battery, {}, {}, TensorSplit(images[base], classes[base]))
    with torch.no_grad():
        for name, encoder in battery.encoders.items():
            found.targets[name] = SlicedTarget.of(name, encoder(images[:train]), 256, 0)
    found.real |= {
        name: torch.tensor([found.distance(name, images[rows]) for rows in draws]) for name in battery.encoders
    }
    return found


@pytest.fixture(scope="module")
def photographs():
    images, labels = crops(800 + (DRAWS + 1) * 400)
    return judged(images, labels, 800, 400, LocalBatteryConfig(steps=40))


@pytest.fixture(scope="module")
def digits():
    data = DigitsConfig().build()
    images = torch.cat([data.train.images, data.val.images])
    labels = torch.cat([data.train.conditions.labels, data.val.conditions.labels])
    return judged(images, labels, 497, 300, LocalBatteryConfig(steps=40))


SEEN = {  # the level of each defect
    "photographs": {"noise": 8, "blur": 0.5, "jpeg": 50, "static": 100, "checkerboard": 4, "cast": 5, "contrast": 10},
    "digits": {"noise": 8, "blur": 0.5, "jpeg": 50, "static": 100, "checkerboard": 4, "darker": 5, "contrast": 10},
}
ONLY_BY_TRAINED = {("photographs", "contrast")}  # crops differ far more in contrast than by a tenth


@pytest.mark.parametrize(("data", "defect"), [(data, defect) for data, defects in SEEN.items() for defect in defects])
def test_a_defect_is_seen_on_both_sides(request, data, defect):
    found = request.getfixturevalue(data)
    damaged = DEFECTS[defect].apply(found.base, found.base, SEEN[data][defect], 0)
    images = damaged.read(torch.arange(len(damaged)))
    sides = found.seen_by(found.battery.held_in, images), found.seen_by(found.battery.held_out, images)
    assert sides[0] and (sides[1] or (data, defect) in ONLY_BY_TRAINED), sides


@pytest.mark.parametrize("data", SEEN)
def test_real_images_are_not_seen_as_defective(request, data):
    found = request.getfixturevalue(data)
    seen = found.seen_by(found.battery.encoders, found.base.images)
    assert len(seen) <= 1, seen


@pytest.mark.parametrize("data", SEEN)
def test_what_rounding_adds_is_not_seen_by_those_that_train(request, data):
    found = request.getfixturevalue(data)
    rounding = (torch.rand(found.base.images.shape, generator=torch.Generator().manual_seed(0)) - 0.5) / 255
    assert not found.seen_by(found.battery.held_in, (found.base.images + rounding).clamp(0, 1))
