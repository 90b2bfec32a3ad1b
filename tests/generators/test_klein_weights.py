"""Weights that others trained: the authors' layouts, adapters, and whatever does not belong to this klein."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_klein import CAPTIONS, noise, tiny

from irdm.files import sha256_of
from irdm.generators.klein_lora import lora_file_bfl
from irdm.generators.klein_names import to_bfl
from irdm.generators.klein_tiny import write_tiny


@pytest.fixture(scope="module")
def student():
    """A transformer other than the folder's, and what it draws."""
    generator = tiny()
    with torch.no_grad():
        for p in generator.trained().values():
            p.copy_((p * 1.01).bfloat16())
        return generator.transformer.state_dict(), generator(noise(), CAPTIONS)


LAYOUTS = {
    "model.safetensors": lambda state, path: save_file(to_bfl(state), path),
    "bf16.safetensors": lambda state, path: save_file({k: v.bfloat16() for k, v in to_bfl(state).items()}, path),
    "diffusers.safetensors": lambda state, path: save_file(dict(state), path),
    "released.pth": lambda state, path: torch.save(
        {"model": {f"model.{name}": tensor for name, tensor in to_bfl(state).items()}, "step": 180}, path
    ),
    "bare.pt": lambda state, path: torch.save(to_bfl(state), path),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_student_is_read_to_the_bit_from_every_layout(student, tmp_path, name):
    state, images = student
    LAYOUTS[name](state, tmp_path / name)
    generator = tiny(weights=tmp_path / name, weights_sha256=sha256_of(tmp_path / name))
    assert {p.dtype for p in generator.trained().values()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(generator(noise(), CAPTIONS), images)
    assert not torch.equal(images, tiny()(noise(), CAPTIONS))


def refused(match, path, **fields):
    with pytest.raises(ValueError, match=match):
        tiny(weights=path, **fields)


def test_a_file_is_refused_when_it_is_not_there_or_another_one(student, tmp_path):
    path = tmp_path / "x.safetensors"
    refused("There is no file", path)
    save_file(to_bfl(student[0]), path)
    refused("has the sha256 .* expected 0000", path, weights_sha256="0" * 64)
    refused("ends in '.bin'", path.rename(tmp_path / "x.bin"))


def test_every_key_is_accounted_for(student, tmp_path):
    path, bfl = tmp_path / "x.safetensors", to_bfl(student[0])
    save_file({**bfl, "double_blocks.0.extra.weight": torch.zeros(1)}, path)
    refused("x.safetensors: 1 of 46 names are none of FLUX.2", path)
    save_file({name: tensor for name, tensor in bfl.items() if name != "img_in.weight"}, path)
    refused(r"is not of this klein:\n  missing: x_embedder.weight \[32, 32\]$", path)
    save_file({**bfl, "img_in.weight": torch.zeros(32, 31)}, path)
    refused(r"another shape: x_embedder.weight is \[32, 31\], expected \[32, 32\]", path)
    save_file({**bfl, "img_in.weight": torch.full((32, 32), torch.nan)}, path)
    refused("not finite: x_embedder.weight", path)
    third = {name.replace(".0.", ".2.", 1): t.clone() for name, t in bfl.items() if "double_blocks.0" in name}
    save_file({**bfl, **third}, path)
    refused("unexpected: transformer_blocks.2.attn.to_q.weight", path)


def test_code_is_never_run_and_other_objects_are_refused(student, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": to_bfl(student[0]), "optimizer": {"state": []}}, path)
    refused("holds optimizer beside tensors", path)
    torch.save([torch.zeros(1)], path)
    refused("holds no names beside tensors", path)
    torch.save({"a": tmp_path}, path)
    refused("holds code, which is never run", path)
    path.write_bytes(b"nothing")
    refused("cannot be read as tensors alone", path)


# Adapters.


def adapters(path, rank=4, alpha=None, base=None, prefix="transformer."):
    """Random ones as peft writes them, B not 0; the generator that has them."""
    generator = tiny(lora_rank=rank)
    with torch.no_grad():
        for name, p in generator.trained().items():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    scale = rank / (alpha or rank)
    state = {
        name.replace("transformer.", prefix, 1).replace(".default", ""): p.detach() * (scale if "lora_B" in name else 1)
        for name, p in generator.trained().items()
    }
    notes = {"format": "pt", "lora_adapter_metadata": json.dumps({"transformer.lora_alpha": alpha or rank})}
    if base:
        notes["irdm"] = json.dumps({"base": base})
    save_file(state, path, metadata=notes)
    return generator


@pytest.mark.parametrize("alpha", [None, 8])
def test_training_starts_from_adapters(tmp_path, alpha):
    theirs = adapters(tmp_path / "lora.safetensors", alpha=alpha, base=tiny().folder.hashes["transformer"])
    ours = tiny(lora_rank=4, weights=tmp_path / "lora.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(ours(noise(), CAPTIONS), theirs(noise(), CAPTIONS), atol=1e-6, rtol=0)
        assert (ours(noise(), CAPTIONS) - tiny()(noise(), CAPTIONS)).abs().max() > 0.01


def test_adapters_of_another_rank_base_or_naming_are_refused(student, tmp_path):
    path = tmp_path / "lora.safetensors"
    adapters(path)
    refused("has adapters of rank 4, and --generator.lora-rank is 2. Set it to theirs", path, lora_rank=2)
    refused(r"holds adapters \(LoRA\), and all weights are to be trained: set --generator.lora-rank", path)
    adapters(path, base="f" * 64)
    refused("has adapters for another base: a transformer of sha256 ffff", path, lora_rank=4)
    other = write_tiny(tmp_path / "other", seed=1)
    adapters(path, base=tiny().folder.hashes["transformer"])
    refused("has adapters for another base", path, lora_rank=4, model=other)
    adapters(path, prefix="base_model.")
    refused("base_model.* is no adapter's name, such as transformer.MODULE.lora_A.weight", path, lora_rank=4)
    adapters(path, prefix="diffusion_model.")
    refused(r"names are none of FLUX.2 .*Give a file that `irdm export --to lora` or", path, lora_rank=4)
    save_file(to_bfl(student[0]), path)
    refused("holds a whole transformer, and --generator.lora-rank is 4: .* --generator.base", path, lora_rank=4)


def test_adapters_of_comfyui_are_those_of_diffusers_to_the_bit(tmp_path):
    theirs = adapters(tmp_path / "lora.safetensors", base=tiny().folder.hashes["transformer"])
    path, (state, notes) = tmp_path / "comfy.safetensors", lora_file_bfl(theirs.transformer)
    save_file(state, path, metadata=notes)
    ours = tiny(lora_rank=4, weights=path)
    assert all(torch.equal(p, theirs.trained()[name]) for name, p in ours.trained().items())
    again = lora_file_bfl(ours.transformer)[0]
    assert again.keys() == state.keys() and all(torch.equal(again[name], tensor) for name, tensor in state.items())
    refused("has adapters of rank 4, and --generator.lora-rank is 2. Set it to theirs", path, lora_rank=2)
    save_file(state, path, metadata={**notes, "irdm": json.dumps({"base": "f" * 64})})
    refused("has adapters for another base: a transformer of sha256 ffff", path, lora_rank=4)
    name = "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight"
    save_file({**state, name: torch.ones_like(state[name])}, path)
    refused("attn.to_q shares its adapter with others, and irdm trains q, k and v apart", path, lora_rank=4)
    save_file({**state, "diffusion_model.x.alpha": torch.ones(1)}, path)
    refused("diffusion_model.x.alpha is no adapter's name", path, lora_rank=4)


# A student below adapters.


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_student_of_any_layout_is_what_adapters_are_trained_on(student, tmp_path, name):
    state, images = student
    LAYOUTS[name](state, tmp_path / name)
    generator = tiny(lora_rank=4, base=tmp_path / name)
    assert len(generator.trained()) == 60 and generator.built_on["transformer"] == sha256_of(tmp_path / name)
    with torch.no_grad():
        assert torch.equal(generator(noise(), CAPTIONS), images), "B is 0 at first"
        half = tiny(lora_rank=4, base=tmp_path / name, precision="bfloat16")
        assert {p.dtype for n, p in half.transformer.named_parameters() if "lora_" not in n} == {torch.bfloat16}
        assert torch.equal(
            half(noise(), CAPTIONS), tiny(weights=tmp_path / name, precision="bfloat16")(noise(), CAPTIONS)
        )


def test_a_base_that_is_none_is_refused(student, tmp_path):
    def refused_below(match, path, **fields):
        with pytest.raises(ValueError, match=match):
            tiny(base=path, **fields)

    path, bfl = tmp_path / "x.safetensors", to_bfl(student[0])
    refused_below("There is no file", path, lora_rank=4)
    save_file(bfl, path)
    refused_below(
        "base is .* on which adapters are trained, and lora_rank is unset; set it, or give .* as weights", path
    )
    save_file({name: tensor for name, tensor in bfl.items() if name != "img_in.weight"}, path)
    refused_below(r"is not of this klein:\n  missing: x_embedder.weight", path, lora_rank=4)
    adapters(path)
    refused_below("holds adapters .* give them as --generator.weights", path, lora_rank=4)
