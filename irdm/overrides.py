"""The words of the command line as configurations: `irdm sample RUN --count 5`, `--distance.kind exact-mmd --lr 1e-3`.

One parser for every command and for every field of a run. It finds the field that a word belongs to; `irdm.fields`
checks the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_origin

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from irdm.fields import (
    Model,
    UsageError,
    chosen,
    kinds_of,
    mark,
    nearest,
    no_field,
    no_option,
    parts_of,
    validate,
    written,
)

Options = Mapping[str, Sequence[str]]
"""What was typed after each `--name`, by dotted name with underscores."""

NONE, SWITCH = ("none", "null"), ("true", "false", "yes", "no", "on", "off")


def word(default: Any = ..., **constraints: Any) -> Any:
    """A field of a command that is given by its place, not by a name; one of several values takes all that are left."""
    return Field(default=default, json_schema_extra={"word": True}, **constraints)


def verbatim(default: Any, **constraints: Any) -> Any:
    """A field of several texts, each word of the command line one: neither spaces nor commas divide it."""
    return Field(default=default, json_schema_extra={"verbatim": True}, **constraints)


def others(prefix: str = "") -> Any:
    """The field of a command that holds the options which begin so and are none of its own, for `override`."""
    return Field(default={}, json_schema_extra={"others": prefix})


def own_options(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a command that are given by name."""
    fields = model.model_fields.items()
    own = (item for item in fields if not mark(item[1], "word") and mark(item[1], "others") is None)
    return {field.alias or name: field for name, field in own}  # `for` is no name of an attribute


def split_options(tokens: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """`a --x.y 1 2 --z=3` as the words before the first option, ["a"], and {"x.y": ["1", "2"], "z": ["3"]}.

    Dashes in a name become underscores, -h becomes help. Raises UsageError for an option given twice.
    """
    words: list[str] = []
    options: dict[str, list[str]] = {}
    values = words
    for token in ("--help" if token == "-h" else token for token in tokens):
        if not token.startswith("--"):
            values.append(token)
            continue
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        if name in options:
            raise UsageError(f"{written(name)} is given twice; keep one")
        values = options[name] = [value] if equals else []
    return words, options


def parse(model: type[Model], tokens: Sequence[str]) -> Model:
    """The options of a command, before or after its words. Raises UsageError saying what to type instead."""
    words, options = split_options(tokens)
    own, rest = own_options(model), {n: mark(f, "others") for n, f in model.model_fields.items()}
    rest, prefix = next(((n, begin) for n, begin in rest.items() if begin is not None), ("", None))
    data: dict[str, Any] = {}
    for name, values in options.items():
        if name in own:
            most = _most(own[name], values)
            if most == 0 and any(token.replace("-", "_").startswith(f"__{name}=") for token in tokens):
                most = 1  # `--dry-run=maybe` is no word
            words += values[len(values) if most is None else most :]  # `--out DIR WORD`
            data[name] = _value(written(name), values[:most], own[name])
        elif prefix is not None and name.startswith(prefix):
            data.setdefault(rest, {})[name] = values
        else:
            raise no_option(name, [*own])
    for name, field in model.model_fields.items():
        if mark(field, "word") and words:
            most = _most(field, words) or len(words)
            data[name], words = _value(name.upper(), words[:most], field), words[most:]
    if words:
        raise UsageError(f"'{words[0]}' is one word too many")
    return validate(model, data, "--")


def override(config: Model, options: Options) -> Model:
    """`config` with the dotted options in place, validated again. Raises UsageError naming the option and its mend."""
    return validate(type(config), assign(config, options), "--")


def assign(config: BaseModel, options: Options) -> dict[str, Any]:
    """The fields of `config` as nested dictionaries with the dotted options in place, not validated yet.

    A group of fields can be set to `default`, or to `none` where it may be absent; `x.kind` gives it another kind, with
    that kind's defaults. Both go before the fields of the group, wherever they were typed.
    """
    data = config.model_dump(warnings=False)  # a preset may leave a required field to the user
    model = type(config)
    for path, values in sorted(options.items(), key=lambda item: (item[0].count("."), not item[0].endswith(".kind"))):
        *parents, leaf = path.split(".")
        node, inner = data, model
        kinds: dict[str, type[BaseModel]] = {}
        for name in parents:
            field = inner.model_fields.get(name)
            kinds = kinds_of(field.annotation) if field else {}
            if field is None or not kinds:
                raise no_field(path, model, data)
            if node.get(name) is None:
                node[name] = _default(field) or ({"kind": next(iter(kinds))} if len(kinds) > 1 else {})
            node, inner = node[name], chosen(kinds, node[name])
        if leaf not in inner.model_fields:
            raise no_field(path, model, data)
        field = inner.model_fields[leaf]
        if leaf == "kind" and kinds:
            wanted = _one(written(path), values)
            if wanted not in kinds:
                raise UsageError(f"{written(path)} is '{wanted}'{nearest(wanted, kinds)}")
            if node.get("kind") != wanted:
                node.clear()
                node["kind"] = wanted
        elif kinds_of(field.annotation):
            node[leaf] = _group(path, values, field)
        else:
            node[leaf] = _value(written(path), values, field)
    return data


def _default(field: FieldInfo) -> Any:
    """The fields of a nested model by default; None when there is no default."""
    value = field.get_default(call_default_factory=True)
    return value.model_dump() if isinstance(value, BaseModel) else None


def _group(path: str, values: Sequence[str], field: FieldInfo) -> Any:
    """A whole group of fields: absent, or as it is by default."""
    optional, default = type(None) in parts_of(field.annotation), _default(field)
    if [*values] == ["default"] and default:
        return default
    if optional and len(values) == 1 and values[0].lower() in NONE:
        return None
    ways = ["none"] * optional + ["default"] * bool(default)
    inner = next(iter(chosen(kinds_of(field.annotation), None).model_fields))
    raise UsageError(
        f"{written(path)} is a group of fields; set one of them, such as {written(f'{path}.{inner}')}"
        + (f", or give {' or '.join(ways)} for all" if ways else "")
    )


def _most(field: FieldInfo, values: Sequence[str]) -> int | None:
    """How many words after an option are its own; None: all."""
    parts = parts_of(field.annotation)
    if any((get_origin(part) or part) in (tuple, list) for part in parts):
        return None
    return 0 if bool in parts and values and values[0].lower() not in SWITCH else 1


def _one(name: str, values: Sequence[str]) -> str:
    if len(values) != 1:
        raise UsageError(f"{name} takes one value, got {f'{len(values)}: ' if values else 'none'}{' '.join(values)}")
    if not values[0]:
        raise UsageError(f"{name} is empty; give a value")
    return values[0]


def _value(name: str, values: Sequence[str], field: FieldInfo) -> Any:
    """Command line words as what pydantic expects: a list, None, a switch that is on, or one string."""
    parts = parts_of(field.annotation)
    if type(None) in parts and len(values) == 1 and values[0].lower() in NONE:
        return None
    switched = bool in parts and len(values) <= 1 and all(value.lower() in SWITCH for value in values)
    if _most(field, values) is None and not switched:
        if not values:
            raise UsageError(f"{name} takes one value or more, got none; [] is an empty list")
        if mark(field, "verbatim"):
            return [*values]
        return [part for value in values for part in value.strip("[]()").replace(",", " ").split()]
    return True if not values and bool in parts else _one(name, values)
