"""The verdict says what is wrong in words, objects to real images as seldom as it says, and names who is gamed."""

from __future__ import annotations

import pytest
import torch
from metrics.tables import gaussian, real_side, table

from irdm.evaluation import check_held_out, judge, verdict_of
from irdm.evaluation.gaming import gamed
from irdm.evaluation.placing import Place, place
from irdm.evaluation.sensitivity import ASKED, Cost, Rung, Sensitivity
from irdm.evaluation.witnesses import ALPHA, WITNESSES, Said, witnesses
from irdm.metrics import EvaluationConfig
from irdm.metrics.score import Estimate, Score

CONFIG = EvaluationConfig(directions=64, resamples=32)
ENCODERS = ("bands", "layout")


def score(label, direction, value, control, p, distance=None):
    notes = {} if distance is None else {"real_distance": distance}
    parts = {
        name: Estimate(value=value * (1 - 0.01 * i), control=control, p_real=min(1.0, p * (1 + i)), notes=notes)
        for i, name in enumerate(ENCODERS)
    }
    mean = Estimate(value=value, control=control, p_real=p)
    return Score(label=label, direction=direction, says="", mean=mean, encoders=parts)


def fine(**changed):
    """Scores of images that nobody objects to, but for some."""
    return {
        "whitened_ratio": score("SW_w2", "lower", 1.01, 1.02, 0.6, 0.5),
        "precision": score("precision", "real", 0.985, 0.99, 0.5),
        "density": score("density", "real", 1.02, 1.0, 0.6),
        "recall": score("recall", "real", 0.94, 0.95, 0.4),
        "closeness": score("closeness", "real", 0.51, 0.5, 0.5),
    } | changed


def test_real_images_are_called_real_and_by_no_single_number():
    found = verdict_of(fine())
    assert found.real and found.sentence == "As close as real images: no witness objects."
    assert [one.name for one in found.witnesses] == list(WITNESSES) and not any(one.objects for one in found.witnesses)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"precision": score("precision", "real", 0.68, 0.99, 1e-5)},
            "Close by distance, but 68% precise where real is 99% (bands): visible defects.",
        ),
        (
            {"density": score("density", "real", 1.3, 1.01, 1e-5)},
            "Close by distance, but density 1.30 where real is 1.01 (bands): more typical than real images, as smooth "
            "ones are.",
        ),
        (
            {"recall": score("recall", "real", 0.52, 0.95, 1e-5)},
            "Close by distance, but 52% of real images reached where fresh ones reach 95% (bands): kinds of images are "
            "missing.",
        ),
        (
            {"near_copies": score("near copies", "real", 0.05, 0.001, 1e-5)},
            "Close by distance, but 5.0% near copies of train where real has 0.1% (bands): train images are repeated.",
        ),
        (
            {"whitened_ratio": score("SW_w2", "lower", 30, 1.02, 1e-9, 0.5)},
            "Not real: far from real (bands: SW_w2 30.00 where real is 1.02).",
        ),
    ],
)
def test_what_is_wrong_is_said(changed, sentence):
    found = verdict_of(fine(**changed))
    assert found.sentence == sentence and not found.real


def test_encoders_held_out_speak_first_where_they_are_sure():
    """The most alarming encoder is bands."""
    for p, speaker in ((1e-9, "layout"), (0.004, "bands")):
        wrong = {"whitened_ratio": score("SW_w2", "lower", 30, 1.02, p, 0.5)}
        found = verdict_of(fine(**wrong), held_out=["layout"])
        assert f"({speaker}: SW_w2" in found.sentence and found.witnesses[0].objects, p


def test_all_that_is_wrong_is_said_in_one_sentence():
    wrong = {
        "whitened_ratio": score("SW_w2", "lower", 3, 1.0, 1e-9, 0.5),
        "precision": score("precision", "real", 0.5, 0.9, 1e-9),
    }
    said = verdict_of(fine(**wrong)).sentence
    assert said.startswith("Not real: far from real") and "; 50% precise where real is 90%" in said


def test_the_good_side_of_a_control_is_no_objection():
    """Images far from train are no copies, and images that reach more are not incomplete."""
    good = {
        "closeness": score("closeness", "real", 0.2, 0.5, 1e-9),
        "recall": score("recall", "real", 0.99, 0.9, 1e-9),
        "precision": score("precision", "real", 0.99, 0.9, 1e-9),
    }
    assert verdict_of(fine(**good)).real
    copies = {"closeness": score("closeness", "real", 0.8, 0.5, 1e-9)}
    said = verdict_of(fine(**copies)).sentence
    assert "closer to train than real 80% of the time" in said and "repeated" not in said, "smooth images are, too"
    copies = {"near_copies": score("near_copies", "real", 0.1, 0.0, 1e-9)}
    assert "train images are repeated" in verdict_of(fine(**copies)).sentence


