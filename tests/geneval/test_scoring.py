"""Verdicts believed and not, the summary, golden sets, and two folders compared."""

import json
from pathlib import Path

import pytest
import torch
from geneval.small import LINES, rendered_folder

from irdm.geneval import compare_scored, read_scored, record_golden, score_folder, try_golden
from irdm.geneval.layout import rendered
from irdm.geneval.scoring import check_agreement
from irdm.geneval.summary import Judged, rates, table
from irdm.geneval.verdicts import read_verdicts, write_verdicts
from irdm.metrics.pickscore import PickScore


class Fixed:
    """A scorer whose verdicts are those of a function."""

    kind, metric, identity = "official", "GenEval", {"weights": "abc"}

    def __init__(self, says=lambda sample: True, change=lambda lines: lines):
        self.says, self.change = says, change

    def __call__(self, folder, samples, out, progress=print):
        lines = [
            {"filename": str(Path("/elsewhere") / sample.name), "tag": sample.prompt.tag, "correct": self.says(sample)}
            for sample in samples
        ]
        write_verdicts(out, self.change(lines[::-1]))


class Liked(PickScore):
    """PickScore without its network: the file's number."""

    def __init__(self, plus=0.0):
        self.plus = plus

    def scores(self, images, prompts, micro_batch=64):
        return torch.arange(len(prompts), dtype=torch.float64) + self.plus + 0 * sum(image.width for image in images)


@pytest.fixture
def folder(tmp_path):
    return rendered_folder(tmp_path)


def score(folder, scorer, **more):
    return score_folder(*folder, scorer, **{"floor": 0.9, **more})


def test_a_folder_is_scored_and_its_score_read_again(folder):
    wrong = {2, 6}
    scored, path = score(folder, Fixed(lambda sample: sample.number not in wrong))
    assert {tag: rate.value for tag, rate in scored.rates.items()} == {
        "single_object": 1, "two_object": 0, "counting": 1, "colors": 1, "position": 1, "color_attr": 0
    }  # fmt: skip
    assert scored.overall.value == pytest.approx(4 / 6) and scored.overall.prompts == 8
    assert read_scored(path) == read_scored(path.parent) == scored
    assert scored.render["samples"] == 2 and not scored.published and scored.pickscore is None
    text = "\n".join(table(scored))
    assert "not on the published prompts" in text and "not measured: not asked for" in text


def test_the_mean_is_that_of_categories_and_the_interval_that_of_prompts():
    """Unequal categories weigh alike; and the interval has the width of the stratified standard error."""
    draws = torch.Generator().manual_seed(0)
    counts = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 400}
    images, number, expected, variance = [], 0, [], 0.0
    for tag, count in counts.items():
        chances = torch.rand(count, generator=draws)
        verdicts = torch.rand(count, 4, generator=draws) < chances[:, None]
        means = verdicts.double().mean(1)
        expected.append(means.mean().item())
        variance += means.var(correction=0).item() / count / 36
        for some in verdicts.tolist():
            images += [Judged(file="x", number=number, tag=tag, correct=one) for one in some]
            number += 1
    found, overall = rates(images)
    assert [rate.value for rate in found.values()] == pytest.approx(expected)
    assert overall.value == pytest.approx(sum(expected) / 6)
    low, high = overall.ci95
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.08)
    assert low < overall.value < high and rates(images) == (found, overall), "the draws are seeded"


def test_a_category_without_images_has_no_mean():
    with pytest.raises(ValueError, match="no image of two_object"):
        rates([Judged(file="x", number=0, tag="single_object", correct=True)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: [], "has 0 verdicts for 16 images"),
        (lambda lines: lines[:-2], "has 14 verdicts for 16 images: 00000/samples/0000.png"),
        (lambda lines: [*lines, lines[0]], "the image has two"),
        (lambda lines: [*lines[:-1], {**lines[-1], "filename": "00099/samples/0000.png"}], "not in the folder"),
        (lambda lines: [*lines[:-1], {**lines[-1], "tag": "counting"}], "has the tag 'counting'"),
        (lambda lines: [*lines[:-1], {**lines[-1], "correct": "yes"}], "not true or false"),
        (lambda lines: [{}, *lines], "line 1 is no verdict"),
    ],
)
def test_a_file_that_does_not_fit_the_folder_is_not_believed(folder, change, says):
    scored, path = score(folder, Fixed())
    with pytest.raises(ValueError, match=says):
        score(folder, Fixed(change=change))
    assert not path.exists(), "the earlier score does not stand for these verdicts"


