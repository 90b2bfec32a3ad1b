"""klein: equal to the official pipeline, a gradient for every weight, frozen where it should be, refused when wrong."""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_klein import CAPTIONS, LENGTH, PROMPTS, SHAPE, SPEC, medium, noise, official, pipeline, resident, tiny

from irdm.conditions import ClassSpec, Prompts
from irdm.generators import KleinConfig
from irdm.generators.klein import positions
from irdm.generators.klein_folder import open_folder
from irdm.generators.klein_tiny import cached_tiny, write_tiny
from irdm.text.contexts import ContextEncoder, build_contexts


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_step_is_that_of_the_official_pipeline_to_the_bit(precision, rank):
    generator = tiny(precision=precision, lora_rank=rank)
    with torch.no_grad():
        ours = generator(noise(), CAPTIONS)
    assert ours.dtype == torch.float32
    assert ours.std() > 0.05  # a picture, not a flat grey
    assert torch.equal(ours, official(pipeline(precision=precision)))


def test_the_noise_of_a_list_of_generators_is_ours_and_the_length_is_part_of_the_model():
    generators = [torch.Generator().manual_seed(7 + i) for i in range(2)]
    with torch.no_grad():
        ours = tiny()(noise(), CAPTIONS)
        longer = tiny(length=64)(noise(), CAPTIONS)
    assert torch.equal(ours, official(pipeline(), latents=None, generator=generators))
    assert torch.equal(longer, official(pipeline(), max_sequence_length=64))
    assert (longer - ours).abs().max() > 1e-3


def test_every_weight_has_a_gradient_and_it_is_that_of_a_difference():
    def loss(images):  # flat at 0 and 1, where the clamp's gradient is none of a function
        return (images * (1 - images)).square().mean()

    generator = tiny()
    loss(generator(noise(), CAPTIONS)).backward()
    trained = generator.trained()
    gradients = {name: p.grad for name, p in trained.items()}
    assert len(gradients) == 53
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    assert not any(p.requires_grad for p in generator.vae.parameters())
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()

    double = tiny()
    double.transformer.double(), double.vae.double()
    context = double.texts(PROMPTS).double()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, p in double.trained().items():
                p.copy_(trained[name].double() + sign * 3e-3 * gradients[name].double() / norm)
            values.append(loss(double.draw(noise().double(), context)).item())
    assert (values[0] - values[1]) / 6e-3 == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("fields", [{}, {"precision": "bfloat16"}, {"lora_rank": 4, "precision": "bfloat16"}])
def test_checkpointing_changes_no_bit_of_the_gradient(fields):
    found = []
    for checkpointing in (False, True):
        generator = tiny(gradient_checkpointing=checkpointing, **fields)
        if "lora_rank" in fields:
            for name, p in generator.trained().items():  # B is 0 at first, and A then has no gradient
                p.data += 0.01 * ("lora_B" in name)
        generator(noise(), CAPTIONS).square().mean().backward()
        found.append({name: p.grad for name, p in generator.trained().items()})
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in found[1].values())
    assert all(torch.equal(found[0][name], gradient) for name, gradient in found[1].items())


def test_weights_are_kept_where_bfloat16_would_lose_the_step():
    generator = tiny(precision="bfloat16")
    weight = generator.trained()["transformer.proj_out.weight"]
    rounded = weight.detach().bfloat16()
    with torch.no_grad():
        weight.copy_(rounded)
        images = generator(noise(), CAPTIONS)
        assert torch.equal(rounded * (1 + 2**-10), rounded)  # a step that weights in bfloat16 would not take
        weight *= 1 + 2**-10
        assert torch.equal(generator(noise(), CAPTIONS), images)
        weight *= (1 + 2**-10) ** 9  # nine more are seen
        assert not torch.equal(generator(noise(), CAPTIONS), images)


def test_compiled_blocks_are_the_same_blocks():
    """Without a compiler, which takes minutes: what is compiled, and that nothing else changes."""
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        generator = tiny(compile=True)
        net = generator.transformer
        assert all(block._compiled_call_impl for block in (*net.transformer_blocks, *net.single_transformer_blocks))
        assert torch.equal(generator(noise(), CAPTIONS), tiny()(noise(), CAPTIONS))
    assert generator.trained().keys() == tiny().trained().keys(), "names stay"


