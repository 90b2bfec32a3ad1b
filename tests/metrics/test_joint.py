"""The joint ratio sees images that go with other texts, which nothing else does."""

from dataclasses import replace

import torch
from metrics.tables import real_side, table

from irdm.conditions import Classes, Prompts, PromptSpec
from irdm.metrics import EvaluationConfig
from irdm.metrics.joint import Joined, joint_ratio
from irdm.metrics.mmd import mmd_ratio

SPEC = PromptSpec(embedder="test", width=4)
CONFIG = EvaluationConfig(rff_features=512, resamples=8)


def pairs(n, seed, shuffled=False):
    """Rows of three kinds of image under two encoders, each with its kind of text, or with another's."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (n,), generator=rng)
    features = {
        name: torch.eye(3, dim)[kind] * 3 + torch.randn(n, dim, generator=rng) for name, dim in (("a", 6), ("b", 5))
    }
    said = kind[torch.randperm(n, generator=rng)] if shuffled else kind
    tau = torch.nn.functional.normalize(torch.eye(3, 4)[said] + 0.05 * torch.randn(n, 4, generator=rng))
    return table(features, Prompts([f"kind {k}" for k in said.tolist()], tau, None, SPEC))


REAL = real_side(pairs(600, 0), pairs(600, 1), ["b"])


def test_images_with_the_texts_of_others_are_seen_by_the_joint_ratio_alone():
    right, wrong = pairs(300, 2), pairs(300, 2, shuffled=True)
    joint = [joint_ratio(judged, REAL, CONFIG)["joint_ratio"] for judged in (right, wrong)]
    plain = [mmd_ratio(judged, REAL, CONFIG)["mmd_ratio"] for judged in (right, wrong)]
    values = [score.mean.value for score in (*joint, *plain) if score.mean]
    assert 0.4 < values[0] < 2.5 and values[1] > 3 * values[0]
    assert values[2] == values[3], "marginally they are the same images"
    assert joint[0].held_out is not None and joint[0].held_in is not None
    chances = [score.mean.p_real for score in joint if score.mean and score.mean.p_real]
    assert chances[1] < 0.05 < chances[0]


def test_it_is_empty_without_texts_of_the_same_encoder():
    judged = pairs(60, 3)
    other = Prompts(judged.conditions.captions(), None, None, SPEC)
    for conditions in (Classes(torch.zeros(60, dtype=torch.int64), "ab"), other):
        assert joint_ratio(replace(judged, conditions=conditions), REAL, CONFIG) == {}


def test_joined_rows_are_read_in_part():
    rows = Joined(torch.arange(6.0).reshape(3, 2), torch.ones(3, 1), 2.0)
    assert len(rows) == 3 and rows.shape == (3, 3)
    assert rows[1:].tolist() == [[2, 3, 2], [4, 5, 2]] and rows[torch.tensor([2, 0])].tolist()[1] == [0, 1, 2]
