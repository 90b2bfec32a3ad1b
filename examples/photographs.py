"""Judge photographs: fresh and faded squares of two photographs against other squares of them, without any weights.

python examples/photographs.py [FOLDER] cuts two photographs into squares that are dealt out to train, val and fresh,
builds a reference from train and val, judges the fresh squares and the same ones faded, and compares the two: half a
minute on one core. FOLDER/judged-fresh/report.html and FOLDER/judged-faded/report.html show what was found.
"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from irdm.cli import main as irdm

SIDE, SHARES, STEPS = 16, {"train": 2, "val": 1, "fresh": 1}, 150


def write_squares(folder: Path) -> None:
    """Squares of both photographs, one folder a photograph: none overlaps another, and each goes to one split."""
    for number, pixels in enumerate(load_sample_images().images):
        picture = Image.fromarray(pixels)
        corners = [(x, y) for x in range(0, picture.width - SIDE, SIDE) for y in range(0, picture.height - SIDE, SIDE)]
        random.Random(number).shuffle(corners)
        splits = [split for split, share in SHARES.items() for _ in range(share)]
        for i, (x, y) in enumerate(corners):
            square, name = picture.crop((x, y, x + SIDE, y + SIDE)), f"photograph-{number}/{x:03d}-{y:03d}.png"
            split = splits[i % len(splits)]
            save(square, folder / split / name)
            if split == "fresh":
                save(ImageEnhance.Contrast(square).enhance(0.6), folder / "faded" / name)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def main(folder: Path) -> None:
    """The four commands, as they would be typed."""
    write_squares(folder)
    reference, judged = folder / "reference", {name: folder / f"judged-{name}" for name in ("fresh", "faded")}
    sources = ("--train", folder / "train", "--val", folder / "val")
    run("reference", "build", "photographs", *sources, "--out", reference, "--size", SIDE, "--battery-steps", STEPS)
    for name, out in judged.items():
        run("eval", folder / name, "--against", reference, "--out", out)
    run("compare", judged["fresh"], judged["faded"])


def run(*words: object) -> None:
    if code := irdm([str(word) for word in words]):
        raise SystemExit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "photographs"))
