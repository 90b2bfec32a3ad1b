"""Judge photographs: degraded and fresh crops of two photographs against others of them, without any weights.

python examples/photographs.py [FOLDER] makes folders of crops, builds a reference from train and val, judges a fresh
and a blurred folder, and compares the two. Minutes on two cores; each step is one command line.
"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from irdm.cli import main as irdm

CROP, COUNTS, STEPS = 64, {"train": 600, "val": 400, "fresh": 200}, 100


def write_crops(folder: Path) -> None:
    """Crops of both photographs, one folder a photograph: no two splits share a strip of either."""
    rng = random.Random(0)
    strips = 24
    for number, pixels in enumerate(load_sample_images().images):
        picture = Image.fromarray(pixels)
        width = picture.width // strips
        for place, (split, count) in enumerate(COUNTS.items()):
            columns = [strip * width for strip in range(strips) if strip % len(COUNTS) == place]
            for i in range(count // 2):
                left, top = rng.choice(columns), rng.randrange(picture.height - CROP)
                crop = picture.crop((left, top, left + width, top + CROP))
                save(crop, folder / split / f"photograph-{number}" / f"{i:04d}.png")
                if split == "fresh":
                    blurred = crop.filter(ImageFilter.GaussianBlur(1.5))
                    save(blurred, folder / "blurred" / f"photograph-{number}" / f"{i:04d}.png")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def main(folder: Path) -> None:
    write_crops(folder)
    reference = str(folder / "reference")
    sources = ["--train", str(folder / "train"), "--val", str(folder / "val")]
    run("reference", "build", "photographs", *sources, "--out", reference, "--battery-steps", str(STEPS))
    for split in ("fresh", "blurred"):
        run("eval", str(folder / split), "--reference", reference, "--out", str(folder / f"judged-{split}"))
    run("compare", str(folder / "judged-fresh"), str(folder / "judged-blurred"))


def run(*words: str) -> None:
    if irdm(words):
        raise SystemExit(f"irdm {' '.join(words)} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "photographs"))
