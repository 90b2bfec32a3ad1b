"""Exports of klein: official programs read them and draw our image to the bit, and the card's own lines do."""

from __future__ import annotations

import contextlib
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_klein import PROMPTS, SHAPE, SPEC, noise, official, pipeline, tiny

from irdm.checkpoint import save_checkpoint
from irdm.cli import main
from irdm.conditions import to_bytes
from irdm.data import DigitsConfig
from irdm.evaluation.result import Result, write_result
from irdm.export import FORMATS, export_run
from irdm.export.files import WRITERS
from irdm.files import read_tensors, sha256_of
from irdm.generators import KleinConfig, MLPConfig
from irdm.generators.klein_folder import KleinFolder
from irdm.generators.klein_lora import TARGETS, adapters, merged
from irdm.generators.klein_names import to_bfl
from irdm.generators.klein_teacher import load_pipeline
from irdm.generators.klein_tiny import cached_tiny, write_tiny
from irdm.geneval.summary import Rate, Scored, write_scored
from irdm.metrics.score import Estimate, Score
from irdm.presets import RunConfig
from irdm.run import claim_run, load_run, write_record
from irdm.text.contexts import hash_files

KEPT = SPEC.model_copy(update={"examples": tuple(PROMPTS)})


def run_of(path, moved=True, **fields):
    """A run directory with weights that have moved, or as they are at first."""
    config = RunConfig(data=DigitsConfig(), generator=KleinConfig(**fields), evaluation=None, rollout=64)
    claim_run(path, config)
    record = {"spec": KEPT.model_dump(mode="json"), "image_shape": [*SHAPE], "overlap": {"/a/geneval.jsonl": OVERLAP}}
    generator = tiny(**fields)
    write_record(path, {**record, "built_on": generator.built_on})
    with torch.no_grad():
        for name, p in generator.trained().items():
            draws = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
            p += moved * draws * (0.3 if ".lora_" in name else 0.01)
    tensors = {name: p.detach() for name, p in generator.trained().items()}
    save_checkpoint(path / "checkpoints", 7, {"ema": tensors}, {})
    return path


OVERLAP = {"prompts": 553, "found": 12, "share": 0.176}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "half", precision="bfloat16")


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "lora", lora_rank=4)


@torch.no_grad()
def ours(run):
    images = load_run(run, "cpu").generator(noise(), to_bytes(PROMPTS))
    assert (images - official(pipeline())).abs().max() > 0.01  # training moved it
    return images


@torch.no_grad()
def written(**fields):
    return tiny(**fields)(noise(), to_bytes(PROMPTS))


@pytest.mark.parametrize("name", ["full", "half"])
def test_the_official_pipeline_loads_the_whole_folder_and_draws_our_image(name, request, tmp_path):
    run = request.getfixturevalue(name)
    precision = load_run(run, "cpu").config.generator.precision
    out = export_run(run, "diffusers", tmp_path / "out", whole=True)
    pipe = load_pipeline(out, {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision])
    assert pipe.config.is_distilled is True
    assert torch.equal(official(pipe), ours(run))
    assert torch.equal(written(model=out, precision=precision), ours(run))  # and so does irdm
    for part in ("vae", "text_encoder"):
        assert hash_files(out / part) == hash_files(cached_tiny() / part)


def test_the_transformer_alone_is_loaded_by_diffusers(full, tmp_path):
    from diffusers import Flux2Transformer2DModel

    out = export_run(full, "diffusers", tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "image-0.png", "image-1.png", "transformer"]
    transformer = Flux2Transformer2DModel.from_pretrained(out, subfolder="transformer")
    pipe = load_pipeline(cached_tiny(), torch.float32, transformer=transformer)
    assert torch.equal(official(pipe), ours(full))


def test_bfl_names_go_there_and_back_to_the_bit(full, tmp_path):
    from diffusers import Flux2Transformer2DModel

    out = export_run(full, "bfl", tmp_path / "out")
    assert torch.equal(written(weights=out / "model.safetensors"), ours(full))
    transformer = Flux2Transformer2DModel.from_single_file(
        str(out / "model.safetensors"), config=str(cached_tiny()), subfolder="transformer", torch_dtype=torch.float32
    )
    pipe = load_pipeline(cached_tiny(), torch.float32, transformer=transformer)
    assert torch.equal(official(pipe), ours(full))


def test_weights_of_a_bfloat16_run_are_exported_as_it_drew_with_them(half, tmp_path):
    out = export_run(half, "bfl", tmp_path / "out")
    tensors, notes = read_tensors(out / "model.safetensors", "")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert notes["format"] == "pt" and '"step": "7"' in notes["irdm"]
    assert torch.equal(written(weights=out / "model.safetensors", precision="bfloat16"), ours(half))


