"""Imports only point down, and evaluation shares nothing but `ops` and the features with training."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "irdm"

# From the ground up. A part imports from lines above its own; parts on one line are strangers to each other.
LAYERS = (
    {"ops"},
    {"config", "files", "memory", "distributed", "features", "ema", "fields", "process", "progress", "tracker"},
    {"conditions", "log", "checkpoint", "images", "controller", "gradcache", "overrides", "errors"},
    {"text", "world"},
    {"distances", "metrics", "generators", "data"},
    {"encoders", "generate", "objective", "browser", "state", "rollouts"},
    {"store"},
    {"evaluation", "geneval"},
    {"reference"},
    {"presets", "compare", "report"},
    {"build", "estimate"},
    {"cards"},
    {"run", "check"},
    {"against"},
    {"train", "sample", "export", "render", "play", "teacher"},
    {"experiments"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
TRAINING = {"distances", "reference", "objective", "controller", "gradcache", "build", "run", "against", "train"} | {
    "teacher"
}


def part_of(path: Path) -> str:
    """The first name below `irdm`."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """The parts of irdm that a file imports at run time, in functions too; imports for type checkers do not count."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write `from irdm...`"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found.update(name.split(".")[1] for name in names if name.startswith("irdm."))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found - {"__version__"}


FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"}
EDGES: dict[str, set[str]] = {}
for file in FILES.values():
    EDGES.setdefault(part_of(file), set()).update(imports(file) - {part_of(file)})


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    part = part_of(FILES[name])
    assert part in RANK, f"irdm/{part} has no place in LAYERS: add it there and to docs/design.md"
    upward = {other for other in imports(FILES[name]) - {part} if RANK.get(other, len(LAYERS)) >= RANK[part]}
    assert not upward, f"irdm/{name} imports {upward}, which {'is' if len(upward) == 1 else 'are'} not below it"


def test_ops_stand_on_their_own():
    assert not EDGES["ops"]


@pytest.mark.parametrize("start", ["metrics", "evaluation", "geneval", "store", "compare"])
def test_evaluation_never_reaches_training(start):
    reached, todo = set(), [start]
    while todo:
        for other in EDGES[todo.pop()] - reached:
            reached.add(other)
            todo.append(other)
    assert not reached & TRAINING
    if start == "metrics":
        assert reached <= {"ops", "config", "conditions", "fields", "world"}


def test_imports_are_read_right(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "import irdm.ops.sliced\nfrom irdm import train\nfrom irdm.data.base import Split\nfrom torch import nn\n"
        "if TYPE_CHECKING:\n    from irdm.cli import main\ndef f():\n    from irdm.report.read import g\n"
    )
    assert imports(path) == {"ops", "train", "data", "report"}


MAIN_PATH = ("cli", "train", "objective", "gradcache", "distances/base", "distances/kernel", "distances/nystrom")


def test_the_way_from_a_command_to_a_gradient_can_be_read_at_a_sitting():
    lengths = {name: len(FILES[f"{name}.py"].read_text().splitlines()) for name in (*MAIN_PATH, "ops/kernels")}
    assert sum(lengths.values()) < 1000, lengths
