"""`irdm eval SOURCE --reference REF`: images of a run, a folder or an archive, judged against a reference."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irdm.commands.reference import find_reference
from irdm.data.sources import ImageSource, open_source
from irdm.distributed import Ranks
from irdm.encoders.weights import weights_folder
from irdm.judging import Judge, evaluate_source
from irdm.metrics.pickscore import PickScore
from irdm.report import write_evaluation_report
from irdm.run import resolve_device
from irdm.sample import sample_run

ROWS = (
    ("sw_ratio", "sliced Wasserstein ratio"),
    ("mmd_ratio", "MMD ratio"),
    ("frechet_ratio", "Frechet ratio"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("density", "density"),
    ("coverage", "coverage"),
    ("closeness", "closeness to train"),
    ("authenticity", "authenticity"),
    ("copies", "copies of train"),
)


def main(argv: Sequence[str]) -> int:
    """Run `irdm eval SOURCE --reference REF`; returns 0. Raises ValueError and OSError with what a user can do."""
    parser = argparse.ArgumentParser(
        prog="irdm eval",
        description="Judge images against a reference under every encoder of its panel, in one pass. Writes "
        "result.json and report.html. 1.00 is a fresh draw of real images. Under torchrun, several processes "
        "share the work.",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a run directory, a folder of images, or a .zip, .tar, .npz or .npy of images",
    )
    parser.add_argument("--reference", type=Path, required=True, metavar="REF", help="from `irdm reference build`")
    parser.add_argument(
        "--panel",
        metavar="NAMES",
        help="only these encoders of the reference, such as inception,dinov2; means are then named partial",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="DIR", help="weights of pretrained encoders (see irdm encoders)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: evaluations/SOURCE-against-REF")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of every draw (default: 0)")
    parser.add_argument(
        "--micro-batch", type=int, default=64, metavar="N", help="images embedded at once (default: 64)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="images to draw from a run (default: a full draw's)")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="adds PickScore: a line an image, in the order of the images' names, or one line with {class} in it",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = parser.parse_args(argv)

    device = resolve_device(given.device)
    ranks = Ranks.start(device)
    say = (lambda text: print(text, flush=True)) if ranks.is_main else (lambda text: None)
    judge = Judge(find_reference(given.reference), device)
    names = None if given.panel in (None, judge.folder.plan["panel"]) else given.panel.split(",")
    out = given.out or Path("evaluations") / f"{given.source.resolve().stem}-against-{judge.folder.name}"
    encoders = judge.battery(names, given.weights).encoders
    source = _images(given, judge, out, ranks, say)
    result = evaluate_source(
        source,
        judge,
        out,
        encoders=dict(encoders.items()),
        weights=given.weights,
        seed=given.seed,
        micro_batch=given.micro_batch,
        prompts=given.prompts and read_prompts(given.prompts, source),
        scorer=_scorer(given.weights, device) if given.prompts else None,
        ranks=ranks,
        command=shlex.join(["irdm", "eval", *argv]),
        progress=say,
    )
    if result:
        _show(result)
        print(f"\nresult: {out / 'result.json'}\nreport: {write_evaluation_report(out)}")
    return 0


def read_prompts(path: Path, source: ImageSource) -> list[str]:
    """The prompt of each image of a source. Raises ValueError unless there is one line an image, or a template."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) == 1 and "{class}" in lines[0]:
        return [lines[0].replace("{class}", source.class_names[label]) for label in source.labels.tolist()]
    if len(lines) != len(source):
        raise ValueError(
            f"{path} has {len(lines)} lines and {source.path} {len(source)} images; give a line an image, in the order "
            "of the images' names, or a single line such as: a photo of a {class}"
        )
    return lines


def _images(given: argparse.Namespace, judge: Judge, out: Path, ranks: Ranks, say: Any) -> ImageSource:
    """The source's images; those of a run are drawn first, into `out`, and then are as any others."""
    if not (given.source / "config.json").is_file():
        return open_source(given.source)
    drawn = out / f"generated-seed-{given.seed}.npz"
    if ranks.is_main:
        count = given.count or judge.draw_rows
        say(f"drawing {count} images from {given.source}")
        sample_run(given.source, count=count, seed=given.seed, format="npz", out=drawn)
    ranks.barrier()
    return open_source(drawn)


def _scorer(weights: Path | None, device: str) -> PickScore:
    local = weights_folder(weights) / "pickscore"
    return PickScore.load(local if local.is_dir() else None, device=device)


def _show(result: Mapping[str, Any]) -> None:
    """The short table at the end."""
    print(f"\n{'':27}{'all':>8}{'held in':>9}{'held out':>9}   {'95% interval':16}{'real':>7}")
    for name, label in ROWS:
        if name in result:
            score = result[name]
            cells = [_number(score.get(group)) for group in ("mean", "held_in", "held_out", "real_control")]
            span = " to ".join(map(_number, score["ci95"])) if score.get("ci95") else ""
            print(f"{label:27}{cells[0]:>8}{cells[1]:>9}{cells[2]:>9}   {span:16}{cells[3]:>7}")
    for name, row in result["frechet_distance"]["per_encoder"].items():
        cells = _number(row["value"]), _number(row["real_control"])
        print(f"{row['name']:27}{cells[0]:>8}{'':37}{cells[1]:>7}  {name}")
    if "pickscore" in result:
        print(f"{'PickScore':27}{_number(result['pickscore']['value']):>8}")
    for warning in result["warnings"]:
        print(f"\nnote: {warning}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"
