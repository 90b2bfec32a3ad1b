"""The ladder on real images: measured once, in a run and in a reference, and known noise is placed where it belongs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from irdm.data import DigitsConfig
from irdm.encoders.base import Battery, Encoder
from irdm.evaluation import EvaluationConfig, embed, judge, real_of, sensitivity, verdict_of
from irdm.evaluation.defects import DEFECTS, Damaged, noise
from irdm.evaluation.sensitivity import ASKED, FEWEST, ladder_rows, measure, read_sensitivity
from irdm.reference import ReferenceConfig, build_reference, describe

CONFIG = EvaluationConfig(directions=64, resamples=16, ladder=150)
DATA = DigitsConfig().build()
SHORT = {name: DEFECTS[name] for name in ("noise", "dropped", "near copies")}


class Rough(nn.Module):
    """Log energies of differences of neighbours, in rows and in columns: these see noise."""

    def forward(self, images):
        rows, columns = images.diff(dim=3), images.diff(dim=2)
        parts = [part.square().mean(dim).flatten(1) for part in (rows, columns) for dim in (2, 3)]
        return (torch.cat(parts, 1) + 1e-3).log()


@pytest.fixture(scope="module")
def battery():
    flat = Encoder("flat", 4, nn.Sequential(nn.AvgPool2d(4), nn.Flatten()))
    return Battery({"rough": Encoder("rough", 30, Rough()), "flat": flat}, ["flat"], ["rough"])


@pytest.fixture(scope="module")
def real(battery):
    return real_of(DATA, battery, CONFIG)


@pytest.fixture(scope="module")
def ladder(battery, real, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "DEFECTS", SHORT)
        kept = tmp_path_factory.mktemp("run") / "ladder.json"
        found = measure(DATA, dict(battery.encoders.items()), real, CONFIG, kept=kept)
        patch.setattr(sensitivity, "judge", None)  # and not measured twice
        assert measure(DATA, dict(battery.encoders.items()), real, CONFIG, kept=kept) == found
        assert read_sensitivity(kept) == found
        kept.write_text(kept.read_text().replace("noise", "voice", 1))
        assert read_sensitivity(kept) is None, "damaged: measured again"
    return found


def test_a_ladder_rises_and_its_defects_are_seen_by_those_who_can(ladder):
    noisy = [rung for rung in ladder.rungs if rung.defect == "noise"]
    assert [rung.level for rung in noisy] == [2, 4, 8, 16, 32]
    rough = [rung.excess["rough"] for rung in noisy]
    assert all(one < other for one, other in zip(rough, rough[1:], strict=False))
    assert noisy[2].seen and "noise of 8 grey levels" in ladder.blind("flat")
    assert "noise of 8 grey levels" not in ladder.blind("rough")
    assert 140 <= ladder.rows <= 150 and set(ladder.real) == {"rough", "flat"}


@pytest.mark.parametrize("sd", [6, 12])
def test_known_noise_is_placed_where_it_belongs(battery, real, ladder, sd):
    """Other images, another number of them, other noise."""
    encoders = dict(battery.encoders.items())
    images = Damaged(DATA.val, noise, sd, 9, rows=torch.arange(250), name="test")
    found = verdict_of(judge(embed(images, encoders), real, CONFIG, only=ASKED), ladder)
    assert found.place is not None and found.place.defect == "noise"
    assert found.place.level == pytest.approx(sd, rel=0.2)
    assert f"as far from real as {found.place.says}" in found.sentence


def test_a_ladder_needs_images():
    assert ladder_rows(1000, 3 * FEWEST) == FEWEST and ladder_rows(1000, 3 * FEWEST - 1) == 0
    assert ladder_rows(1000, 10_000) == 1000 and ladder_rows(0, 10_000) == 0


def test_a_reference_keeps_its_ladder(battery, tmp_path, monkeypatch):
    monkeypatch.setattr(sensitivity, "DEFECTS", SHORT)
    config = ReferenceConfig(judge_only=True, ladder=60)
    built = build_reference("digits", DATA, battery, tmp_path / "ref", config)
    first = built.ladder
    assert first is not None and first.rows >= 50
    asked = {rung.says: set(rung.scores) for rung in first.rungs}
    assert {"whitened_ratio", "precision", "closeness"} <= asked["noise of 8 grey levels"]
    assert asked["noise of 2 grey levels"] == {"whitened_ratio"}
    said = "\n".join(describe(built))
    assert "sees       in " in said and "noise of 8 grey levels" in said
    (tmp_path / "ref" / "ladder" / "ladder.json").write_text("{}")
    with pytest.raises(ValueError, match="ladder"):
        built.ladder  # noqa: B018
    again = build_reference("digits", DATA, battery, tmp_path / "ref", config)
    assert again.ladder == first
