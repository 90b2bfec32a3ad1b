"""Checkpoints: whole or refused by name."""

import os

import pytest
import torch
from safetensors.torch import load_file

from irdm import checkpoint
from irdm.checkpoint import load_checkpoint, load_latest, save_checkpoint, write_atomic

TENSORS = {"generator": {"w": torch.arange(6.0).view(2, 3)}, "ema": {"w": torch.ones(2)}}


def test_round_trip_and_pruning(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, TENSORS, {"skipped": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    latest, refused = load_latest(tmp_path)
    assert latest.step == 3 and latest.state == {"skipped": 3} and not refused
    assert torch.equal(latest.tensors["generator"]["w"], TENSORS["generator"]["w"])


def test_every_tensor_comes_back_as_it_was(tmp_path):
    """Through safetensors' own reader, whatever the type, shape or layout."""
    torch.manual_seed(0)
    group = {dtype: torch.randn(3, 5).mul(9).to(dtype) for dtype in checkpoint.DTYPES}
    group = {f"{dtype}": tensor for dtype, tensor in group.items()}
    group |= {"turned": torch.randn(4, 6).T, "step": torch.tensor(7.0), "none": torch.empty(0, 3)}
    group["leaf"] = torch.nn.Parameter(torch.randn(2))
    path = save_checkpoint(tmp_path, 1, {"all": group}, {}) / "all.safetensors"
    for found in (load_file(path), load_checkpoint(path.parent).tensors["all"]):
        assert found.keys() == group.keys()
        assert all(found[name].dtype == group[name].dtype for name in group)
        assert all(torch.equal(found[name], group[name]) for name in group)


def test_nothing_yet(tmp_path):
    assert load_latest(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("file", ["generator.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_named_and_the_previous_one_used(tmp_path, file, damage):
    save_checkpoint(tmp_path, 1, TENSORS, {"n": 11})
    path = save_checkpoint(tmp_path, 2, TENSORS, {"n": 22}) / file
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    latest, refused = load_latest(tmp_path)
    assert latest.step == 1
    assert len(refused) == 1 and str(path) in refused[0]
    with pytest.raises(ValueError, match=file):
        load_checkpoint(tmp_path / "step-00000002")


def test_none_usable_is_an_error(tmp_path):
    path = save_checkpoint(tmp_path, 1, TENSORS, {})
    (path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="No checkpoint is usable"):
        load_latest(tmp_path)


def test_a_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c", 1, TENSORS, {})
    write_atomic(tmp_path / "file", "old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "c", 2, TENSORS, {})
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "file", "new")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000001"]
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "file"]
    assert checkpoint.load_latest(tmp_path / "c")[0].step == 1
