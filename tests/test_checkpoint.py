"""Checkpoints: whole or refused by name, and the one before them used."""

import os
import shutil

import pytest
import torch
from torch import nn

from irdm.checkpoint import (
    Writer,
    has_checkpoint,
    load_checkpoint,
    load_latest,
    load_optimizer,
    optimizer_tensors,
    remove_unfinished,
    restore,
    save_checkpoint,
)
from irdm.distributed import Ranks
from irdm.files import sha256_of, write_manifest

TENSORS = {"generator": {"w": torch.arange(6.0).view(2, 3)}, "ema": {"w": torch.ones(2)}}


def test_round_trip_and_pruning(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, TENSORS, {"skipped": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    latest, refused = load_latest(tmp_path)
    assert latest.step == 3 and latest.state == {"skipped": 3} and not refused
    assert torch.equal(latest.tensors["generator"]["w"], TENSORS["generator"]["w"])
    assert latest.hashes["ema"] == sha256_of(tmp_path / "step-00000003" / "ema.safetensors")


def part(folder, step, rank, size=2, n=5):
    """Rank's part of two groups of n rows, which it shares with others; the first also has what is not divided."""
    rows = torch.arange(2.0 * n).view(n, 2)[rank * n // size : (rank + 1) * n // size]
    rest = {"scale": torch.ones(())} if rank == 0 else {}
    return save_checkpoint(
        folder, step, {"generator": {"w": rows, **rest}, "ema": {"w": rows + 1}}, {"n": step}, 2, (rank, size)
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_of_ranks_are_a_checkpoint_once_all_are_there(tmp_path, order):
    for rank in order:
        found, refused = load_latest(tmp_path)
        assert found is None and not has_checkpoint(tmp_path)
        assert all("unfinished" in problem for problem in refused)
        part(tmp_path, 7, rank, 3, n=2)  # of two rows the first of three ranks has none
    found, refused = load_latest(tmp_path)
    assert found.step == 7 and found.state == {"n": 7} and not refused and has_checkpoint(tmp_path)
    assert {name: tensor.tolist() for name, tensor in found.tensors["generator"].items()} == {
        "w": [[0, 1], [2, 3]],
        "scale": 1,
    }
    assert found.tensors["ema"]["w"].tolist() == [[1, 2], [3, 4]] and len(found.hashes["ema"]) == 64


def test_an_unfinished_checkpoint_is_told_and_the_one_before_is_used(tmp_path):
    for rank in (0, 1):
        part(tmp_path, 1, rank)
    path = part(tmp_path, 2, 1)
    found, refused = load_latest(tmp_path)
    assert found.step == 1 and refused == [f"{path} is unfinished: of its parts, one a rank, 1 of 2 are there."]
    part(tmp_path, 2, 0, 3)
    assert "1 of 2 and 1 of 3 are there" in load_latest(tmp_path)[1][0], "parts of other numbers do not mix"
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_parts_of_two_checkpoints_are_no_checkpoint(tmp_path):
    for step in (1, 2):
        for rank in (0, 1):
            part(tmp_path, step, rank)
    mixed = tmp_path / "step-00000002" / "part-2-of-2"
    shutil.rmtree(mixed)
    shutil.copytree(tmp_path / "step-00000001" / "part-2-of-2", mixed)
    found, refused = load_latest(tmp_path)
    assert found.step == 1 and "has parts of several checkpoints" in refused[0]


def test_whole_checkpoints_are_kept_and_not_counted_before_they_are_whole(tmp_path):
    for step in (1, 2, 3):
        for rank in (1, 0):
            part(tmp_path, step, rank)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    part(tmp_path, 4, 0)  # the other one is late
    assert len([*tmp_path.iterdir()]) == 3
    save_checkpoint(tmp_path, 4, TENSORS, {}, keep=2)
    assert [path.name for path in (tmp_path / "step-00000004").glob("part*")] == [], "one process took its place"
    assert load_latest(tmp_path)[0].state == {}


def test_a_damaged_part_is_named_and_the_previous_one_used(tmp_path):
    for step in (1, 2):
        for rank in (0, 1):
            part(tmp_path, step, rank)
    path = tmp_path / "step-00000002" / "part-2-of-2" / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found, refused = load_latest(tmp_path)
    assert found.step == 1 and str(path) in refused[0]
    remove_unfinished(tmp_path)
    assert path.exists(), "it is damaged, not unfinished"


def test_nothing_yet(tmp_path):
    assert load_latest(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("file", ["generator.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "[]", "{}", "null"])
def test_damage_is_named_and_the_previous_one_used(tmp_path, file, damage):
    save_checkpoint(tmp_path, 1, TENSORS, {"n": 11})
    path = save_checkpoint(tmp_path, 2, TENSORS, {"n": 22}) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes({"flip": data, "cut": data[: len(data) // 2]}.get(damage, damage.encode()))
    latest, refused = load_latest(tmp_path)
    assert latest.step == 1
    assert len(refused) == 1 and str(path) in refused[0]
    with pytest.raises(ValueError, match=file):
        load_checkpoint(tmp_path / "step-00000002")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"step": "2", "state": {}, "files": {}},
        {"step": 2, "state": [], "files": {}},
        {"step": 2, "state": {}, "files": []},
        {"step": 2, "state": {}, "files": {"ema.safetensors": 3}},
        {"step": 2, "state": {}, "files": {"ema.safetensors": {"bytes": 1}}},
    ],
)
def test_a_manifest_of_something_else_is_refused_and_the_previous_one_used(tmp_path, body):
    save_checkpoint(tmp_path, 1, TENSORS, {"n": 11})
    path = save_checkpoint(tmp_path, 2, TENSORS, {"n": 22})
    write_manifest(path / "manifest.json", body)  # with a right checksum
    latest, refused = load_latest(tmp_path)
    assert latest.step == 1 and str(path) in refused[0]


def test_none_usable_is_an_error(tmp_path):
    path = save_checkpoint(tmp_path, 1, TENSORS, {})
    (path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="No checkpoint is usable"):
        load_latest(tmp_path)


def test_a_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", 1, TENSORS, {})

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="c/step-00000002 could not be written: No space.*Make room and repeat"):
        save_checkpoint(tmp_path / "c", 2, TENSORS, {})
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000001"]
    assert load_latest(tmp_path / "c")[0].step == 1


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_thread_writes_the_same_bytes_from_a_copy(tmp_path):
    live = {"generator": {"w": torch.arange(6.0)}}
    copy = Ranks().snapshot(live)
    live["generator"]["w"].zero_()
    with Writer(tmp_path / "beside", keep=2) as writer:
        for step in (1, 2, 3):
            writer.write(step, copy, {"n": step})
            save_checkpoint(tmp_path / "plain", step, {"generator": {"w": torch.arange(6.0)}}, {"n": step}, keep=2)
    assert contents(tmp_path / "beside") == contents(tmp_path / "plain") and not writer.failed


def test_what_a_thread_could_not_write_stops_the_run_with_its_message(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    writer = Writer(tmp_path, keep=2)
    writer.write(1, TENSORS, {})
    writer.wait()
    monkeypatch.setattr("irdm.checkpoint.sealed_folder", full)
    with pytest.raises(OSError, match="No space"), writer:
        writer.write(2, TENSORS, {})
        while not writer.failed:
            pass
        assert load_latest(tmp_path)[0].step == 1, "the last good one stays"
    for asked in (lambda writer: writer.write(3, TENSORS, {}), lambda writer: writer.wait()):
        again = Writer(tmp_path, keep=2)
        again.write(2, TENSORS, {})
        with pytest.raises(OSError, match="No space"):
            asked(again)
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path, keep=2) as writer:
        writer.write(2, TENSORS, {})
        raise KeyboardInterrupt  # what ends the run first is what it says


# --- what is in them -------------------------------------------------------------------------------------------------


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(module, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.full((2, 3), float(step))).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)])
def test_an_optimizer_goes_on_as_if_it_had_not_stopped(kind):
    through = network()
    optimizer = kind(through.parameters(), lr=1e-2)
    train(through, optimizer, 4)

    stopped = network()
    first = kind(stopped.parameters(), lr=1e-2)
    train(stopped, first, 2)
    names = [name for name, _ in stopped.named_parameters()]
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(first, names).items()}
    assert {name.partition(".")[2] for name in saved} == set(names)

    resumed = network()
    restore(dict(resumed.named_parameters()), stopped.state_dict(), "x")
    # In another order of parameters: names decide, not places.
    back = list(reversed(list(resumed.named_parameters())))
    second = kind([parameter for _, parameter in back], lr=1e-2)
    load_optimizer(second, [name for name, _ in back], saved)
    for step in (2, 3):
        second.zero_grad()
        resumed(torch.full((2, 3), float(step))).square().sum().backward()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), through.parameters(), strict=True))


