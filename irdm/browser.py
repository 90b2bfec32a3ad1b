"""A small generator as a page can run it: plain operations on arrays, and its weights in half precision.

A network is recorded as it draws, so a kind of generator need say nothing of itself as long as it is made of
OPERATIONS, each of which `irdm/report/draw.js` knows. `Generator.written` lets a kind give another function than its
forward.

Letters: n choices of a reader, k pictures to check by; c channels, h height, w width.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
            if step["op"] not in OPERATIONS.values() or not made.issuperset(step["in"]):
                raise ValueError(f"step {step['out']}")
            made.add(step["out"])
        if program.picture not in made or {tensor.dtype for tensor in tensors.values()} - TYPES.keys():
            raise ValueError("its arrays")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no generator for a page ({error}). {MEND}") from None
    return program


@torch.no_grad()
def program_of(generator: Generator, spec: Spec) -> Program:
    """Record a generator, which is in evaluation mode. Raises Unwritable."""
    if (numbers := sum(parameter.numel() for parameter in generator.parameters())) > MOST:
        raise Unwritable(f"the generator has {numbers:,} numbers, and a page holds {MOST:,} at most")
    device = next(generator.parameters()).device
    try:
        return _program(generator.cpu(), spec)  # a page computes as a CPU does
    finally:
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


OPERATIONS = {
    "addmm": "linear",
    "mm": "linear",
    "convolution": "convolution",
    "upsample_bilinear2d": "bilinear",
    "embedding": "rows",
    "addcmul": "add",
    "add": "add",
    "mul": "mul",
    "silu": "silu",
    "sigmoid": "sigmoid",
    "slice": "slice",
    "split": "slice",
    "split_with_sizes": "slice",
    "view": "view",
    "_unsafe_view": "view",
    "unsqueeze": "view",
    "squeeze": "view",
    "clone": "view",
    "detach": "view",
}
"""What the page calls each operation of PyTorch; a view and a copy are one thing where nothing is overwritten."""


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
        if any(id(leaf) in self.drawn for leaf in tree_leaves((args, kwargs))):
            self._write(str(func).split(".")[1], args, dict(kwargs or {}), out)
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
        op = OPERATIONS.get(kind)
        options.pop("memory_format", None)
        if options:
            op = None
        elif op in ("view", "silu", "sigmoid") or (op == "bilinear" and not args[2]):
            self._step(op, args[:1], out)
        elif kind == "addmm":
            self._step(op, (args[1], args[2], args[0]), out)
        elif kind == "addcmul":
            product = args[1] * args[2]
            self._step("mul", args[1:3], product)
            self._step(op, (args[0], product), out)
        elif op in ("add", "mul", "linear", "rows") and len(args) == 2:
            self._step(op, args, out)
        elif op == "convolution" and [*args[3], *args[5], *args[6:]] == [1, 1, 1, 1, False, [0, 0], 1]:
            self._step(op, [given for given in args[:3] if given is not None], out, pad=[*args[4]])
        elif kind == "slice" and len(args) < 5:
            self._step(op, args[:1], out, dim=args[1] % out.ndim, start=args[2] or 0)
        elif op == "slice" and kind != "slice":
            dim, start = (args[2] if len(args) > 2 else 0) % args[0].ndim, 0
            for part in out:
                self._step(op, args[:1], part, dim=dim, start=start)
                start += part.shape[dim]
        else:
            op = None
        if op is None:
            raise Unwritable(f"the generator uses {kind} in a way that a page cannot; see irdm.browser.OPERATIONS")

    def _step(self, op: str | None, given: Sequence[Tensor | float], out: Tensor, **more: Any) -> None:
        name = self.names[id(out)] = f"s{len(self.steps)}"
        self.drawn.add(id(out))
        self.kept.append(out)
        self.steps.append({"op": op, "out": name, "in": [*map(self._name, given)], "shape": [*out.shape], **more})

    def _name(self, value: Tensor | float) -> str:
        tensor = value if isinstance(value, Tensor) else torch.tensor(float(value))
        if id(tensor) not in self.names:
            self.kept.append(tensor)
            self.names[id(tensor)] = f"w{len(self.weights)}"
            self.weights[self.names[id(tensor)]] = _half(tensor)
        return self.names[id(tensor)]


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
