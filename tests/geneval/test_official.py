"""The official scorer as a process: what it is given, and every way in which it fails."""

import hashlib
import json

import pytest
from geneval.fake_official import install
from geneval.small import rendered_folder, write_prompts

from irdm.cli import main
from irdm.geneval import read_scored
from irdm.geneval.official import OfficialScorer


@pytest.fixture
def folder(tmp_path):
    return rendered_folder(tmp_path)[0]


def words(paths, *more):
    return [*(word for name, path in paths.items() for word in (f"--{name}", str(path))), *map(str, more)]


def score(folder, paths, *more):
    prompts = folder.parent / "evaluation_metadata.jsonl"
    return main(["geneval", "score", str(folder), "--prompts", str(prompts), *words(paths, *more)])


def test_a_score_says_everything_that_decided_it(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH_OF_IRDM", "ours")
    monkeypatch.setenv("IRDM_WEIGHTS", str(tmp_path / "no-weights"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    paths = install(tmp_path / "env")
    assert score(folder, paths) == 0
    said = capsys.readouterr().out
    assert "GenEval (not on the published prompts)" in said and "PickScore of the same images" in said
    assert "not measured" in said and "irdm encoders fetch pickscore" in said
    scored = read_scored(folder / "scored-official")
    assert scored.overall.value == 1 and scored.kind == "official"
    files = {"script": paths["repo"] / "evaluation/evaluate_images.py", "config": paths["config"],
             "names": paths["repo"] / "evaluation/object_names.txt", "weights": paths["weights"]}  # fmt: skip
    assert scored.scorer["files"] == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    assert scored.scorer["packages"]["mmdet"] == "1.2"
    assert scored.prompts == hashlib.sha256((tmp_path / "evaluation_metadata.jsonl").read_bytes()).hexdigest()
    verdicts = (folder / "scored-official/verdicts.jsonl").read_text().splitlines()
    assert len(verdicts) == len(scored.images) == 16 and json.loads(verdicts[0])["correct"] is True
    assert main(["compare", str(folder / "scored-official"), str(folder / "scored-official/geneval.json")]) == 0
    assert "+0.000 to +0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("crash", "failed with exit code 1. It said last:\nAssertionError: the weights do not fit"),
        ("silent", "ended well and wrote no verdict"),
        ("empty", "ended well and wrote no verdict. It said last:\nlooked at 16"),
        ("short", "has 15 verdicts for 16 images"),
        ("untagged", "has 14 verdicts for 16 images: 00003/samples/0000.png"),
        ("blind", "finds 0.0% of single objects"),
    ],
)
def test_a_scorer_that_fails_gives_no_score(folder, tmp_path, capsys, behaviour, says):
    assert score(folder, install(tmp_path / "env", behaviour)) == 1
    assert says in capsys.readouterr().err
    assert not (folder / "scored-official/geneval.json").exists()


def test_what_is_missing_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match="--python .not given.*--repo .not given.*--config.*--weights"):
        OfficialScorer(None, None, None, None)
    paths = install(tmp_path)
    with pytest.raises(ValueError, match="needs --config .no file .*absent.py"):
        OfficialScorer(**{**paths, "config": tmp_path / "absent.py"})
    with pytest.raises(ValueError, match="is not a .pth file"):
        OfficialScorer(**{**paths, "weights": paths["config"]})
    paths["python"].write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(ValueError, match="does not run: broken"):
        OfficialScorer(**paths)
    paths["python"].chmod(0o644)
    with pytest.raises(ValueError, match="cannot be started"):
        OfficialScorer(**paths)


def test_an_environment_without_mmdet_or_cuda_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot import .*mmdet .ImportError: not installed here"):
        OfficialScorer(**install(tmp_path, without=("mmdet",)))
    with pytest.raises(ValueError, match="CUDA alone"):
        OfficialScorer(**install(tmp_path, cuda=False))


def test_a_folder_is_looked_at_before_the_scorer_is(folder, tmp_path, capsys):
    (folder / "00000/samples/0000.png").unlink()
    assert score(folder, {}) == 1
    assert "half rendered" in capsys.readouterr().err


def test_options_of_the_other_scorer_are_refused(folder, tmp_path, capsys):
    assert score(folder, {}, "--clip", "x") == 2
    assert "--clip is not for --scorer official" in capsys.readouterr().err
    assert score(folder, {}, "--scorer", "transformers", "--repo", "x") == 2
    assert "--repo is not for --scorer transformers" in capsys.readouterr().err


def test_pickscore_that_was_asked_for_must_be_there(folder, tmp_path, capsys):
    assert score(folder, install(tmp_path / "env"), "--pickscore", tmp_path / "absent") == 1
    assert "PickScore cannot be loaded" in capsys.readouterr().err


def test_a_golden_set_by_command(folder, tmp_path, capsys):
    paths = install(tmp_path / "env")
    assert main(["geneval", "golden", str(folder), *words(paths)]) == 1
    assert "--record" in capsys.readouterr().err
    assert main(["geneval", "golden", str(folder), *words(paths, "--record")]) == 0
    assert main(["geneval", "golden", str(folder), *words(paths)]) == 0
    assert "100.0% of 16 verdicts" in capsys.readouterr().out
    other = install(tmp_path / "other", "blind")
    assert main(["geneval", "golden", str(folder), *words(other)]) == 1
    found = capsys.readouterr()
    assert "another verdict: 00000/samples/0000.png" in found.out and "fails on the golden set" in found.err
    (tmp_path / "more").mkdir()
    target = rendered_folder(tmp_path / "more")[0]
    assert score(target, other, "--golden", folder, "--floor", "0") == 1
    assert "fails on the golden set" in capsys.readouterr().err


def test_render_reads_the_prompts_before_the_run(tmp_path, capsys):
    path = write_prompts(tmp_path)
    path.write_text(path.read_text().replace('"colors"', '"colours"'))
    assert main(["geneval", "render", str(tmp_path / "run"), "--prompts", str(path)]) == 1
    assert "line 5 is no prompt of GenEval: tag should be" in capsys.readouterr().err
    assert main(["geneval", "render", str(tmp_path / "run"), "--prompts", str(write_prompts(tmp_path))]) == 1
    assert "config.json is not there" in capsys.readouterr().err
