"""A small generator as a page can run it: plain operations on arrays, and its weights in half precision.

A network is recorded as it draws, so a kind of generator need say nothing of itself as long as it is made of
OPERATIONS, each of which `irdm/report/draw.js` knows. `Generator.written` lets a kind give another function than its
forward.

Letters: n choices of a reader, k pictures to check by; c channels, h height, w width.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from irdm.conditions import Spec
from irdm.files import read_tensors, write_tensors
from irdm.generators import Generator
from irdm.ops.sampling import normal_rows

FILE = "browser.safetensors"
MEND = "Run `irdm eval` again on the run, which writes it anew."
MOST = 1_500_000  # numbers: 4 MB of text in a page
CHECKED = 4
NOTES = ("steps", "captions", "asked_by", "picture")
TYPES = {torch.float16: "f16", torch.float32: "f32", torch.int32: "i32", torch.uint8: "u8"}

Step = dict[str, Any]
"""{"op", "out", "in": names of arrays, "shape": of the result, and what else the operation needs}"""


class Unwritable(ValueError):
    """The network is too large for a page, or does what a page cannot."""


@dataclass(frozen=True)
class Program:
    """`steps` in their order turn `noise` and the reader's choice into `picture` [1, c, h, w] in [0, 1].

    `tensors`: weights by name; `choice.NAME` [n, ...], what the network is given for each of the n choices;
    `check.noise` [k, ...], `check.choice` [k] and `check.pictures` uint8 [k, c, h, w]: what PyTorch drew.
    """

    steps: list[Step]
    captions: list[str]
    asked_by: str
    """What a caption is: a class, or a caption."""
    picture: str
    tensors: dict[str, Tensor]

    def page(self) -> dict[str, Any]:
        """Plain JSON, arrays in base64."""
        arrays = {
            name: {"shape": [*tensor.shape], "type": TYPES[tensor.dtype], "data": _base64(tensor)}
            for name, tensor in self.tensors.items()
        }
        return {**self.notes, "arrays": arrays}

    @property
    def notes(self) -> dict[str, Any]:
        """All but the tensors."""
        return {name: getattr(self, name) for name in NOTES}


def write_program(path: Path, generator: Generator, spec: Spec) -> None:
    """Write a generator down for a page. Raises Unwritable, and then leaves no file of another one there."""
    path.unlink(missing_ok=True)
    program = program_of(generator, spec)
    write_tensors(path, program.tensors, {name: json.dumps(value) for name, value in program.notes.items()})


def read_program(path: Path) -> Program | None:
    """What `write_program` wrote; None where there is nothing. Raises ValueError for a file that is broken."""
    if not path.is_file():
        return None
    tensors, notes = read_tensors(path, MEND)
    try:
        program = Program(**{name: json.loads(notes[name]) for name in NOTES}, tensors=tensors)
        made = {"noise", *tensors, *(name.removeprefix("choice.") for name in tensors)}
        for step in program.steps:
            if step["op"] not in PAGE or not made.issuperset(step["in"]):
                raise ValueError(f"step {step['out']}")
            made.add(step["out"])
        if program.picture not in made or {tensor.dtype for tensor in tensors.values()} - TYPES.keys():
            raise ValueError("its arrays")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no generator for a page ({error}). {MEND}") from None
    return program


@torch.no_grad()
def program_of(generator: Generator, spec: Spec) -> Program:
    """Record a generator, which is in evaluation mode, condensed. Raises Unwritable."""
    generator = generator.condensed()
    if (numbers := sum(parameter.numel() for parameter in generator.parameters())) > MOST:
        raise Unwritable(f"the generator has {numbers:,} numbers, and a page holds {MOST:,} at most")
    device, frozen = next(generator.parameters()).device, [p for p in generator.parameters() if not p.requires_grad]
    try:
        for parameter in frozen:  # torch multiplies rows with a weight that may learn as one matrix, always
            parameter.requires_grad_(True)
        return _program(generator.cpu(), spec)  # a page computes as a CPU does
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        generator.to(device)


def _program(generator: Generator, spec: Spec) -> Program:
    conditions = spec.each(1)
    function, rows = generator.written(conditions)
    noise = normal_rows(slice(0, CHECKED), generator.noise_shape, "browser")
    chosen = torch.linspace(0, len(conditions) - 1, CHECKED).round().long()
    drawn = function(noise, **{name: row[chosen] for name, row in rows.items()})
    inputs = {"noise": noise[:1]} | {name: row[:1] for name, row in rows.items()}
    with Recorder(inputs) as recorder:
        picture = function(**inputs)
    steps = recorder.leading_to(picture)
    used = {name for step in steps for name in step["in"]}
    if unused := [name for name in inputs if name not in used]:
        raise Unwritable(f"the generator reads its {' and '.join(unused)} by something that is no operation on tensors")
    tensors = {name: weight for name, weight in recorder.weights.items() if name in used}
    tensors |= {f"choice.{name}": _half(row) for name, row in rows.items()}
    tensors |= {"check.noise": noise, "check.choice": chosen.int()}
    tensors["check.pictures"] = (drawn.float().clamp(0, 1) * 255).round().to(torch.uint8)
    asked_by = "caption" if spec.free_text else "class"
    return Program(steps, conditions.captions(), asked_by, steps[-1]["out"], tensors)


class Recorder(TorchDispatchMode):
    """Writes the operations that are done with some inputs as steps; what weights alone decide is a weight."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the compiler is imported, which takes seconds

    def __init__(self, inputs: Mapping[str, Tensor]):
        super().__init__()
        self.steps: list[Step] = []
        self.weights: dict[str, Tensor] = {}
        self.names = {id(tensor): name for name, tensor in inputs.items()}
        self.drawn = {*self.names}
        self.kept: list[Any] = []  # so that no two tensors have one id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, and write it down. Raises Unwritable."""
        out = func(*args, **(kwargs or {}))
        self.kept.append((args, kwargs, out))
        kind = str(func).split(".")[1]
        if kind not in CONSTANT and any(id(leaf) in self.drawn for leaf in tree_leaves((args, kwargs))):
            self._write(kind, args, dict(kwargs or {}), out)
        return out

    def leading_to(self, result: Tensor) -> list[Step]:
        """The steps that a result depends on, its own last; none where it was not recorded."""
        needed, found = {self.names.get(id(result))}, []
        for step in reversed(self.steps):
            if step["out"] in needed:
                needed.update(step["in"])
                found.append(step)
        return found[::-1]

    def _write(self, kind: str, args: Any, options: dict[str, Any], out: Any) -> None:
        options.pop("memory_format", None)
        if kind not in OPERATIONS or options or not OPERATIONS[kind](self, out, *args):
            raise Unwritable(f"the generator uses {kind} in a way that a page cannot; see irdm.browser.OPERATIONS")

    def step(self, op: str, out: Tensor, *given: Tensor | float, **more: Any) -> Tensor:
        """Write down that `out` is made of what is given; returns it."""
        made_of, name = [*map(self._name, given)], f"s{len(self.steps)}"
        self.names[id(out)] = name
        self.drawn.add(id(out))
        self.kept.append(out)
        self.steps.append({"op": op, "out": name, "in": made_of, "shape": [*out.shape], **more})
        return out

    def _name(self, value: Tensor | float) -> str:
        tensor = value if isinstance(value, Tensor) else torch.tensor(float(value))
        if id(tensor) not in self.names:
            self.kept.append(tensor)
            self.names[id(tensor)] = f"w{len(self.weights)}"
            self.weights[self.names[id(tensor)]] = _half(tensor)
        return self.names[id(tensor)]


