"""The teacher of the world: scenes paired with noise, its language, its VAE, its training; and the one that ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("diffusers")

from irdm.cli import main
from irdm.conditions import PromptSpec
from irdm.files import read_manifest
from irdm.generators import KleinConfig
from irdm.generators.klein_folder import WORLD, open_folder
from irdm.generators.klein_teacher import Teacher
from irdm.generators.klein_world import identity_vae, world_tokenizer
from irdm.teacher import TeacherConfig, train_teacher
from irdm.teacher.config import DistillationConfig, FlowConfig
from irdm.teacher.distillation import Distillation
from irdm.teacher.flow import Flow
from irdm.teacher.training import Training
from irdm.world import EMBEDDER, captions_of, correct, read_scenes, signature
from irdm.world.coupling import paired
from irdm.world.language import LONGEST, choices, sentences

SHAPE = (3, 16, 16)
SPEC = PromptSpec(embedder=EMBEDDER, width=4)
SHORT: dict = {"minutes": 0.1, "batch": 6, "log_every": 1, "checkpoint_minutes": 1e-9}
FEW = TeacherConfig(
    width=16,
    heads=1,
    blocks=(1, 1),
    reading_steps=2,
    flow=FlowConfig(**SHORT),
    distillation=DistillationConfig(**SHORT),
    judged=12,
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
    """A teacher of a few steps, killed after three of each training, its newest checkpoint damaged, and gone on."""
    out, said, step = tmp_path_factory.mktemp("teacher") / "run", [], Training._step

    for stage in (Flow, Distillation):

        def killed(training: Training, number: int, *rest, stage: type = stage):
            if number == 3 and type(training) is stage:
                raise SystemError("killed")
            return step(training, number, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Training, "_step", killed)
            with pytest.raises(SystemError):
                train_teacher(FEW, out, said.append)
        file = out / stage.name / "checkpoints" / "step-00000003" / "ema.safetensors"
        file.write_bytes(file.read_bytes()[:-5])
        said.append("again")
    train_teacher(FEW, out, said.append)
    return out, said


def test_a_killed_training_goes_on_from_what_is_whole(trained):
    _, said = trained
    first, second = (index for index, line in enumerate(said) if line == "again")
    for again in (said[first + 1 :], said[second + 1 :]):
        assert again[0].startswith("warning: ") and "step-00000003" in again[0]
        assert again[1].startswith("resuming after step 2")
    assert sum("text encoder" in line for line in said) == 1
    assert not any(line.startswith("flow:") for line in said[second:]), "it has ended, and is not done again"


def test_what_is_finished_is_only_judged_again(trained):
    out, said = trained[0], []
    before = read_manifest(out / "result.json", "")
    card = train_teacher(FEW, out, said.append)
    assert card["flow"] == before["flow"] and card["distillation"] == before["distillation"]
    assert card["distillation"]["loss"] > 0 and not any("of 0.1 minutes" in line for line in said)


def test_distillation_tells_where_four_steps_end(trained):
    start = trained[0] / "base"
    training = Distillation(FEW.distillation, 0, start)
    texts = [*training.contexts][:3]
    noise = torch.randn(3, 12, 8, 8)
    states = training.states(noise, torch.stack([training.contexts[text] for text in texts]))
    assert len(states) == 5 and torch.equal(states[0], noise)
    pixels = F.pixel_shuffle(states[-1] * training.std + training.mean, 2) / 2 + 0.5
    drawn = Teacher(start, SHAPE, length=LONGEST, precision="float32").from_noise(texts, noise)
    assert (pixels.clamp(0, 1) - drawn).abs().max() < 1e-4

    for parameter in training.net.parameters():  # what is learned moves, what is told does not
        parameter.data.add_(0.1)
    again = training.states(noise, torch.stack([training.contexts[text] for text in texts]))
    assert torch.equal(again[-1], states[-1])


def test_distillation_makes_one_step_end_nearer_to_four():
    """Of the teacher that ships, its weights shaken, on noise and captions that it is not trained on here."""
    training = Distillation(DistillationConfig(batch=12), 0, open_folder(WORLD).path)
    torch.manual_seed(0)
    for parameter in training.net.parameters():
        parameter.data.add_(0.25 * parameter.std(correction=0) * torch.randn_like(parameter))
    texts = [*training.contexts][::150]
    context = torch.stack([training.contexts[text] for text in texts])
    noise = torch.randn(len(texts), 12, 8, 8, generator=torch.Generator().manual_seed(0))
    x = training.states(noise, context)[-1]

    def error() -> float:
        with torch.no_grad():
            return (noise - training.velocity(noise, torch.ones(len(texts)), context) - x).square().mean().item()

    before, optimizer = error(), torch.optim.AdamW(training.net.parameters())
    for step in range(40):
        training._step(step, 1e-3, optimizer)
    assert error() < 0.7 * before


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
        train_teacher(FEW.model_copy(update={"seed": 1}), trained[0], lambda text: None)
    assert main(["train", "world-teacher", "--limit", "120"]) == 2
