"""The fields of a configuration for people: which there are, how they are written, and what is wrong with a value.

pydantic finds what is wrong; here it gets its words, the same for the command line and for JSON files.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Model = TypeVar("Model", bound=BaseModel)

SAYS = (  # of each type of pydantic's errors
    (r"int_.*", "should be a whole number"),
    (r"float_.*", "should be a number"),
    (r"finite_number", "should be a finite number"),
    (r"bool_.*", "should be true or false"),
    (r"greater_than_equal", "should be at least {ge}"),
    (r"greater_than", "should be more than {gt}"),
    (r"less_than_equal", "should be at most {le}"),
    (r"less_than", "should be less than {lt}"),
    (r"(string_)?too_short", "needs at least {min_length}"),
    (r"(string_)?too_long", "takes at most {max_length}"),
    (r"string_pattern_mismatch", "should look like {pattern}"),
    (r"(string|path)_type", "should be text"),
    (r"tuple_.*|list_.*", "should be a list"),
    (r"union_tag_not_found|model_.*|dict_.*", "should be a group of fields"),
)
WORDS = {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", type(None): "none"}


class UsageError(Exception):
    """What the user typed does not fit; the text says what was found, what was expected and how to mend it."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `names`, or the whole list when nothing is close."""
    names = [*names]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; choose from {', '.join(names)}"


def written(path: str, prefix: str = "--") -> str:
    """A field as it is typed, `--micro-batch`; without a prefix as it stands in a file, `micro_batch`."""
    return prefix + (path.replace("_", "-") if prefix else path)


def shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, tuple | list):
        return " ".join(map(shown, value)) or "[]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def type_of(annotation: Any) -> str:
    """A type as a stranger reads it: INT, A|B, FLOAT ..."""
    words = []
    for part in parts_of(annotation):
        if get_origin(part) is Literal:
            words.append("|".join(map(str, get_args(part))))
        elif get_origin(part) in (tuple, list):
            inner = [arg for arg in get_args(part) if arg is not ...]
            words.append(f"{type_of(inner[0])} ..." if ... in get_args(part) else " ".join(map(type_of, inner)))
        else:
            words.append(WORDS.get(part) or "TEXT")
    return "|".join(words)


def mark(field: FieldInfo, name: str) -> Any:
    """What `irdm.config.free` or the helpers of `irdm.overrides` put on a field, else None."""
    return field.json_schema_extra.get(name) if isinstance(field.json_schema_extra, dict) else None


