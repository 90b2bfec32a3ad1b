"""Teacher renders: seeds, the best by a scorer, resumed at the next part, and nothing half done."""

import json
import math

import pytest
import torch
from geneval.small import LINES, write_prompts

from irdm.cli import main
from irdm.data import CaptionedConfig
from irdm.geneval.choosing import Verdicts, exact_verdicts, read_asked
from irdm.geneval.verdicts import Judge
from irdm.render import PRIME, open_scorer, render
from irdm.world import correct, picture

PROMPTS = [f"prompt {i}" for i in range(5)]


class Shades:
    """Draws the seed as a grey level, so that every picture says where it is from."""

    def __init__(self, fails_after=10**9):
        self.asked, self.left = [], fails_after

    def __call__(self, captions, seeds):
        self.left -= len(seeds)
        if self.left < 0:
            raise KeyboardInterrupt
        self.asked += zip(captions, seeds, strict=True)
        levels = torch.tensor([level(seed) for seed in seeds])
        return levels[:, None, None, None].expand(-1, 3, 8, 8) / 255


def level(seed):
    return (seed // PRIME * 40 + seed % PRIME) % 256


def brightest(pictures, prompts):
    """The grey level; pictures below 40 are refused."""
    levels = [picture.getpixel((0, 0))[0] for picture in pictures]
    return [value if value >= 40 else -math.inf for value in levels]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


def test_the_best_of_several_seeds_stay_and_are_a_place_to_train_on(tmp_path):
    said = []
    best = {"seeds": 4, "top": 2, "scorer": brightest}
    out = render(PROMPTS, tmp_path / "r", Shades(), {}, **best, micro_batch=3, progress=said.append)
    rows = rows_of(out)
    for i, prompt in enumerate(PROMPTS):
        mine = [row for row in rows if row["caption"] == prompt]
        assert [row["seed"] for row in mine] == [3 * PRIME + i, 2 * PRIME + i], "best first"
        assert [row["score"] for row in mine] == [level(row["seed"]) for row in mine]
    assert "10 pictures of 5 prompts" in said[-1]
    dataset = CaptionedConfig(path=(out,), embedder="ngrams", val_fraction=0.5).build()
    assert {*dataset.train.conditions.captions(), *dataset.val.conditions.captions()} == {*PROMPTS}
    grey = dataset.train.read(torch.arange(1))[0, 0, 0, 0] * 255
    name = dataset.train.called([0])[0]
    assert any(name.endswith(row["file_name"]) and round(grey.item()) == level(row["seed"]) for row in rows)


def test_an_interrupted_render_goes_on_and_a_half_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("irdm.render.PART_IMAGES", 4)  # two prompts a part
    whole = render(PROMPTS, tmp_path / "whole", Shades(), {}, seeds=2)
    with pytest.raises(KeyboardInterrupt):
        render(PROMPTS, tmp_path / "r", Shades(fails_after=6), {}, seeds=2, micro_batch=2)
    with pytest.raises(ValueError, match="is half rendered: it has no captions.jsonl yet"):
        CaptionedConfig(path=(tmp_path / "r",), embedder="ngrams").build()
    (tmp_path / "r/part-00000/000001-000.png").write_bytes(b"cut short")
    again, said = Shades(), []
    render(PROMPTS, tmp_path / "r", again, {}, seeds=2, progress=said.append)
    assert {row for row, _ in again.asked} == {*PROMPTS}, "the damaged part is drawn again, too"
    assert any("part-00000/000001-000.png has 9 bytes" in line for line in said)
    assert (tmp_path / "r/captions.jsonl").read_bytes() == (whole / "captions.jsonl").read_bytes()
    last = Shades()
    render(PROMPTS, tmp_path / "r", last, {}, seeds=2)
    assert not last.asked, "all is there"
    with pytest.raises(ValueError, match="folder of renders of something else"):
        render(PROMPTS[:4], tmp_path / "r", Shades(), {}, seeds=2)


def test_scorers_that_are_missing_silent_or_never_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def longest(pictures, prompts):\n    return [len(p) for p in prompts]\nX = 3\n")
    assert list(open_scorer("mine:longest", "cpu")([], ["abc"])) == [3]
    for name, says in (
        ("aesthetic", "There is no scorer 'aesthetic': give pickscore, geneval, exact, or a function"),
        ("nowhere:f", "The scorer 'nowhere:f' cannot be imported"),
        ("mine:missing", "cannot be imported"),
        ("mine:X", "is a int, expected a function"),
    ):
        with pytest.raises(ValueError, match=says):
            open_scorer(name, "cpu")
    monkeypatch.setenv("IRDM_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for bad in ([1.0], [None, None], [1.0, math.nan]):
        with pytest.raises(ValueError, match=r"The scorer gave .* for 2 pictures; expected a number for each"):
            render(PROMPTS, tmp_path / "r", Shades(), {}, seeds=2, top=1, scorer=lambda pictures, prompts, bad=bad: bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="The scorer left no picture of 5 prompts"):
        render(PROMPTS, tmp_path / "s", Shades(), {}, seeds=2, scorer=lambda pictures, prompts: [-math.inf] * 2)
    with pytest.raises(ValueError, match=r"Keeping 1 of 2 pictures a prompt needs .* a scorer"):
        render(PROMPTS, tmp_path / "t", Shades(), {}, seeds=2, top=1)
    with pytest.raises(ValueError, match="2 prompts, 1 of them different"):
        render(["a", "a"], tmp_path / "t", Shades(), {})


def test_the_exact_judge_leaves_what_its_caption_asks_for(tmp_path):
    """Every second picture is of the next caption, which the judge must see."""
    texts = ["a photo of a red circle", "two blue squares", "a green triangle and a white cross"]

    def teacher(captions, seeds):
        shown = [texts[(texts.index(text) + seed // PRIME % 2) % 3] for text, seed in zip(captions, seeds, strict=True)]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        return torch.cat([picture([text], draw) for text, draw in zip(shown, draws, strict=True)])

    scorer = exact_verdicts(texts)
    out = render(texts, tmp_path / "r", teacher, {"verdicts": scorer.identity}, seeds=4, top=3, scorer=scorer)
    rows = rows_of(out)
    assert [(row["caption"], row["score"]) for row in rows] == [(text, 1) for text in texts for _ in range(2)]
    assert {row["seed"] // PRIME for row in rows} == {0, 2}
    data = CaptionedConfig(path=(out,), embedder="ngrams", val_fraction=0.5).build()
    assert all(correct(side.read(torch.arange(3)), side.conditions.captions()).all() for side in (data.train, data.val))
    with pytest.raises(ValueError, match="words that the world does not know: .*dog"):
        open_scorer("exact", "cpu", ["a photo of a dog"])


class Bright(Judge):
    """Finds what is asked for in bright pictures; a count only in the brightest."""

    kind, metric, identity = "transformers", "", {"weights": "abc"}

    def look(self, image, prompt):
        level = image.getpixel((0, 0))[0]
        return "" if level >= (80 if prompt.tag == "counting" else 40) else f"{prompt.include[0].name} expected", {}


def test_genevals_verdicts_choose_by_what_a_line_asks_for(tmp_path):
    file = write_prompts(tmp_path)
    scorer = Verdicts(Bright(), read_asked(file))
    texts = [line["prompt"] for line in LINES]
    out = render(texts, tmp_path / "r", Shades(), {}, seeds=3, scorer=scorer)
    kept = {text: [row["seed"] // PRIME for row in rows_of(out) if row["caption"] == text] for text in texts}
    assert all(seeds == ([2] if text == "a photo of two buses" else [1, 2]) for text, seeds in kept.items())
    other = Verdicts(
        Bright(), read_asked(write_prompts(tmp_path, [*LINES[:-1], {**LINES[-1], "tag": "single_object"}]))
    )
    assert scorer.identity != other.identity


def test_verdicts_need_tags(tmp_path, capsys):
    (tmp_path / "plain.txt").write_text("a photo of a bench\n")
    (tmp_path / "plain.jsonl").write_text('{"prompt": "a photo of a bench"}\n')
    lines = [LINES[0], {**LINES[1], "prompt": LINES[0]["prompt"]}]
    for file, says in (
        (tmp_path / "plain.txt", "Verdicts need to know what a picture must show, which the tags of GenEval's format"),
        (tmp_path / "plain.jsonl", "plain.jsonl, line 1 is no prompt of GenEval: "),
        (write_prompts(tmp_path, lines), "line 2 asks for something else than an earlier line of the same prompt"),
    ):
        words = ["render", str(file), "--out", str(tmp_path / "r"), "--model", str(tmp_path / "none")]
        assert main([*words, "--scorer", "geneval"]) == 1 and says in capsys.readouterr().err
    write_prompts(tmp_path)
    words[1] = str(tmp_path / "evaluation_metadata.jsonl")
    assert main([*words, "--scorer", "geneval"]) == 1
    assert "the scorer transformers needs a folder of a Mask2Former" in capsys.readouterr().err
    assert main([*words, "--scorer", "exact"]) == 1 and "the world does not know" in capsys.readouterr().err
    assert main([*words, "--clip", "x.pt"]) == 2 and "--clip is for --scorer geneval" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_command_looks_at_everything_first(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n")
    given = ["render", str(prompts), "--out", str(tmp_path / "r"), "--model", str(tmp_path / "none")]
    assert main([*given, "--seeds", "2", "--top", "3"]) == 2 and "--top is 3, of 2" in capsys.readouterr().err
    assert main([*given, "--seeds", "2", "--top", "1"]) == 2 and "needs a --scorer" in capsys.readouterr().err
    assert main(given) == 1 and "none" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
