"""The one parser: words to options, options to fields, and what is said of words that do not fit."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from irdm.cli import COMMANDS
from irdm.commands import Command, Count, Seed
from irdm.commands.help import describe, explain
from irdm.config import Config, free
from irdm.fields import UsageError, plain_fields, read_config, validate
from irdm.overrides import Options, assign, others, override, parse, split_options, verbatim, word


class Round(Config):
    """A circle."""

    kind: Literal["round"] = "round"
    """Name of this kind."""
    radius: float = Field(default=1.0, gt=0, lt=10)
    """Half its width."""


class Square(Config):
    """A square."""

    kind: Literal["square"] = "square"
    """Name of this kind."""
    side: int = Field(default=2, ge=1, le=9)
    """Its width."""
    tint: tuple[float, float, float] = (0, 0, 0)
    """Red, green, blue."""


class Paint(Config):
    """How it is painted."""

    coats: int = 1
    """How often."""
    names: tuple[str, ...] = ("red",)
    """The colours."""


class Job(Config):
    """What is configured."""

    shape: Annotated[Round | Square, Field(discriminator="kind")]
    """What to paint."""
    paint: Paint | None = Paint()
    """None leaves it bare."""
    work_hours: int | None = free(None, ge=1)
    """At most so many."""
    quick: bool = False
    """Hurry."""
    mode: Literal["auto", "manual"] = "auto"
    """Who does it."""


class Do(Config):
    """Does it."""

    place: Path = word()
    """Where."""
    rest: tuple[str, ...] = word(())
    """What else."""
    out: Path | None = None
    """A file."""
    seed: Seed = 0
    """A seed."""
    count: Count | None = None
    """How many."""
    dry_run: bool = False
    """Only look."""
    classes: tuple[str, ...] = verbatim(())
    """Names."""
    fields: Options = others("job.")
    """The job."""


JOB = Job(shape=Square())


def test_options_split_into_words_and_values():
    words, options = split_options(["digits", "--a.b-c", "1", "-2", "--x=3", "--flag", "-h"])
    assert words == ["digits"]
    assert options == {"a.b_c": ["1", "-2"], "x": ["3"], "flag": [], "help": []}
    with pytest.raises(UsageError, match="--a-b is given twice"):
        split_options(["--a-b", "1", "--a_b", "2"])


@pytest.mark.parametrize(
    "tokens",
    [
        "here x y --out f --dry-run --seed 7",
        "--out f here --seed 7 x --dry-run y",
        "--dry-run here x y --seed=7 --out=f",
    ],
)
def test_words_may_stand_anywhere(tokens: str):
    found = parse(Do, tokens.split())
    assert (found.place, found.rest, found.out) == (Path("here"), ("x", "y"), Path("f"))
    assert (found.seed, found.dry_run) == (7, True)


def test_what_is_not_the_commands_own_is_kept_for_the_job():
    found = parse(
        Do, ["here", "--job.paint.coats", "3", "--classes", "great dane", "tench, Tinca tinca", "--out", "None"]
    )
    assert found.fields == {"job.paint.coats": ["3"]}
    assert found.classes == ("great dane", "tench, Tinca tinca")
    assert found.out is None


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ("", "PLACE is missing (where)"),
        ("a --sed 1", "there is no option --sed; did you mean --seed?"),
        ("a --zzz 1", "there is no option --zzz; --help lists them all"),
        ("a --place b", "there is no option --place"),
        ("a --jobs.x 1", "there is no option --jobs.x"),
        ("a --seed", "--seed takes one value, got none"),
        ("a --seed x", "--seed is 'x': should be a whole number"),
        ("a --seed true", "--seed is 'true': should be a whole number"),
        ("a --seed 1.5", "--seed is '1.5': should be a whole number"),
        ("a --seed -1", "--seed is '-1': should be at least 0"),
        (f"a --seed {2**63}", f"should be less than {2**63}"),
        (f"a --seed {'9' * 5000}", "should be a whole number"),
        ("a --count 0", "--count is '0': should be at least 1"),
        ("a --dry-run=maybe", "'maybe'"),
        ("a --classes", "--classes takes one value or more, got none"),
        ("a --out=", "--out is empty"),
    ],
)
def test_what_does_not_fit_a_command_is_said_in_plain_words(tokens: str, says: str):
    with pytest.raises(UsageError) as caught:
        parse(Do, tokens.split())
    assert says in str(caught.value)


def test_an_empty_word_is_refused():
    with pytest.raises(UsageError, match="PLACE is empty"):
        parse(Do, [""])


def test_overrides_reach_every_depth_and_keep_the_rest():
    found = override(JOB, {"paint.coats": ["3"], "work_hours": ["5"], "quick": [], "shape.tint": ["[1, 2,", "0.5]"]})
    assert found == Job(shape=Square(tint=(1, 2, 0.5)), paint=Paint(coats=3), work_hours=5, quick=True)
    assert override(found, {"work_hours": ["none"], "quick": ["no"]}).work_hours is None


def test_a_new_kind_takes_its_own_defaults_and_the_same_kind_keeps_what_is_there():
    start = override(JOB, {"shape.side": ["5"]})
    assert override(start, {"shape.kind": ["square"]}) == start
    assert override(start, {"shape.radius": ["3"], "shape.kind": ["round"]}).shape == Round(radius=3)


def test_a_group_can_be_left_out_and_brought_back():
    bare = override(JOB, {"paint": ["none"]})
    assert bare.paint is None
    assert override(bare, {"paint": ["default"]}).paint == Paint()
    assert override(bare, {"paint.coats": ["4"]}).paint == Paint(coats=4)
    assert override(JOB, {"paint.coats": ["4"], "paint": ["default"]}).paint == Paint(coats=4)
    with pytest.raises(UsageError, match="--shape is a group of fields; set one of them, such as --shape.kind$"):
        override(JOB, {"shape": ["none"]})
    with pytest.raises(UsageError, match="--paint is a group .* give none or default for all"):
        override(JOB, {"paint": ["thick"]})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quik": ["1"]}, "there is no option --quik; did you mean --quick?"),
        ({"paint.coat": ["1"]}, "did you mean --paint.coats?"),
        ({"coats": ["1"]}, "did you mean --paint.coats?"),
        ({"quick.x": ["1"]}, "there is no option --quick.x"),
        ({"shape.kind": ["rund"]}, "--shape.kind is 'rund'; did you mean 'round'?"),
        ({"shape.kind": ["zzz"]}, "choose from round, square"),
        ({"shape.radius": ["1"]}, "--shape.radius belongs to the shape round, but this one is square"),
        ({"shape.side": ["10"]}, "--shape.side is '10': should be at most 9"),
        ({"shape.kind": ["round"], "shape.radius": ["10"]}, "should be less than 10"),
        ({"shape.kind": ["round"], "shape.radius": ["0"]}, "should be more than 0"),
        ({"shape.kind": ["round"], "shape.radius": ["nan"]}, "should be a finite number"),
        ({"shape.kind": ["round"], "shape.radius": ["1e400"]}, "should be a finite number"),
        ({"shape.tint": ["1"]}, "--shape.tint is '1': should be FLOAT FLOAT FLOAT"),
        ({"shape.tint": ["1", "2", "3", "4"]}, "--shape.tint is '1 2 3 4': takes at most 3"),
        ({"shape.tint": ["1", "x", "3"]}, "--shape.tint is 'x': should be a number"),
        ({"work_hours": ["1", "2"]}, "--work-hours takes one value, got 2: 1 2"),
        ({"mode": ["manul"]}, "--mode is 'manul': should be 'auto' or 'manual'; did you mean 'manual'?"),
        ({"quick": ["maybe"]}, "--quick is 'maybe': should be true or false"),
    ],
)
def test_wrong_overrides_say_what_to_do(options: dict[str, list[str]], says: str):
    with pytest.raises(UsageError) as caught:
        override(JOB, options)
    assert says in str(caught.value)


def write(path: Path, body: object) -> Path:
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def test_a_file_gives_the_configuration_back_and_a_changed_copy_of_a_sealed_one_too(tmp_path: Path):
    body = JOB.model_dump(mode="json")
    assert read_config(Job, write(tmp_path / "a.json", body)) == JOB
    assert read_config(Job, write(tmp_path / "b.json", body | {"self": "0" * 64})) == JOB


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"work_hours": True}, "work_hours is 'true': should be a whole number"),
        ({"work_hours": "5"}, "work_hours is '5': should be a whole number"),
        ({"work_hours": 5.5}, "should be a whole number"),
        ({"quick": 1}, "quick is '1': should be true or false"),
        ({"work-hours": 1}, "there is no field work-hours; did you mean work_hours?"),
        ({"zzz": 1}, "there is no field zzz"),
        ({"shape": {"kind": "squar"}}, "shape.kind is 'squar'; did you mean 'square'?"),
        ({"shape": {"side": 1}}, "should be a group of fields"),
        ({"shape": 5}, "shape is '5': should be a group of fields"),
        ({"shape": {"kind": "square", "sid": 1}}, "there is no field shape.sid; did you mean shape.side?"),
        ({"shape": {"kind": "square", "radius": 1}}, "shape.radius belongs to the shape round"),
        ({"paint": {"names": "red"}}, "paint.names is 'red': should be a list"),
        ({"paint": {"coats": float("inf")}}, "paint.coats"),
    ],
)
def test_a_file_is_held_to_its_types(tmp_path: Path, change: dict, says: str):
    path = write(tmp_path / "job.json", JOB.model_dump(mode="json") | change)
    with pytest.raises(UsageError) as caught:
        read_config(Job, path)
    assert says in str(caught.value) and str(path) in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.mark.parametrize("body", ["", "{", "[]", "3", "null", "[" * 100_000, '{"shape":' * 500, "\x00", '{"a": NaN'])
def test_what_is_no_configuration_is_named(tmp_path: Path, body: str):
    path = write(tmp_path / "job.json", body)
    with pytest.raises(UsageError, match="job.json"):
        read_config(Job, path)


def test_the_help_of_a_command_has_every_option_with_type_and_default():
    text = explain("do", Do)
    assert text.startswith("irdm do PLACE [REST ...] [--option value ...]")
    for line in (
        "PLACE PATH  (required)",
        "--seed INT  (default: 0)",
        "--dry-run true|false  (default: false)",
        "--out PATH|none  (default: unset)",
        "--job.FIELD  (see below)",
        "A file.",
    ):
        assert line in text


def test_the_help_of_a_configuration_marks_what_is_free():
    text = describe(Job, assign(JOB, {"paint.coats": ["2"]}))
    assert "--work-hours INT|none  (now: none; free)" in text
    assert "--paint.coats INT  (now: 2)" in text
    assert "One of round, square" in text
    assert "--paint none|default" in text
    assert "paint: none" in describe(Job, assign(JOB, {"paint": ["none"]}))


def leaves() -> dict[str, type[Config]]:
    """The options of every command."""
    found = {}
    for name in COMMANDS:
        command = importlib.import_module(f"irdm.commands.{name}").COMMAND
        actions = {name: command} if isinstance(command, Command) else {f"{name} {a}": c for a, c in command.items()}
        found |= {action: part.options for action, part in actions.items()}
    return found


LEAVES = leaves()


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_of_every_command_is_explained(name: str):
    model = LEAVES[name]
    assert not [field for field, info in model.model_fields.items() if not info.description]
    assert model.__doc__ and model.__doc__ != Config.__doc__


OPTIONS = sorted({f"--{path}" for model in LEAVES.values() for path, _, _ in plain_fields(model, {})})
VALUES = [
    "",
    "0",
    "-1",
    "1",
    "2",
    "true",
    "none",
    "null",
    "[]",
    "nan",
    "1e999",
    "x",
    "a/b",
    "..",
    "\udcff",
    "9" * 30,
    "1,2",
]


@given(
    st.sampled_from(sorted(LEAVES)), st.lists(st.sampled_from([*OPTIONS, *VALUES]) | st.text(max_size=4), max_size=8)
)
def test_whatever_is_typed_is_taken_or_refused_in_words(name: str, tokens: list[str]):
    try:
        parse(LEAVES[name], tokens)
    except UsageError as error:
        text = str(error)
        assert text and "Input should" not in text and "http" not in text and "pydantic" not in text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["shape", "kind", "side"]), inner),
        max_leaves=6,
    )
)
def test_whatever_a_file_holds_is_taken_or_refused_in_words(body: object):
    try:
        validate(Job, body, strict=True)
    except UsageError as error:
        assert "Input should" not in str(error) and "http" not in str(error)
