"""GenEval in the captioned world: a file of prompts, real pictures of them, and the exact judge as its scorer."""

import json

import pytest
import torch
from PIL import Image

from irdm.geneval import read_prompts, render, score_folder
from irdm.geneval.exact import ExactScorer, prompt_of, write_world_prompts
from irdm.geneval.layout import TeacherSamples
from irdm.geneval.prompts import PUBLISHED
from irdm.world import captions_of, picture


def draws(captions, seeds):
    return torch.cat(
        [picture([text], torch.Generator().manual_seed(s)) for text, s in zip(captions, seeds, strict=True)]
    )


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """The prompts of a held-out file, and a folder of real pictures of them."""
    folder = tmp_path_factory.mktemp("exact")
    write_world_prompts(folder / "prompts.jsonl", "held-out")
    prompts = read_prompts(folder / "prompts.jsonl")
    images = TeacherSamples(draws, (3, 16, 16), [prompt.prompt for prompt in prompts.prompts], 1)
    render(images, prompts, folder / "images", micro_batch=64)
    return prompts, folder / "images"


def test_a_caption_as_a_line_of_genevals_file():
    assert prompt_of("a photo of a disc left of a red box").metadata == {
        "tag": "position",
        "include": [
            {"class": "square", "count": 1, "color": "red"},
            {"class": "circle", "count": 1, "position": ["left of", 0]},
        ],
        "exclude": [
            {"class": name, "count": count}
            for name, count in {"circle": 2, "square": 2, "triangle": 1, "cross": 1}.items()
        ],
        "prompt": "a photo of a disc left of a red box",
    }  # fmt: skip


def test_real_pictures_score_one_and_a_wrong_one_is_named(held_out):
    prompts, folder = held_out
    assert all(0 < count <= PUBLISHED[tag] for tag, count in prompts.counts.items())
    trained_on = {text for of in captions_of("seen").values() for _, some in of for text in some}
    assert not trained_on & {prompt.prompt for prompt in prompts.prompts}
    scored, _ = score_folder(folder, prompts, ExactScorer(), floor=1)
    assert scored.overall.value == 1 and scored.kind == "exact" and all(r.value == 1 for r in scored.rates.values())
    place = folder / "00000" / "samples" / "0000.png"
    kept = place.read_bytes()
    Image.new("RGB", (16, 16), (60, 60, 60)).save(place)
    scored, out = score_folder(folder, prompts, ExactScorer(), floor=0)
    verdict = json.loads((out.parent / "verdicts.jsonl").read_text().splitlines()[0])
    assert not scored.images[0].correct and verdict["reason"] == "shows nothing, nothing, nothing, nothing"
    assert scored.rates["single_object"].value == pytest.approx(1 - 1 / prompts.counts["single_object"])
    Image.new("RGB", (32, 32)).save(place)
    with pytest.raises(ValueError, match=r"0000.png: Got images \(1, 3, 32, 32\)"):
        score_folder(folder, prompts, ExactScorer(), floor=0)
    place.write_bytes(kept)


def test_a_line_that_says_something_else_than_its_prompt_is_refused(held_out, tmp_path):
    prompts, _ = held_out
    lines = [*{prompt.tag: prompt.metadata for prompt in prompts.prompts}.values()]  # one of each category
    lines[0] = {**lines[0], "prompt": "two circles"}
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    odd = read_prompts(tmp_path / "prompts.jsonl")
    images = TeacherSamples(draws, (3, 16, 16), [prompt.prompt for prompt in odd.prompts], 1)
    render(images, odd, tmp_path / "images", micro_batch=64)
    with pytest.raises(ValueError, match="0000.png: The prompt 'two circles' asks for something else"):
        score_folder(tmp_path / "images", odd, ExactScorer(), floor=0)
