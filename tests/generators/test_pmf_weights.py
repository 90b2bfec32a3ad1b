"""Weights on disk: every entry is accounted for, and a file that is wrong in any way is one clear error."""

import hashlib
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from spec import classes as named

from irdm.generators import PixelMeanFlowConfig, load_weights, save_weights

CONFIG = PixelMeanFlowConfig(width=16, depth=2, heads=2, head_depth=1, bottleneck=4)


def network(seed=0, classes=3):
    torch.manual_seed(seed)
    return CONFIG.build((1, 4, 4), named(classes))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def as_released(state):
    """The other names and shapes that released files may have."""
    renamed = {}
    for name, value in state.items():
        name = name.replace(".linear.", "._flax_linear.").replace(".embedding.", "._flax_embedding.")
        renamed[name] = value[None] if name.endswith("_tokens") else value
    return renamed | {"net.rope_freqs": torch.ones(2, 2)}


def second_head(state):
    return {name.replace("net.u_", "net.v_"): value + 1 for name, value in state.items() if name.startswith("net.u_")}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("change", [dict, as_released, lambda s: s | second_head(s)], ids=["ours", "renamed", "v head"])
def test_every_format_gives_the_same_network(change, suffix, tmp_path):
    source, target = network(0), network(1)
    assert not same(source, target)
    write = save_file if suffix == ".safetensors" else torch.save
    write(change(source.state_dict()), tmp_path / f"w{suffix}")
    load_weights(target, tmp_path / f"w{suffix}")
    assert same(source, target)


def test_saved_weights_come_back_and_leave_nothing_beside_them(tmp_path):
    source, target, path = network(0), network(1), tmp_path / "deep" / "w.safetensors"
    save_weights(target, path)
    save_weights(source, path)
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]
    load_weights(target, path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert same(source, target)
    assert load_file(path).keys() == source.state_dict().keys()
    with pytest.raises(ValueError, match=r"end its name in \.safetensors"):
        save_weights(source, tmp_path / "w.pth")


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(network(0), path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_weights(network(1), path)
    assert path.read_bytes() == before and len([*tmp_path.iterdir()]) == 1


def test_half_precision_files_are_read_into_float32(tmp_path):
    source, target = network(0), network(1)
    save_file({name: value.bfloat16() for name, value in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert all(p.dtype == torch.float32 for p in target.parameters())
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=1e-2, atol=1e-3)


def test_all_that_does_not_fit_is_listed_at_once_and_nothing_is_loaded(tmp_path):
    state = network(0).state_dict()
    del state["net.pos_embed"], state["net.x_embedder.proj1.bias"]
    state["net.extra"] = torch.ones(3)
    state["net.class_tokens"] = torch.ones(5, 16)
    state["net.time_tokens"] = torch.full((1, 16), torch.nan)
    state["net.h_embedder.mlp.0._flax_linear.bias"] = state["net.h_embedder.mlp.0.linear.bias"].clone()
    save_file(state, tmp_path / "w.safetensors")
    target = network(1)
    with pytest.raises(ValueError) as caught:
        load_weights(target, tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "w.safetensors" in text and text.count("\n  ") == 6
    for problem in (
        "missing: net.pos_embed [1, 10, 16]",
        "missing: net.x_embedder.proj1.bias [4]",
        "unexpected: net.extra [3]",
        "another shape: net.class_tokens is [5, 16], expected [2, 16]",
        "not finite: net.time_tokens",
        "twice:",
    ):
        assert problem in text
    assert same(target, network(1))


def test_a_second_head_is_whole_or_refused(tmp_path):
    state = network(0).state_dict()
    head = second_head(state)
    head.pop("net.v_final_layer.norm.weight")
    save_file(state | head, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"those\.\n  missing: net\.v_final_layer\.norm\.weight \[16\]$"):
        load_weights(network(1), tmp_path / "w.safetensors")


def test_another_number_of_classes_is_named(tmp_path):
    save_weights(network(classes=3), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"embedding.weight is \[4, 16\], expected \[8, 16\]"):
        load_weights(network(classes=7), tmp_path / "w.safetensors")


class Code:
    """Runs a command when it is unpickled the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_code_in_a_file_is_not_run(suffix, tmp_path):
    torch.save({"net.pos_embed": Code(tmp_path / "ran")}, tmp_path / f"zip{suffix}")
    (tmp_path / f"plain{suffix}").write_bytes(pickle.dumps(Code(tmp_path / "ran"), protocol=2))
    for name in ("zip", "plain"):
        with pytest.raises(ValueError, match=f"{name}{suffix} cannot be read .* holds code"):
            load_weights(network(), tmp_path / f"{name}{suffix}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_a_file_cut_short_is_named(suffix, keep, tmp_path):
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(ValueError, match=rf"w\{suffix} cannot be read.*damaged"):
        load_weights(network(), path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        load_weights(network(), tmp_path / "w.safetensors")
    (tmp_path / "w.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"ends in '\.ckpt'.*\.safetensors"):
        load_weights(network(), tmp_path / "w.ckpt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, expected a dictionary"):
        load_weights(network(), tmp_path / "list.pt")
    torch.save({"model": network().state_dict(), "step": 3}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match=r"model \(OrderedDict\), step \(int\)"):
        load_weights(network(), tmp_path / "nested.pt")


def test_the_checksum_is_compared_first(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(network(), path)
    data = bytearray(path.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    data[-1] ^= 1
    path.write_bytes(data)
    config = CONFIG.model_copy(update={"weights": path, "weights_sha256": digest})
    with pytest.raises(ValueError, match=f"expected {digest}"):
        config.build((1, 4, 4), named(3))
    with torch.device("meta"):  # shapes need no file
        assert config.build((1, 4, 4), named(3)).net.pos_embed.shape == (1, 10, 16)
