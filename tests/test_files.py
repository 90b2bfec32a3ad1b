"""Files: whole or absent, damage named, one writer at a time."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from irdm import files
from irdm.files import (
    claimed,
    clear_partial,
    hash_of,
    hash_tensors,
    locked,
    misfits,
    read_manifest,
    read_sealed,
    read_tensors,
    replaced,
    replaced_folder,
    sealed_folder,
    visible,
    write_atomic,
    write_manifest,
    write_tensors,
)

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from irdm.files import replaced, replaced_folder
    path = Path(sys.argv[1])
    with replaced_folder(path / "folder") as folder, replaced(path / "file") as file:
        (folder / "half").write_text("x")
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def run(script, *arguments):
    source = textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", source, *map(str, arguments)], capture_output=True, text=True)


def everything(path):
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def test_what_is_replaced_is_the_old_or_the_new(tmp_path):
    write_atomic(tmp_path / "deep" / "file", "old")
    with pytest.raises(RuntimeError), replaced(tmp_path / "deep" / "file") as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert (tmp_path / "deep" / "file").read_text() == "old"
    with replaced_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "folder") as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    with replaced_folder(tmp_path / "folder") as folder:
        (folder / "c").write_text("3")
        assert everything(tmp_path / "folder") == ["a"]
    assert everything(tmp_path) == ["deep", "deep/file", "folder", "folder/c"]


def test_names_that_are_no_utf8_are_written(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_atomic(tmp_path / name, name)
    assert os.fsencode(name) in os.listdir(os.fsencode(tmp_path)) and (tmp_path / name).read_bytes() == b"caf\xe9"
    write_tensors(tmp_path / name, {"t": torch.arange(3.0)}, {"note": "x"})
    found, notes = read_tensors(tmp_path / name, "")
    assert torch.equal(found["t"], torch.arange(3.0)) and notes == {"note": "x"}


def test_what_a_killed_process_left_goes_with_the_next_lock(tmp_path):
    (tmp_path / ".config.2024").write_text("mine")
    assert run(KILLED, tmp_path).returncode == -9
    assert len(visible(tmp_path)) == 0 and len(everything(tmp_path)) == 4
    with locked(tmp_path):
        assert everything(tmp_path) == [".config.2024", ".lock"]


def test_a_cache_keeps_what_others_may_still_be_writing(tmp_path):
    assert run(KILLED, tmp_path).returncode == -9
    clear_partial(tmp_path, older=60)
    assert len(everything(tmp_path)) == 3
    clear_partial(tmp_path)
    assert everything(tmp_path) == []


def test_one_process_holds_a_directory_until_it_dies(tmp_path):
    held = "import sys\nfrom pathlib import Path\nfrom irdm.files import locked\nwith locked(Path(sys.argv[1])): pass"
    with locked(tmp_path, "trained"):
        refused = run(held, tmp_path)
        assert f"{tmp_path} is being used by process {os.getpid()}" in refused.stderr
        with pytest.raises(ValueError, match="is being built by process"), locked(tmp_path, "built"):
            pass
    assert run(held, tmp_path).returncode == 0
    killed = run(held.replace("pass", "import os; os.kill(os.getpid(), 9)"), tmp_path)
    assert killed.returncode == -9
    with locked(tmp_path):
        pass


def test_manifests_notice_every_change(tmp_path):
    path = tmp_path / "m.json"
    body = {"b": [1, 2.5, None], "a": {1: "one", 10: "ten", 2: "two"}, "t": (1, 2), "name": "\udcff"}
    write_manifest(path, body)
    assert read_manifest(path, "") == {
        "b": [1, 2.5, None],
        "a": {"1": "one", "10": "ten", "2": "two"},
        "t": [1, 2],
        "name": "\udcff",
    }
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        place, bit = (int(torch.randint(most, (), generator=generator)) for most in (len(whole), 8))
        data = bytearray(whole)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        try:
            found = read_manifest(path, "")
        except ValueError as error:
            assert str(path) in str(error)
        else:  # white space, or an escape written otherwise
            assert found == json.loads(json.dumps(body))


@pytest.mark.parametrize("text", ["[]", "{}", "null", "3", '"x"', "", "{", '{"self": 3}', "[" * 100_000, "\xff\xfe"])
def test_what_is_no_manifest_is_one_clear_error(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"manifest.json.*Build it again"):
        read_manifest(tmp_path / "manifest.json", "Build it again.")
    with pytest.raises(ValueError, match=r"manifest.json.*Build it again"):
        read_sealed(tmp_path, "Build it again.")


@pytest.mark.parametrize(
    "body", [{}, {"files": 3}, {"files": {"a": {}}}, {"files": {"a": 1}}, {"files": ["a"]}, {"files": {"a": None}}]
)
def test_a_checksum_alone_makes_no_sealed_folder(tmp_path, body):
    (tmp_path / "a").write_text("a")
    write_manifest(tmp_path / "manifest.json", body)
    with pytest.raises(ValueError, match="is no manifest of this program"):
        read_sealed(tmp_path, "")


def seal(path, body=None):
    with sealed_folder(path, body or {"of": "x"}) as (folder, record):
        record["files"]["t.safetensors"] = write_tensors(folder / "t.safetensors", {"t": torch.arange(9.0)})
        record["count"] = 9
    return path


@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "longer"])
@pytest.mark.parametrize("name", ["t.safetensors", "manifest.json"])
def test_a_sealed_folder_says_what_was_harmed(tmp_path, name, harm):
    path = seal(tmp_path / "s")
    assert read_sealed(path, "")["count"] == 9 and everything(tmp_path) == ["s", "s/manifest.json", "s/t.safetensors"]
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 4
    changed = {"flip": data, "cut": data[:-4], "longer": data + b"x"}
    (path / name).unlink() if harm == "delete" else (path / name).write_bytes(changed[harm])
    with pytest.raises(ValueError, match=rf"{name}.*Mend it"):
        read_sealed(path, "Mend it.")
    if name == "t.safetensors" and harm == "flip":
        assert read_sealed(path, "", content=False), "the size is right"


def test_tensors_of_every_type_come_back(tmp_path):
    group = {f"{dtype}": torch.randn(3, 5).mul(9).to(dtype) for dtype in files.DTYPES}
    group |= {
        "turned": torch.randn(4, 6).T,
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "leaf": torch.nn.Parameter(torch.ones(2)),
    }
    entry = write_tensors(tmp_path / "t.safetensors", group, {"floor": "0.5", "another": "x"})
    assert entry == files.file_entry(tmp_path / "t.safetensors")
    found, notes = read_tensors(tmp_path / "t.safetensors", "")
    assert notes == {"floor": "0.5", "another": "x"}
    assert not misfits(found, group) and not misfits(load_file(tmp_path / "t.safetensors"), group)
    assert all(torch.equal(found[name], group[name]) for name in group)
    assert hash_tensors(found) == hash_tensors(group) != hash_tensors(group, "head")
    write_tensors(tmp_path / "empty.safetensors", {})
    assert read_tensors(tmp_path / "empty.safetensors", "") == ({}, {})
    with pytest.raises(ValueError, match=r"cannot hold wave \(torch.complex64\)"):
        write_tensors(tmp_path / "c.safetensors", {"wave": torch.ones(1, dtype=torch.complex64)})


def test_misfits_are_named():
    found, expected = (
        {"a": torch.ones(2), "b": torch.ones(1), "d": torch.ones(3)},
        {"a": torch.ones(3), "b": torch.ones(1).half(), "c": torch.ones(1)},
    )
    text = "\n".join(misfits(found, expected))
    for part in (
        "a: torch.float32 [2], expected torch.float32 [3]",
        "b: torch.float32 [1], expected torch.float16",
        "c: missing",
        "d: torch.float32 [3], expected none",
    ):
        assert part in text


@pytest.mark.parametrize("data", [b"", b"\x08", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}x"])
def test_what_is_no_safetensors_file_is_one_clear_error(tmp_path, data):
    (tmp_path / "t.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="t.safetensors cannot be read as tensors.*Fetch it"):
        read_tensors(tmp_path / "t.safetensors", "Fetch it.")
    with pytest.raises(ValueError, match="none.safetensors cannot be read"):
        read_tensors(tmp_path / "none.safetensors", "")


def claim(path, identity):
    with claimed(path, "plan.json", identity, "store"):
        pass


def test_a_directory_is_claimed_once(tmp_path):
    claim(tmp_path, {"seed": 1, "sizes": (1, 2)})
    claim(tmp_path, {"seed": 1, "sizes": [1, 2]})
    message = r"a store of something else:\n  seed: 1 there, 2 now\n  more: null there, 3 now"
    with pytest.raises(ValueError, match=message):
        claim(tmp_path, {"seed": 2, "sizes": (1, 2), "more": 3})
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".plan.json.1.partial").write_text("")
    claim(tmp_path / "x", {"seed": 1})
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds thesis.txt and is no store"):
        claim(tmp_path / "y", {"seed": 1})
    assert everything(tmp_path / "y") == ["thesis.txt"]


def test_a_damaged_claim_costs_nothing_when_the_parts_know_whose_they_are(tmp_path):
    plan = {"seed": 1}
    claim(tmp_path, plan)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="plan.json cannot be read"):
        claim(tmp_path, plan)
    seal(tmp_path / "part", {"of": hash_of(plan)})
    with pytest.raises(ValueError, match="plan.json cannot be read"):
        claim(tmp_path, {"seed": 2})
    claim(tmp_path, plan)
    assert read_manifest(tmp_path / "plan.json", "") == plan


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems can be mounted by root only")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_named_once_with_what_helps(tiny_disk):
    seal(tiny_disk / "small")
    many = {"t": torch.zeros(50_000)}
    attempts = {
        "large": lambda: write_tensors(tiny_disk / "large", many),
        "text": lambda: write_atomic(tiny_disk / "text", "x" * 100_000),
        "sealed": lambda: seal_many(tiny_disk / "sealed", many),
    }
    for name, attempt in attempts.items():
        with pytest.raises(OSError) as caught:
            attempt()
        error = caught.value
        assert error.errno == errno.ENOSPC
        assert str(error) == (
            f"[Errno 28] {tiny_disk / name} could not be written: No space left on device. Make room and repeat the "
            "command: what is finished stays."
        )
    assert everything(tiny_disk) == ["small", "small/manifest.json", "small/t.safetensors"]


def seal_many(path, tensors):
    with sealed_folder(path, {}) as (folder, record):
        record["files"]["t"] = write_tensors(folder / "t", tensors)


def test_other_errors_name_their_own_path(tmp_path):
    (tmp_path / "afile").write_text("")
    for action in (write_atomic, lambda path, text: locked(path).__enter__()):
        with pytest.raises(OSError, match=rf"{tmp_path}/afile/x could not be written: (Not a directory|File exists)"):
            action(tmp_path / "afile" / "x", "text")
    with pytest.raises(OSError) as caught, replaced_folder(tmp_path / "new"):
        Path("/nowhere/picture.png").read_bytes()
    assert "picture.png" in str(caught.value) and "could not be written" not in str(caught.value)
