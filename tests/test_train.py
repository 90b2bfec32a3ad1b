"""Training as a user meets it: the command line in a subprocess, interrupted, killed, resumed, and fed nonsense."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from irdm.distributed import Ranks
from irdm.evaluation import read_result
from irdm.log import read_log
from irdm.presets import PRESETS
from irdm.run import read_config
from irdm.train import train

IRDM = [sys.executable, "-m", "irdm.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "irdm.cli"]
SLOW_ENOUGH = [
    "--steps",
    "150",
    "--rollout",
    "256",
    "--micro-batch",
    "96",
    "--check-every",
    "50",
    "--evaluation.ladder",
    "0",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def irdm(cache):
    """Start `irdm ARGS`; the fitted battery is shared by the tests of this file."""

    def start(*args, preexec_fn=None, prefix=IRDM):
        env = {**os.environ, "IRDM_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [*prefix, *map(str, args)]
        return subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=preexec_fn
        )

    def run(*args, code=0, **options):
        process = start(*args, **options)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    run.start = start
    return run


def tensors(run, step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    names = ("generator", "ema", "training")
    return {
        f"{name}.{key}": value for name in names for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def curve(run):
    lines, notes = read_log(run / "metrics.jsonl")
    assert not notes
    return [{key: line[key] for key in ("step", "loss", "lr", "grad_norm", "scores", "weights")} for line in lines]


def wait_for_checkpoint(process, run):
    deadline = time.monotonic() + 240
    while not list((run / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.01)


def test_a_killed_and_an_interrupted_run_resume_bit_identically(irdm, tmp_path):
    whole = tmp_path / "whole"
    irdm("train", "digits-smoke", *SLOW_ENOUGH, "--out", whole)

    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        broken = tmp_path / number.name
        process = irdm.start("train", "digits-smoke", *SLOW_ENOUGH, "--out", broken)
        wait_for_checkpoint(process, broken)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], err
        assert not (broken / "result.json").exists()
        if number != signal.SIGKILL:
            stopped = int(re.search(r"stopped at step (\d+)", out)[1])
            assert (broken / "checkpoints" / f"step-{stopped:08d}").is_dir()
        out, _ = irdm("train", "digits-smoke", *SLOW_ENOUGH, "--out", broken)
        assert "resuming after step" in out

        expected, found = tensors(whole, 150), tensors(broken, 150)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert curve(broken) == curve(whole)

    assert read_result(whole).scores == read_result(broken).scores


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    env = {**os.environ, "IRDM_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [*IRDM, "train", "digits-smoke", "--out", str(out)]
    done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_run_directory_holds_what_is_promised(finished):
    out, printed = finished
    assert "held out" in printed and str(out / "report.html") in printed
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "reference.json",
        "metrics.jsonl",
        "result.json",
        "report.html",
        "samples.npz",
        "browser.safetensors",
    } <= files
    assert {"samples/final.png", "samples/step-00000020.png"} <= files
    result = read_result(out)
    wanted = {"sw_ratio", "sw_ratio_unseen", "mmd_ratio", "nearest_neighbour_ratio", "label_accuracy"}
    assert wanted <= result.scores.keys()
    sw = result.scores["sw_ratio"]
    assert sw.mean.control > 0 and sw.held_in.value != sw.held_out.value and sw.mean.ci95[0] < sw.mean.value
    assert {"encoders", "reference", "train", "evaluate", "total"} <= result.seconds.keys()
    assert {"steps", "images_per_second", "alarms"} <= result.training.keys()
    assert result.command.startswith("irdm train digits-smoke")


def test_eval_repeats_the_numbers_and_sample_and_report_work(irdm, finished, tmp_path):
    out, _ = finished
    before = read_result(out)
    irdm("eval", out)
    after = read_result(out)
    assert after.scores == before.scores and after.command == before.command and after.training == before.training
    irdm("sample", out, "--classes", 3, "--count", 4, "--format", "grid", "--out", tmp_path / "threes.png")
    assert (tmp_path / "threes.png").stat().st_size > 100
    irdm("report", out)


def test_a_run_its_exported_images_and_a_reference_on_disk_give_one_number(irdm, finished, tmp_path):
    out, _ = finished
    exported, reference = tmp_path / "judged.npz", tmp_path / "reference"
    irdm("sample", out, "--judged", "--format", "npz", "--out", exported)
    irdm("eval", exported, "--against", out, "--out", tmp_path / "exported")
    irdm("reference", "build", "digits", "--preset", "digits-smoke", "--judge-only", "--out", reference)
    like = ["--evaluation.draws", 2, "--evaluation.directions", 64, "--evaluation.rff-features", 256]
    like += ["--evaluation.resamples", 8]
    irdm("eval", out, "--against", reference, "--out", tmp_path / "on-disk", *like)
    run = read_result(out)
    for other in (read_result(tmp_path / "exported"), read_result(tmp_path / "on-disk")):
        assert other.protocol == run.protocol and other.scores.keys() == run.scores.keys()
        for name, score in run.scores.items():
            for encoder, estimate in score.encoders.items():
                assert other.scores[name].encoders[encoder].value == pytest.approx(estimate.value, rel=1e-3, abs=2e-4)
    printed, _ = irdm("compare", out, tmp_path / "on-disk")
    assert "is better" not in printed


def test_the_saved_config_runs_again(irdm, finished, tmp_path):
    out, _ = finished
    printed, _ = irdm("train", "--config", out / "config.json", "--out", tmp_path / "again", "--dry-run")
    assert json.loads(printed) == read_config(out / "config.json").model_dump(mode="json")


def contents(folder):
    hidden = lambda path: path.name.startswith(".")  # noqa: E731
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not hidden(path)}


def test_another_configuration_is_refused_and_nothing_is_lost(irdm, finished):
    out, _ = finished
    before = contents(out)
    _, err = irdm("train", "digits-smoke", "--lr", 0.5, "--out", out, code=1)
    assert "lr" in err and "another configuration" in err and "Traceback" not in err
    _, err = irdm("train", "digits-smoke", "--final-lr", 0.5, "--steps", 40, "--out", out, code=1)
    assert "steps: 20 there, 40 now" in err and "learning rate of every step depends on" in err
    assert before == contents(out)


def test_what_changes_no_number_may_change_and_more_steps_go_on(irdm, tmp_path):
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    irdm("train", "digits-smoke", "--steps", 30, "--evaluation", "none", "--log-every", 10, "--out", whole)
    irdm("train", "digits-smoke", "--evaluation", "none", "--log-every", 10, "--out", changed)
    options = ["--micro-batch", 32, "--graph-memory-gib", 0, "--device", "cpu", "--checkpoint-every", 7]
    out, _ = irdm(
        "train", "digits-smoke", "--evaluation", "none", *options, "--log-every", 10, "--steps", 30, "--out", changed
    )
    assert "resuming after step 20" in out and read_config(changed / "config.json").micro_batch == 32
    expected, found = tensors(whole, 30), tensors(changed, 30)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=2e-3, atol=2e-5)
    assert [line["step"] for line in curve(changed)] == [10, 20, 30]


def test_a_run_goes_on_only_with_the_data_it_began_with(irdm, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("mine", "other"):
        images = rng.integers(0, 255, (300, 8, 8), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(300) % 3)
    run, data = tmp_path / "run", tmp_path / "data.npz"
    options = ["--data.kind", "images", "--data.path", data, "--battery.steps", 2, "--out", run]
    data.write_bytes((tmp_path / "mine.npz").read_bytes())
    irdm("train", "digits-smoke", *options)
    before = contents(run)
    data.write_bytes((tmp_path / "other.npz").read_bytes())
    for command in (["train", "digits-smoke", *options], ["eval", run]):
        _, err = irdm(*command, code=1)
        assert "trained on" in err and "Traceback" not in err and "Bring back" in err
    assert before == contents(run)


def test_two_runs_in_one_directory_the_second_is_told(irdm, tmp_path):
    run = tmp_path / "run"
    first = irdm.start("train", "digits-smoke", *SLOW_ENOUGH, "--out", run)
    wait_for_checkpoint(first, run)
    _, err = irdm("train", "digits-smoke", *SLOW_ENOUGH, "--out", run, code=1)
    assert f"is being trained by process {first.pid}" in err and "Traceback" not in err
    first.send_signal(signal.SIGKILL)
    first.communicate()
    irdm("train", "digits-smoke", *SLOW_ENOUGH, "--out", run)  # a killed process holds nothing
    assert len(read_log(run / "metrics.jsonl")[0]) == len({line["step"] for line in read_log(run / "metrics.jsonl")[0]})


def test_what_a_killed_process_left_half_written_is_continued_and_cleared(irdm, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.json.4194999.partial").write_text("{")  # killed while the very first file was written
    irdm("train", "digits-smoke", "--evaluation", "none", "--out", run)
    left = run / "checkpoints" / ".step-00000020.4194999.partial"
    left.mkdir()
    (left / "ema.safetensors").write_bytes(b"half")
    (run / ".result.json.4194999.partial").write_text("half")
    irdm("train", "digits-smoke", "--evaluation", "none", "--out", run)
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(irdm, tmp_path):
    run = tmp_path / "run"
    irdm("train", "digits-smoke", "--out", run)
    file = run / "checkpoints" / "step-00000020" / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    expected = tensors(run, 20)
    out, _ = irdm("train", "digits-smoke", "--out", run)
    assert str(file) in out and "resuming after step 10" in out
    assert torch.equal(tensors(run, 20)["generator.to_pixels.bias"], expected["generator.to_pixels.bias"])


def test_two_ranks_train_like_one_process(irdm, tmp_path):
    options = ["--steps", "3", "--rollout", "101", "--micro-batch", "20"]
    irdm("train", "digits-smoke", *options, "--out", tmp_path / "one")
    irdm("train", "digits-smoke", *options, "--out", tmp_path / "two", prefix=TORCHRUN)
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert two["scores"] == pytest.approx(one["scores"], rel=1e-3)


def test_two_ranks_train_alike_against_a_reference_on_disk(irdm, tmp_path):
    small = ["--battery.held_in", "pixels", "patches", "--battery.held_out", "pca", "--battery.steps", 2]
    reference = tmp_path / "reference"
    irdm("reference", "build", "small", "--preset", "digits-smoke", *small, "--rollout", 64, "--out", reference)
    options = [*small, "--rollout", 64, "--joint", "false", "--steps", 3, "--micro-batch", 20, "--reference", reference]
    for name, prefix in (("one", IRDM), ("two", TORCHRUN)):
        irdm("train", "digits-smoke", *options, "--out", tmp_path / name, prefix=prefix)
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
        assert two["scores"] == pytest.approx(one["scores"], rel=1e-3)
    one, two = (read_result(tmp_path / name).scores["sw_ratio"] for name in ("one", "two"))
    assert two.mean.value == pytest.approx(one.mean.value, rel=0.02), "ranks share the evaluation"


def test_what_one_rank_finds_wrong_is_said_once(irdm, tmp_path):
    (tmp_path / "file").write_text("no run")
    _, err = irdm("train", "digits-smoke", "--out", tmp_path, prefix=TORCHRUN, code=1)
    assert err.count("is not a run directory") == 1 and "irdm/train.py" not in err


def test_a_killed_rank_stops_the_others_without_a_traceback_of_ours(irdm, tmp_path):
    run = tmp_path / "run"
    process = irdm.start("train", "digits-smoke", *SLOW_ENOUGH, "--out", run, prefix=TORCHRUN)
    wait_for_checkpoint(process, run)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in err, "torchrun says which"
    assert "irdm/" not in err, err


SATISFIED = """
import hashlib, os, sys
from pathlib import Path
import irdm.train
from irdm.controller import Controller
from irdm.presets import PRESETS

