"""The command line: what it prints, what it refuses and how, and that it starts quickly."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import irdm.run
import irdm.sample
import irdm.train
from irdm.cli import COMMANDS, main
from irdm.presets import PRESETS
from irdm.run import LoadedRun
from irdm.sample import sample, turns

ROOT = Path(__file__).parents[1]


def fails(capsys: pytest.CaptureFixture[str], code: int, *argv: str) -> str:
    """Run a command that must fail with `code`, one message on stderr and nothing else there."""
    assert main(argv) == code
    error = capsys.readouterr().err
    assert error.startswith("irdm: error: ")
    assert "Traceback" not in error
    return error


class Echo(nn.Module):
    """A generator whose images show its inputs: pixel 0 is the label / 10, the rest the clipped noise."""

    noise_shape = (63,)

    def forward(self, noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.cat([labels[:, None] / 10, noise.clamp(-4, 4) / 8 + 0.5], 1).reshape(-1, 1, 8, 8)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory whose generator is Echo."""
    loaded = LoadedRun(PRESETS["digits"](), Echo(), "cpu", 1, 10, {})
    monkeypatch.setattr(irdm.run, "load_run", lambda path: loaded)
    return tmp_path / "run"


def test_help_starts_without_torch_and_lists_the_presets():
    code = "import sys; from irdm.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, build in PRESETS.items():
        assert f"{name} " in done.stdout
        assert (build.__doc__ or "").split("\n")[0] in done.stdout
    assert all(f"irdm {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("argv", [[], ["--help"], ["train"], ["train", "--help"], ["check", "--help"], ["--version"]])
def test_help_exits_with_0(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", ["eval", "sample", "report"])
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "runs/digits" in capsys.readouterr().out


def test_the_help_of_a_preset_shows_its_values(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "digits", "--help", "--distance.kind", "frechet"]) == 0
    out = capsys.readouterr().out
    assert f"--rollout INT  (now: {PRESETS['digits']().rollout})" in out
    assert "(now: frechet)" in out


def test_wrong_names_get_the_nearest_one(capsys: pytest.CaptureFixture[str]):
    assert "did you mean 'train'?" in fails(capsys, 2, "trian", "digits")
    assert "did you mean 'digits'?" in fails(capsys, 2, "train", "digit")
    assert "choose from digits" in fails(capsys, 2, "train", "zzz")
    assert "did you mean --rollout?" in fails(capsys, 2, "train", "digits", "--rolout", "9")
    assert "one preset at a time" in fails(capsys, 2, "train", "digits", "array")
    assert "name a preset" in fails(capsys, 2, "train", "--rollout", "9")
    assert "takes one path" in fails(capsys, 2, "train", "digits", "--out")
    assert "--data.path is required" in fails(capsys, 2, "train", "array")


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


def test_a_broken_config_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.json"
    assert str(path) in fails(capsys, 2, "train", "--config", str(path))
    path.write_text("{")
    assert str(path) in fails(capsys, 2, "train", "--config", str(path))
    data = PRESETS["digits"]().model_dump(mode="json")
    data["generator"]["widht"] = data["generator"].pop("width")
    path.write_text(json.dumps(data))
    error = fails(capsys, 2, "train", "--config", str(path))
    assert str(path) in error
    assert "did you mean generator.width?" in error


def test_train_hands_over_the_config_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = {}
    monkeypatch.setattr(irdm.train, "train", lambda config, out, command: seen.update(locals()) or {})
    assert main(["train", "digits", "--rollout", "64", "--out", str(tmp_path / "a b")]) == 0
    assert (seen["config"].rollout, seen["out"]) == (64, tmp_path / "a b")
    assert seen["command"] == f"irdm train digits --rollout 64 --out '{tmp_path}/a b'"
    assert main(["train", "digits"]) == 0
    assert seen["out"] == Path("runs/digits")


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("no"), 1), (OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)],
)
def test_failures_of_the_library_are_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(irdm.train, "train", stop)
    assert fails(capsys, code, "train", "digits").count("\n") == 1


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(irdm.train, "train", lambda *args, **kwargs: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        main(["train", "digits"])


@pytest.mark.parametrize("command", ["eval", "sample", "report"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert str(tmp_path) in fails(capsys, 1, command, str(tmp_path))


def test_check_says_what_is_missing_all_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    blocked = tmp_path / "file"
    blocked.write_text("")
    argv = ["check", "array", "--data.path", str(tmp_path / "none.npz"), "--out", str(blocked / "run")]
    assert main(argv) == 1
    found = capsys.readouterr()
    lines = {line.split()[1]: line.split()[0] for line in found.out.splitlines()}
    assert (lines["data"], lines["output"], lines["device"]) == ("MISSING", "MISSING", "ok")
    assert "data, output" in found.err


def test_check_passes_for_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["check", "digits", "--out", str(tmp_path / "run")])
    found = capsys.readouterr()
    if not list(distributions(name="irdm")):
        assert "MISSING  packages  irdm itself is not installed" in found.out
        pytest.skip("irdm runs from its source tree here: pip install .")
    assert code == 0, found
    assert "MISSING" not in found.out


def test_an_image_depends_on_the_seed_its_place_and_its_label_alone():
    labels = turns([3, 1, 2], 7)
    assert labels.tolist() == [3, 1, 2, 3, 1, 2, 3]
    images = sample(Echo(), labels, seed=5)
    assert torch.equal(images, sample(Echo(), labels, seed=5, micro_batch=2))
    assert torch.equal(images[:4], sample(Echo(), turns([3, 1, 2], 4), seed=5))
    assert not torch.equal(images, sample(Echo(), labels, seed=6))
    assert len(images.flatten(1)[:, 1:].unique(dim=0)) == 7


def test_images_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Echo, "forward", lambda self, noise, labels: torch.full((len(labels), 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 2"):
        sample(Echo(), turns([0], 2), seed=0)


def test_sample_writes_arrays_files_and_a_picture(run: Path, capsys: pytest.CaptureFixture[str]):
    draw = ["sample", str(run), "--labels", "7", "2", "--count", "5", "--seed", "1", "--format"]
    assert main([*draw, "npz"]) == 0
    path = run / "samples" / "seed-1.npz"
    assert str(path) in capsys.readouterr().out
    with np.load(path) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert (images.shape, images.dtype) == ((5, 1, 8, 8), np.uint8)
    assert labels.tolist() == [7, 2, 7, 2, 7]
    assert main([*draw, "files"]) == 0
    files = sorted((run / "samples" / "seed-1").iterdir())
    assert [file.name for file in files] == [f"{i:05d}-label-{label}.png" for i, label in enumerate(labels)]
    assert np.array_equal(np.asarray(Image.open(files[3])), images[3, 0])
    assert "not an empty folder" in fails(capsys, 1, *draw, "files")
    assert main([*draw, "grid", "--out", str(run / "g.png")]) == 0
    width, height = Image.open(run / "g.png").size
    assert width * 3 < height * 2 + 20  # two columns, three rows


def test_sample_refuses_what_the_run_cannot_draw(run: Path, capsys: pytest.CaptureFixture[str]):
    assert "labels 0 to 9, not 10, 11" in fails(capsys, 1, "sample", str(run), "--labels", "1", "11", "10")
    assert "at least 1" in fails(capsys, 1, "sample", str(run), "--count", "0")


def test_the_readme_has_the_two_commands_and_every_file():
    readme = (ROOT / "README.md").read_text()
    assert "pip install -c constraints.txt . && irdm train digits" in readme
    assert "pip install -c constraints.txt '.[test]' && pytest" in readme
    listed = [f"irdm/{path.name}" for path in (ROOT / "irdm").glob("*.py") if path.name != "__init__.py"]
    assert not [name for name in listed if Path(name).name not in readme]
