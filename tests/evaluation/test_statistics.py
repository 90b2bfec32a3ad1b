"""Published statistics in the place of real images: read, refused, and judged by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from irdm.cli import main
from irdm.encoders.base import Encoder
from irdm.evaluation import EvaluationConfig, read_result
from irdm.evaluation.statistics import is_statistics, judge_by_statistics, open_statistics

CONFIG = EvaluationConfig()
RNG = np.random.default_rng(0)


def saved(path, rows, **more):
    np.savez(path, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False), **more)
    return path


def test_the_distance_is_that_of_torch_fidelity(tmp_path):
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    real, fake = RNG.normal(size=(300, 6)) * np.arange(1, 7), RNG.normal(0.4, 1, size=(200, 6)).astype(np.float32)
    statistics = open_statistics(saved(tmp_path / "stats.npz", real))
    scores = judge_by_statistics(torch.from_numpy(fake), statistics, "inception", CONFIG)
    one, two = ({"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (fake.astype(np.float64), real))
    expected = fidelity.fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"]
    found = scores["frechet_distance"].encoders["inception"]
    assert found.value == pytest.approx(expected, rel=1e-8) and found.notes["name"] == "FID"
    assert (found.control, found.p_real) == (None, None) and found.ci95[0] < expected < found.ci95[1]
    assert scores["frechet_infinity"].encoders["inception"].value < expected
    named = judge_by_statistics(torch.from_numpy(fake), statistics, "inception", CONFIG, "resized to 8 x 8")
    assert named["frechet_distance"].encoders["inception"].notes["name"] == "FID (images resized to 8 x 8)"
    other = judge_by_statistics(torch.from_numpy(fake), statistics, "mae", CONFIG)
    assert list(other) == ["frechet_distance"] and other["frechet_distance"].encoders["mae"].notes["name"] == "FD-mae"
    with pytest.raises(ValueError, match="of 6 numbers a feature, and the encoder 'mae' gives 5"):
        judge_by_statistics(torch.from_numpy(fake[:, :5]), statistics, "mae", CONFIG)


def test_a_covariance_of_few_rows_or_single_precision_is_one(tmp_path):
    rows = RNG.normal(size=(10, 40)).astype(np.float32)
    path = tmp_path / "few.npz"
    np.savez(path, mu=rows.mean(0), sigma=np.cov(rows, rowvar=False).astype(np.float32))
    assert open_statistics(path).covariance.shape == (40, 40)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sigma": np.eye(4) + np.eye(4, k=1)}, "not symmetric"),
        ({"sigma": np.diag([1.0, 1, 1, -0.1])}, "eigenvalue -0.1"),
        ({"sigma": np.eye(5)}, r"mu is \[4\] and sigma \[5, 5\]"),
        ({"mu": np.array([1, 2, np.nan, 4])}, "NaN or infinity"),
        ({"mu": np.array([None] * 4)}, "cannot be read as statistics"),
    ],
)
def test_what_is_no_covariance_is_refused(tmp_path, change, said):
    np.savez(tmp_path / "stats.npz", **({"mu": np.zeros(4), "sigma": np.eye(4)} | change))
    with pytest.raises(ValueError, match=said):
        open_statistics(tmp_path / "stats.npz")


def test_a_batch_of_images_is_not_taken_for_statistics(tmp_path):
    rows = RNG.normal(size=(20, 4))
    assert is_statistics(saved(tmp_path / "stats.npz", rows))
    assert not is_statistics(saved(tmp_path / "adm.npz", rows, arr_0=np.zeros((3, 8, 8, 3), np.uint8)))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    assert not is_statistics(tmp_path / "broken.npz") and not is_statistics(tmp_path / "none.npz")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with 60 images of 12 x 10, and an encoder of 27 numbers in the place of Inception."""
    monkeypatch.chdir(tmp_path)
    images = RNG.integers(0, 256, (60, 12, 10, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:02d}.png")
    network = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten())
    monkeypatch.setattr("irdm.encoders.panel.load_encoder", lambda entry, *_, **__: Encoder(entry.name, 27, network))
    monkeypatch.setattr("irdm.encoders.panel.fingerprint", lambda entry, *_: f"of {entry.name}")
    features = network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).numpy()
    saved(tmp_path / "published.npz", features + 0.1)
    return tmp_path


def test_the_command_judges_a_folder_by_statistics(there, capsys):
    assert main(["eval", "images", "--against", "published.npz", "--panel", "inception", "--out", "out"]) == 0
    result = read_result(there / "out")
    found = result.scores["frechet_distance"].encoders["inception"]
    assert found.value == pytest.approx(27 * 0.01, rel=1e-3) and found.control is None
    assert result.protocol["image_shape"] == [3, 12, 10] and not result.verdict.real
    said = capsys.readouterr().out
    assert "FID" in said and "no control" in said and "Not known" in said
    page = (there / "out" / "report.html").read_text()
    assert "FID" in page and "no control" in page
    assert (
        main(["eval", "images", "--against", "published.npz", "--panel", "inception", "--size", "8", "--out", "s"]) == 0
    )
    assert "FID (images resized to 8 x 8)" in capsys.readouterr().out


def test_the_encoder_of_statistics_must_be_named(there, capsys):
    for words in ([], ["--panel", "inception,mae"], ["--panel", "pixels"]):
        assert main(["eval", "images", "--against", "published.npz", *words]) == 2
        assert "does not say which encoder made it" in capsys.readouterr().err