def parts_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without Annotated."""
    if get_origin(annotation) is Annotated:
        return parts_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for argument in get_args(annotation) for part in parts_of(argument))
    return (annotation,)


def kinds_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models behind a nested field, by `kind` (a model without one by its class name); {} for a plain value."""
    models = [part for part in parts_of(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    return {getattr(model.model_fields.get("kind"), "default", model.__name__): model for model in models}


def chosen(kinds: Mapping[str, type[BaseModel]], data: Any) -> type[BaseModel]:
    """The model of a nested field whose fields are `data`."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    return kinds.get(str(kind), next(iter(kinds.values())))


def plain_fields(model: type[BaseModel], data: Mapping, prefix: str = "") -> list[tuple[str, FieldInfo, Any]]:
    """(dotted path, field, value) of every plain value, nested models after the values of their parent."""
    nested = {name: kinds for name, field in model.model_fields.items() if (kinds := kinds_of(field.annotation))}
    found = [
        (prefix + name, field, data.get(name, field.get_default(call_default_factory=True)))
        for name, field in model.model_fields.items()
        if name not in nested
    ]
    for name, kinds in nested.items():
        if isinstance(inner := data.get(name), Mapping):
            found += plain_fields(chosen(kinds, inner), inner, f"{prefix}{name}.")
    return found


def validate(model: type[Model], data: Any, prefix: str = "", *, strict: bool = False) -> Model:
    """`model.model_validate(data)`, its errors as one UsageError with a line a field and the nearest known names.

    Strict takes plain JSON and wants each value in its own type: `true` and "5" are no numbers.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True) if strict else model.model_validate(data)
    except ValidationError as error:
        raise UsageError(_worded(error, model, data, prefix)) from None


def read_config(model: type[Model], path: Path) -> Model:
    """A configuration from a JSON file such as a run's config.json, or a changed copy of one.

    Raises UsageError naming the file and every field that does not fit.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}); give a config.json of `irdm train`") from None
    if isinstance(data, dict):
        data.pop("self", None)  # the checksum, which a copy may have outgrown
    try:
        return validate(model, data, strict=True)
    except UsageError as error:
        raise UsageError(f"{path} is not a config:\n  {error}") from None


def plain(error: ValidationError) -> str:
    """Any error of pydantic, without its type codes and addresses."""
    found = error.errors(include_url=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))} {_says(problem)}".strip() for problem in found)


def no_option(name: str, known: Sequence[str], prefix: str = "--") -> UsageError:
    """The error for a name that is no option (with the prefix) or no field of a file."""
    same = [path for path in known if path.rpartition(".")[2] == name.rpartition(".")[2].replace("-", "_")]
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.5) or same
    hint = f"; did you mean {written(close[0], prefix)}?" if close else "; --help lists them all" if prefix else ""
    return UsageError(f"there is no {'option' if prefix else 'field'} {written(name, prefix)}{hint}")


def no_field(path: str, model: type[BaseModel], data: Any, prefix: str = "--") -> UsageError:
    """The same for a dotted path into `model`: perhaps the field belongs to another kind."""
    parent, _, leaf = path.rpartition(".")
    if parent in model.model_fields and isinstance(data[parent], Mapping):
        kinds = kinds_of(model.model_fields[parent].annotation)
        owners = [kind for kind, inner in kinds.items() if {leaf, "kind"} <= inner.model_fields.keys()]
        if owners:
            return UsageError(
                f"{written(path, prefix)} belongs to the {parent} {' or '.join(owners)}, but this one is "
                f"{data[parent].get('kind')}; set {written(f'{parent}.kind', prefix)} to {owners[0]}"
            )
    return no_option(path, [name for name, _, _ in plain_fields(model, data)], prefix)


def _worded(error: ValidationError, model: type[BaseModel], data: Any, prefix: str) -> str:
    """A line for each field that pydantic complains of: what was found, and what is expected."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path, field = _place(problem["loc"], model, problem["type"] == "extra_forbidden")
        if path not in lines:
            lines[path] = _line(problem, path, field, model, data, prefix)
    return "\n  ".join(lines.values())


def _place(loc: tuple[int | str, ...], model: type[BaseModel], extra: bool) -> tuple[str, FieldInfo | None]:
    """The dotted path of a field, and the field: without the tags that pydantic puts after a union, or an index."""
    names: list[str] = []
    kinds, field = {"": model}, None
    for part in map(str, loc):
        if names and part in kinds:
            kinds = {"": kinds[part]}
        elif found := next((m.model_fields[part] for m in kinds.values() if part in m.model_fields), None):
            names, field, kinds = [*names, part], found, kinds_of(found.annotation)
        elif extra and kinds:
            names.append(part)
    return ".".join(names), field


def _line(problem: Any, path: str, field: FieldInfo | None, model: type[BaseModel], data: Any, prefix: str) -> str:
    kind, found, details = problem["type"], problem["input"], problem.get("ctx", {})
    placed = field is not None and mark(field, "word")
    name = path.upper().replace("_", "-") if placed else written(path, prefix)
    if kind == "extra_forbidden":
        return str(no_field(path, model, data, prefix))
    if kind == "missing" and isinstance(problem["loc"][-1], int):  # one number of a pair
        return f"{name} is {shown(found)!r}: should be {type_of(field.annotation) if field else 'more'}"
    if kind == "missing":
        return f"{name} is missing ({_described(field)})" if placed and field else f"{name} is required"
    if kind == "union_tag_invalid":
        kinds = re.findall(r"'([^']*)'", details["expected_tags"])
        return f"{written(f'{path}.kind', prefix)} is '{details['tag']}'{nearest(details['tag'], kinds)}"
    message = _says(problem)
    if kind == "literal_error":
        message = f"should be {details['expected']}"
        close = nearest(str(found), re.findall(r"'([^']*)'", details["expected"]))
        message += close if "did you mean" in close else ""
    return f"{name} is {shown(found)!r}: {message}" if path and not isinstance(found, Mapping | BaseModel) else message


def _says(problem: Any) -> str:
    """What pydantic found, in words of our own."""
    for pattern, says in SAYS:
        if re.fullmatch(pattern, problem["type"]):
            return says.format(**problem.get("ctx", {}))
    return problem["msg"].removeprefix("Value error, ").replace("Input should", "should")


def _described(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split()).rstrip(".")
    return text[:1].lower() + text[1:]