class Content(Controller):  # every score is below its floor from the first update on
    def __init__(self, config, floors):
        super().__init__(config, dict.fromkeys(floors, 1e9))

networks = []
build = irdm.train.place_generator
irdm.train.place_generator = lambda *args, **told: networks.append(build(*args, **told)) or networks[-1]
irdm.train.Controller = Content
fields = {"steps": 4, "rollout": 40, "log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 9, "evaluation": None}
config = PRESETS["digits-smoke"]().model_copy(update=fields)
irdm.train.train(config, Path(sys.argv[1]))
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in networks[0].trained().values())).hexdigest()
Path(sys.argv[1] + "-rank-" + os.environ["RANK"]).write_text(digest)
"""


def test_two_ranks_with_every_encoder_satisfied_move_nothing(irdm, tmp_path):
    (tmp_path / "run.py").write_text(SATISFIED)
    run = tmp_path / "satisfied"
    irdm(run, prefix=[*TORCHRUN[:-2], str(tmp_path / "run.py")])
    weights = [set(line["weights"].values()) for line in curve(run)]
    assert weights == [{1.0}, {0.0}, {0.0}, {0.0}]
    first, last = tensors(run, 1), tensors(run, 4)
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    assert all(key.startswith("ema.") for key in moved), "the average still follows the weights; nothing else moves"
    assert last["training.step.to_pixels.bias"] == 1, "one optimizer step, before anything was satisfied"
    assert len({(tmp_path / f"satisfied-rank-{rank}").read_text() for rank in (0, 1)}) == 1


def test_fewer_images_than_ranks_are_refused_with_both_numbers(tmp_path, monkeypatch):
    ranks = Ranks()
    ranks.rank, ranks.size = 1, 4096
    monkeypatch.setattr(Ranks, "start", classmethod(lambda cls, device: ranks))
    with pytest.raises(ValueError, match="rollout is 128, but there are 4096 ranks"):
        train(PRESETS["digits-smoke"](), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_stops_with_one_clear_message(irdm, tmp_path):
    options = ["--lr", "1e36", "--max-skipped", "3", "--clip-norm", "1e30"]
    out, err = irdm("train", "digits-smoke", *options, "--out", tmp_path / "run", code=1)
    assert "3 steps in a row were not finite" in err and "Traceback" not in err
    for line in curve(tmp_path / "run"):
        assert all(weight is not None for weight in line["weights"].values())


def test_a_full_disk_stops_cleanly_and_the_last_good_state_stays(irdm, tmp_path):
    run = tmp_path / "run"
    irdm("train", "digits-smoke", "--steps", 20, "--out", run)  # a run that goes on ...
    limit = (20_000, 20_000)  # ... until no file may grow past this
    _, err = irdm(
        "train", "digits-smoke", "--steps", 40, "--out", run, code=1,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert "Traceback" not in err and "too large" in err.lower() and str(run / "checkpoints") in err
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000010", "step-00000020"]
    out, _ = irdm("train", "digits-smoke", "--steps", 40, "--out", run)
    assert "resuming after step 20" in out


@pytest.mark.parametrize(
    "options, said",
    [
        (["--distance.kind", "frechet", "--rollout", "700"], "controller.kind uniform"),
        (["--micro-batch", "4096"], "micro_batch is 4096"),
        (["--device", "cuda"], "no CUDA device"),
        (["--data.kind", "images", "--data.path", "missing.npz"], "missing.npz"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(irdm, tmp_path, options, said):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    process = irdm.start("train", "digits-smoke", *options, "--out", tmp_path / "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode in (1, 2) and said in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_an_unwritable_place_is_named(irdm, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    _, err = irdm("train", "digits-smoke", "--out", tmp_path / "file" / "run", code=1)
    assert str(tmp_path / "file") in err and "Traceback" not in err
    _, err = irdm("train", "digits-smoke", "--out", tmp_path, code=1)
    assert "not a run directory" in err
    assert (tmp_path / "file").read_text() == "not a folder"


def test_learning_rate_follows_the_square_root_of_the_rollout():
    def rate(step, **fields):
        return (
            PRESETS["digits"]()
            .model_copy(update={"lr": 1.6e-6, "warmup": 0, "final_lr": 1.0, **fields})
            .learning_rate(step)
        )

    assert rate(7, rollout=5120) == pytest.approx(1.6e-6)
    assert rate(7, rollout=1280) == pytest.approx(0.8e-6)
    cosine = {"rollout": 5120, "steps": 100, "warmup": 10, "final_lr": 0.1}
    assert rate(0, **cosine) == pytest.approx(0.16e-6)
    assert rate(55, **cosine) == pytest.approx(1.6e-6 * 0.55)