def test_a_scorer_that_writes_nothing_is_not_believed(folder):
    class Silent(Fixed):
        def __call__(self, *given):
            pass

    with pytest.raises(ValueError, match="the scorer wrote nothing"):
        score(folder, Silent())


def test_a_scorer_that_sees_no_single_object_is_not_believed(folder):
    blind = Fixed(lambda sample: sample.number != 0)
    with pytest.raises(ValueError, match="finds 50.0% of single objects, fewer than the 90.0% of --floor"):
        score(folder, blind)
    assert score(folder, blind, floor=0.5)[0].rates["single_object"].value == 0.5


def test_verdicts_are_read_from_pandas_text(tmp_path):
    folder, prompts = rendered_folder(tmp_path, samples=1)
    samples, path = rendered(folder, prompts), tmp_path / "official.jsonl"
    text = [json.dumps({"filename": str(one.path), "tag": one.prompt.tag, "correct": True}) for one in samples]
    path.write_text("\n".join(text).replace("/", r"\/") + "\n\n")
    assert read_verdicts(path, samples) == [True] * len(LINES)


def test_a_golden_set_passes_the_build_that_it_is_of_and_no_other(folder, tmp_path):
    golden, build = folder[0], Fixed(lambda sample: sample.number % 2 == 0)
    with pytest.raises(ValueError, match="record the set"):
        try_golden(golden, build)
    record_golden(golden, build)
    with pytest.raises(ValueError, match="Delete it to record"):
        record_golden(golden, build)
    assert try_golden(golden, build).share == 1
    other = Fixed(lambda sample: sample.number % 2 == 0 or sample.name == "00003/samples/0001.png")
    found = try_golden(golden, other)
    assert found.differing == ("00003/samples/0001.png",) and found.share == 15 / 16
    check_agreement(found, 0.9, golden)
    (tmp_path / "more").mkdir()
    target = rendered_folder(tmp_path / "more")
    with pytest.raises(ValueError, match="fails on the golden set .*93.8% of 16 .*00003/samples/0001.png"):
        score(target, other, golden=golden, floor=0)
    assert not (target[0] / "scored-official").exists(), "nothing is scored by it"
    scored, _ = score(target, build, golden=golden, floor=0)
    assert scored.golden is not None and scored.golden["agreement"] == 1


def test_a_golden_set_of_altered_images_is_refused(folder):
    record_golden(folder[0], Fixed())
    path = folder[0] / "00004/samples/0000.png"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="00004/samples/0000.png is missing, new or altered"):
        try_golden(folder[0], Fixed())


def test_both_judges_are_printed_and_compared_for_one_noise(folder):
    a, _ = score(folder, Fixed(lambda sample: sample.number != 2), pickscore=Liked())
    b, _ = score(folder, Fixed(), pickscore=Liked(0.5))
    assert a.pickscore is not None and a.pickscore.value == pytest.approx(7.5)
    assert "mean" in table(a)[-1]
    found = compare_scored(a, b)
    assert found["rates"]["two_object"]["difference"] == 1
    assert found["rates"]["overall"]["difference"] == pytest.approx(1 / 6)
    assert found["pickscore"]["difference"] == pytest.approx(0.5)
    assert found["pickscore"]["wins"] == 1 and found["pickscore"]["matched"]
    assert compare_scored(a, a)["pickscore"]["wins"] == 0.5, "ties count half"
    assert compare_scored(a, b.model_copy(update={"pickscore": None}))["pickscore"] is None


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"metric": "another"}, "judged by another metric"),
        ({"scorer": {"weights": "xyz"}}, "judged by another build of the scorer"),
        ({"prompts": "0" * 64}, "of other prompts"),
        ({"images": ()}, "of other numbers of images"),
    ],
)
def test_scores_of_other_scorers_or_prompts_are_not_compared(folder, other, says):
    a, _ = score(folder, Fixed())
    with pytest.raises(ValueError, match=says):
        compare_scored(a, a.model_copy(update=other))


def test_a_damaged_score_is_refused(folder, tmp_path):
    _, path = score(folder, Fixed())
    path.write_text(path.read_text().replace("true", "false", 1))
    with pytest.raises(ValueError, match="was altered"):
        read_scored(path)
    with pytest.raises(ValueError, match="score the folder"):
        read_scored(tmp_path)
