"""The captioned world: pictures, captions and the judge agree exactly, and the judge falls under damage."""

import re
from functools import cache
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from irdm.world import CATEGORIES, COLOURS, SHAPES, Ask, Part, captions_of, correct, embed, is_held_out, make, read
from irdm.world.captions import paraphrases, placements
from irdm.world.judge import UNCLEAR, read_scenes, shows
from irdm.world.scene import CELLS, EMPTY, code, draw_scenes, join_cells, named, split_cells, templates
from irdm.world.splits import compositions


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@cache
def real(side="seen", count=1800):
    return make(count, 1, side)


def by_category(images, captions):
    right = correct(images, captions)
    return {
        name: right[[read(text).category == name for text in captions]].float().mean().item() for name in CATEGORIES
    }


def blurred(images, sigma):
    line = torch.exp(-(torch.arange(-4, 5.0) ** 2) / (2 * sigma**2))
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    padded = F.pad(images.flatten(0, 1)[:, None], (4, 4, 4, 4), mode="replicate")
    return F.conv2d(padded, kernel).reshape(images.shape)


def test_pictures_are_whole_levels_and_follow_the_seed():
    images, captions, category = real()
    assert images.shape == (1800, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert torch.equal((images * 255).round() / 255, images)
    assert torch.bincount(category).tolist() == [300] * 6
    again, same, _ = make(60, 1, "seen")
    other, texts, _ = make(60, 2, "seen")
    assert torch.equal(again, make(60, 1, "seen")[0]) and same == make(60, 1, "seen")[1]
    assert not torch.equal(again, other) and same != texts


def test_every_scene_is_read_back_whatever_is_in_it():
    cells = torch.randint(-1, len(SHAPES) * len(COLOURS), (4000, CELLS), generator=seeded())
    assert torch.equal(read_scenes(draw_scenes(cells, seeded(1))), cells)


@pytest.mark.parametrize("side", ["seen", "held-out"])
def test_real_pictures_are_right(side):
    images, captions, _ = real(side)
    assert correct(images, captions).float().mean() >= 0.995


def test_the_judge_falls_under_damage():
    images, captions, _ = real()
    blur = [correct(blurred(images, sigma), captions).float().mean().item() for sigma in (0.3, 0.7, 1.0, 1.5)]
    noise = [
        correct(images + sigma * torch.randn(images.shape, generator=seeded()), captions).float().mean().item()
        for sigma in (0.02, 0.07, 0.2)
    ]
    assert blur == sorted(blur, reverse=True) and blur[0] > 0.99 and blur[-1] < 0.2
    assert noise == sorted(noise, reverse=True) and noise[0] > 0.99 and noise[-1] < 0.05
    swapped = by_category(images.flip(1), captions)  # red for blue
    plain = by_category(images, captions)
    assert swapped["color_attr"] < 0.4 and swapped["colors"] < 0.6 and min(plain.values()) == 1
    assert by_category(images.flip(3), captions)["position"] < 0.6


def test_a_missing_or_further_object_is_wrong_always():
    images, captions, _ = real()
    cells = read_scenes(images)
    fewer, more = cells.clone(), cells.clone()
    for row in range(len(cells)):
        fewer[row, (cells[row] != EMPTY).nonzero()[0]] = EMPTY
        free = (cells[row] == EMPTY).nonzero()
        more[row, free[0] if len(free) else 0] = code("cross", "green") if len(free) else EMPTY
    assert not correct(draw_scenes(fewer, seeded()), captions).any()
    assert not correct(draw_scenes(more, seeded()), captions).any()


def test_what_is_no_picture_of_the_world_is_unclear():
    assert (read_scenes(torch.rand(8, 3, 16, 16, generator=seeded())) == UNCLEAR).all()
    assert (read_scenes(torch.full((2, 3, 16, 16), torch.nan)) == UNCLEAR).all()
    assert (read_scenes(torch.full((2, 3, 16, 16), 0.2)) == EMPTY).all()
    orange = draw_scenes(torch.full((4, CELLS), code("square", "red")), seeded())
    orange[:, 1] += 0.32 * (orange[:, 0] > 0.7)  # a colour between red and yellow
    assert (read_scenes(orange) == UNCLEAR).all()
    with pytest.raises(ValueError, match=r"\[n, 3, 16, 16\]"):
        read_scenes(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="expected \\[n, 4\\]"):
        draw_scenes(torch.full((1, CELLS), 24), seeded())
    with pytest.raises(ValueError, match="give one each"):
        correct(torch.zeros(2, 3, 16, 16), ["a circle"])


def test_cells_and_templates():
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    assert torch.equal(join_cells(split_cells(images)), images[:, :, 1:-1, 1:-1])
    bank = templates()
    assert bank.coverage.shape == (56, 7, 7) and torch.bincount(bank.shape).tolist() == [14] * 4
    area = bank.coverage.sum((1, 2))
    assert torch.allclose(area[(bank.shape == 0) & (bank.size == 2)], torch.tensor(49 * 0.7854), rtol=0.01)
    assert [named(code(*kind)) for kind in product(SHAPES, COLOURS)] == [*product(SHAPES, COLOURS)]


def test_every_caption_is_read_as_what_it_was_written_for():
    asks = [ask for of in compositions().values() for ask in of]
    assert len(asks) == len(set(asks)) == 460
    for ask in asks:
        assert {read(text) for text in paraphrases(ask)[::7]} == {ask}


def test_tau_is_the_same_exactly_for_what_the_same_scenes_show():
    asks = [ask for of in compositions().values() for ask in of]
    rows = embed([paraphrases(ask)[-1] for ask in asks])
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)))
    means: dict = {}
    for ask, row in zip(asks, rows.tolist(), strict=True):
        means.setdefault(tuple(row), set()).add(ask.meaning)
    assert all(len(of) == 1 for of in means.values()) and len(means) == len({ask.meaning for ask in asks})
    near = embed(["a red circle", "a disc that is red", "a blue circle", "two crosses"])
    assert torch.equal(near[0], near[1]) and near[0] @ near[2] > near[0] @ near[3]
    assert torch.equal(*embed(["a box above a disc", "a circle below a square"]))
    assert torch.equal(*embed(["a box and a box", "two squares"]))
    assert not torch.equal(*embed(["a box above a disc", "a disc above a box"]))


