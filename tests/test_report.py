"""The page says what a folder holds, whatever that is, stays small, asks for nothing, and opens without error."""

import copy
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

from irdm.evaluation import Result, verdict_of, write_result
from irdm.evaluation.defects import DEFECTS
from irdm.evaluation.sensitivity import Cost, Rung, Sensitivity
from irdm.files import read_manifest, write_manifest
from irdm.images import save_png
from irdm.log import MetricsLog
from irdm.metrics.score import Estimate, Score
from irdm.report import write_report
from irdm.report.charts import Axis, Mark, Series, lines, number, ruler, score

HELD_IN, HELD_OUT = ("supervised", "contrastive", "masked", "autoencoder", "scattering"), ("rotation", "pixels", "mlp")
LONG = "A very long prompt about a red panda that rides a blue bicycle through the old town " * 2


def fake_result(**more):
    """The result of an evaluation with made-up numbers: a ratio, a share, one without a mean, one without encoders."""
    values = dict(zip(HELD_IN + HELD_OUT, (0.98, 1.01, 0.94, 1.04, 1.07, 1.19, 1.08, 1.13), strict=True))

    def estimate(value, control, spread=0.05, **notes):
        return Estimate(value=value, ci95=(value - spread, value + spread), control=control, notes=notes)

    def mean_score(label, direction, scale, control):
        parts = {
            name: estimate(scale * value, control * (1 + 0.01 * i)) for i, (name, value) in enumerate(values.items())
        }
        groups = {"mean": estimate(scale * 1.055, control), "held_in": estimate(scale * 1.01, control * 0.98),
                  "held_out": estimate(scale * 1.13, control * 1.04)}  # fmt: skip
        return Score(
            label=label, direction=direction, says=f"What {label} says.", encoders=parts, notes={"n": 9}, **groups
        )

    parts = {n: Estimate(value=3.0, control=1.02, p_real=1e-9, notes={"real_distance": 0.5}) for n in values}
    far = Score(label="SW_w8", direction="lower", says="", encoders=parts)
    judged = {"whitened_ratio": far, "precision": mean_score("Precision", "real", 0.7, 0.81)}
    rungs = [
        Rung(
            defect=defect, level=level, says=DEFECTS[defect].at(level), excess=dict.fromkeys(values, seen * level**2),
            scores={"whitened_ratio": {n: Cost(value=1.0, p=1 - seen) for n in values}},
            seen=("distance",) if seen else (),
        )
        for defect, level, seen in (("noise", 4, 0.05), ("noise", 8, 0.05), ("cast", 5, 0))
    ]  # fmt: skip
    ladder = Sensitivity(
        of="",
        rows=119,
        held_out=HELD_OUT,
        real=dict.fromkeys(values, 0.5),
        spread=dict.fromkeys(values, 0.1),
        rungs=tuple(rungs),
    )
    frechet = {n: estimate(12.5 * v, 3.25, 2, name=f"FD-{n}", bias=0.5, warning=None) for n, v in values.items()}
    scores = {
        "sw_ratio": mean_score("SW_r8", "lower", 1, 1.012),
        "precision": mean_score("Precision", "real", 0.7, 0.81),
        "frechet_distance": Score(label="Frechet", direction="lower", says="Gaussians.", encoders=frechet),
        "pickscore": Score(label="PickScore", direction="higher", says="Liking.", mean=Estimate(value=21.7)),
    }
    fields = {
        "verdict": verdict_of(judged, ladder, trained=True), "ladder": ladder,
        "source": {"path": "runs/digits", "images": 1_437}, "reference": {"name": "digits", "train": 1077, "val": 360},
        "protocol": {"real": {"held_out": [*HELD_OUT]}}, "scores": scores,
        "warnings": ("Few images: <i>intervals</i> are wide.",),
        "missing": (), "seconds": {"train": 118.2, "evaluate": 33.4, "total": 151.6}, "versions": {"torch": "2.13.0"},
        "hardware": "2 CPU cores", "seeds": {"run": 0}, "command": "irdm train digits --rollout 2048", "step": 600,
        "training": {"alarms": 1},
    }  # fmt: skip
    return Result(**(fields | more))


