"""The pages say what is so: their Python runs, their commands are understood, their links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_layers import LAYERS

import irdm
from irdm.cli import COMMANDS, main
from irdm.commands.train import TEACHER
from irdm.fields import UsageError
from irdm.metrics import METRICS, EvaluationConfig, Real
from irdm.overrides import override, parse, split_options
from irdm.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGES = {
    page.relative_to(ROOT).as_posix(): page for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def fenced(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def typed(text: str) -> Iterator[list[str]]:
    """The irdm commands of a page: lines of its `sh` blocks, and inline code that has an option."""
    for block in fenced(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["irdm"]:
                    yield words[1:]
    for code in re.findall(r"`(irdm [^`]* --[^`]*)`", FENCE.sub("", text)):
        yield shlex.split(" ".join(code.split()))[1:]


def understand(words: list[str]) -> None:
    """Everything that the command line does before it starts to work."""
    name, *tokens = words
    command = importlib.import_module(f"irdm.commands.{name}").COMMAND
    if isinstance(command, dict):
        action, *tokens = tokens
        command, name = command[action], f"{name} {action}"
    if "help" in split_options(tokens)[1]:
        assert main(words) == 0
        return
    given = parse(command.options, tokens)
    if name == "train" and given.preset == TEACHER:
        assert main([*words, "--dry-run"]) == 0
    elif name in ("train", "check") and given.preset != "PRESET":
        from irdm.commands.train import configured

        if given.config:  # of a run that is not here
            override(PRESETS["digits"](), given.fields)
        else:
            configured(given.preset, None, given.fields, given.limit)
    elif name == "reference build" and given.preset != "PRESET":
        from irdm.commands.reference import configured

        configured(given)
    elif name == "eval":
        from irdm.commands.eval import configured

        configured(given, given.against or given.source)


COMMANDS_TYPED = [(name, words) for name, page in PAGES.items() for words in typed(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "words"), COMMANDS_TYPED, ids=lambda value: "" if isinstance(value, list) else value)
def test_commands_are_understood(page: str, words: list[str]):
    assert words and words[0] in COMMANDS, f"{page}: irdm {shlex.join(words)}"
    understand(words)


def test_every_command_and_every_page_is_looked_at():
    assert {words[0] for _, words in COMMANDS_TYPED} == set(COMMANDS)
    assert len(COMMANDS_TYPED) > 40
    with pytest.raises(UsageError, match="there is no option --rolout"):
        understand(next(typed("```sh\nirdm train digits \\\n  --rolout 3  # typed wrongly\n```")))


def a_tiny_run() -> None:
    """What the tutorial's run is to the snippet that opens it."""
    argv = [
        "train",
        "folder",
        "--data.path",
        "pictures",
        "--limit",
        "120",
        "--out",
        "runs/folder",
        "--battery.width",
        "2",
    ]
    assert main([*argv, "--evaluation", "none"]) == 0


BEFORE = {("docs/tutorial.md", 1): a_tiny_run}
"""What must be there before a snippet of a page, counted from 0."""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory):
    """Runs the Python of a page, from top to bottom, in a folder of its own; returns the names it leaves behind."""

    def run(name: str) -> dict:
        names: dict = {}
        kept = dict(METRICS)
        with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as undo:
            undo.callback(lambda: (METRICS.clear(), METRICS.update(kept)))
            folder = tmp_path_factory.mktemp("page")
            patched.chdir(folder)
            patched.setenv("IRDM_CACHE", str(folder / "cache"))
            for number, code in enumerate(fenced(PAGES[name].read_text(encoding="utf-8"), "python")):
                BEFORE.get((name, number), lambda: None)()
                exec(compile(code, f"{name}, snippet {number}", "exec", dont_inherit=True), names)
        return names

    return run


def test_python_of_the_readme_and_of_the_first_page(executed):
    for name in ("README.md", "docs/index.md"):
        found = executed(name)
        assert found["score"].value == pytest.approx(1, abs=0.2), "all three are draws of one distribution"
        low, high = found["score"].ci95
        assert low < found["score"].value < high
    assert executed("README.md")["generated"].grad.abs().sum() > 0


def test_python_of_the_tutorial(executed):
    found = executed("docs/tutorial.md")
    assert found["images"].shape == (20, 1, 8, 8) and 0 <= found["images"].min() <= found["images"].max() <= 1
    assert found["conditions"].captions() == ["3", "5"] * 10


def test_python_of_text_to_image(executed):
    assert executed("docs/text-to-image.md")["images"].shape == (3, 3, 16, 16)


def test_no_python_is_left_out():
    with_python = {name for name, page in PAGES.items() if fenced(page.read_text(encoding="utf-8"), "python")}
    assert with_python == {
        "README.md",
        *(f"docs/{name}.md" for name in ("index", "tutorial", "extending", "text-to-image")),
    }


@pytest.fixture(scope="module")
def extended(executed) -> dict:
    return executed("docs/extending.md")