PAGE = {
    *("view", "permute", "join", "slice", "rows"),
    *("add", "mul", "silu", "sigmoid", "rsqrt", "clamp"),
    *("mean", "normed", "linear", "attention", "convolution", "bilinear"),
}
"""What `irdm/report/draw.js` knows."""
Writer = Callable[..., Any]
"""(recorder, result, arguments of PyTorch's operation) -> something true when steps of PAGE were written for it."""


def _one(op: str) -> Writer:
    return lambda to, out, x, *_: [to.step(op, out, x)]


def _two(op: str) -> Writer:
    return lambda to, out, a, b, *more: not more and [to.step(op, out, a, b)]


def _addcmul(to: Recorder, out: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Any:
    return [to.step("add", out, x, to.step("mul", a * b, a, b))]


def _less(to: Recorder, out: Tensor, a: Tensor, b: Tensor) -> Any:
    return [to.step("add", out, a, to.step("mul", -b, b, -1.0))]


def _square(to: Recorder, out: Tensor, x: Tensor, power: float) -> Any:
    return power == 2 and [to.step("mul", out, x, x)]


def _bilinear(to: Recorder, out: Tensor, x: Tensor, size: Any, aligned: bool, *_: Any) -> Any:
    return not aligned and [to.step("bilinear", out, x)]


def _convolution(to: Recorder, out: Tensor, x: Tensor, weight: Tensor, bias: Any, *how: Any) -> Any:
    (stride, pad, dilation), rest = how[:3], how[3:]
    plain = [*stride, *dilation, *rest] == [1, 1, 1, 1, False, [0, 0], 1]
    return plain and [to.step("convolution", out, x, weight, *([] if bias is None else [bias]), pad=[*pad])]


def _slice(to: Recorder, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, by: int = 1) -> Any:
    first = start or 0
    first += x.shape[dim] if first < 0 else 0
    return by == 1 and [to.step("slice", out, x, dim=dim % x.ndim, start=first)]


def _split(to: Recorder, out: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0) -> Any:
    starts = [0, *accumulate(part.shape[dim] for part in out)]
    return [to.step("slice", part, x, dim=dim % x.ndim, start=start) for part, start in zip(out, starts, strict=False)]


def _unbind(to: Recorder, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> Any:
    one = [part.unsqueeze(dim) for part in out]
    _split(to, one, x, 1, dim)
    return [to.step("view", part, whole) for part, whole in zip(out, one, strict=True)]


def _join(to: Recorder, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Any:
    return [to.step("join", out, *parts, dim=dim % out.ndim)]


def _stack(to: Recorder, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Any:
    dim = dim % out.ndim
    return _join(to, out, [to.step("view", part.unsqueeze(dim), part) for part in parts], dim)


def _permute(to: Recorder, out: Tensor, x: Tensor, dims: Sequence[int]) -> Any:
    return [to.step("permute", out, x, dims=[dim % x.ndim for dim in dims])]


def _transpose(to: Recorder, out: Tensor, x: Tensor, one: int, other: int) -> Any:
    dims = [*range(x.ndim)]
    dims[one], dims[other] = dims[other], dims[one]
    return _permute(to, out, x, dims)


def _pixel_shuffle(to: Recorder, out: Tensor, x: Tensor, by: int) -> Any:
    n, c, h, w = x.shape
    parts = to.step("view", x.reshape(n, c // by**2, by, by, h, w), x)
    order = [0, 1, 4, 2, 5, 3]
    return [to.step("view", out, to.step("permute", parts.permute(order), parts, dims=order))]


def _mean(to: Recorder, out: Tensor, x: Tensor, dims: Sequence[int], keep: bool = False) -> Any:
    return keep and [dim % x.ndim for dim in dims] == [x.ndim - 1] and [to.step("mean", out, x)]


def _layer_norm(to: Recorder, out: Sequence[Tensor], x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    return len(shape) == 1 and _scaled(to, out[0], to.step("normed", torch.empty_like(x), x, eps=eps), weight, bias)


def _group_norm(to: Recorder, out: Sequence[Tensor], x: Tensor, weight: Any, bias: Any, *how: Any) -> Any:
    n, _, _, groups, eps = how
    rows = to.step("view", x.reshape(n, groups, -1), x)
    normed = to.step("view", torch.empty_like(x), to.step("normed", torch.empty_like(rows), rows, eps=eps))
    aside = [1] * (x.ndim - 2)
    weight, bias = (None if one is None else one.reshape(-1, *aside) for one in (weight, bias))
    return _scaled(to, out[0], normed, weight, bias)


def _scaled(to: Recorder, out: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Any:
    """`out` is x, times a weight, plus a bias, where there are such."""
    x = x if weight is None else to.step("mul", torch.empty_like(x), x, weight)
    return [to.step("view", out, x) if bias is None else to.step("add", out, x, bias)]


def _attention(to: Recorder, out: Sequence[Tensor], q: Tensor, k: Tensor, v: Tensor, *more: Any) -> Any:
    return not any(more) and [to.step("attention", out[0], q, k, v)]


OPERATIONS: dict[str, Writer] = {
    **dict.fromkeys(("view", "_unsafe_view", "unsqueeze", "squeeze", "clone", "detach"), _one("view")),
    **{name: _one(name) for name in ("silu", "sigmoid", "rsqrt")},
    "addmm": lambda to, out, bias, x, weight: [to.step("linear", out, x, weight, bias)],
    "mm": _two("linear"),
    "embedding": _two("rows"),
    "add": _two("add"),
    "add_": _two("add"),  # the sum has the name from here on
    "sub": _less,
    "mul": _two("mul"),
    "div": lambda to, out, x, by: id(by) not in to.drawn and [to.step("mul", out, x, 1 / by)],  # known beforehand
    "neg": lambda to, out, x: [to.step("mul", out, x, -1.0)],
    "pow": _square,
    "addcmul": _addcmul,
    "clamp": lambda to, out, x, low, high: (low, high) == (0, 1) and [to.step("clamp", out, x)],
    "mean": _mean,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "convolution": _convolution,
    "upsample_bilinear2d": _bilinear,
    "pixel_shuffle": _pixel_shuffle,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _unbind,
    "cat": _join,
    "stack": _stack,
    "permute": _permute,
    "transpose": _transpose,
}
"""How each operation of PyTorch is written; a view and a copy are one thing where nothing is overwritten."""
CONSTANT = ("new_ones", "new_zeros", "ones_like", "zeros_like")  # which take no more than a shape from what is drawn


def _half(tensor: Tensor) -> Tensor:
    """A copy: whole numbers as int32, others as float16. Raises Unwritable for what that cannot hold."""
    tensor = tensor.detach().clone()
    if not tensor.is_floating_point():
        return tensor.to(torch.int32).contiguous()
    half = tensor.to(torch.float16).contiguous()
    if not half.isfinite().all():
        raise Unwritable("a weight of the generator is beyond half precision")
    return half


def _base64(tensor: Tensor) -> str:
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()