def test_the_state_of_another_network_is_refused_by_name():
    module = network()
    names = [name for name, _ in module.named_parameters()]
    optimizer = torch.optim.AdamW(module.parameters())
    train(module, optimizer, 1)
    saved = optimizer_tensors(optimizer, names)
    fresh = torch.optim.AdamW(network().parameters())
    load_optimizer(fresh, names, {})
    with pytest.raises(ValueError, match=r"exp_avg.head.weight, but there is no parameter 'head.weight'"):
        load_optimizer(fresh, names, saved | {"exp_avg.head.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"exp_avg.0.weight \[3, 3\], expected \[4, 3\]"):
        load_optimizer(fresh, names, saved | {"exp_avg.0.weight": torch.ones(3, 3)})
    with pytest.raises(ValueError, match="nothing of the parameter.*2.bias"):
        load_optimizer(fresh, names, {key: value for key, value in saved.items() if not key.endswith(".2.bias")})


def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded():
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    wrong = {
        "0.weight": torch.zeros(4, 3),
        "0.bias": torch.zeros(5),
        "2.weight": torch.zeros(2, 4).half(),
        "x": torch.zeros(1),
    }
    with pytest.raises(ValueError) as caught:
        restore(module.state_dict(), wrong, "step-00000002")
    for part in (
        "step-00000002 holds the weights of another network",
        "0.bias: torch.float32 [5], expected torch.float32 [4]",
        "2.bias: missing",
        "2.weight: torch.float16",
        "x: torch.float32 [1], expected none of this name",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
