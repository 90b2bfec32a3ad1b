"""The benchmarks run, and what they compare is the same mathematics."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from irdm.distances import AnyDistance

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_plain_versions_of_the_distances_agree():
    command = [sys.executable, str(BENCHMARKS / "distances.py"), "--quick"]
    table = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    for kind in (config.model_fields["kind"].default for config in get_args(get_args(AnyDistance)[0])):
        assert len(re.findall(rf"^\| {kind} \| \d+ \|.* N\^", table, flags=re.MULTILINE)) == 2
    assert "`python benchmarks/distances.py --quick`" in table
    values, gradients = map(float, re.search(r"of the values (\S+), of the gradient norms (\S+)\.\n", table).groups())
    assert values < 1e-3
    assert gradients < 1e-3


def test_the_blocked_pass_is_the_same_equation():
    command = [sys.executable, str(BENCHMARKS / "mmd.py"), "--quick"]
    table = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    values, gradients = map(float, re.search(r"of the values (\S+), of the gradient norms (\S+)\.\n", table).groups())
    assert values < 1e-4
    assert gradients < 1e-4


def test_the_cost_of_a_reference_is_measured_and_extrapolated():
    command = [sys.executable, str(BENCHMARKS / "reference.py"), "--quick", "--repeats", "1"]
    table = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    rows = re.findall(r"^\| ([a-zA-Z -]+(?:, an iteration)?) \| ([\d.e-]+) \| n\^\S+ d\^\S+ ", table, flags=re.M)
    assert [name for name, _ in rows] == ["k-means, an iteration", "mean embedding at the landmarks", "moments"]
    assert all(float(seconds) > 0 for _, seconds in rows)
