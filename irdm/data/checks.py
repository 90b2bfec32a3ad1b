"""What images must be before anything is fitted to them or judged: refused at once, in a line that says how to mend it.

`irdm reference build`, `irdm eval` and `irdm train` ask here first. What need not be refused, but must be known, comes
back as notes.
"""

from __future__ import annotations

from irdm.data.base import Dataset, Shape, Split, shared
from irdm.data.image_source import ImageSource, printable
from irdm.data.images import Pictures
from irdm.ops.sampling import generator_for, sample_indices
from irdm.progress import Say

MIN_IMAGES = 50  # below this the jackknife's folds and the balls of five neighbours say nothing
PROBED = 256  # images whose headers are looked at, for notes


def check_real(dataset: Dataset, *, fewest: int = MIN_IMAGES, progress: Say | None = None) -> list[str]:
    """Look at every real image once; notes on what is done to them.

    Raises ValueError for fewer than `fewest` images of train or of val, images that cannot be used (each is named),
    repeats of a few, train images in val (`irdm.data.base.shared`), and sides of unlike sizes or colours.
    """
    sides = {"train": dataset.train, "val": dataset.val}
    pictures = [split for split in sides.values() if isinstance(split, Pictures)]
    if len({split.source for split in pictures}) == 1:  # one place, whose repeats may be what left val so few
        _check_repeats("train", dataset.train, fewest, progress)
    for side, split in sides.items():
        if len(split) < fewest:
            raise ValueError(
                f"{split.name} has {len(split)} {side} image(s); at least {fewest} of train and of val are needed, and "
                "thousands to mean something."
            )
    for side, split in sides.items():
        _check_repeats(side, split, fewest, progress)
    copies = shared(dataset.train, dataset.val)
    notes = [f"{dataset.name}: {note}" for note in dataset.notes]
    notes += [f"warning: {copies} of the {len(dataset.val)} val images are also train images"] if copies else []
    if len(pictures) == 2:
        _check_alike(*pictures)
        done = {note for split in pictures for note in handling(split.source, split.image_shape)}
        notes += [f"{dataset.name}: {note}" for note in sorted(done)]
    return notes


def check_judged(source: ImageSource, progress: Say | None = None) -> None:
    """Look at every judged image once.

    Raises ValueError for fewer than 50 images, or fewer than 50 different ones, and naming all that cannot be used.
    """
    where, needs = printable(str(source.path)), f"an evaluation needs at least {MIN_IMAGES}"
    if len(source) < MIN_IMAGES:
        raise ValueError(f"{where} holds {len(source)} image(s); {needs}, and thousands to mean something.")
    rows = range(len(source))
    source.look(rows, progress)
    if (different := len(set(source.digests(rows)))) < MIN_IMAGES:
        raise ValueError(
            f"{where} holds {len(source)} images, but only {_different(different)}; {needs}. Were they all written "
            "from one batch, or one seed?"
        )


def handling(source: ImageSource, image_shape: Shape) -> list[str]:
    """What is done to images that are not as the real side has them, from the headers of some of them."""
    rows = sample_indices(len(source), PROBED, generator_for("sizes", 0)).tolist()
    found = [*source.headers(rows)]
    channels, height, width = image_shape
    sizes, notes = sorted({(header.width, header.height) for header in found}), []
    if sizes and sizes != [(width, height)]:
        few = " and ".join(f"{w} x {h}" for w, h in (sizes if len(sizes) < 3 else (sizes[0], sizes[-1])))
        few = few if len(sizes) < 3 else f"of {len(sizes)} sizes, such as {few}"
        notes.append(f"Images are {few}: each is centre-cropped and resized to {width} x {height}.")
    if clear := sum(header.alpha for header in found):
        notes.append(
            f"{clear} of {len(found)} images looked at have an alpha channel: what is transparent in them is laid over "
            "white. Tools that drop the channel see other pixels."
        )
    if found and channels == 3 and all(header.grey for header in found):
        notes.append("Images are grey, where colour is expected: the three channels are alike.")
    if channels == 1 and (coloured := sum(not header.grey for header in found)):
        notes.append(
            f"{coloured} of {len(found)} images looked at are stored in colour, where grey is expected: only their "
            "brightness counts (ITU-R 601)."
        )
    return notes


def beforehand(source: ImageSource, image_shape: Shape, held_out: int) -> list[str]:
    """What a reader must know of images that are judged by so many held-out ones of this shape, before they are."""
    notes, count = handling(source, image_shape), len(source)
    if count > held_out:
        notes.append(
            f"{count} images are judged, and {held_out} are held out: a ratio compares draws of at most "
            f"{held_out // 2}, and scores of nearest neighbours take {held_out} of the judged images."
        )
    return notes


def check_beside(source: ImageSource, dataset: Dataset) -> list[str]:
    """Look at judged images beside the real ones that encoders will be fitted to: repeats, real images, `beforehand`.

    Raises ValueError when every judged image is a held-out one.
    """
    digests = source.digests(range(len(source)))
    train, val = ({*split.digests} for split in (dataset.train, dataset.val))
    seen, held = (sum(digest in side for digest in digests) for side in (train, val))
    repeats = len(digests) - len({*digests})
    if held == len(digests):
        raise ValueError(
            f"All {held} images of {printable(str(source.path))} are held-out images of {dataset.name}, so that "
            "nothing can be said of them. Judge other images, or compare with other real ones."
        )
    notes = [f"{repeats} of the {len(digests)} judged images are repeats of others, to the pixel."] if repeats else []
    for count, side in ((seen, "train"), (held, "held-out")):
        notes += [f"{count} of the {len(digests)} judged images are {side} images of {dataset.name}."] if count else []
    return notes + beforehand(source, dataset.image_shape, len(dataset.val))


def _check_repeats(side: str, split: Split, fewest: int, progress: Say | None) -> None:
    split.look(progress)
    if 2 * (different := len(set(split.digests))) < len(split) or different < fewest <= len(split):
        raise ValueError(
            f"{split.name} has {len(split)} {side} images, but only {_different(different)}: what real images score "
            "cannot be told from repeats. Remove them."
        )


def _check_alike(train: Pictures, val: Pictures) -> None:
    """Raises ValueError when the sides differ in what a program did to them: that would pass for a distance."""
    sizes = [{(header.width, header.height) for header in _some(split)} for split in (train, val)]
    if max(map(len, sizes)) == 1 and sizes[0] != sizes[1]:
        looks = [" x ".join(map(str, next(iter(found)))) for found in sizes]
    elif train.source is not val.source and train.image_shape[0] == 3 and train.source.channels != val.source.channels:
        looks = ["grey" if split.source.channels == 1 else "in colour" for split in (train, val)]
    else:
        return
    raise ValueError(
        f"The images of {train.name} are {looks[0]} and those of {val.name} {looks[1]}; expected the same of both: "
        "what resizing or colour leaves would pass for a difference. Prepare both alike, or hold some of train out."
    )


def _some(split: Pictures) -> list:
    return [*split.source.headers(split.rows[:PROBED].tolist())]


def _different(count: int) -> str:
    return "one picture, over and over" if count == 1 else f"{count} different ones"
