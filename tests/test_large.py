"""Many classes and large images: grids, galleries, samples and the report stay of a size that can be opened."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import irdm.sample
from irdm.data.base import Dataset, Split
from irdm.encoders.base import Battery, Encoder
from irdm.evaluate import EvaluationConfig, QuickCheck, bounded, evaluate, sample_grid, spaced
from irdm.metrics.base import MIN_ROWS
from irdm.presets import PRESETS
from irdm.report import write_report
from irdm.run import LoadedRun
from irdm.sample import sample_run

CONFIG = EvaluationConfig(rows=60, quick_rows=30, replicates=2, directions=16, rff_features=16, resamples=4)


class Noise(nn.Module):
    """The noise as an image, and the classes and the batch sizes it was asked for."""

    def __init__(self, side):
        super().__init__()
        self.noise_shape, self.asked, self.most = (3, side, side), [], 0

    def forward(self, noise, labels):
        self.asked += labels.tolist()
        self.most = max(self.most, len(labels))
        return torch.special.ndtr(noise)


def photographs(classes, side, rows=120):
    """Noise in `classes` classes, all of them in every split."""
    splits = {}
    for name in ("train", "val", "test"):
        splits[name] = Split(torch.rand(rows, 3, side, side), torch.arange(rows) % classes)
    return Dataset("noise", **splits, num_classes=classes, class_names=tuple(map(str, range(classes))))


def battery():
    networks = {name: nn.Sequential(nn.AdaptiveAvgPool2d(size), nn.Flatten()) for name, size in (("a", 2), ("b", 3))}
    return Battery({name: Encoder(name, 3 * (2, 3)[name == "b"] ** 2, n) for name, n in networks.items()}, "a", "b")


def test_classes_are_spaced_from_the_first_to_the_last():
    assert spaced(torch.arange(1000), 12).tolist()[::11] == [0, 999]
    assert len(spaced(torch.arange(1000), 12).unique()) == 12
    assert spaced(torch.tensor([3, 5, 9]), 20).tolist() == [3, 5, 9]


@pytest.mark.parametrize(("side", "classes", "each"), [(8, 20, 10), (256, 12, 5)])
def test_a_grid_of_a_thousand_classes_is_a_picture(side, classes, each):
    generator, dataset = Noise(side), photographs(1000, side, rows=MIN_ROWS)
    grid = sample_grid(generator, dataset, 0, 7, "cpu")
    assert generator.most == 7 and len(generator.asked) == classes * each
    assert {generator.asked[0], generator.asked[-1]} == {0, 999}
    assert max(grid.shape) < 4000
    assert np.array_equal(grid, sample_grid(Noise(side), dataset, 0, 7, "cpu"))


def test_an_evaluation_of_large_images_keeps_few_of_them_and_its_report_is_light(tmp_path):
    dataset = photographs(60, 256)
    evaluation = evaluate(Noise(256), battery(), dataset, CONFIG)
    arrays = evaluation.arrays
    assert len(np.unique(arrays["generated_labels"])) == 12 and len(arrays["generated"]) <= 60
    (tmp_path / "samples").mkdir()
    np.savez(tmp_path / "samples" / "evaluation.npz", **arrays)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text(json.dumps(evaluation.result))
    assert 1e5 < write_report(tmp_path).stat().st_size < 5e6


def test_only_bounded_rows_are_read():
    class Counted(Split):
        taken = 0

        def take(self, rows):
            Counted.taken += len(rows)
            return super().take(rows)

    dataset = photographs(4, 16)
    splits = {name: Counted(s.images, s.labels) for name in ("train", "val", "test") if (s := getattr(dataset, name))}
    counted = Dataset("counted", **splits, num_classes=4, class_names=("a", "b", "c", "d"))
    small = bounded(counted, 40, seed=0)
    assert [len(part) for part in (small.train, small.val, small.test)] == [40, 40, 40] and Counted.taken == 120
    assert small.train.labels.bincount().tolist() == [10, 10, 10, 10]
    QuickCheck(battery(), counted, CONFIG)
    assert Counted.taken == 120 + 90
    assert bounded(dataset, 1000, seed=0).train is dataset.train, "all of it, as it is"


def test_sampling_many_classes_draws_some_of_each_kind_unless_told_otherwise(tmp_path, monkeypatch):
    generator = Noise(4)
    loaded = LoadedRun(PRESETS["imagenet"](), generator, "cpu", 1, 1000, {})
    monkeypatch.setattr("irdm.run.load_run", lambda run: loaded)
    sample_run(tmp_path / "run")
    assert len(generator.asked) == 10 * irdm.sample.MANY and len(set(generator.asked)) == 20
    assert generator.most == loaded.config.evaluation.micro_batch
    generator.asked.clear()
    sample_run(tmp_path / "run", count=1500, format="npz")
    assert generator.asked == [*range(1000), *range(500)]
