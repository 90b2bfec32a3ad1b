"""Where weights are read from, and what happens when they are missing, altered or unknown; `irdm encoders`."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from irdm.cli import main
from irdm.encoders import weights as module
from irdm.encoders.weights import WeightFile, Weights, WeightSource, read_state, require, weights_folder
from irdm.files import sha256_of

ONE, TWO = save({"a": torch.ones(3)}), save({"a": torch.zeros(3)})
SOURCE = WeightSource((WeightFile("config.json"), WeightFile("sub/model.safetensors")), 0.1, "MIT", repo="who/what")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, also for what is not told a folder."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="pip install 'irdm[panel]'")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def put(folder, config=b"{}", model=ONE):
    (folder / "toy" / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "toy" / "config.json").write_bytes(config)
    (folder / "toy" / "sub" / "model.safetensors").write_bytes(model)


def cache(tmp_path, commit=COMMIT):
    """The same files in the hub's own cache."""
    repo = tmp_path / "hub" / "models--who--what"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    put(tmp_path / "scratch")
    (repo / "snapshots").mkdir()
    (tmp_path / "scratch" / "toy").rename(repo / "snapshots" / commit)
    return repo / "snapshots" / commit


class Hub:
    """Stands in for huggingface_hub: serves `files`, notes what was asked."""

    def __init__(self, **files: bytes):
        self.files, self.asked = files, []
        self.HfApi = lambda: SimpleNamespace(model_info=lambda repo: SimpleNamespace(sha=COMMIT))

    def hf_hub_download(self, repo, name, revision, local_dir, force_download):
        self.asked.append((repo, name, revision, force_download))
        if name not in self.files:
            raise ConnectionError("no route")
        path = local_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[name])


def serve(monkeypatch, **files: bytes) -> Hub:
    hub = Hub(**{name.replace("__", "/").replace("_json", ".json"): data for name, data in files.items()})
    hub.files = {name.replace("_safe", ".safetensors"): data for name, data in hub.files.items()}
    monkeypatch.setattr(module, "require", lambda name: hub)
    return hub


def test_files_brought_by_hand_are_recorded_once_and_verified_after(tmp_path):
    put(tmp_path)
    weights = Weights("toy", SOURCE, tmp_path)
    with pytest.raises(ValueError, match="nothing says what they should be.*irdm encoders fetch toy"):
        weights.verify()
    weights.fetch()
    record = json.loads((tmp_path / "toy" / "manifest.json").read_text())
    assert record["repo"] == "who/what" and len(record["sha256"]) == 2
    assert weights.verify()["sub/model.safetensors"] == tmp_path / "toy" / "sub" / "model.safetensors"


def test_an_altered_file_is_named(tmp_path):
    put(tmp_path)
    weights = Weights("toy", SOURCE, tmp_path)
    weights.fetch()
    path = tmp_path / "toy" / "sub" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"'toy' has altered weights: {path}.*irdm encoders fetch toy"):
        weights.verify()


