"""The teacher of the world: scenes paired with noise, its language, its VAE, its training; and the one that ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from irdm.cli import main
from irdm.conditions import PromptSpec
from irdm.files import read_manifest
from irdm.generators import KleinConfig
from irdm.generators.klein_folder import open_folder
from irdm.generators.klein_teacher import Teacher
from irdm.generators.klein_world import identity_vae, world_tokenizer
from irdm.teacher import TeacherConfig, train_teacher
from irdm.teacher.train import Flow
from irdm.world import EMBEDDER, captions_of, correct, read_scenes, signature
from irdm.world.coupling import paired
from irdm.world.language import LONGEST, choices, sentences

SHAPE = (3, 16, 16)
SPEC = PromptSpec(embedder=EMBEDDER, width=4)
FEW = TeacherConfig(
    minutes=0.1,
    width=16,
    heads=1,
    blocks=(1, 1),
    batch=6,
    reading_steps=2,
    judged=12,
    log_every=1,
    checkpoint_minutes=1e-9,
)


def test_a_paired_scene_shows_its_caption_and_is_as_likely_as_any():
    captions = ["a triangle to the left of a red square", "a circle", "three crosses"] * 200
    pictures, noise = paired(captions, torch.Generator().manual_seed(0))
    assert correct(pictures, captions).all()
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    circles = read_scenes(pictures[1::3])
    places = (circles >= 0).float().mean(0)
    assert (places - 0.25).abs().max() < 0.12  # four standard deviations of a share of 200
    colours = torch.bincount(circles[circles >= 0])
    assert len(colours[colours > 0]) == 5 and (colours[colours > 0] / 200 - 0.2).abs().max() < 0.12


def test_noise_says_where_objects_stand():
    captions = ["a white circle"] * 400
    pictures, noise = paired(captions, torch.Generator().manual_seed(1))
    bright = torch.stack([part.mean((1, 2, 3)) for part in noise[:, :, 1:15, 1:15].unfold(2, 7, 7).unfold(3, 7, 7)
                          .permute(2, 3, 0, 1, 4, 5).flatten(0, 1)], 1)  # fmt: skip
    there = (read_scenes(pictures) >= 0).float().argmax(1)
    assert (bright.argmax(1) == there).float().mean() > 0.6  # 0.25 by chance


def test_the_vae_changes_nothing():
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    vae = identity_vae()
    latents = vae.encode(images).latent_dist.mode()
    assert (latents - images).abs().max() < 1e-4 and (vae.decode(latents).sample - images).abs().max() < 1e-4


def test_every_sentence_is_read_by_words():
    texts, tokenizer = sentences(300, 0), world_tokenizer()
    held = [text for asks in captions_of("held-out").values() for _, some in asks for text in some]
    longest = max(len(row) for row in tokenizer([*texts, *held])["input_ids"])
    assert longest < LONGEST
    assert tokenizer.tokenize("a photo of 3 crosses") == ["a photo of", " 3", " crosses"]
    rows = choices(["two discs", "a red box to the left of a plus"])
    assert rows.tolist() == [[0, 1, 0, 2, 0, 0, 0], [1, 2, 1, 1, 4, 0, 1]]
    with pytest.raises(ValueError, match="at most two"):
        choices(["a disc and a box and a plus"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A teacher of a few steps, killed after three of them, its newest checkpoint damaged, and gone on with."""
    out, said, step = tmp_path_factory.mktemp("teacher") / "run", [], Flow._step

    def killed(flow: Flow, number: int, *rest):
        if number == 3:
            raise SystemError("killed")
        return step(flow, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flow, "_step", killed)
        with pytest.raises(SystemError):
            train_teacher(FEW, out, said.append)
    file = out / "checkpoints" / "step-00000003" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    said.append("again")
    train_teacher(FEW, out, said.append)
    return out, said


def test_a_killed_training_goes_on_from_what_is_whole(trained):
    _, said = trained
    again = said[said.index("again") + 1 :]
    assert again[0].startswith("warning: ") and "step-00000003" in again[0]
    assert again[1].startswith("resuming after step 2")
    assert sum("text encoder" in line for line in said) == 1


def test_what_is_written_is_a_klein(trained):
    out, _ = trained
    folder = out / "klein"
    card = read_manifest(folder / "world.json", "")
    assert card["world"] == signature() and set(card["judged"]) == {"seen", "held-out"}
    assert not any(str(out) in path.read_text() for path in folder.rglob("*.json")), "whoever made it, and where"
    images = Teacher(folder, SHAPE, length=LONGEST, precision="float32")(["a red circle", "two crosses"], [0, 1])
    assert images.shape == (2, *SHAPE)
    network = KleinConfig(model=folder, length=LONGEST).build(SHAPE, SPEC)
    noise = torch.randn(2, *network.noise_shape)
    one = network.teacher(1)
    conditions = SPEC.named(["a red circle", "two crosses"], 2)
    drawn = network(noise, **conditions.inputs())
    assert (one(noise, **conditions.inputs()) - drawn).abs().max() < 1e-5


def test_its_transformer_tells_pictures_and_gives_velocities(trained):
    from diffusers import Flux2Transformer2DModel

    folder = open_folder(trained[0] / "klein")
    network = folder.load_transformer(torch.float32)
    generator = KleinConfig(model=folder.path, length=LONGEST).build(SHAPE, SPEC)
    noise, times = torch.randn(2, *generator.noise_shape), torch.tensor([1.0, 0.25])
    asked = SPEC.named(["a red circle", "two crosses"], 2).inputs()
    assert folder.tells_pictures
    assert type(generator.transformer) is type(network) is not Flux2Transformer2DModel
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(Flux2Transformer2DModel, "forward", lambda self, z, **given: (z / 2,))
        (velocity,) = network(noise.flatten(2).mT, timestep=times)
        patch.setattr(Flux2Transformer2DModel, "forward", lambda self, z, **given: (torch.zeros_like(z),))
        mean = generator(noise, **asked)
    assert torch.equal(velocity, noise.flatten(2).mT / 2 / times[:, None, None])
    assert mean.std((0, 2, 3)).max() < 1e-5, "of all pictures, without a trace of the noise"


def test_a_teacher_of_another_world_is_refused(trained, tmp_path):
    folder = tmp_path / "klein"
    shutil.copytree(trained[0] / "klein", folder)
    (folder / "world.json").write_text(json.dumps({"world": "0" * 64}))
    with pytest.raises(ValueError, match="another world"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("caption", "problem"),
    [
        ("a red cirle", "'cirle' is unknown.*circle"),
        ("three circles to the left of a square", "No scene can show"),
        ("five circles", "4 cells"),
    ],
)
def test_captions_that_the_world_cannot_show_are_refused(trained, caption, problem):
    network = KleinConfig(model=trained[0] / "klein", length=LONGEST).build(SHAPE, SPEC)
    with pytest.raises(ValueError, match=problem):
        network.look_at(SPEC.named([caption], 1))


def test_another_training_does_not_go_on_in_its_place(trained):
    with pytest.raises(ValueError, match="something else"):
        train_teacher(FEW.model_copy(update={"lr": 1e-3}), trained[0], lambda text: None)
    assert main(["train", "world-teacher", "--limit", "120"]) == 2
