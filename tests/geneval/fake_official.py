"""An environment and a repository that look like the official scorer's; how it behaves lies in its weights."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPT = """
import argparse, json, os, re, sys
import mmdet, torch
parser = argparse.ArgumentParser()
parser.add_argument("imagedir")
parser.add_argument("--outfile")
parser.add_argument("--model-config")
parser.add_argument("--model-path")
parser.add_argument("--options", nargs="*")
args = parser.parse_args()
options = dict(option.split("=", 1) for option in args.options)
behaviour = open(os.path.join(args.model_path, options["model"] + ".pth")).read().strip()
assert open(args.model_config).read() == "config", "another configuration"
assert "PYTHONPATH_OF_IRDM" not in os.environ
if behaviour == "crash":
    sys.exit("AssertionError: the weights do not fit")
found = []
for place in os.listdir(args.imagedir):
    folder = os.path.join(args.imagedir, place)
    if not os.path.isdir(folder) or not place.isdigit():
        continue
    metadata = json.load(open(os.path.join(folder, "metadata.jsonl")))
    for name in os.listdir(os.path.join(folder, "samples")):
        if re.match(r"\\d+\\.png", name):
            found.append({"filename": os.path.join(folder, "samples", name), "tag": metadata["tag"],
                          "prompt": metadata["prompt"], "correct": behaviour != "blind",
                          "reason": "", "metadata": json.dumps(metadata), "details": "{}"})
if behaviour == "short":
    found = found[1:]
if behaviour == "untagged":
    found = [line for line in found if line["tag"] != "counting"]
if behaviour == "silent":
    sys.exit(0)
print("looked at", len(found), file=sys.stderr)
with open(args.outfile, "w") as file:
    file.write("\\n".join(json.dumps(line) for line in found if behaviour != "empty") + "\\n")
"""


def install(folder: Path, behaviour: str = "good", cuda: bool = True, without: tuple[str, ...] = ()) -> dict[str, Path]:
    """The four paths that `OfficialScorer` takes; modules of `without` are not there."""
    modules, repo = folder / "modules", folder / "repo" / "evaluation"
    for place in (modules, repo):
        place.mkdir(parents=True, exist_ok=True)
    for name in ("mmdet", "mmcv", "open_clip", "clip_benchmark", "pandas"):
        text = "raise ImportError('not installed here')" if name in without else "__version__ = '1.2'"
        (modules / f"{name}.py").write_text(text)
    (modules / "torch.py").write_text(
        f"__version__ = '2.0'\nclass cuda:\n    is_available = staticmethod(lambda: {cuda})\n"
    )
    (repo / "evaluate_images.py").write_text(SCRIPT)
    (repo / "object_names.txt").write_text("person\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{modules}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / "config.py").write_text("config")
    (folder / "mask2former.pth").write_text(behaviour)
    return {
        "python": python, "repo": folder / "repo", "config": folder / "config.py",
        "weights": folder / "mask2former.pth",
    }  # fmt: skip