def test_adapters_alone_are_trained_and_the_same_seed_makes_them_again():
    one, two = (tiny(lora_rank=4, precision="bfloat16") for _ in range(2))
    trained = one.trained()
    assert len(trained) == 60 and all(".lora_" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    others = {p.dtype for name, p in one.named_parameters() if name not in trained}
    assert others == {torch.bfloat16}
    assert all(torch.equal(p, two.trained()[name]) for name, p in trained.items())


def test_training_mode_leaves_the_vae_alone():
    generator = tiny().train()
    assert generator.training and not generator.vae.training
    versions = generator.buffer_versions()
    generator(noise(), CAPTIONS).mean().backward()
    generator.check_buffers(versions)


def test_positions():
    image, text = positions(2, 3, 4, torch.device("cpu"))
    assert image.tolist() == [[0, r, c, 0] for r in range(2) for c in range(3)]
    assert text.tolist() == [[0, 0, 0, i] for i in range(4)]


def test_shapes_on_the_meta_device():
    with torch.device("meta"):
        generator = KleinConfig(lora_rank=4).build(SHAPE, SPEC)
    assert all(p.is_meta for p in generator.parameters())
    assert sum(p.numel() for p in generator.trained().values()) == sum(
        p.numel() for p in tiny(lora_rank=4).trained().values()
    )


def test_captions_that_are_cut_are_counted_and_too_many_are_refused():
    long = Prompts(["short", "x" * 60], None, None, SPEC)
    (said,) = tiny(max_cut=0.5).look_at(long)
    assert said.startswith("1 of 2 captions are longer than 48 tokens and are cut")
    with pytest.raises(ValueError, match=r"At most a share of 0\.01 may be cut: raise --generator\.length"):
        tiny().look_at(long)
    assert tiny(length=512).look_at(long) == []


def test_a_store_without_some_of_the_captions_is_refused_before_training(tmp_path):
    encoder = ContextEncoder(cached_tiny(), LENGTH, torch.float32)
    build_contexts(tmp_path / "store", encoder, PROMPTS[:1])
    generator = tiny(contexts=tmp_path / "store")
    with pytest.raises(ValueError, match="lacks the contexts of 1 captions, such as 'two blue"):
        generator.look_at(Prompts(PROMPTS, None, None, SPEC))
    with torch.no_grad():  # what was not asked about beforehand, such as a caption typed later, is read on the fly
        assert torch.equal(generator(noise(), CAPTIONS), tiny()(noise(), CAPTIONS))


def test_contexts_are_kept_for_the_second_pass(monkeypatch):
    generator = tiny()
    first = generator.texts(PROMPTS)
    monkeypatch.setattr(ContextEncoder, "__call__", lambda *_: pytest.fail("read again"))
    assert torch.equal(generator.texts([PROMPTS[1], PROMPTS[0], PROMPTS[1]]), first[[1, 0, 1]])


def test_contexts_are_read_by_one_thread_at_a_time(monkeypatch):
    """Neither a tokenizer nor what is kept is for several at once: a rollout's parts ask side by side."""
    texts, inside, most = tiny().texts, [], []
    read = ContextEncoder.__call__

    def slow(self, captions, device="cpu"):
        inside.append(0)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return read(self, captions, device)

    expected = texts(PROMPTS)
    monkeypatch.setattr("irdm.generators.klein.KEPT_BYTES", 0)  # so that each call reads, and forgets
    monkeypatch.setattr(ContextEncoder, "__call__", slow)
    texts.kept.clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(texts, [PROMPTS] * 12))
    assert all(torch.equal(rows, expected) for rows in found) and len(most) == 12 and set(most) == {1}


# Wrong folders and wrong images.


def refused(match, shape=SHAPE, spec=SPEC, **fields):
    with pytest.raises(ValueError, match=match):
        KleinConfig(**fields).build(shape, spec)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(cached_tiny(), tmp_path / "klein")


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_base_model_is_refused(tmp_path):
    refused("is the base model of klein", model=write_tiny(tmp_path / "base", distilled=False))


def test_other_folders_are_refused(folder, tmp_path):
    refused("there is no such folder. Fetch it whole", model=tmp_path / "none")
    refused("model_index.json cannot be read", model=tmp_path)
    edit(folder / "model_index.json", _class_name="Flux2Pipeline")
    refused("folder of a Flux2Pipeline, expected a Flux2KleinPipeline", model=folder)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(r"klein needs the packages peft: pip install -c constraints.txt '\.\[klein\]'")


def test_a_folder_without_a_part_or_with_parts_of_two_models_is_refused(folder):
    shutil.move(folder / "vae", folder / "elsewhere")
    refused("lacks vae", model=folder)
    shutil.move(folder / "elsewhere", folder / "vae")
    edit(folder / "text_encoder" / "config.json", hidden_size=32)
    refused("takes 48 numbers of a text token, and gets 96", model=folder)
    edit(folder / "text_encoder" / "config.json", hidden_size=16, num_hidden_layers=20)
    refused("qwen3 of 20 layers; klein reads the", model=folder)


def test_damaged_weights_are_refused(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    refused("cannot be loaded", model=folder)
    from safetensors.torch import load, save

    state = load(whole)
    del state["proj_out.weight"]
    path.write_bytes(save(state))
    refused(r"missing keys \['proj_out.weight'\]", model=folder)


def test_other_images_and_conditions_are_refused():
    refused("klein draws images in colour, and these have 1 channel", shape=(1, 32, 32))
    refused("multiples of 8 pixels a side. Set --data.size to one, such as 32", shape=(3, 30, 30))
    refused("klein draws captions", spec=ClassSpec(names=("a", "b")))


def test_the_folder_says_its_sizes():
    found = open_folder(cached_tiny())
    assert (found.pixels, found.noise_shape((3, 64, 32))) == (8, (32, 8, 4))
    assert set(found.hashes) == {"transformer", "vae", "text_encoder"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A larger folder, its transformer in several files."""
    return medium(tmp_path_factory.mktemp("medium") / "klein")


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1.2), (torch.bfloat16, 0.1)])
def test_a_checkpoint_in_parts_is_read_part_by_part(dtype, most, parts):
    """Never is more held than the network and a part of the files, which are mapped where nothing is converted."""
    before, _ = resident(reset=True)
    network = open_folder(parts).load_transformer(dtype)
    size = sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize
    assert size > 2e8 and len([*(parts / "transformer").glob("*-of-*.safetensors")]) > 5
    assert resident()[1] - before < most * size


def test_a_part_that_is_missing_is_refused(parts):
    next((parts / "transformer").glob("*-00002-of-*")).unlink()
    refused("transformer cannot be loaded .*-00002-of-", model=parts)
