"""The report says what a run directory holds, stays small, asks for nothing, and opens in a browser without error."""

import html
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from browser import needs_browser, opened
from sklearn.datasets import load_digits

from irdm.images import save_png
from irdm.report import write_report
from irdm.report.charts import Axis, Series, lines, number

HELD_IN, HELD_OUT = ("supervised", "contrastive", "masked", "autoencoder", "scattering"), ("rotation", "pixels", "mlp")


def fake_run(folder, steps=600, images=None, done=True):
    """A run directory with every file of docs/design.md; numbers are made up, digits are real."""
    rng = np.random.default_rng(0)
    (folder / "samples").mkdir(parents=True)

    def dump(name, value):
        (folder / name).write_text(json.dumps(value))

    dump("config.json", {"rollout": 2048, "title": "</script><b>&"})
    floors = {name: 0.0006 * (i + 1) for i, name in enumerate(HELD_IN)}
    sizes = {"train": 1077, "val": 360, "test": 360}
    dump("reference.json", {"floors": floors, "sizes": sizes, "held_in": HELD_IN, "held_out": HELD_OUT})
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            decay = math.exp(-step / (steps / 6))
            scores = {n: f + (0.3 * decay + 0.001) * rng.uniform(0.8, 1.2) for n, f in floors.items()}
            over = {n: max(s - floors[n] - 0.00105 * (n != "masked"), 0) for n, s in scores.items()}
            total = sum(over.values()) or 1
            row = {
                "step": step, "loss": 5 * decay + rng.normal() * 0.1, "lr": 5e-4 * (1 + math.cos(3.14 * step / steps)),
                "grad_norm": 40 * decay + rng.exponential(2), "images_per_second": 21000 + rng.normal() * 900,
                "seconds": step * 0.2, "skipped": 2, "scores": scores,
                "weights": {n: 5 * w / total for n, w in over.items()},
            }  # fmt: skip
            if step % (steps // 12) == 0:
                rise = 0.5 * max(0, step / steps - 0.7)
                check = {"held_in": 1 + 6 * decay, "held_out": 1.1 + 7 * decay + rise, "alarm": step == steps}
                row["check"] = check
            file.write(json.dumps(row) + "\n")
    if not done:
        return folder
    values = dict(zip(HELD_IN + HELD_OUT, (0.98, 1.01, 0.94, 1.04, 1.07, 1.19, 1.08, 1.13), strict=True))

    def score(shift, **more):
        rows = {
            n: {"value": v + shift, "ci95": [v + shift - 0.05, v + shift + 0.06], "held_out": n in HELD_OUT}
            for n, v in values.items()
        }
        mean = sum(values.values()) / len(values) + shift
        return {"mean": mean, "held_in": 1.01 + shift, "held_out": 1.13 + shift, "ci95": [mean - 0.04, mean + 0.05],
                "held_in_ci95": [0.97, 1.06], "held_out_ci95": [1.07, 1.2], "per_encoder": rows} | more  # fmt: skip

    dump("result.json", {
        "sw_ratio": score(0, real_control=1.012), "sw_ratio_unseen": score(0.06),
        "mmd_ratio": score(0.3, real_control=1.03),
        "nearest_neighbour_ratio": {"value": 1.093, "generated": 1.41, "test": 1.29},
        "label_accuracy": {"generated": 0.967, "real_test": 0.986, "classifier": "SVC(RBF) on pixels"},
        "seconds": {"encoders": 21.4, "reference": 3.1, "train": 118.2, "evaluate": 8.9, "total": 151.6},
        "steps": steps, "images_per_second": 20480.0, "seeds": {"run": 0, "data": 0, "evaluation": 0},
        "versions": {"irdm": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "command": "irdm train digits --rollout 2048", "hardware": "2 CPU cores",
    })  # fmt: skip
    if images is None:
        digits = load_digits()
        images, labels = (digits.images[:, None] / 16 * 255).round().astype(np.uint8), digits.target
    else:
        labels = np.arange(len(images)) % 20
    third = len(images) // 3
    fake = np.clip(images[:100] + rng.normal(0, 12, images[:100].shape), 0, 255).astype(np.uint8)
    np.savez(
        folder / "samples" / "evaluation.npz",
        generated=fake, generated_labels=labels[:100], real=images[third : third + 100],
        real_labels=labels[third : third + 100], neighbours=images[:100],
        neighbour_distance=rng.uniform(0.7, 2.2, 100).astype(np.float32),
    )  # fmt: skip
    return folder


class Page(HTMLParser):
    """Collects what a test asks about: figures, images without a description, headings, and addresses."""

    def __init__(self, text):
        super().__init__()
        self.figures, self.levels, self.sources, self.silent = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if "data-figure" in values:
            self.figures.append(values["data-figure"])
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        self.sources += [values[key] for key in ("src", "href", "srcset", "data", "action") if key in values]
        if (tag == "img" and "alt" not in values) or (values.get("role") == "img" and not values.get("aria-label")):
            self.silent.append(tag)


FIGURES = {"ruler", "bars", "gallery", "neighbours", "check", "weights", "grad", "lr", "speed", "loss"} | {
    f"score-{name}" for name in HELD_IN
}


def test_a_finished_run(tmp_path):
    path = write_report(fake_run(tmp_path / "digits"))
    text = path.read_text()
    page = Page(text)
    assert path == tmp_path / "digits" / "report.html" and path.stat().st_size < 5_000_000
    assert set(page.figures) == FIGURES and not page.silent
    assert page.levels[0] == 1 and page.levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(page.levels))
    plain = html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", "", text)))
    for expected in (
        "600 steps", "2 min 32 s", "1.05", "real = 1.00", "1.09", "96.7%", "98.6%", "SVC(RBF) on pixels",
        "2 steps were skipped", "irdm train digits --rollout 2048", '"rollout": 2048', "2 CPU cores", "2.13.0",
        "The alarm was raised once",
    ):  # fmt: skip
        assert expected in plain, expected
    assert "</script><b>&" not in text and "result.json" not in plain


def test_the_page_loads_nothing(tmp_path):
    text = write_report(fake_run(tmp_path / "digits")).read_text()
    assert all(source.startswith("data:") for source in Page(text).sources)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_an_interrupted_run(tmp_path):
    run = fake_run(tmp_path / "digits", done=False)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 601, "lo')
    text = write_report(run).read_text()
    assert "no result yet" in text and "ends at step <b>600</b>" in text and "line 601" in text
    assert f"irdm train --config {run / 'config.json'}" in text
    assert {"check", "weights", "lr"} <= set(Page(text).figures) and "ruler" not in Page(text).figures


def test_before_evaluation_the_latest_grid_is_shown(tmp_path):
    run = fake_run(tmp_path / "digits", steps=24, done=False)
    save_png(run / "samples" / "step-00000012.png", np.zeros((40, 40, 1), np.uint8))
    text = write_report(run).read_text()
    assert "latest" in Page(text).figures and "step-00000012" in text
    (run / "samples" / "step-00000012.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="step-00000012.png cannot be read"):
        write_report(run)


def test_a_run_that_logged_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "nothing is logged" in write_report(tmp_path).read_text()


def test_large_photographs_stay_under_five_megabytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 3, 256, 256), dtype=np.uint8)
    assert write_report(fake_run(tmp_path / "photos", steps=24, images=noise)).stat().st_size < 5_000_000


