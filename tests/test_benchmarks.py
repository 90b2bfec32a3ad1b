"""The benchmarks run at small sizes, what they compare is the same mathematics, and the page is that of the ledger."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from irdm.distances import AnyDistance

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
specification = importlib.util.spec_from_file_location("ledger", BENCHMARKS / "ledger.py")
ledger = importlib.util.module_from_spec(specification)
specification.loader.exec_module(ledger)


def measured(path, *groups):
    """What `run.py` says of some groups, and the ledger it wrote."""
    command = [sys.executable, str(BENCHMARKS / "run.py"), *groups, "--small", "--device", "cpu", "--repeats", "1"]
    done = subprocess.run([*command, "--ledger", str(path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, ledger.read(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("ledger") / "ledger.csv", *sorted(GROUPS - {"klein"}))


GROUPS = {"mmd", "sliced", "references", "distances", "gradcache", "imagenet", "klein", "fashion", "world"}


def of(entries, quantity):
    return {(e.work.split(":")[0], e.implementation): e.median for e in entries if e.quantity == quantity}


def test_every_case_is_timed_or_named_as_left_out(small):
    said, entries = small
    times = [e for e in entries if e.quantity == "processor seconds"]
    assert len(times) == len({(e.work, e.implementation) for e in entries}) >= 33
    assert all(0 < e.p20 <= e.median <= e.p80 for e in times)
    assert said.count("skipped, needs cuda: one blocked pass, TF32") == 2 and "torch.compile" in said


def test_errors_are_of_rounding(small):
    _, entries = small
    for name, least in (("value", 0), ("gradient", 1e-4)):
        found = of(entries, f"error of the {name}")
        half = {key: error for key, error in found.items() if "bfloat16" in key[1]}
        assert len(half) == 1 and least < max(half.values()) < 1e-2, "factors of 8 bits"
        assert max(error for key, error in found.items() if key not in half) < 1e-5
    kinds = {config.model_fields["kind"].default for config in get_args(get_args(AnyDistance)[0])}
    assert kinds == {work.partition(",")[0] for work, name in found if name == "irdm"}, "each beside autograd"


def test_the_page_is_written_from_the_ledger(small, tmp_path):
    _, entries = small
    path, page = tmp_path / "ledger.csv", tmp_path / "page.md"
    ledger.append(entries, path)
    later = entries[0]._replace(median=120_000.0, p20=1.0, p80=2.0, date="2030-01-01")
    ledger.append([later, later._replace(card="another card")], path)
    page.write_text(f"# Words\n{ledger.MARK}\nold")
    ledger.write_page(path, page)
    text = page.read_text()
    assert text.startswith("# Words\n") and "old" not in text and "## another card" in text
    assert text.count("1.2e+05 (1 to 2)") == 2 and text.count(f"### {later.work}") == 2, "the last line stands"
    with pytest.raises(ValueError, match="a line of 2 fields"):
        ledger.entry(["a", "b"])


def test_the_page_of_the_project_is_that_of_its_ledger(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(ledger.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    ledger.write_page(page=page)
    assert page.read_text(encoding="utf-8") == ledger.PAGE.read_text(encoding="utf-8"), "run.py --page"


@pytest.mark.slow
def test_a_step_of_klein_is_measured(tmp_path):
    said, entries = measured(tmp_path / "ledger.csv", "klein")
    assert {e.quantity for e in entries} >= {"processor seconds", "images a processor second"}, said


def test_without_a_card_the_kit_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        [BENCHMARKS / "gpu.sh"], env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, text=True, capture_output=True
    )
    assert done.returncode == 3 and "There is no CUDA device" in done.stderr