def test_held_out_compositions_are_in_no_training_caption_or_picture():
    seen, held = captions_of("seen"), captions_of("held-out")
    texts = [{text for of in side.values() for _, some in of for text in some} for side in (seen, held)]
    assert not texts[0] & texts[1] and len(texts[0]) > 2000 and set(held) == set(CATEGORIES)
    for category in CATEGORIES[1:]:
        meanings = [{ask.meaning for ask, _ in side[category]} for side in (seen, held)]
        assert meanings[0] and meanings[1] and not meanings[0] & meanings[1]
        assert all(is_held_out(ask) for ask, _ in held[category])
    shown = {named(cell) for row in read_scenes(real()[0]).tolist() for cell in row if cell >= 0}
    assert len(shown) == 20 and not any(is_held_out(Ask((Part(*kind),))) for kind in shown)


def test_scenes_are_what_was_asked_for_and_nothing_else():
    red, blue = code("circle", "red"), code("square", "blue")
    assert shows([red, blue, EMPTY, EMPTY], read("a circle left of a square"))
    assert shows([red, EMPTY, EMPTY, blue], read("a circle left of a square"))
    assert not shows([red, EMPTY, blue, EMPTY], read("a circle left of a square"))
    assert shows([red, EMPTY, blue, EMPTY], read("a red circle over a blue box"))
    assert not shows([red, EMPTY, blue, EMPTY], read("a blue circle over a red box"))
    assert not shows([red, EMPTY, blue, EMPTY], read("a circle"))
    assert not shows([red, UNCLEAR, EMPTY, EMPTY], read("a circle"))
    assert shows([red, red, blue, EMPTY], read("a red circle and a box with a disc"))
    assert len(placements(read("two circles left of a square"))) == 2


@pytest.mark.parametrize(
    ("caption", "says"),
    [
        ("a red sircle", "'sircle' is unknown; did you mean 'circle'?"),
        ("a grean dog", "'grean' is unknown; did you mean 'green'?.*'dog' is unknown"),
        ("five circles", "asks for 5 objects; a scene has 4 cells"),
        ("two circles and three squares", "asks for 5 objects; a scene has 4 cells"),
        ("99 circles", "asks for 99 objects"),
        ("three circles left of a square", "No scene can show 'three circles left of a square'"),
        ("a red blue circle", "the colours red and blue; name one"),
        ("a red circle that is blue", "the colours red and blue"),
        ("zero circles", "is nothing; leave it out"),
        ("a circle left of a square above a cross", "has 2 relations; at most one"),
        ("a circle square", "cannot be read at 'a circle square'"),
        ("a photo of", "cannot be read at 'a photo of'"),
        ("circle", "cannot be read at 'circle'; expected such as"),
        ("a circle left of", "cannot be read at 'nothing'"),
        ("", "cannot be read at 'nothing'"),
    ],
)
def test_bad_captions(caption, says):
    with pytest.raises(ValueError, match=re.compile(says, re.DOTALL)):
        read(caption)