def fake_samples(folder, images=None, captions=None, neighbours=True):
    digits = load_digits()
    if images is None:
        images, captions = (digits.images[:, None] / 16 * 255).round().astype(np.uint8), digits.target.astype(str)
    if captions is None:
        captions = np.array([f"class {i % 20}" for i in range(len(images))])
    third = len(images) // 3
    real = slice(third, third + 100)
    near = {side: images[start : start + 8] for start, side in enumerate(("judged", "copied", "fresh", "usual"))}
    near |= {
        "judged_ratio": np.linspace(0.01, 0.5, 8),
        "judged_share": np.linspace(0, 0.02, 8),
        "fresh_ratio": np.ones(8),
    }
    np.savez(
        folder / "samples.npz", generated=255 - images[:100], generated_captions=captions[:100], real=images[real],
        real_captions=captions[real], **(near if neighbours else {}),
    )  # fmt: skip


def fake_run(folder, steps=600, done=True, images=None):
    """A run directory: numbers are made up, digits are real."""
    rng = np.random.default_rng(0)
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"rollout": 2048, "title": "</script><b>&", "steps": 600}))
    floors = {name: 0.0006 * (i + 1) for i, name in enumerate(HELD_IN)} | {"masked": None}
    write_manifest(
        folder / "reference.json",
        {"floors": floors, "sizes": {"train": 1077, "val": 360}, "held_in": HELD_IN, "held_out": HELD_OUT,
         "image_shape": [1, 8, 8], "spec": {"kind": "none"}},
    )  # fmt: skip
    log = MetricsLog(folder / "metrics.jsonl", 0, write=True)
    for step in range(1, steps + 1):
        decay = math.exp(-step / (steps / 6))
        scores = {name: (0.3 * decay + 0.001) * rng.uniform(0.8, 1.2) for name in HELD_IN}
        row = {
            "step": step, "loss": 5 * decay + rng.normal() * 0.1, "lr": 5e-4 * (1 + math.cos(3.14 * step / steps)),
            "grad_norm": 40 * decay + rng.exponential(2), "images_per_second": 21000 + rng.normal() * 900,
            "seconds": step * 0.2, "skipped": 2, "scores": scores,
            "weights": {name: 5 * value / sum(scores.values()) for name, value in scores.items()},
        }  # fmt: skip
        if step % max(steps // 12, 1) == 0:
            rise = 0.5 * max(0, step / steps - 0.7)
            row["check"] = {"held_in": 1 + 6 * decay, "held_out": 1.1 + 7 * decay + rise, "alarm": step == steps}
        log.write(row)
    if done:
        write_result(folder / "result.json", fake_result())
        fake_samples(folder, images)
    return folder


def fake_evaluation(folder):
    """A judged folder without training, command and neighbours, and with long captions."""
    folder.mkdir()
    write_result(folder / "result.json", fake_result(step=None, training=None, command=None))
    digits = (load_digits().images[:300, None] / 16 * 255).astype(np.uint8)
    fake_samples(folder, digits, np.array([LONG + str(i % 10) for i in range(300)]), neighbours=False)
    return folder


class Page(HTMLParser):
    """Collects what a test asks about: figures, images without a description, headings, addresses, and the words."""

    def __init__(self, text):
        super().__init__()
        self.figures, self.levels, self.sources, self.silent, self.words, self.tags = [], [], [], [], [], []
        self.feed(text)
        self.source, self.text = text, re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if "data-figure" in values:
            self.figures.append(values["data-figure"])
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        self.sources += [values[key] for key in ("src", "href", "srcset", "data", "action") if key in values]
        if (tag == "img" and "alt" not in values) or (values.get("role") == "img" and not values.get("aria-label")):
            self.silent.append(tag)

    def handle_data(self, data):
        self.words.append(data)


JUDGED = {"ruler", "ladder", "encoders", "gallery"}
TRAINED = {"check", "weights", "grad_norm", "lr", "images_per_second", "loss"} | {f"score-{name}" for name in HELD_IN}


def test_a_finished_run(tmp_path):
    path = write_report(fake_run(tmp_path / "digits"))
    page = Page(path.read_text())
    assert path == tmp_path / "digits" / "report.html" and path.stat().st_size < 5_000_000
    assert set(page.figures) == JUDGED | TRAINED | {"neighbours"} and not page.silent
    assert page.levels[0] == 1 and page.levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(page.levels))
    for expected in (
        "The 1,437 images of digits, judged against digits (1,077 train and 360 fresh real images): SW_r8 is 1.13 "
        "under encoders that took no part in training (real images: 1.05) and 1.01 under those that may have (real",
        "real control 1.05", "2 min 32 s", "0.74", "2 steps were skipped", "irdm train digits --rollout 2048", "2.13.0",
        '"rollout": 2048', "2 CPU cores", "The alarm was raised once", "FD-masked", "21.7", "Few images: <i>",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert not re.search("<i>intervals|</script><b>&", path.read_text())


def test_every_score_is_shown_without_a_change_here(tmp_path):
    scores = {
        "new": Score(label="Niceness", direction="higher", says="How nice <b>it</b> is.", mean=Estimate(value=0.123)),
        "other": Score(
            label="Oddness", direction="lower", says="Odd.", encoders={"x": Estimate(value=7.5, notes={"why": "so"})}
        ),
    }
    write_result(tmp_path / "result.json", fake_result(scores=scores, verdict=None, ladder=None))
    page = Page(write_report(tmp_path).read_text())
    for expected in ("Niceness ↑", "How nice <b>it</b> is.", "0.12", "Oddness ↓", "7.50", "Why", "so"):
        assert expected in page.text, expected
    assert "<b>it" not in page.source and "1.00" not in page.text and 'class="one"' not in page.source


def test_the_verdict_is_said_first_on_every_page(tmp_path):
    for folder in (fake_run(tmp_path / "digits", steps=6), fake_evaluation(tmp_path / "judged")):
        page = Page(write_report(folder).read_text())
        said = fake_result().verdict
        assert said.sentence.startswith("Not real: as far from real as noise of ") and said.sentence in page.text
        assert page.text.index(said.sentence) < page.text.index("The 1,437 images")
        for expected in (
            "distance objects SW_w8 3.00 where real is 1.02 (supervised) chance of that in real images below 0.0001",
            "fidelity not known", "memorisation not known", "times the distance of 119 fresh real ones",
            f"These are as far from real as {said.place.says}.", "Nothing here would have seen a colour cast of 5%.",
        ):  # fmt: skip
            assert expected in page.text, expected
        assert 'class="here"' in page.source


def test_no_score_at_all(tmp_path):
    write_result(
        tmp_path / "result.json", fake_result(scores={}, source={}, reference={}, seconds={}, verdict=None, ladder=None)
    )
    assert "judged against" in Page(write_report(tmp_path).read_text()).text


def test_an_evaluation_has_no_training(tmp_path):
    page = Page(write_report(fake_evaluation(tmp_path / "judged")).read_text())
    assert set(page.figures) == JUDGED and LONG.strip() in page.text
    assert "irdm train" not in page.text and page.figures == ["ruler", "ladder", "gallery", "encoders"]


def test_without_common_captions_all_images_are_one_group(tmp_path):
    write_result(tmp_path / "result.json", fake_result())
    images, names = np.zeros((6, 3, 8, 8), np.uint8), np.array(list("abcdef"))
    arrays = {"generated": images, "real": images, "real_captions": names}
    np.savez(tmp_path / "samples.npz", generated_captions=np.array([""] * 6), **arrays)
    assert "without any selection" in Page(write_report(tmp_path).read_text()).text
    np.savez(tmp_path / "samples.npz", generated_captions=names, **arrays)
    assert "One row a condition, the first 10" in Page(write_report(tmp_path).read_text()).text


def test_each_picture_of_a_text_has_that_text_below_it(tmp_path):
    write_result(tmp_path / "result.json", fake_result())
    images, sides = np.zeros((4, 3, 8, 8), np.uint8), [[f"{side} <b>{i}</b>" for i in range(4)] for side in "gr"]
    sides[1][0] = sides[0][0]  # one text in common makes no row of it
    texts = {"generated_captions": np.array(sides[0]), "real_captions": np.array(sides[1])}
    np.savez(tmp_path / "samples.npz", generated=images, real=images, **texts)
    text = write_report(tmp_path).read_text()
    assert "without any selection" in text and "<b>1</b></small>" not in text, "escaped"
    assert all(f"{side} &lt;b&gt;{i}&lt;/b&gt;</small>" in text for side, i in (("g", 0), ("g", 3), ("r", 1), ("r", 3)))


def test_the_page_loads_nothing(tmp_path):
    text = write_report(fake_run(tmp_path / "digits", steps=24)).read_text()
    assert all(source.startswith("data:") for source in Page(text).sources)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_an_interrupted_run(tmp_path):
    run = fake_run(tmp_path / "digits", done=False)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 601, "lo')
    page = Page(write_report(run).read_text())
    assert "no result yet" in page.text and "ends at step 600 of 600" in page.text and "cut short" in page.text
    assert f"irdm train --config {run / 'config.json'}" in page.text and set(page.figures) == TRAINED


def test_a_result_older_than_the_log_is_said_to_be(tmp_path):
    run = fake_run(tmp_path / "digits", steps=24)
    write_result(run / "result.json", fake_result(step=12))
    assert "The result is that of step 12; the log goes on to step 24." in Page(write_report(run).read_text()).text


def test_a_step_logged_twice_keeps_its_later_line(tmp_path):
    run = fake_run(tmp_path / "digits", steps=3, done=False)
    log = MetricsLog(run / "metrics.jsonl", 9, write=True)
    log.write({"step": 3, "scores": {"masked": 0.777}})
    assert "0.777 now" in Page(write_report(run).read_text()).text


def test_before_evaluation_the_latest_grid_is_shown(tmp_path):
    run = fake_run(tmp_path / "digits", steps=24, done=False)
    save_png(run / "samples" / "step-00000012.png", np.zeros((40, 40, 1), np.uint8))
    text = write_report(run).read_text()
    assert "latest" in Page(text).figures and "step-00000012" in text
    (run / "samples" / "step-00000012.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="step-00000012.png cannot be read"):
        write_report(run)


def test_a_run_that_logged_nothing(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        write_report(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    assert "nothing is logged" in write_report(tmp_path).read_text()


def test_names_that_are_no_text_do_not_stop_the_page(tmp_path):
    folder = tmp_path / "a\udcff"
    folder.mkdir()
    (folder / "config.json").write_text('{"title": "\\ud800"}')
    assert "a?" in write_report(folder).read_text()


def test_large_photographs_stay_under_five_megabytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 3, 256, 256), dtype=np.uint8)
    assert write_report(fake_run(tmp_path / "photos", steps=24, images=noise)).stat().st_size < 5_000_000


def test_a_long_log_stays_small(tmp_path):
    run = fake_run(tmp_path / "long", steps=4_000, done=False)
    assert write_report(run).stat().st_size < 500_000


def test_missing_numbers_leave_gaps(tmp_path):
    run = fake_run(tmp_path / "digits", steps=24)
    row = {"step": 25, "loss": float("nan"), "lr": None, "grad_norm": math.inf, "scores": dict.fromkeys(HELD_IN)}
    MetricsLog(run / "metrics.jsonl", 24, write=True).write(row)
    drawn = re.findall(r'<svg.*?</svg>|style="[^"]*"', write_report(run).read_text(), re.S)
    assert not re.search(r"\bnan\b|\binf\b", " ".join(drawn), re.I)


def changes(value, path=()):
    """Every way to damage plain JSON in one place: (where, a function that does it to a copy)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        for new in (None, "x", -1, 1e300, 10**400, math.nan, {"x": {"x": []}}):
            yield (*path, key), new
        yield from changes(part, (*path, key))


def damaged(value, path, new):
    """A copy of plain JSON with another value at a path."""
    value = copy.deepcopy(value)
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = new
    return value


@pytest.mark.parametrize("name", ["config.json", "reference.json", "result.json", "metrics.jsonl"])
def test_any_leaf_may_be_damaged(tmp_path, name):
    """A page, or one ValueError that names the file (and the field, for a wrong value): never another error."""
    run, refused = fake_run(tmp_path / "digits", steps=1, done=False), 0
    whole = fake_result().scores
    few = {"encoders": {"mlp": whole["frechet_distance"].encoders["mlp"]}, "held_in": None, "held_out": None}
    scores = {key: whole[key].model_copy(update=few) for key in ("sw_ratio", "frechet_distance")}
    write_result(run / "result.json", fake_result(scores=scores, verdict=None, ladder=None))
    path, write = run / name, write_manifest
    if name == "metrics.jsonl":
        body = {key: part for key, part in json.loads(path.read_text()).items() if key != "crc"}

        def write(path, body):
            path.unlink()
            log = MetricsLog(path, 0, write=True)
            log.write(body) if isinstance(body.get("step"), int) else path.write_text(json.dumps(body))

    elif name == "config.json":
        body = json.loads(path.read_text())

        def write(path, body):
            path.write_text(json.dumps(body))

    else:
        body = {key: part for key, part in read_manifest(path, "").items() if key not in ("held_in", "image_shape")}
    for where, new in changes(body):
        write(path, damaged(body, where, new))
        try:
            write_report(run)
        except ValueError as error:
            refused += 1
            said = str(error)
            assert type(error) is ValueError and name in said and str(where[-1]) in said, (where, new, said)
        except Exception as error:
            raise AssertionError(f"{where} = {new!r}") from error
    assert refused or name == "config.json"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "neither a run directory"),
        ("config.json", "[" * 100_000, "config.json cannot be read"),
        ("config.json", '{"a":' * 980 + "1" + "}" * 980, "config.json"),
        ("config.json", "[]", "config.json holds a list"),
        ("result.json", "{", "result.json"),
        ("reference.json", '{"floors": {}}', "reference.json was altered"),
        ("samples.npz", "PK", "samples.npz cannot be read.*irdm eval"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    run = fake_run(tmp_path / "digits", steps=1, done=name != "config.json")
    (run / name).unlink() if content is None else (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"generated": np.zeros((2, 1, 8, 8))}, "generated is float64"),
        ({"real": np.zeros((2, 8, 8, 3), np.uint8)}, "real is uint8"),
        ({"real_captions": np.array([1, 2])}, "real_captions are not 2 texts"),
        ({"judged_share": np.array([1, np.nan])}, "2 judged images need as many copied ones and finite numbers"),
        ({"usual": np.zeros((1, 1, 8, 8), np.uint8)}, "2 fresh images need as many usual ones"),
        ({"copied": np.zeros((2, 1, 8, 8))}, "copied is float64"),
    ],
)
def test_broken_pictures_are_named(tmp_path, changed, message):
    write_result(tmp_path / "result.json", fake_result())
    images, captions = np.zeros((2, 1, 8, 8), np.uint8), np.array(["a", "b"])
    arrays = {"generated": images, "generated_captions": captions, "real": images, "real_captions": captions}
    near = dict.fromkeys(("judged", "copied", "fresh", "usual"), images)
    near |= dict.fromkeys(("judged_ratio", "judged_share", "fresh_ratio"), np.ones(2))
    np.savez(tmp_path / "samples.npz", **(arrays | near | changed))
    with pytest.raises(ValueError, match=f"samples.npz: {message}"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0.9, 1.3, True), (1e-5, 3, True), (0, 1, False), (3e4, 9e4, False), (1, 1, True), (5e-324, 1e100, True)],
)
def test_axes_have_ticks_inside(low, high, log):
    axis = Axis.around([low, high], log=log)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12 and all(axis.low <= t <= axis.high for t in ticks)
    assert 0 <= axis.at(low) <= axis.at(high) <= 100


def test_numbers_are_short():
    values = (0, 1.0345, 12000, 4.1e-5, 1e-3, 0.25, -3.0, None, float("nan"))
    assert [number(v) for v in values] == ["0", "1.03", "12,000", "4.1e-5", "0.001", "0.25", "-3", "–", "–"]
    scores = {1: "1.00", 0.0012: "0.0012", 12.345: "12.35", 1234.5: "1,234", -0.0: "0", -1e-9: "-1e-9", None: "–"}
    assert {value: score(value) for value in scores} == scores
    assert "No finite value" in lines([Series("loss", [(1, None)])], "loss")


def test_the_ruler_puts_its_line_at_the_measured_control():
    drawn = ruler([Mark("a", 1.3, "in", (1.2, 1.4), 1.1)], "SW", control=1.05)
    axis = Axis.around([1.3, 1.2, 1.4, 1.1, 1.05], log=True, pad=0.1)
    assert f'class="one" x1="{axis.at(1.05)}%"' in drawn and f'class="own" x1="{axis.at(1.1)}%"' in drawn
    assert "a 1.30, 95% interval 1.20 to 1.40, real control 1.10" in html.unescape(drawn)
    assert 'class="one"' not in ruler([Mark("a", -1, "in")], "SW", control=None)


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", ["finished", "unfinished", "evaluation"])
def test_in_a_browser(tmp_path, kind, dark):
    """Every figure has a size, every image is decoded, and the console stays silent."""
    judged = {"evaluation": JUDGED, "finished": JUDGED | TRAINED | {"neighbours"}, "unfinished": TRAINED}
    folder = tmp_path / "digits"
    folder = fake_evaluation(folder) if kind == "evaluation" else fake_run(folder, steps=60, done=kind == "finished")
    assert opened(write_report(folder), tmp_path, dark=dark) == judged[kind]