def test_the_distance_of_the_extending_page(extended: dict):
    """|mean g - mean r|^2 with its gradient 2 (mean g - mean r) / n; fitted, saved and loaded."""
    real, fake = torch.randn(50, 3) + 5, (torch.randn(20, 3) + 6).requires_grad_()
    distance = extended["MeanGapConfig"]().build()
    value = distance.fit(real, seed=0)(fake)
    gap = fake.detach().mean(0) - real.mean(0)
    torch.testing.assert_close(value.detach(), gap.square().sum())
    (gradient,) = torch.autograd.grad(value, fake)
    torch.testing.assert_close(gradient, (2 * gap / 20).expand(20, 3))
    loaded = extended["MeanGap"]()
    loaded.load_state_dict(distance.state_dict())
    torch.testing.assert_close(loaded(fake.detach()), value.detach())


def test_the_parts_of_the_extending_page_fit_together(extended: dict):
    gradients = {name: p.grad for name, p in extended["generator"].named_parameters()}
    assert set(gradients) == {"layer.weight", "offset.weight"}
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    data = extended["data"]
    assert (len(data.train), len(data.val), data.image_shape) == (400, 200, (1, 8, 8))
    images, labels = data.val.images, data.val.conditions.labels
    torch.testing.assert_close(images[labels == 0].std(dim=3), torch.zeros(100, 1, 8), msg="across: alike along a row")
    assert torch.equal((images * 255).round() / 255, images)


def test_the_metric_of_the_extending_page(extended: dict):
    """Fresh real images have 5% outliers; an untrained generator's are all on one side, and it has its own interval."""
    score = extended["scores"]["outliers"]
    assert set(score.encoders) == {"spectrum", "pixels"} and score.held_out == score.encoders["pixels"]
    assert score.mean.control == pytest.approx(0.05, abs=0.05)
    real: Real = extended["real"]
    table = type(extended["table"])(real.val.features, real.val.conditions)
    fresh = extended["outliers"](table, real, EvaluationConfig())["outliers"]
    assert fresh.mean.value == pytest.approx(score.mean.control), "val in the place of the judged images"
    assert score.mean.ci95[0] <= score.mean.value <= score.mean.ci95[1]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str):
    text = FENCE.sub("", PAGES[name].read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    found = [target for target in targets if target and not target.startswith(("http:", "https:"))]
    missing = [target for target in found if not (PAGES[name].parent / target).exists()]
    assert not missing, f"{name} has links to what is not there"
    if name.startswith("docs/"):
        outside = [t for t in found if not (PAGES[name].parent / t).resolve().is_relative_to(ROOT / "docs")]
        assert not outside, f"{name} has links out of the site; name these files instead"


def test_files_that_pages_name_are_there():
    named = {
        (name, path)
        for name, page in PAGES.items()
        if name != "CHANGELOG.md"
        for path in re.findall(r"`((?:irdm|tests|examples|benchmarks|docs)/[\w./-]+\.\w+)`", page.read_text("utf-8"))
    }
    assert len(named) > 20
    assert not {(name, path) for name, path in named if not (ROOT / path).exists() and "yours" not in path}


def test_the_readme_has_the_two_commands():
    readme = PAGES["README.md"].read_text(encoding="utf-8")
    assert "pip install -c constraints.txt . && irdm train digits" in readme
    assert "pip install -c constraints.txt '.[test]' && pytest" in readme


def test_the_design_lists_every_part_in_its_layer():
    """The tree of the page, level by level, is the one that tests/test_layers.py proves."""
    tree = next(
        block for block in fenced(PAGES["docs/design.md"].read_text(encoding="utf-8"), "text") if "ops/" in block
    )
    levels: list[set[str]] = []
    for line in tree.splitlines():
        level, part = re.match(r"(\d*)\s+([\w.]+)", line).groups()  # type: ignore[union-attr]
        if level:
            levels.append(set())
        levels[-1].add(part.removesuffix(".py"))
    parts = {path.stem for path in (ROOT / "irdm").iterdir() if not path.name.startswith("__")}
    assert levels == [layer & parts for layer in LAYERS if layer & parts]


def test_the_api_names_what_there_is():
    text = PAGES["docs/api.md"].read_text(encoding="utf-8")
    shown = set()
    for name in re.findall(r"^::: (irdm\.[\w.]+)$", text, re.MULTILINE):
        home, _, leaf = name.rpartition(".")
        path = ROOT / (name.replace(".", "/") + ".py")
        if path.exists():
            shown |= {node.name for node in ast.parse(path.read_text("utf-8")).body if hasattr(node, "name")}
        else:
            assert hasattr(importlib.import_module(home), leaf), f"docs/api.md names {name}"
            shown.add(leaf)
    offered = set(irdm.__all__) - {"__version__"}
    assert offered <= shown
    assert not [name for name in offered if f"`{name}`" not in text], "the table of what `from irdm import` offers"
