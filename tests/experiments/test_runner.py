"""A study: resumed, refused, summarised, recorded."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from irdm.encoders import LocalBatteryConfig
from irdm.evaluation import EvaluationConfig
from irdm.experiments import EXPERIMENTS, run_study
from irdm.experiments.base import Claim, Setting, Study, Values, perceptron
from irdm.experiments.flows import FlowConfig
from irdm.experiments.page import record, write_page
from irdm.experiments.peers import FlowCell
from irdm.generators import ConvConfig

ROOT = Path(__file__).parents[2]
NOT_RECORDED = {
    "generators",
    *(f"{name}-fashion" for name in ("batch", "battery", "pretrained", "distance", "gaming", "controller", "peers")),
}
"""Studies that were never run in full."""


@dataclass(frozen=True)
class Counting:
    """A cell that counts how often it ran."""

    offset: float
    fails: bool = False

    @property
    def key(self) -> str:
        return json.dumps(self.offset)

    def run(self, name, out, seed):
        if self.fails:
            raise ValueError(f"cell {name} broke")
        out.mkdir(parents=True, exist_ok=True)
        runs = out / "runs"
        runs.write_text((runs.read_text() if runs.exists() else "") + "x")
        print("words for the log")
        return {name: {"value": self.offset + seed, "steps": 7.0}, f"{name}, again": {"value": 1.0}}


def figure(table, folder):
    assert (folder("a", 0) / "runs").exists()
    fig = Figure()
    fig.subplots().plot([table["a"]["value"].mean, 1])
    return fig


def claims(table):
    a, b = table["a"]["value"], table["b"]["value"]
    return [Claim("b is above a", "yes, by 10", f"{a} and {b}", b.mean > a.mean)]


@dataclass(frozen=True)
class Waiting:
    """A cell that says which process it is in, and waits."""

    key: str = "waiting"

    def run(self, name, out, seed):
        out.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)


def study(**changes) -> Study:
    cells = {"a": Counting(0.0), "b": Counting(10.0)}
    base = Study("toy", "a toy", "Why?", {"value": "value", "steps": "steps"}, lambda scale: cells, figure, claims)
    return replace(base, **changes)


def test_rows_gather_seeds_and_a_finished_cell_is_not_run_again(tmp_path):
    lines: list[str] = []
    first = run_study(study(), tmp_path, seeds=(0, 2), workers=2, progress=lines.append)
    assert first["rows"]["b"] == {"value": [10.0, 12.0], "steps": [7.0, 7.0]}
    assert first["rows"]["a, again"] == {"value": [1.0, 1.0]}
    assert first["claims"][0]["holds"]
    assert first["claims"][0]["ours"] == "1.000 ± 1.414 and 11.0 ± 1.4"
    assert any("[4/4]" in line and "left" in line for line in lines)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "cells" / "a" / "seed-0.log").read_text() == "words for the log\n"
    again = run_study(study(), tmp_path, seeds=(0, 2, 3), workers=1, progress=lines.append)
    assert again["rows"]["a"]["value"] == [0.0, 2.0, 3.0]
    counts = [(tmp_path / "cells" / "a" / f"seed-{seed}" / "runs").read_text() for seed in (0, 2, 3)]
    assert counts == ["x", "x", "x"]


def test_what_finished_before_a_failure_is_kept(tmp_path):
    broken = {"a": Counting(0.0), "b": Counting(10.0, fails=True)}
    with pytest.raises(ValueError, match="cell b broke"):
        run_study(study(cells=lambda scale: broken), tmp_path, seeds=(0,), workers=1, progress=lambda line: None)
    result = run_study(study(), tmp_path, seeds=(0,), workers=1, progress=lambda line: None)
    assert (tmp_path / "cells" / "a" / "seed-0" / "runs").read_text() == "x"
    assert result["rows"]["b"]["value"] == [10.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "The scale is 0.0"),
        ({"scale": 1.5}, "at most 1"),
        ({"seeds": (1, 1)}, "each once"),
        ({"seeds": ()}, "at least one"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_study(study(), tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_cells_of_another_configuration_are_refused(tmp_path):
    run_study(study(), tmp_path, seeds=(0,), workers=1, progress=lambda line: None)
    other = study(cells=lambda scale: {"a": Counting(5.0), "b": Counting(10.0)})
    with pytest.raises(ValueError, match="another configuration"):
        run_study(other, tmp_path, seeds=(0,), progress=lambda line: None)


def test_the_page_shows_what_was_recorded(tmp_path):
    out, docs = tmp_path / "out", tmp_path / "docs"
    run_study(study(), out, seeds=(0, 1), workers=1, command="irdm experiment toy", progress=lambda line: None)
    page = record(study(), out, docs, {"toy": study()}).read_text()
    assert "## toy: Why?" in page and "| b | 10.5 ± 0.7 | 7.000 ± 0.000 |" in page
    assert "| a, again | 1.000 ± 0.000 | - |" in page
    assert "| b is above a | yes, by 10 |" in page and "`irdm experiment toy`, seeds 0, 1" in page
    assert (docs / "results" / "toy.png").read_bytes() == (out / "figure.png").read_bytes()
    body = json.loads((docs / "results" / "toy.json").read_text())
    body["claims"][0]["holds"] = False
    (docs / "results" / "toy.json").write_text(json.dumps(body))
    assert "**no**" in write_page(docs, {"toy": study()}).read_text()


def test_a_reduced_study_is_not_recorded(tmp_path):
    run_study(study(), tmp_path / "out", seeds=(0,), scale=0.5, workers=1, progress=lambda line: None)
    with pytest.raises(ValueError, match="only the full study"):
        record(study(), tmp_path / "out", tmp_path / "docs", {"toy": study()})
    assert not (tmp_path / "docs").exists()


def test_numbers_are_shown_with_their_spread():
    assert str(Values((1.0, 2.0, 3.0))) == "2.000 ± 1.000"
    assert str(Values((0.5,))) == "0.500"
    assert str(Values((100.0, 300.0))) == "200 ± 141"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_study_can_be_built_and_its_page_is_current(name):
    whole, part = EXPERIMENTS[name].cells(1.0), EXPERIMENTS[name].cells(0.1)
    assert whole.keys() == part.keys()
    assert all(whole[cell].key != part[cell].key for cell in whole), "the scale has to change every cell"
    path = ROOT / "docs" / "results" / f"{name}.json"
    assert path.exists() == (name not in NOT_RECORDED)
    if name in NOT_RECORDED:
        return
    body = json.loads(path.read_text())
    assert body["scale"] == 1 and len(body["seeds"]) >= 3
    assert all(set(EXPERIMENTS[name].columns) & set(numbers) for numbers in body["rows"].values())
    assert {claim["text"] for claim in body["claims"]} == {
        claim.text
        for claim in EXPERIMENTS[name].claims(
            {row: {c: Values(tuple(v)) for c, v in numbers.items()} for row, numbers in body["rows"].items()}
        )
    }


def test_the_results_page_is_written_from_the_recorded_results(tmp_path):
    docs = ROOT / "docs"
    (tmp_path / "results").mkdir()
    for path in (docs / "results").glob("*.json"):
        (tmp_path / "results" / path.name).write_bytes(path.read_bytes())
    assert write_page(tmp_path, EXPERIMENTS).read_text() == (docs / "results.md").read_text()


def test_a_study_of_clothes_is_that_of_digits_with_other_images_and_more_time():
    def taken(cell) -> tuple[str, str]:
        if isinstance(cell, FlowCell):
            return cell.setting.recipe().data.kind, cell.config.network.kind
        return cell.config.data.kind, cell.config.generator.kind

    clothes = [name for name in EXPERIMENTS if name.endswith("-fashion")]
    assert len(clothes) >= 6
    for name in clothes:
        there, here = (EXPERIMENTS[key].cells(0.5) for key in (name, name.removesuffix("-fashion")))
        assert list(there) == [cell for cell in here if cell in there]
        assert all(cell.startswith("iRDM, 1 step") for cell in set(here) - set(there)), "of clothes the preset is ours"
        for cell in there:
            assert (taken(there[cell]), taken(here[cell])) == (("idx", "conv"), ("digits", "mlp"))
            assert there[cell].core_seconds == 5 * here[cell].core_seconds > 0
        assert "Fashion-MNIST" in EXPERIMENTS[name].title and "digits" not in EXPERIMENTS[name].title


def test_a_convolutional_peer_is_kept_and_judged_again_without_training(tmp_path):
    battery = LocalBatteryConfig(held_in=("pixels",), held_out=("tone",), steps=1, images=200)
    recipe = perceptron().model_copy(update={"battery": battery})
    judged = EvaluationConfig(directions=16, rff_features=32, resamples=2, rows=100, table_rows=200, manifold_rows=100)
    network = ConvConfig(coarsest=4, coarse=4, width=4, most=4, style=8)
    config = FlowConfig(network=network, batch=16)
    cell = FlowCell(Setting("digits", lambda: recipe, 1.0, judged), config, 0.2, (1, 2))
    first = cell.run("flow", tmp_path, 0)
    assert list(first) == ["flow, 1 step", "flow, 2 steps"] and first["flow, 1 step"]["steps"] >= 1
    kept = (tmp_path / "network.safetensors").read_bytes()
    again = cell.run("flow", tmp_path, 0)
    assert (tmp_path / "network.safetensors").read_bytes() == kept
    assert again["flow, 1 step"]["sw"] == first["flow, 1 step"]["sw"]


def test_pretrained_and_local_batteries_have_the_same_judges():
    for name in ("pretrained", "pretrained-fashion"):
        cells = EXPERIMENTS[name].cells(1.0).values()
        local, alone, both = (set(cell.config.battery.held_in) for cell in cells)
        assert alone == {"lite0"} and both == local | alone and not local & alone
        assert {cell.config.battery.held_out for cell in cells} == {("damage", "correlation", "layout", "squeezenet")}
        assert {cell.config.controller.kind for cell in cells} == {"uniform"}


def test_networks_differ_in_nothing_but_their_kind_and_learning_rate():
    cells = list(EXPERIMENTS["generators"].cells(1.0).values())
    assert [cell.config.generator.kind for cell in cells] == ["conv", *["mlp"] * 3, *["pmf"] * 3]
    rest = [cell.config.model_copy(update={"generator": cells[0].config.generator, "lr": 1.0}) for cell in cells]
    assert all(config == rest[0] for config in rest)


def test_batteries_of_every_size_are_judged_by_the_same_encoders():
    cells = EXPERIMENTS["battery"].cells(1.0)
    held_in = [cell.config.battery.held_in for cell in cells.values()]
    assert [len(names) for names in held_in] == [1, 2, 4, 8]
    assert all(set(a) < set(b) for a, b in pairwise(held_in))
    assert len({cell.config.battery.held_out for cell in cells.values()}) == 1


def test_the_readme_says_what_the_world_is_recorded_to_be():
    rows = json.loads((ROOT / "docs/results/world.json").read_text())["rows"]
    mean = {name: {column: Values(tuple(v)).mean for column, v in row.items()} for name, row in rows.items()}
    one, four = mean["student, 1 step"], mean["teacher, 4 steps"]
    says = " ".join((ROOT / "README.md").read_text().split())
    assert f"{one['right']:.0%} against {four['right']:.0%} of captions" in says
    assert f"{one['right_held']:.0%} against {four['right_held']:.0%} of compositions" in says
    assert f"SW ratio {one['sw_held_out']:.1f} against {four['sw_held_out']:.1f}" in says
    assert f"nearer ({one['sw']:.1f} against {four['sw']:.1f})" in says


def test_workers_end_with_a_study_that_is_killed(tmp_path):
    main = get_context("spawn").Process(target=run_two, args=(tmp_path,))
    main.start()
    while len(places := [*tmp_path.glob("cells/*/*.pid")]) < 2:
        assert main.is_alive()
        time.sleep(0.1)
    main.kill()
    main.join()
    workers = [int(place.read_text()) for place in places]
    deadline = time.monotonic() + 60
    while alive := [pid for pid in workers if _runs(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def run_two(out: Path) -> None:
    """A study of two cells that wait, side by side."""
    run_study(study(cells=lambda scale: {"a": Waiting(), "b": Waiting()}), out, seeds=(0,), workers=2)


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
