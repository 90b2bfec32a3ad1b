"""From the command line into a config, `--distance.kind exact-mmd --rollout 4096`, and the help with every field.

pydantic does the parsing and the checking; this file maps dotted names onto nested models and words the errors. A field
that is a union of kinds is switched with `.kind`, which takes the new kind's defaults.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined as MISSING

Model = TypeVar("Model", bound=BaseModel)


class UsageError(Exception):
    """What the user typed does not fit; the text says what was found, what was expected and how to mend it."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `names`, or the whole list when nothing is close."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"; did you mean '{close[0]}'?"
    return f"; choose from {', '.join(names)}"


def split_options(tokens: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """`a --x.y 1 2 --z=3` as the words before the first option, ["a"], and {"x.y": ["1", "2"], "z": ["3"]}.

    Dashes in a name become underscores. Raises UsageError for an option given twice.
    """
    words: list[str] = []
    options: dict[str, list[str]] = {}
    values = words
    for token in tokens:
        if not token.startswith("--"):
            values.append(token)
            continue
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        if name in options:
            raise UsageError(f"--{name} is given twice; keep one")
        values = options[name] = [value] if equals else []
    return words, options


def override(config: Model, options: Mapping[str, Sequence[str]]) -> Model:
    """`config` with the dotted options in place, validated again. Raises UsageError naming the option and its mend."""
    return validate(type(config), assign(config, options), "--")


def assign(config: BaseModel, options: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The fields of `config` as nested dictionaries with the dotted options in place, not validated yet."""
    data = config.model_dump(warnings=False)  # a preset may leave a required field to the user
    model = type(config)
    by_kind_first = sorted(options.items(), key=lambda item: (not item[0].endswith(".kind"), item[0].count(".")))
    for path, values in by_kind_first:
        *parents, leaf = path.split(".")
        node, inner = data, model
        for i, name in enumerate(parents):
            kinds = _kinds(inner.model_fields[name].annotation) if name in inner.model_fields else {}
            if not kinds:
                raise _unknown(path, model, data)
            if leaf == "kind" and i == len(parents) - 1 and "kind" in kinds[next(iter(kinds))].model_fields:
                wanted = _one(path, values)
                if wanted not in kinds:
                    raise UsageError(f"--{path} has no '{wanted}'{nearest(wanted, kinds)}")
                if node[name]["kind"] != wanted:
                    node[name] = {"kind": wanted}
            node = node[name]
            inner = kinds[node["kind"]] if "kind" in node else next(iter(kinds.values()))
        if leaf not in inner.model_fields or _kinds(inner.model_fields[leaf].annotation):
            raise _unknown(path, model, data)
        node[leaf] = _value(path, values, inner.model_fields[leaf])
    return data


def validate(model: type[Model], data: Any, prefix: str = "") -> Model:
    """`model.model_validate(data)`, its errors as one UsageError with a line a field and the nearest known names."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_worded(problem, model, data, prefix) for problem in error.errors()]
        raise UsageError("\n  ".join(lines)) from None


def read_config(model: type[Model], path: Path) -> Model:
    """A config from a JSON file such as a run's config.json. Raises UsageError naming the file."""
    try:
        return validate(model, json.loads(path.read_text()))
    except UsageError as error:
        raise UsageError(f"{path} is not a config:\n  {error}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read as JSON ({error}); give a config.json that `irdm train` wrote"
        ) from None


def describe(model: type[BaseModel], data: Mapping[str, Any], width: int = 100) -> str:
    """Every field as `--name TYPE  (now: value)` with its docstring below, grouped by component."""
    groups: dict[str, list[str]] = {}
    for path, field, value in _fields(model, data):
        group = path.rpartition(".")[0]
        lines = groups.setdefault(group, [f"{group or 'run'}:"])
        lines.append(
            f"  --{path} {_type(field.annotation)}  ({'required' if value is MISSING else f'now: {_shown(value)}'})"
        )
        text = " ".join((field.description or "").split())
        if kinds := _siblings(model, path):
            text = f"One of {', '.join(kinds)}; another one starts from its own defaults."
        lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(line for lines in groups.values() for line in [*lines, ""])


def _kinds(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models behind a nested field, by `kind` (a model without one by its class name); {} for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return {kind.default if kind else annotation.__name__: annotation}
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
        return {kind: model for part in parts for kind, model in _kinds(part).items()}
    return {}


def _fields(model: type[BaseModel], data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """(dotted path, field, value) of every plain value, nested models after the values of their parent."""
    nested = {name: kinds for name, field in model.model_fields.items() if (kinds := _kinds(field.annotation))}
    for name, field in model.model_fields.items():
        if name not in nested:
            yield prefix + name, field, data.get(name, field.get_default(call_default_factory=True))
    for name, kinds in nested.items():
        inner = data.get(name)
        if isinstance(inner, Mapping):
            yield from _fields(kinds.get(inner.get("kind", ""), next(iter(kinds.values()))), inner, f"{prefix}{name}.")


def _siblings(model: type[BaseModel], path: str) -> list[str]:
    """The kinds that `x.kind` can take when there are several."""
    *parents, leaf = path.split(".")
    kinds: dict[str, type[BaseModel]] = {"": model}
    for name in parents:
        kinds = next((_kinds(m.model_fields[name].annotation) for m in kinds.values() if name in m.model_fields), {})
    return list(kinds) if leaf == "kind" and len(kinds) > 1 else []


def _unknown(path: str, model: type[BaseModel], data: Mapping[str, Any]) -> UsageError:
    """The error for a name that is no field: it belongs to another kind, or is close to a known one."""
    parent, _, leaf = path.rpartition(".")
    if parent in model.model_fields:
        kinds = _kinds(model.model_fields[parent].annotation)
        if owners := [
            kind for kind, inner in kinds.items() if leaf in inner.model_fields and "kind" in inner.model_fields
        ]:
            return UsageError(
                f"--{path} belongs to --{parent}.kind {' or '.join(owners)}, but the kind is {data[parent]['kind']}; "
                f"add --{parent}.kind {owners[0]}"
            )
    known = [name for name, _, _ in _fields(model, data)]
    if inside := [name for name in known if name.startswith(f"{path}.")]:
        return UsageError(f"--{path} is a group of fields; set one of them, such as --{inside[0]}")
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.5) or [n for n in known if n.endswith(f".{leaf}")]
    hint = f"did you mean --{close[0]}?" if close else "--help lists every field"
    return UsageError(f"there is no field --{path}; {hint}")


def _one(path: str, values: Sequence[str]) -> str:
    if len(values) != 1:
        raise UsageError(f"--{path} takes one value, got {len(values)}{': ' + ' '.join(values) if values else ''}")
    return values[0]


def _value(path: str, values: Sequence[str], field: FieldInfo) -> Any:
    """Command line words as what pydantic expects: a list, None, a switch that is on, or one string."""
    parts = _parts(field.annotation)
    if any((get_origin(part) or part) in (tuple, list) for part in parts) and [*values] not in (["none"], ["null"]):
        return [word for value in values for word in value.strip("[]()").replace(",", " ").split()]
    if not values and bool in parts:
        return True
    value = _one(path, values)
    return None if value.lower() in ("none", "null") and type(None) in parts else value


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without Annotated."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for argument in get_args(annotation) for part in _parts(argument))
    return (annotation,)


def _type(annotation: Any) -> str:
    """A type as a stranger reads it: INT, A|B, FLOAT ..."""
    words = []
    for part in _parts(annotation):
        if get_origin(part) is Literal:
            words.append("|".join(map(str, get_args(part))))
        elif get_origin(part) in (tuple, list):
            words.append(f"{_type(get_args(part)[0])} ...")
        elif part is type(None):
            words.append("none")
        else:
            words.append({bool: "true|false", str: "TEXT"}.get(part, getattr(part, "__name__", str(part)).upper()))
    return "|".join(words)


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_shown, value)) or "empty"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _worded(problem: Any, model: type[BaseModel], data: Any, prefix: str) -> str:
    """One pydantic problem as one line: which field, what was found, what is expected."""
    names, kinds = [], {"": model}
    for part in problem["loc"]:  # leave out the tags that pydantic puts after a union
        if part in kinds and names:
            kinds = {"": kinds[part]}
            continue
        names.append(str(part))
        field = next((m.model_fields[part] for m in kinds.values() if part in m.model_fields), None)
        kinds = _kinds(field.annotation) if field else {}
    path = ".".join(names)
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if problem["type"] == "extra_forbidden":
        return f"{_unknown(path, model, data)}".replace("--", prefix)
    if problem["type"] == "missing":
        return f"{prefix}{path} is required"
    if not path:
        return message
    found = problem["input"]
    if choices := re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", ""))):
        message += nearest(str(found), choices)
    return f"{prefix}{path} is {_shown(found)!r}: {message}"
