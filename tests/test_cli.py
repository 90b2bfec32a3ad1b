"""The command line: what it prints, what it refuses and how, and that it starts quickly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

import irdm.run
import irdm.sample
import irdm.train
from irdm import errors
from irdm.cli import COMMANDS, main
from irdm.errors import explained
from irdm.fields import UsageError
from irdm.presets import PRESETS

ROOT = Path(__file__).parents[1]


def fails(capsys: pytest.CaptureFixture[str], code: int, *argv: str) -> str:
    """Run a command that must fail with `code`, one message on stderr and nothing else there."""
    assert main(argv) == code
    error = capsys.readouterr().err
    assert error.startswith("irdm: error: ")
    assert "Traceback" not in error and "https:" not in error
    return error


def irdm_command(*argv: str, **options) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "irdm.cli", *argv], capture_output=True, timeout=120, **options)


def test_help_starts_without_torch_and_lists_the_presets():
    code = "import sys; from irdm.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, build in PRESETS.items():
        assert f"{name} " in done.stdout
        assert (build.__doc__ or "").split("\n")[0] in done.stdout
    assert all(f"irdm {command} " in done.stdout for command in COMMANDS)
    assert "IRDM_TRACEBACK" in done.stdout


@pytest.mark.parametrize("command", ["sample", "report", "compare", "train", "check", "experiment", "reference"])
def test_the_help_of_a_command_needs_no_torch(command: str):
    code = f"import sys; from irdm.cli import main; main(['{command}', '-h']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"irdm {command} ")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_exits_with_0(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 0
    assert capsys.readouterr().out


def test_the_help_of_a_preset_shows_its_values(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "digits", "--help", "--distance.kind", "frechet"]) == 0
    out = capsys.readouterr().out
    assert f"--rollout INT  (now: {PRESETS['digits']().rollout})" in out
    assert "(now: frechet)" in out and "; free)" in out
    assert "--evaluation none|default" in out
    assert main(["train", "folder", "--help"]) == 0
    assert "--generator.kind conv  (now: conv)" in capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_the_help_lists_every_field_with_its_value(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", name, "--help"]) == 0
    text = capsys.readouterr().out
    data = PRESETS[name]().model_dump(warnings=False)
    paths = [k for k, v in data.items() if not isinstance(v, dict)]
    paths += [f"{k}.{inner}" for k, v in data.items() if isinstance(v, dict) for inner in v]
    assert not [path for path in paths if f"--{path.replace('_', '-')} " not in text]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("trian digits", "there is no command 'trian'; did you mean 'train'?"),
        ("train digit", "did you mean 'digits'?"),
        ("train zzz", "choose from digits"),
        ("train", "PRESET is missing; choose from digits"),
        ("train --rollout 9", "PRESET is missing"),
        ("train digits --rolout 9", "there is no option --rolout; did you mean --rollout?"),
        ("train digits folder", "'folder' is one word too many"),
        ("train digits --out", "--out takes one value, got none"),
        ("train folder", "say where the images are"),
        ("train digits --micro-batch 5000", "micro_batch is 5000 but the rollout has only 512"),
        ("train digits --seed -1", "--seed is '-1': should be at least 0"),
        (f"train digits --seed {2**64}", "should be less than"),
        ("train digits --lr 1e308", "--lr is '1e308'"),
        ("train digits --distance.bandwidths 1e-300", "--distance.bandwidths is '1e-300'"),
        ("train digits --battery.held-in []", "at least one encoder must train"),
        ("train digits --limit 3", "--limit is 3"),
        ("train digits --limit x", "--limit is 'x': should be a whole number"),
        ("train digits --evaluation maybe", "--evaluation is a group of fields"),
        ("train digits --data none", "--data is a group of fields"),
        ("check", "PRESET is missing"),
        ("sample", "RUN is missing (a run directory, such as runs/digits)"),
        ("sample run --format gird", "did you mean 'grid'?"),
        ("sample run --count 0", "--count is '0': should be at least 1"),
        ("sample run --seed -1", "should be at least 0"),
        ("eval", "SOURCE is missing"),
        ("eval . --count 5 --against x", "--count is for a run"),
        ("eval .", "is no run; say what its images are compared with: irdm eval . --against REAL"),
        ("eval . --micro-batch 0", "--micro-batch is '0'"),
        ("eval . --evaluation.rows 1 --against x", "--evaluation.rows is '1': should be at least 8"),
        ("eval . --evaluation.seed 1 --seed 2 --against x", "given twice"),
        ("eval . --rollout 5", "there is no option --rollout"),
        ("compare a", "B is missing"),
        ("compare a b c", "'c' is one word too many"),
        ("encoders", "the action of irdm encoders is missing; choose from list, check, fetch"),
        ("encoders lits", "did you mean 'list'?"),
        ("encoders list mea", "did you mean 'mae'?"),
        ("reference bild x", "did you mean 'build'?"),
        ("reference build a/b --preset digits", "NAME is 'a/b': should be a plain name"),
        ("reference build .. --preset digits", "should be a plain name"),
        ("reference build x", "--train is missing"),
        ("reference build x --val a", "--train is missing"),
        ("reference build x --preset digits --train a", "--train is for images of your own"),
        ("reference build x --preset digits --size 2", "--size is '2': should be at least 4"),
        ("reference build x --train a --val b --size -4", "--size is '-4': should be at least 4"),
        ("reference build x --train a --val b --panel foo", "--panel has no encoder 'foo'"),
        ("reference build x --train a --val b --panel dinov", "did you mean 'dinov2'?"),
        ("reference build x --preset digits --rollout 1", "--rollout is '1': should be at least 2"),
        ("reference build x --preset digits --battery-steps 0", "--battery-steps is '0': should be at least 1"),
        ("reference build x --preset digits --lr 1", "there is no option --lr"),
        ("experiment zzz", "there is no study 'zzz'"),
        ("experiment spiral --workers 0", "--workers is '0': should be at least 1"),
        ("experiment spiral --workers -1", "should be at least 1"),
        ("experiment spiral --seeds -1", "--seeds is '-1': should be at least 0"),
        ("experiment spiral --seeds 1 1", "give each seed once"),
        ("experiment spiral --seeds []", "needs at least 1"),
        ("experiment spiral --scale 0", "--scale is '0': should be more than 0"),
        ("experiment spiral --scale 2", "should be at most 1"),
    ],
)
def test_what_is_typed_wrongly_is_said_in_one_way(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert says in fails(capsys, 2, *words.split())


def test_an_empty_name_is_refused(capsys: pytest.CaptureFixture[str]):
    assert "NAME is empty" in fails(capsys, 2, "reference", "build", "", "--preset", "digits")


@pytest.mark.parametrize("command", ["eval", "sample", "report"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "none"
    assert str(folder) in fails(capsys, 1, command, str(folder))


def test_dry_run_prints_a_config_that_config_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "digits", "--rollout", "64", "--distance.kind", "rff-mmd", "--dry-run"]) == 0
    first = capsys.readouterr().out
    path = tmp_path / "config.json"
    path.write_text(first)
    assert main(["train", "--config", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out == first
    assert main(["train", "--config", str(path), "--seed", "3", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(first) | {"seed": 3}
    assert "not both" in fails(capsys, 2, "train", "digits", "--config", str(path))


def test_an_evaluation_can_be_left_out(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "digits", "--evaluation", "none", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] is None
    assert main(["train", "digits-smoke", "--evaluation", "default", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"]["rows"] == 16384


def test_a_broken_config_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.json"
    assert str(path) in fails(capsys, 2, "train", "--config", str(path))
    for text in ("{", "[" * 10_000):
        path.write_text(text)
        assert str(path) in fails(capsys, 2, "train", "--config", str(path))
    data = PRESETS["digits"]().model_dump(mode="json")
    data["generator"]["widht"] = data["generator"].pop("width")
    data["rollout"] = True
    path.write_text(json.dumps(data))
    error = fails(capsys, 2, "train", "--config", str(path))
    assert str(path) in error
    assert "did you mean generator.width?" in error
    assert "rollout is 'true': should be a whole number" in error


def test_train_hands_over_the_config_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = {}
    monkeypatch.setattr(irdm.train, "train", lambda config, out, command: seen.update(locals()))
    assert main(["train", "digits", "--rollout", "64", "--out", str(tmp_path / "a b")]) == 0
    assert (seen["config"].rollout, seen["out"]) == (64, tmp_path / "a b")
    assert seen["command"] == f"irdm train digits --rollout 64 --out '{tmp_path}/a b'"
    assert main(["train", "digits"]) == 0
    assert seen["out"] == Path("runs/digits")


def test_sample_hands_over_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(irdm.sample, "sample_run", lambda *given, **told: seen.append((*given, told)) or tmp_path)
    assert main(["sample", "run", "--classes", "great dane", "cat", "--count", "5", "--seed", "1"]) == 0
    told = {"format": "grid", "out": None, "device": "auto", "judged": False}
    assert seen == [(Path("run"), ("great dane", "cat"), 5, 1, told)]
    assert main(["sample", "run", "--judged", "--count", "5"]) == 2


def stop_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `irdm train` raise the error."""

    def stop(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(irdm.train, "train", stop)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("no"), 1, "no"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (FloatingPointError("diverged"), 1, "diverged"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory: lower --micro-batch"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 1, "(asked for 2.00 GiB)"),
        (RecursionError("maximum recursion depth exceeded"), 1, "nested too deeply"),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"), 1, "not UTF-8"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"), 1, "another rank"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(errors, "GRACE", 0)
    stop_with(monkeypatch, error)
    text = fails(capsys, code, "train", "digits")
    assert says in text and text.count("\n") == 1


@pytest.mark.parametrize(
    "make", [lambda: torch.empty(2**60), lambda: torch.empty(2**45) + 1, lambda: np.empty((2**50, 2), np.float64)]
)
def test_real_want_of_memory_is_recognised(make):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        make()
    assert "out of memory" in (explained(caught.value) or "")


@pytest.mark.parametrize("error", [KeyError("bug"), AssertionError("bug"), TypeError("bug"), RuntimeError("bug")])
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch):
    stop_with(monkeypatch, error)
    with pytest.raises(type(error), match="bug"):
        main(["train", "digits"])


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch):
    stop_with(monkeypatch, ValueError("where"))
    monkeypatch.setenv("IRDM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="where"):
        main(["train", "digits"])


def test_pydantic_never_speaks_for_itself():
    with pytest.raises(ValueError) as caught:
        PRESETS["digits"]().model_validate({"data": {"kind": "digits"}, "rollout": "x", "seed": -1})
    assert explained(caught.value) == "seed should be at least 0; rollout should be a whole number"


def test_of_many_ranks_the_later_ones_give_the_first_time_to_speak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    waited = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    fails(capsys, 2, "train", "zzz")
    assert waited == [errors.GRACE]
    monkeypatch.setenv("RANK", "0")
    fails(capsys, 2, "train", "zzz")
    assert waited == [errors.GRACE]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_cannot_be_printed_do_not_fail(encoding: str, tmp_path: Path):
    name = os.fsencode(tmp_path) + b"/\xff\xc3\xa9"
    done = irdm_command("report", os.fsdecode(name), env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 1
    assert b"irdm: error: " in done.stderr and b"\\udcff" in done.stderr and b"Traceback" not in done.stderr


def test_a_name_that_libraries_cannot_write_is_refused_before_any_work(capsys: pytest.CaptureFixture[str]):
    assert "UTF-8" in fails(capsys, 2, "train", "digits", "--out", "a\udcff")


def test_check_says_what_is_missing_all_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    blocked = tmp_path / "file"
    blocked.write_text("")
    argv = ["check", "folder", "--data.path", str(tmp_path / "none.npz"), "--out", str(blocked / "run")]
    assert main(argv) == 1
    found = capsys.readouterr()
    lines = {line.split()[1]: line.split()[0] for line in found.out.splitlines()}
    assert (lines["data"], lines["output"], lines["device"]) == ("MISSING", "MISSING", "ok")
    assert "data, output" in found.err


def test_check_passes_for_digits_and_estimates_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["check", "digits", "--out", str(tmp_path / "run")])
    found = capsys.readouterr()
    if not list(metadata.distributions(name="irdm")):
        assert "MISSING  packages  irdm itself is not installed" in found.out
        pytest.skip("irdm runs from its source tree here: pip install .")
    assert code == 0, found
    assert "MISSING" not in found.out
    assert "estimate" in next(line for line in found.out.splitlines() if line.split()[1] == "time")


def test_check_imports_what_it_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A package may be installed and still not work, such as one that was built for another torch."""
    if not list(metadata.distributions(name="irdm")):
        pytest.skip("irdm runs from its source tree here: pip install .")
    for name, code in (
        ("sklearn", "raise RuntimeError('built for\\nanother numpy')"),
        ("PIL", "import os; os._exit(9)"),
    ):
        (tmp_path / "first" / name).mkdir(parents=True)
        (tmp_path / "first" / name / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    assert main(["check", "digits", "--out", str(tmp_path / "run")]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "packages")
    assert line.startswith("MISSING") and "numpy" not in line.replace("another numpy", "")
    assert "(RuntimeError: built for)" in line, "the first line of it"
    assert re.search(r"pillow [\d.]+ \(it ended the process\)", line)


def test_usage_errors_are_their_own():
    assert not issubclass(UsageError, ValueError), "a command's own ValueError is no wrong typing"