@pytest.mark.parametrize("name", ["config.json", "sub/model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    put(tmp_path)
    weights = Weights("toy", SOURCE, tmp_path)
    weights.fetch()
    (tmp_path / "toy" / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing.*irdm encoders fetch toy.*IRDM_WEIGHTS"):
        weights.verify()


def test_a_published_sha256_needs_no_record_and_cannot_be_overruled(tmp_path):
    put(tmp_path)
    digests = {"config.json": sha256_of(tmp_path / "toy" / "config.json")}
    digests["sub/model.safetensors"] = sha256_of(tmp_path / "toy" / "sub" / "model.safetensors")
    source = replace(SOURCE, files=tuple(replace(file, sha256=digests[file.name]) for file in SOURCE.files))
    Weights("toy", source, tmp_path).verify()
    put(tmp_path, model=TWO)
    Weights("toy", SOURCE, tmp_path).fetch()  # a record of other weights
    with pytest.raises(ValueError, match="altered"):
        Weights("toy", source, tmp_path).verify()


def test_fetch_downloads_what_is_missing_at_one_revision(tmp_path, monkeypatch):
    hub = serve(monkeypatch, config_json=b"{}", sub__model_safe=ONE)
    weights, lines = Weights("toy", SOURCE, tmp_path), []
    weights.fetch(lines.append)
    assert hub.asked == [("who/what", name, COMMIT, True) for name in ("config.json", "sub/model.safetensors")]
    assert len(lines) == 3 and json.loads((tmp_path / "toy" / "manifest.json").read_text())["revision"] == COMMIT
    weights.verify()
    weights.fetch()
    assert len(hub.asked) == 2, "fetched what was there and right"


def test_fetch_replaces_what_was_altered_and_nothing_else(tmp_path, monkeypatch):
    put(tmp_path)
    weights = Weights("toy", SOURCE, tmp_path)
    weights.fetch()
    put(tmp_path, model=TWO)
    hub = serve(monkeypatch, sub__model_safe=ONE)
    weights.fetch()
    assert [name for _, name, _, _ in hub.asked] == ["sub/model.safetensors"]
    weights.verify()


def test_a_pinned_revision_is_the_one_that_is_fetched(tmp_path, monkeypatch):
    hub = serve(monkeypatch, config_json=b"{}", sub__model_safe=ONE)
    Weights("toy", replace(SOURCE, revision="f" * 40), tmp_path).fetch()
    assert {revision for _, _, revision, _ in hub.asked} == {"f" * 40}
    with pytest.raises(ValueError, match="another version of irdm.*Delete"):
        Weights("toy", replace(SOURCE, revision="e" * 40), tmp_path).verify()


def test_a_download_that_is_not_the_published_file_is_refused(tmp_path, monkeypatch):
    serve(monkeypatch, config_json=b"{}", sub__model_safe=TWO)
    files = (SOURCE.files[0], WeightFile("sub/model.safetensors", sha256="0" * 64))
    weights = Weights("toy", replace(SOURCE, files=files), tmp_path)
    with pytest.raises(ValueError, match="its publisher changed it, or it was damaged"):
        weights.fetch()
    assert not (tmp_path / "toy" / "manifest.json").exists()


def test_without_a_network_the_message_says_what_to_copy_where(tmp_path, monkeypatch):
    serve(monkeypatch)
    source = replace(SOURCE, gated=True)
    with pytest.raises(ValueError, match="no route.*gated.*licence.*who/what.*copy config.json, sub/model.safetensors"):
        Weights("toy", source, tmp_path).fetch()


def test_files_with_their_own_address_are_fetched_from_there(tmp_path, monkeypatch):
    asked = []

    def download(url, path, progress):
        asked.append(url)
        with open(path, "wb") as file:
            file.write(ONE)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    source = WeightSource((WeightFile("model.safetensors", url="https://example.org/x"),), 0.1, "MIT")
    Weights("toy", source, tmp_path).fetch()
    assert asked == ["https://example.org/x"]
    assert torch.equal(read_state(Weights("toy", source, tmp_path).verify()["model.safetensors"])["a"], torch.ones(3))


def test_the_hubs_cache_is_read_and_its_commit_recorded(tmp_path):
    snapshot = cache(tmp_path)
    folder = tmp_path / "weights"
    weights = Weights("toy", SOURCE, folder)
    with pytest.raises(ValueError, match="nothing says"):
        weights.verify()
    weights.fetch()
    assert weights.verify()["config.json"] == snapshot / "config.json"
    assert json.loads((folder / "toy" / "manifest.json").read_text())["revision"] == COMMIT
    (tmp_path / "hub" / "models--who--what" / "refs" / "main").write_text("9" * 40)
    assert weights.verify()["config.json"] == snapshot / "config.json", "follows the branch, not the recorded commit"


def test_the_folder_goes_before_the_hubs_cache(tmp_path):
    cache(tmp_path)
    put(tmp_path)
    weights = Weights("toy", SOURCE, tmp_path)
    weights.fetch()
    assert weights.verify()["config.json"] == tmp_path / "toy" / "config.json"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"sha256": []}', '{"revision": 3, "sha256": {}}', '{"sha256": {"config.json": 5}}', "[" * 9999],
)
def test_a_damaged_record_is_named(tmp_path, text):
    put(tmp_path)
    weights = Weights("toy", SOURCE, tmp_path)
    weights.fetch()
    (tmp_path / "toy" / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest.json .*Delete it, then run `irdm encoders fetch toy`"):
        weights.verify()


def test_the_folder_is_the_one_given_or_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("IRDM_WEIGHTS", str(tmp_path / "a"))
    assert weights_folder() == tmp_path / "a"
    assert weights_folder(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("IRDM_WEIGHTS")
    monkeypatch.setenv("IRDM_CACHE", str(tmp_path))
    assert weights_folder() == tmp_path / "weights"


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_files_that_hold_no_weights_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=f"{name} holds no weights"):
        read_state(path)


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], torch.ones(2), {"a": "text"}, {3: torch.ones(2)}, {"state_dict": {"a": 1}}, 5, None]
)
def test_what_holds_other_things_than_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt holds"):
        read_state(tmp_path / "model.pt")