def test_adapters_are_loaded_by_diffusers_and_by_irdm_to_the_bit(lora, tmp_path):
    out = export_run(lora, "lora", tmp_path / "out")
    pipe = load_pipeline(cached_tiny(), torch.float32)
    pipe.load_lora_weights(out)
    assert torch.equal(official(pipe), ours(lora))
    assert torch.equal(written(lora_rank=4, weights=out / "pytorch_lora_weights.safetensors"), ours(lora))
    with pytest.raises(ValueError, match="adapters of rank 4, and --generator.lora-rank is 8"):
        tiny(lora_rank=8, weights=out / "pytorch_lora_weights.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    ours_merged = merged(load_run(lora, "cpu").generator.transformer)
    theirs = pipe.transformer.state_dict()
    assert ours_merged.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours_merged.items())


def test_adapters_on_a_bfloat16_base_are_loaded_by_diffusers(tmp_path):
    run = run_of(tmp_path / "run", lora_rank=4, precision="bfloat16")
    out = export_run(run, "lora", tmp_path / "out")
    tensors, _ = read_tensors(out / "pytorch_lora_weights.safetensors", "")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    pipe = load_pipeline(cached_tiny(), torch.bfloat16)
    pipe.load_lora_weights(out)
    assert (official(pipe) - ours(run)).abs().max() <= BFLOAT16


BFLOAT16 = 0.02  # a few units in the last place of pixels


def test_adapters_for_comfyui_are_the_same_ones(lora, tmp_path):
    out = export_run(lora, "lora-bfl", tmp_path / "out")
    tensors, _ = read_tensors(out / "lora_bfl.safetensors", "")
    assert len(tensors) == 2 * (2 * 8 + 3 * 2)
    assert tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"].shape == (12, 32)
    pipe = load_pipeline(cached_tiny(), torch.float32)
    pipe.load_lora_weights(out, weight_name="lora_bfl.safetensors")
    torch.testing.assert_close(official(pipe), ours(lora), atol=1e-5, rtol=0)
    assert torch.equal(written(lora_rank=4, weights=out / "lora_bfl.safetensors"), ours(lora))
    again = run_of(tmp_path / "again", False, lora_rank=4, weights=out / "lora_bfl.safetensors")
    back = export_run(again, "lora-bfl", tmp_path / "back") / "lora_bfl.safetensors"
    theirs, _ = read_tensors(back, "")
    assert theirs.keys() == tensors.keys() and all(torch.equal(theirs[name], t) for name, t in tensors.items())


def test_adapters_on_a_student_are_published_with_it(half, tmp_path):
    """The student is our own full-weights export; its name is in the card, and the card's lines draw our image."""
    student = export_run(half, "bfl", tmp_path / "student", dtype="float32") / "model.safetensors"
    run = run_of(tmp_path / "run", lora_rank=4, base=student)
    out = export_run(run, "lora", tmp_path / "out")
    text = (out / "README.md").read_text()
    assert f"# model.safetensors: what the adapters were trained on, sha256 {sha256_of(student)}" in text
    assert f"- transformer that it started from: sha256 `{sha256_of(student)}`" in text
    shutil.copy(student, out)
    assert drawn_by_the_card(out) == 0
    torch.testing.assert_close(
        written(weights=export_run(run, "bfl", tmp_path / "merged") / "model.safetensors"), ours(run), atol=1e-5, rtol=0
    )
    student.unlink()
    with pytest.raises(ValueError, match="There is no file .*model.safetensors"):
        load_run(run, "cpu")
    torch.save({"model": to_bfl(tiny().transformer.state_dict()), "step": 1}, tmp_path / "student.pth")
    run = run_of(tmp_path / "pth", lora_rank=4, base=tmp_path / "student.pth")
    refused("no other program reads a .pth below adapters. Use --to diffusers", run, "lora", tmp_path / "none")


@pytest.mark.parametrize("to", ["diffusers", "bfl"])
def test_adapters_are_merged_where_a_format_has_none(lora, tmp_path, to):
    out = export_run(lora, to, tmp_path / "out")
    torch.testing.assert_close(written(weights=out / FORMATS[to][0]), ours(lora), atol=1e-5, rtol=0)
    assert "The run's own images differ from them by at most" in (out / "README.md").read_text()


CARDS = [("full", "diffusers", False), ("half", "bfl", False), ("lora", "lora", False), ("lora", "lora-bfl", False)]
CARDS += [("lora", "diffusers", True)]


@pytest.mark.parametrize(("name", "to", "whole"), CARDS)
def test_the_lines_of_the_card_draw_its_image(name, to, whole, request, tmp_path):
    out = export_run(request.getfixturevalue(name), to, tmp_path / "out", whole=whole)
    assert drawn_by_the_card(out) <= (to == "lora-bfl")


def drawn_by_the_card(out):
    """How far the image that its lines draw is from the one that it shows."""
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    with contextlib.chdir(out):
        exec(code, {})
    drawn, shown = (np.asarray(Image.open(out / file), dtype=int) for file in ("image.png", "image-0.png"))
    assert shown.std() > 10
    return abs(drawn - shown).max()


