"""The folder that a scorer reads: its names, its noise, and what is refused of one that is not whole."""

import json

import numpy as np
import pytest
import torch
from geneval.small import LINES, SHAPE, SPEC, Reader, rendered_folder, samples_of, write_prompts
from PIL import Image

from irdm.conditions import ClassSpec, NoSpec
from irdm.distributed import Ranks
from irdm.geneval.layout import Samples, TeacherSamples, render, rendered, sample_seed
from irdm.geneval.prompts import read_prompts


@pytest.fixture
def prompts(tmp_path):
    return read_prompts(write_prompts(tmp_path))


def test_the_folder_is_the_official_one(tmp_path):
    folder, prompts = rendered_folder(tmp_path)
    for number, each in enumerate(LINES):
        place = folder / f"{number:05d}"
        assert json.loads((place / "metadata.jsonl").read_text()) == each
        assert sorted(path.name for path in (place / "samples").iterdir()) == ["0000.png", "0001.png"]
    found = rendered(folder, prompts)
    assert [sample.name for sample in found[:3]] == [
        "00000/samples/0000.png", "00000/samples/0001.png", "00001/samples/0000.png"
    ]  # fmt: skip
    assert found == rendered(folder, None), "the folder says its prompts itself"


def test_each_image_is_of_its_own_seed_and_prompt(tmp_path):
    folder, prompts = rendered_folder(tmp_path)
    generator, number, sample = Reader(), 5, 1
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(46_000_501))
    assert sample_seed(number, sample) == 46_000_501
    text = prompts.prompts[number].prompt
    drawn = generator(noise[None], **SPEC.named([text], 1).inputs())[0]
    expected = (drawn * 255).round().to(torch.uint8).permute(1, 2, 0).detach().numpy()
    found = np.array(Image.open(folder / f"{number:05d}" / "samples" / f"{sample:04d}.png"))
    assert (found == expected).all()


def test_what_is_there_is_not_drawn_again_and_ranks_share_the_rest(tmp_path, prompts):
    generator, out = Reader(), tmp_path / "out"
    images = samples_of(prompts, 3, generator)
    assert render(images, prompts, out, micro_batch=5) == generator.drawn == 24
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    kept = out / "00000/samples/0002.png"
    for path in before:
        if path != kept:
            path.unlink()

    class First(Ranks):  # of two that never speak
        def any(self, flag):
            return flag

    assert render(images, prompts, out, ranks=First(0, 2)) == 11
    assert render(images, prompts, out) == 12
    assert before == {path: path.read_bytes() for path in out.rglob("*.png")}, "the micro-batch decides nothing"


def test_a_sampler_that_makes_its_own_noise_is_given_the_same_seeds(tmp_path, prompts):
    asked, texts = [], [prompt.prompt for prompt in prompts.prompts]

    def draws(captions, seeds):
        asked.extend(zip(captions, seeds, strict=True))
        return torch.stack([torch.full(SHAPE, seed % 100 / 100) for seed in seeds])

    images = TeacherSamples(draws, SHAPE, texts, 2, identity="teacher")
    assert render(images, prompts, tmp_path / "out", micro_batch=3) == 16
    assert asked == [(text, 46_000_000 + 100 * i + s) for i, text in enumerate(texts) for s in range(2)]
    assert np.array(Image.open(tmp_path / "out/00003/samples/0001.png")).max() == round(2.55)
    assert len(rendered(tmp_path / "out", prompts)) == 16
    with pytest.raises(ValueError, match="something else"):
        render(TeacherSamples(draws, SHAPE, texts, 2, identity="student"), prompts, tmp_path / "out")
    images.draws = lambda captions, seeds: torch.full((len(seeds), *SHAPE), float("nan"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        images.read(torch.tensor([0]))


def test_a_folder_of_another_generator_is_left_alone(tmp_path, prompts):
    render(samples_of(prompts, 2), prompts, tmp_path / "out")
    with pytest.raises(ValueError, match="is a GenEval folder of something else"):
        render(samples_of(prompts, 3), prompts, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is no GenEval folder"):
        render(samples_of(prompts, 2), prompts, tmp_path / "mine")


def test_generators_of_other_conditions_are_refused(prompts):
    texts = [prompt.prompt for prompt in prompts.prompts]
    with pytest.raises(ValueError, match="draws no texts"):
        Samples(Reader(), ClassSpec(names=("cat", "dog")), SHAPE, texts, 2)
    with pytest.raises(ValueError, match="draws no texts"):
        Samples(Reader(), NoSpec(), SHAPE, texts, 2)


def test_an_image_that_is_not_finite_is_an_error(tmp_path, prompts):
    broken = Reader()
    torch.nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        render(samples_of(prompts, 1, broken), prompts, tmp_path / "out")


def test_a_folder_half_rendered_is_refused(tmp_path):
    folder, prompts = rendered_folder(tmp_path)
    (folder / "00003/samples/0001.png").unlink()
    with pytest.raises(ValueError, match=r"half rendered: 1 of 8 prompts .* 00003 \(1\).*irdm geneval render"):
        rendered(folder, prompts)
    (folder / "00003/metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="metadata.jsonl is missing"):
        rendered(folder, prompts)
    (folder / "00007").rename(folder / "kept-elsewhere")
    with pytest.raises(ValueError, match="folders of 7 prompts and .* has 8"):
        rendered(folder, prompts)


def test_a_folder_of_other_prompts_is_refused(tmp_path):
    folder, prompts = rendered_folder(tmp_path)
    (folder / "00001/metadata.jsonl").write_text(json.dumps(LINES[0]))
    with pytest.raises(ValueError, match="asks for 'a photo of a bench' .*'a photo of a cow'"):
        rendered(folder, prompts)
    (folder / "00001/metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match="is no prompt of GenEval"):
        rendered(folder, prompts)
    with pytest.raises(ValueError, match="no folder of GenEval's"):
        rendered(tmp_path / "absent", prompts)


def test_an_empty_image_is_refused(tmp_path):
    folder, prompts = rendered_folder(tmp_path)
    (folder / "00002/samples/0000.png").write_bytes(b"")
    with pytest.raises(ValueError, match="without content, such as 00002/samples/0000.png"):
        rendered(folder, prompts)