def test_a_training_checkpoint_gives_its_tensors_alone(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "model.pth.tar")
    found = read_state(tmp_path / "model.pth.tar")
    assert found.keys() == {"state_dict"} and torch.equal(found["state_dict"]["a"], torch.ones(2))


@pytest.mark.parametrize(
    "data", [b"plain text, a line of it\n", b"(", b"\x80\x02}q\x00h\x05.", b"cos\nsystem\n(S'true'\ntR."]
)
def test_a_damaged_pickle_is_named_whatever_it_raises(tmp_path, data):
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(ValueError, match="model.pt holds no weights"):
        read_state(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_any_flipped_byte_of_a_header_gives_weights_or_is_named(tmp_path, suffix):
    good = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)}
    path = tmp_path / f"model.{suffix}"
    torch.save(good, path) if suffix == "pt" else path.write_bytes(save(good))
    data = path.read_bytes()
    for place in torch.randint(len(data), (150,)).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            assert all(isinstance(value, torch.Tensor) for value in read_state(path).values())
        except ValueError as error:
            assert str(path) in str(error)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_code_in_a_weight_file_never_runs(tmp_path):
    torch.save({"a": Trap()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_state(tmp_path / "model.pth")


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(ValueError, match="package no_such_package .*pip install 'irdm\\[panel\\]'"):
        require("no_such_package.inside")


def test_a_package_built_for_another_torch_is_named(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(module.importlib, "import_module", broken)
    with pytest.raises(ValueError, match="timm cannot be imported.*nms.*torchvision that was built for torch"):
        require("timm")


# --- irdm encoders ---------------------------------------------------------------------------------------------------


def test_list_shows_the_whole_panel(tmp_path, capsys):
    assert main(["encoders", "list", "--weights", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "held out" in lines["dinov2"] and "trains" in lines["mae"] and "d58a1a547a07" in lines["mae"]
    assert "to fetch" in lines["mae"] and "CC-BY-NC-4.0" in lines["mae"] and str(tmp_path) in out
    (tmp_path / "mae").mkdir()
    (tmp_path / "mae" / "model.safetensors").write_bytes(ONE)
    assert main(["encoders", "list", "mae", "--weights", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("here")


def test_check_reads_every_byte_and_fails_when_anything_is_wrong(tmp_path, capsys):
    for name in ("mae", "dinov3_l"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(ONE)
    assert main(["encoders", "fetch", "dinov3_l", "--weights", str(tmp_path)]) == 0
    assert main(["encoders", "check", "dinov3_l", "--weights", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ok")
    assert main(["encoders", "check", "mae", "dinov3_l", "dinov2", "--weights", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    kinds = [line.split()[0] for line in printed.out.splitlines()]
    assert kinds == ["MISSING", "ok", "MISSING"] and "altered" in printed.out.splitlines()[0]
    assert "2 without usable weights: mae, dinov2" in printed.err


def test_one_failure_stops_no_other_fetch(tmp_path, capsys, monkeypatch):
    serve(monkeypatch)
    (tmp_path / "dinov3_l").mkdir()
    (tmp_path / "dinov3_l" / "model.safetensors").write_bytes(ONE)
    assert main(["encoders", "fetch", "mae", "dinov3_l", "--weights", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "'mae' could not be fetched" in printed.err and "Traceback" not in printed.err
    assert (tmp_path / "dinov3_l" / "manifest.json").is_file()


def test_unknown_encoders_are_refused(tmp_path, capsys):
    for action in ("list", "check", "fetch"):
        assert main(["encoders", action, "dinov", "--weights", str(tmp_path)]) == 2
        assert "there is no encoder 'dinov'; did you mean 'dinov2'?" in capsys.readouterr().err