def test_the_card_says_what_a_user_must_know(full, tmp_path):
    text = (export_run(full, "diffusers", tmp_path / "out", base="someone/klein") / "README.md").read_text()
    for said in (
        "pipeline_tag: text-to-image",
        "text of **48 tokens**",
        'Flux2KleinPipeline.from_pretrained("someone/klein"',
        "max_sequence_length=48",
        "They are the run's own images, to the bit.",
        "all weights, 7 steps of 64 images",
        "- 12 of the 553 prompts of geneval.jsonl are among the captions: 17.6% of the training rows",
        f"| {PROMPTS[1]} | 1 | ![](image-1.png) |",
        "Not judged.",
    ):
        assert said in text
    assert "license" not in text  # the tiny model is nobody's


def test_the_card_has_the_scores_that_lie_in_the_run(tmp_path):
    run = run_of(tmp_path / "run")
    value = Estimate(value=1.25, ci95=(1.0, 1.5), control=1.02)
    score = Score(label="SW ratio", direction="lower", says="", mean=value, held_out=value)
    write_result(run / "result.json", Result(source={}, reference={}, protocol={}, scores={"sw_ratio": score}))
    rate = Rate(value=0.826, ci95=(0.81, 0.84), prompts=553)
    scored = Scored(
        metric="GenEval", kind="official", scorer={"weights": "ab12"}, prompts="0" * 64, published=True, render={},
        rates={"counting": rate}, overall=rate, pickscore=Estimate(value=22.76), images=(),
    )  # fmt: skip
    (run / "geneval" / "scored-official").mkdir(parents=True)
    write_scored(run / "geneval" / "scored-official", scored)
    text = (export_run(run, "bfl", tmp_path / "out") / "README.md").read_text()
    assert "| SW ratio | 1.25 |  | 1.02 |" in text
    assert "GenEval: 0.826 (95% 0.810 to 0.840; counting 0.826); PickScore of the same images: 22.76." in text
    assert 'Scorer: `{"weights": "ab12"}`' in text and "Not judged" not in text


def test_targets_are_all_linear_maps_of_the_blocks():
    transformer = tiny().transformer
    linear = {
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and "blocks." in name
    }
    assert {name for name in dict(transformer.named_modules()) if re.fullmatch(TARGETS, name)} == linear
    assert adapters(tiny(lora_rank=2).transformer).keys() == linear


def test_every_format_has_a_writer():
    assert FORMATS.keys() == WRITERS.keys()


# What is refused, before anything is written.


def refused(match, run, to, out, **options):
    with pytest.raises(ValueError, match=match):
        export_run(run, to, out, **options)
    assert not out.exists() or list(out.iterdir()) == [out / "mine"]


def test_wrong_requests_are_refused(full, lora, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(KleinFolder, "tells_pictures", True)
        refused("other programs expect velocities", full, "bfl", out)
    refused("has trained all weights, and has no adapters", full, "lora", out)
    refused("--whole is the whole folder of a pipeline, and --to is lora", lora, "lora", out, whole=True)
    refused("is not there: give a run directory", tmp_path / "none", "bfl", out)
    other = RunConfig(data=DigitsConfig(), generator=MLPConfig(), evaluation=None)
    claim_run(tmp_path / "mlp", other)
    refused("has no checkpoint yet", tmp_path / "mlp", "bfl", out)
    out.mkdir()
    (out / "mine").touch()
    refused("is not an empty folder; give another --out", full, "bfl", out)


def test_a_run_is_refused_when_its_base_was_changed(tmp_path):
    run = run_of(tmp_path / "run", lora_rank=4, model=write_tiny(tmp_path / "klein"))
    assert load_run(run, "cpu").generator.built_on.keys() == {"transformer", "vae", "text_encoder"}
    part = tmp_path / "klein" / "transformer"
    shutil.rmtree(part)
    shutil.copytree(write_tiny(tmp_path / "other", seed=1) / "transformer", part)
    with pytest.raises(ValueError, match=r"was trained on another transformer than .*klein has"):
        load_run(run, "cpu")
    assert tiny().built_on.keys() == {"vae", "text_encoder"}  # the transformer is trained itself


def test_the_command(full, capsys):
    options = ["--dtype", "bfloat16", "--prompts", "a cat", "--device", "cpu"]
    assert main(["export", str(full), "--to", "bfl", *options]) == 0
    said = capsys.readouterr().out
    out = full / "export" / "bfl"
    assert f"wrote {out}; its README.md says how to use it" in said
    assert "| a cat | 0 |" in (out / "README.md").read_text()
    assert main(["export", str(full), "--to", "gguf"]) == 2
    assert main(["export", str(full), "--to", "lora"]) == 1
    assert "has no adapters" in capsys.readouterr().err
    shutil.rmtree(full / "export")
