"""The teacher is the official pipeline in four steps, image by image."""

from __future__ import annotations

import pytest
import torch
from tiny_klein import PROMPTS, SHAPE, noise, official, pipeline, tiny

from irdm.conditions import to_bytes
from irdm.generators.klein_folder import TINY
from irdm.generators.klein_teacher import Teacher


@pytest.fixture(scope="module")
def teacher():
    return Teacher(TINY, SHAPE, precision="float32")


def test_four_steps_of_the_official_pipeline_to_the_bit(teacher):
    images = teacher(PROMPTS, [7, 8])
    assert torch.equal(images, official(pipeline(), steps=4))
    # klein's times at 16 tokens: a fixed shift would be another teacher
    assert len(teacher.pipeline.scheduler.sigmas) == 5 and teacher.pipeline.scheduler.sigmas[0] == 1


def test_an_image_depends_on_its_caption_and_seed_alone(teacher):
    images = teacher(PROMPTS, [7, 8])
    alone, other = teacher(PROMPTS[1:], [8]), teacher(PROMPTS[1:], [9])
    torch.testing.assert_close(alone[0], images[1], atol=1e-5, rtol=0)  # batches round differently
    assert (other[0] - images[1]).abs().max() > 0.01


def test_with_one_step_it_is_the_student_before_training():
    one = Teacher(TINY, SHAPE, steps=1, precision="float32")
    with torch.no_grad():
        assert torch.equal(one(PROMPTS, [7, 8]), tiny()(noise(), to_bytes(PROMPTS)))


def test_a_seed_for_each_caption(teacher):
    with pytest.raises(ValueError, match="2 captions and 1 seeds"):
        teacher(PROMPTS, [7])
