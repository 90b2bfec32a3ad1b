"""A prompt file in GenEval's format, written here, and a generator that draws what it reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from irdm.conditions import PromptSpec
from irdm.generators import Generator
from irdm.geneval.layout import Samples, render
from irdm.geneval.prompts import PromptFile, read_prompts

SPEC = PromptSpec(embedder="none", width=4)
SHAPE = (3, 16, 16)


def line(tag, *include, exclude=None, prompt="a photo"):
    """One line; a clause is (class, count) with color=... or position=... as a dict behind it."""
    clauses = [{"class": name, "count": count, **(more[0] if more else {})} for name, count, *more in include]
    found = {"tag": tag, "include": clauses}
    if exclude:
        found["exclude"] = [{"class": name, "count": count} for name, count in exclude]
    return {**found, "prompt": prompt}


LINES = [
    line("single_object", ("bench", 1), prompt="a photo of a bench"),
    line("single_object", ("cow", 1), prompt="a photo of a cow"),
    line("two_object", ("bench", 1), ("cow", 1), prompt="a photo of a bench and a cow"),
    line("counting", ("bus", 2), exclude=[("bus", 3)], prompt="a photo of two buses"),
    line("colors", ("car", 1, {"color": "red"}), prompt="a photo of a red car"),
    line("position", ("bench", 1), ("cow", 1, {"position": ["left of", 0]}), prompt="a cow left of a bench"),
    line("color_attr", ("cup", 1, {"color": "blue"}), ("fork", 1, {"color": "green"}), prompt="a blue cup, a fork"),
    line("colors", ("cup", 1, {"color": "pink"}), prompt="a photo of a pink cup"),
]


def write_prompts(folder: Path, lines=LINES) -> Path:
    """evaluation_metadata.jsonl of some lines."""
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


class Reader(Generator):
    """Noise in a shade that the bytes of the caption decide; counts what it draws."""

    def __init__(self):
        super().__init__()
        self.noise_shape, self.drawn, self.weight = SHAPE, 0, nn.Parameter(torch.zeros(()))

    def forward(self, noise, captions):
        self.drawn += len(noise)
        shade = captions.float().sum(1).remainder(97)[:, None, None, None] / 97
        return torch.sigmoid(0.1 * noise + 4 * shade - 2 + self.weight)


def samples_of(prompts: PromptFile, samples=2, generator=None, **more) -> Samples:
    """The images of a prompt file."""
    texts = [prompt.prompt for prompt in prompts.prompts]
    return Samples(generator or Reader(), SPEC, SHAPE, texts, samples, identity="reader", **more)


def rendered_folder(path: Path, samples=2) -> tuple[Path, PromptFile]:
    """A folder that is whole, and its prompts."""
    prompts = read_prompts(write_prompts(path))
    render(samples_of(prompts, samples), prompts, path / "geneval")
    return path / "geneval", prompts
