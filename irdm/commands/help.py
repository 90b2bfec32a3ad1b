"""What `--help` prints: of a command its words and options, of a run every field; from types, defaults, docstrings."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from irdm import __version__
from irdm.commands import COMMANDS
from irdm.fields import chosen, kinds_of, mark, parts_of, plain_fields, shown, type_of, written
from irdm.overrides import own_options

WIDTH = 112

USAGE = """\
irdm {version}: one-step image generators by Representation Distribution Matching

{commands}

Presets:
{presets}

`irdm COMMAND --help` explains a command; `irdm train PRESET --help` lists every field of the preset.
Exit codes: 0 done, 1 failed, 2 typed wrongly, 130 interrupted. IRDM_TRACEBACK=1 shows where a failure came from."""


def overview() -> str:
    """What `irdm --help` prints."""
    lines = [f"  irdm {f'{name} {words}':34} {says}" for name, (words, says) in COMMANDS.items()]
    return USAGE.format(version=__version__, commands="\n".join(lines), presets=preset_list())


def explain(name: str, model: type[BaseModel]) -> str:
    """A command: how it is typed, what it does, and each word and option with its type and default."""
    words = {field: info for field, info in model.model_fields.items() if mark(info, "word")}
    usage = " ".join(_word(field, info) for field, info in words.items())
    rest = [info for info in model.model_fields.values() if mark(info, "others") is not None]
    lines = [f"irdm {name} {usage} [--option value ...]", "", *cleandoc(model.__doc__ or "").splitlines(), ""]
    for field, info in {**words, **own_options(model)}.items():
        lines += _entry(field.upper() if field in words else written(field), info, _default(info))
    for info in rest:
        lines += _entry(written(f"{mark(info, 'others')}FIELD"), info, "(see below)")
    return "\n".join(lines)


def describe(model: type[BaseModel], data: Mapping[str, Any], prefix: str = "") -> str:
    """Every field as `--name TYPE  (now: value)` with its docstring below, grouped by component.

    Free fields are marked: they change memory, time or display, but no number.
    """
    groups: dict[str, list[str]] = {}
    for path, field, value in plain_fields(model, data, prefix and f"{prefix}."):
        group = path.rpartition(".")[0]
        lines = groups.setdefault(group, [f"{group or 'run'}:"])
        now = "required" if value is PydanticUndefined else f"now: {shown(value)}"
        kinds = [] if prefix else _siblings(model, data, path)
        text = f"One of {', '.join(kinds)}; another one starts from its own defaults." if kinds else None
        lines += _entry(written(path), field, f"({now}{'; free' if mark(field, 'free') else ''})", text)
    for name, field in model.model_fields.items():
        if kinds_of(field.annotation) and type(None) in parts_of(field.annotation):
            groups.setdefault(name, [f"{name}: none"])[0] += f" (may be left out: {written(name)} none|default)"
    return "\n".join(line for lines in groups.values() for line in [*lines, ""])


def _entry(label: str, field: FieldInfo, state: str, text: str | None = None) -> list[str]:
    kind = "" if mark(field, "others") is not None else f" {type_of(field.annotation)}"
    text = " ".join((text or field.description or "").split())
    return [
        f"  {label}{kind}  {state}".rstrip(),
        *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return (
        "(required)" if value is PydanticUndefined else f"(default: {'unset' if value in (None, ()) else shown(value)})"
    )


def _word(name: str, field: FieldInfo) -> str:
    many = any(get_origin(part) is tuple for part in parts_of(field.annotation))
    label = f"{name.upper()} ..." if many else name.upper()
    return label if field.is_required() else f"[{label}]"


def _siblings(model: type[BaseModel], data: Any, path: str) -> list[str]:
    """The kinds that `x.kind` can take when there are several."""
    *parents, leaf = path.split(".")
    kinds: dict[str, type[BaseModel]] = {"": model}
    for name in parents:
        kinds = kinds_of(chosen(kinds, data).model_fields[name].annotation)
        data = data[name]
    return list(kinds) if leaf == "kind" and len(kinds) > 1 else []


def preset_list() -> str:
    """Each preset with the first line of its docstring, read from the source: importing it would import torch."""
    tree = ast.parse(Path(__file__).parents[1].joinpath("presets.py").read_text())
    lines = {f.name: (ast.get_docstring(f) or "").split("\n")[0] for f in tree.body if isinstance(f, ast.FunctionDef)}
    table = next(s.value for s in tree.body if isinstance(s, ast.AnnAssign) and ast.unparse(s.target) == "PRESETS")
    assert isinstance(table, ast.Dict)
    presets = ast.unparse(table).strip("{}").replace("'", "").split(", ")
    return "\n".join(f"  {name:14} {lines[function]}" for name, function in (p.split(": ") for p in presets))