def test_a_long_log_stays_small(tmp_path):
    run = fake_run(tmp_path / "long", steps=12_000, done=False)
    assert write_report(run).stat().st_size < 500_000


def test_not_finite_numbers_leave_gaps(tmp_path):
    run = fake_run(tmp_path / "digits", steps=24)
    row = {"step": 25, "loss": float("nan"), "lr": None, "grad_norm": float("inf"), "scores": dict.fromkeys(HELD_IN)}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    drawn = re.findall(r'<svg.*?</svg>|style="[^"]*"', write_report(run).read_text(), re.S)
    assert not re.search(r"\bnan\b|\binf\b", " ".join(drawn), re.I)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "not a run directory"),
        ("metrics.jsonl", '{"step": 1}\n{"step":\n{"step": 3}\n', "line 2.*found.*Delete that line"),
        ("metrics.jsonl", '{"step": 1}\n[]\n', "line 2"),
        ("metrics.jsonl", '{"loss": 1}\n', "line 1"),
        ("result.json", "{", "result.json is not valid JSON"),
        ("result.json", '{"steps": 1}', "no sw_ratio"),
        ("reference.json", "[]", "a JSON object was expected"),
        ("samples/evaluation.npz", "PK", "cannot be read.*irdm eval"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    run = fake_run(tmp_path / "digits", steps=24)
    (run / name).unlink() if content is None else (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.9, 1.3, True), (1e-5, 3, True), (0, 1, False), (3e4, 9e4, False), (1, 1, True)]
)
def test_axes_have_ticks_inside(low, high, log):
    axis = Axis.around([low, high], log=log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12 and all(axis.low <= t <= axis.high for t in ticks)
    assert 0 <= axis.at(low) <= axis.at(high) <= 100


def test_numbers_are_short():
    values = (0, 1.0345, 12000, 4.1e-5, 1e-3, 0.25, -3.0, None, float("nan"))
    assert [number(v) for v in values] == ["0", "1.03", "12,000", "4.1e-5", "0.001", "0.25", "-3", "–", "–"]
    assert "No finite value" in lines([Series("loss", [(1, None)])], "loss")


@needs_browser
@pytest.mark.parametrize("done", [True, False])
def test_in_a_browser(tmp_path, done):
    """Every figure has a size, every image is decoded, and the console stays silent."""
    missing = {"ruler", "bars", "gallery", "neighbours"} if not done else set()
    assert opened(write_report(fake_run(tmp_path / "digits", done=done)), tmp_path) == FIGURES - missing