def test_chances_are_corrected_for_all_that_was_asked():
    """0.004 of one encoder is 0.008 of two, with a second score 0.016, by a witness that may spend a sixth 0.096."""
    one = fine(precision=score("precision", "real", 0.9, 0.99, 0.008))  # one-sided: half
    fidelity = witnesses(one)[1]
    assert fidelity.p == pytest.approx(0.004 * 2 * 2 * 6) and not fidelity.objects and fidelity.p > ALPHA


def test_nothing_is_called_real_that_nobody_knows():
    unknown = {
        name: one.model_copy(
            update={
                "mean": None,
                "encoders": {e: part.model_copy(update={"p_real": None}) for e, part in one.encoders.items()},
            }
        )
        for name, one in fine().items()
    }
    for scores in (unknown, {}):
        found = verdict_of(scores)
        assert not found.real and found.sentence.startswith("Not known")
    half = verdict_of({name: one for name, one in fine().items() if name == "whitened_ratio"})
    assert half.real and "(fidelity, coverage, memorisation: not known)" in half.sentence


def test_gaming_is_named():
    gap = score("SW_r2", "lower", 2, 1.0, 0.5)
    sides = {"held_in": Estimate(value=1.27, control=1.0), "held_out": Estimate(value=3.25, control=1.0)}
    scores = fine(sw_ratio=gap.model_copy(update=sides))
    assert verdict_of(scores).real, "images that no generator was trained for"
    found = verdict_of(scores, trained=True)
    assert not found.real and found.group == "held_out"
    assert "the encoders that trained are being gamed: SW_r2 is 1.27 held in and 3.25 held out" in found.sentence


def ladder(**curves):
    """A ladder of noise and blur: D^2 by encoder at each level, where a real draw lies at distance 1."""
    levels = {"noise": (2, 4, 8, 16, 32), "blur": (0.3, 0.5, 0.8, 1.2), "duplicates": (50,)}
    rungs = [
        Rung(
            defect=name,
            level=level,
            says=f"{name} {level}",
            excess=dict(zip(ENCODERS, (bands * level**2, layout * level**2), strict=True)),
            scores={"whitened_ratio": {"bands": Cost(value=9, p=1e-9), "layout": Cost(value=1, p=0.5)}},
            seen=("distance",) if name == "noise" else (),
        )
        for name, (bands, layout) in curves.items()
        for level in levels[name]
    ]
    return Sensitivity(
        of="",
        rows=100,
        held_out=(),
        real=dict.fromkeys(ENCODERS, 1.0),
        spread=dict.fromkeys(ENCODERS, 0.1),
        rungs=tuple(rungs),
    )


def test_a_set_is_placed_on_the_ladder_whatever_its_number_of_images():
    """Noise of 6 at half the distance of real draws: four times as many images."""
    steps = ladder(noise=(0.25, 0.01), blur=(1.0, 30.0))
    far = score("SW_w2", "lower", 1.0, 1.0, 1e-9)
    parts = {
        name: Estimate(value=(1 + slope * 36 / 0.25) ** 0.5, control=1.0, p_real=1e-9, notes={"real_distance": 0.5})
        for name, slope in (("bands", 0.25), ("layout", 0.01))
    }
    found = verdict_of(fine(whitened_ratio=far.model_copy(update={"encoders": parts})), steps)
    assert found.place is not None and found.place.defect == "noise" and found.place.encoder is None
    assert found.place.level == pytest.approx(6, rel=0.06) and not found.place.beyond
    assert f"Not real: as far from real as {found.place.says} (bands: " in found.sentence
    assert found.ratio == pytest.approx((10**0.5 + 1.36**0.5) / 2)
    assert found.blind == ("blur 0.5",) and steps.blind("layout") == ("noise 8", "blur 0.5")


