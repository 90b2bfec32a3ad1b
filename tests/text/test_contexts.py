"""Text contexts: the official pipeline's, kept once, served at shorter lengths, refused when of something else."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from tiny_klein import LENGTH, PROMPTS, pipeline

from irdm.cli import main
from irdm.data import CaptionedConfig
from irdm.files import read_manifest
from irdm.generators import KleinConfig
from irdm.generators.klein_tiny import cached_tiny, write_tiny
from irdm.presets import RunConfig
from irdm.text import contexts
from irdm.text.contexts import ContextEncoder, ContextStore, build_contexts


def encoder(length=LENGTH, dtype=torch.float32, folder=None):
    return ContextEncoder(folder or cached_tiny(), length, dtype)


@pytest.fixture
def said():
    return []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_contexts_are_the_official_pipelines_to_the_bit(precision):
    ours = encoder(dtype=contexts.DTYPES[precision])(PROMPTS)
    assert ours.shape == (2, LENGTH, 48)
    with torch.no_grad():
        assert torch.equal(ours, pipeline(precision=precision).encode_prompt(PROMPTS, max_sequence_length=LENGTH)[0])


def test_rows_do_not_depend_on_the_batch_and_a_longer_length_begins_with_the_shorter():
    both, alone = encoder()(PROMPTS), encoder()(PROMPTS[:1])
    torch.testing.assert_close(both[:1], alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(encoder(100)(["x" * 90])[:, :LENGTH], encoder()(["x" * 90]), atol=1e-6, rtol=0)


def test_tokens_are_counted_with_the_template():
    template = encoder().rendered("CAPTION")
    assert template == "<|im_start|>user\nCAPTION<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ours = encoder()
    assert ours.tokens(["", "ab", "ä"]).diff(prepend=ours.tokens([""])).tolist() == [0, 2, 0]  # a byte, a token
    assert ours.tokens([]).tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_store_gives_back_what_it_was_given(tmp_path, said, dtype):
    captions = ["", "a", "a", "ein Würfel 立方体", *PROMPTS]
    store = build_contexts(tmp_path / "store", encoder(dtype=dtype), captions, progress=said.append)
    assert len(store) == 5 and said == [f"{tmp_path / 'store'}: 0 contexts were there, 5 are new"]
    read = store.read(captions)
    assert read.dtype == dtype
    assert torch.equal(read[1], read[2])
    atol = 1e-6 if dtype == torch.float32 else 0.05  # batches round differently
    torch.testing.assert_close(read, encoder(dtype=dtype)(captions), atol=atol, rtol=0)


def test_a_build_goes_on_where_it_was_stopped_and_captions_can_be_added(tmp_path, said, monkeypatch):
    monkeypatch.setattr(contexts, "PART", 2)
    monkeypatch.setattr(contexts, "BATCH", 2)
    captions = [f"caption {i}" for i in range(5)]
    encode, calls = ContextEncoder.__call__, []

    def killed(self, some, device="cpu"):
        calls.append(list(some))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, some, device)

    monkeypatch.setattr(ContextEncoder, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        build_contexts(tmp_path, encoder(), captions, progress=said.append)
    store = build_contexts(tmp_path, encoder(), captions, progress=said.append)
    assert calls == [captions[:2], captions[2:4], captions[2:4], captions[4:]]
    assert said == [f"{tmp_path}: 2 contexts were there, 3 are new"]
    more = build_contexts(tmp_path, encoder(), [*captions, "new"], progress=said.append)
    assert calls[4:] == [["new"]] and len(more) == 6
    assert torch.equal(more.read(captions), store.read(captions))
    assert len(list(tmp_path.glob("part-*"))) == 4


def test_a_store_serves_shorter_lengths_and_no_longer_ones(tmp_path, said):
    build_contexts(tmp_path, encoder(64), PROMPTS, progress=said.append)
    short = ContextStore(tmp_path, encoder(LENGTH)).read(PROMPTS)
    torch.testing.assert_close(short, encoder(LENGTH)(PROMPTS), atol=1e-6, rtol=0)
    with pytest.raises(
        ValueError, match="holds contexts of 64 tokens, and 65 are asked for. Lower --generator.length to 64"
    ):
        ContextStore(tmp_path, encoder(65))
    with pytest.raises(ValueError, match="is a store of text contexts of something else"):
        build_contexts(tmp_path, encoder(65), PROMPTS, progress=said.append)


def test_a_store_of_another_encoder_template_or_precision_is_refused(tmp_path, said):
    build_contexts(tmp_path / "store", encoder(), PROMPTS, progress=said.append)
    with pytest.raises(ValueError, match="of something else:\n  dtype: float32 there, bfloat16 now\n"):
        ContextStore(tmp_path / "store", encoder(dtype=torch.bfloat16))
    other = write_tiny(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="of something else:\n  encoder: "):
        ContextStore(tmp_path / "store", encoder(folder=other))
    changed = shutil.copytree(cached_tiny(), tmp_path / "changed")
    template = changed / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<think>", "<thought>"))
    with pytest.raises(ValueError, match="  template: "):
        ContextStore(tmp_path / "store", encoder(folder=changed))


def test_what_is_no_store_or_a_damaged_one_is_refused(tmp_path, said):
    with pytest.raises(ValueError, match="is no store of text contexts .* make one with `irdm contexts`"):
        ContextStore(tmp_path, encoder())
    build_contexts(tmp_path / "store", encoder(), PROMPTS, progress=said.append)
    part = tmp_path / "store" / "part-00000" / "contexts.safetensors"
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(ValueError, match="contexts.safetensors has .* bytes, not .* Delete"):
        ContextStore(tmp_path / "store", encoder())
    build_contexts(tmp_path / "other", encoder(64), PROMPTS, progress=said.append)
    shutil.rmtree(part.parent)
    shutil.copytree(tmp_path / "other" / "part-00000", part.parent)
    with pytest.raises(ValueError, match="is a part of another store"):
        ContextStore(tmp_path / "store", encoder())
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ValueError, match="and is no store of text contexts"):
        build_contexts(tmp_path, encoder(), PROMPTS, progress=said.append)


def test_the_plan_says_what_made_the_contexts(tmp_path, said):
    build_contexts(tmp_path, encoder(), PROMPTS, progress=said.append)
    plan = read_manifest(tmp_path / "plan.json", "")
    assert plan["layers"] == [9, 18, 27] and plan["length"] == LENGTH and plan["width"] == 48
    assert len(plan["encoder"]) == len(plan["tokenizer"]) == 64


def test_a_text_encoder_that_is_not_whole_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(cached_tiny(), tmp_path / "klein")
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    del state["model.layers.3.mlp.up_proj.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks layers.3.mlp.up_proj.weight; it is not whole"):
        encoder(folder=folder)(PROMPTS)


def test_the_command_encodes_the_captions_of_a_run(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (32, 32), (number * 30, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"caption {number % 4}")
    run = RunConfig(
        data=CaptionedConfig(path=(folder,), embedder="ngrams"), generator=KleinConfig(), evaluation=None, rollout=8
    )
    (tmp_path / "run.json").write_text(run.model_dump_json())
    words = ["contexts", "--config", str(tmp_path / "run.json")]
    assert main([*words, "--out", str(tmp_path / "store")]) == 0
    assert "4 contexts of 48 tokens; train with --generator.contexts" in capsys.readouterr().out
    assert main([*words, "--generator.contexts", str(tmp_path / "store")]) == 0  # where training will look
    assert "4 contexts were there, 0 are new" in capsys.readouterr().out
    assert main(words) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "store"), "--generator.length", "20"]) == 1
    assert "8 of 8 captions are longer than 20 tokens" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "x"), "--generator.kind", "mlp"]) == 2
    assert "contexts are for klein" in capsys.readouterr().err
