"""The results page: what every recorded study found, beside what the paper says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from irdm.experiments.base import Study, Values
from irdm.files import write_atomic

HEAD = """\
# Results

What the paper claims (Feng et al., arXiv 2607.02375), what we found, and the command that finds it again. Every study
is a table of ordinary training runs (`irdm/experiments/`), one CPU thread each, with a mean and one standard deviation
over its seeds. Ratios divide a distance to real images by the same distance of fresh real images: 1 is real. Seeds
change the network, the noise and the references; the data split and the local encoders stay. `irdm experiment NAME
--record docs` writes this page from `docs/results/*.json`.

On digits arms differ from the recipe that `irdm train digits` had until 2026-11-30: a perceptron, six encoders that
train, the gated controller, 1024 images a step. On clothes they differ from `irdm train fashion`.

**The local battery has changed since** most of these were recorded: `batch`, `distance`, `gaming`, `estimator` and
`joint` have the encoders before those that see defects ([log](log.md#the-studies-again)); `battery`,
`pretrained`, `controller`, `peers`, `world` and `world-changes` have those of now. `spiral` needs none.
"""


def record(study: Study, out: Path, docs: Path, studies: Mapping[str, Study]) -> Path:
    """Copy the result and the figure of a finished study into `docs/results/` and write `docs/results.md` anew.

    Raises ValueError when the study ran at a reduced scale: only full results are kept.
    """
    result = json.loads((out / "result.json").read_text())
    if result["scale"] != 1:
        raise ValueError(f"{out} was run at scale {result['scale']}; only the full study is recorded (--scale 1).")
    folder = docs / "results"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(out / "figure.png", folder / f"{study.name}.png")
    write_atomic(folder / f"{study.name}.json", json.dumps(result, indent=1))
    return write_page(docs, studies)


def write_page(docs: Path, studies: Mapping[str, Study]) -> Path:
    """`docs/results.md` from the JSON files in `docs/results/`, in the order of the table of studies."""
    sections = []
    for name, study in studies.items():
        path = docs / "results" / f"{name}.json"
        if path.exists():
            sections.append(section(study, json.loads(path.read_text()), f"results/{name}.png"))
    write_atomic(docs / "results.md", "\n".join([HEAD, *sections]))
    return docs / "results.md"


def section(study: Study, result: dict, figure: str) -> str:
    """One study in Markdown: claims, table, the picture at the path `figure`, and how to repeat it."""
    claims = [
        f"| {claim['text']} | {claim['paper']} | {claim['ours']} | {'yes' if claim['holds'] else '**no**'} |"
        for claim in result["claims"]
    ]
    head = ["", *study.columns.values()]
    rows = [
        [name, *(str(Values(tuple(numbers[c]))) if c in numbers else "-" for c in study.columns)]
        for name, numbers in result["rows"].items()
    ]
    lines = [
        f"## {study.name}: {study.question}",
        "",
        study.title[0].upper() + study.title[1:] + ". " + study.notes,
        "",
        "| claim | paper | here | holds |",
        "|---|---|---|---|",
        *claims,
        "",
        f"![{study.title}]({figure})",
        "",
        "| " + " | ".join(head) + " |",
        "|---" + "|--:" * len(study.columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"`{result['command']}`, seeds {', '.join(map(str, result['seeds']))}, {result['date']}, {result['hardware']}, "
        f"torch {result['versions']['torch']}.",
        "",
    ]
    return "\n".join(lines)