def test_what_is_like_no_defect_is_placed_by_its_worst_encoder():
    steps = ladder(noise=(0.25, 0.0), blur=(8.0, 0.0))
    parts = {
        "bands": Estimate(value=1.2, p_real=0.5, notes={"real_distance": 1.0}),
        "layout": Estimate(value=40.0, p_real=1e-9, notes={"real_distance": 1.0}),
    }
    far = score("SW_w2", "lower", 1.0, 1.0, 1e-9).model_copy(update={"encoders": parts})
    assert verdict_of(fine(whitened_ratio=far), steps).place is None, "no defect here is seen by layout"
    parts = {"bands": parts["layout"], "layout": parts["layout"]}
    found = verdict_of(fine(whitened_ratio=far.model_copy(update={"encoders": parts})), steps).place
    assert found == Place(says="noise of 32 grey levels", defect="noise", level=32, encoder="bands", beyond=True)


def test_images_that_are_seen_to_be_defective_are_not_likened_to_a_choice_of_real_ones():
    steps = ladder(noise=(0.25, 0.01), duplicates=(0.01, 0.0004))
    judged = {"bands": 25.0, "layout": 1.0}  # to both encoders, as far as half of the images twice
    assert place(steps, judged, "bands").says == "50% of the images being repeats"
    found = place(steps, judged, "bands", visible=True)
    assert found.defect == "noise" and found.level == pytest.approx(10, rel=0.1)


def test_of_some_encoders_a_ladder_does_not_say_what_the_panel_sees():
    steps = ladder(noise=(0.25, 0.01), blur=(1.0, 30.0)).only(("bands",))
    assert steps.blind() == () and set(steps.real) == {"bands"} and steps.ratios({"bands": 3.0}) == {"bands": 2.0}


@pytest.mark.parametrize(
    ("held_in", "held_out", "is_gamed"),
    [
        (1.27, 3.25, True),
        (1.44, 2.26, True),
        (1.01, 1.04, False),
        (1.92, 2.39, False),
        (6, 12, False),
        (0.8, 1.4, False),
    ],
)
def test_gaming_is_a_matter_of_scale(held_in, held_out, is_gamed):
    """Seen in runs: static on colour crops, speckle on digits, the digits preset, and clothes without a fault."""
    assert gamed(held_in, held_out) == is_gamed


@pytest.mark.parametrize(
    ("checks", "rings"),
    [
        ([(6, 7), (3, 3.5), (1.5, 1.8), (1.2, 1.5)], False),
        ([(1.10, 1.12), (1.09, 1.13), (1.08, 1.14), (1.10, 1.12)], False),  # two noisy dips
        ([(2, 4.1), (1.4, 3.3), (1.3, 3.26), (1.27, 3.25)], True),  # level: held-out falls all the while
        ([(3, 2.5), (2, 2.4), (1.8, 2.8), (1.7, 2.9)], True),  # direction
        ([(1.3, 1.4), (1.2, 3.0), (1.2, 1.3)], False),  # one odd check
    ],
)
def test_the_alarm_looks_at_the_level_of_the_gap_and_at_its_direction(checks, rings):
    history = []
    for held_in, held_out in checks:
        check_held_out({"held_in": held_in, "held_out": held_out}, history)
    assert any(entry["alarm"] for entry in history) is rings
    assert check_held_out({"held_in": 1.0}, [])["alarm"] is False, "there may be no held-out encoder"


def test_numbers_in_a_sentence():
    said = [f"{Said(x):%}" for x in (0.68, 0.994, 0.05, 1.0, -0.0)] + [f"{Said(x)}" for x in (1.016, 312.4, None)]
    assert said == ["68%", "99.4%", "5.0%", "100%", "0.0%", "1.02", "312", "not known"]


def test_real_draws_pass_as_often_as_is_said():
    """Fresh draws and fresh references: the share that some witness objects to is ALPHA or less (binomial, 99%)."""
    config = EvaluationConfig(directions=32, resamples=16)
    draws, objected = 25, 0
    for seed in range(draws):
        rows = gaussian(1000, seed + 100)
        train, val, judged = (
            {n: part[a:b] for n, part in rows.items()} for a, b in ((0, 450), (450, 800), (800, 1000))
        )
        found = verdict_of(judge(table(judged), real_side(train, val, ["b"]), config, only=ASKED))
        objected += not found.real
    assert objected <= 4, f"{objected} of {draws}"  # more of 25 at 5% each: 0.7%


def test_shifted_rows_are_objected_to():
    judged = gaussian(200, 7, shift=0.6)
    found = verdict_of(judge(table(judged), real_side(gaussian(450, 0), gaussian(350, 1)), CONFIG, only=ASKED))
    assert "distance" in [one.name for one in found.witnesses if one.objects]
    assert not torch.equal(judged["a"], gaussian(200, 7)["a"])
