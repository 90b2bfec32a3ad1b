"""Clothes from nothing: near real to the encoders that train, to those held out, and to a classifier of its own.

A run takes three quarters of an hour of a core. With IRDM_PROOFS, runs are kept in that folder, and go on there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from irdm.cli import main
from irdm.data.idx import DEBIAN
from irdm.evaluation import read_result
from irdm.run import load_run

DRAWS = (7, 8)  # seeds, each of as many images as are held out: the share is known to 0.3%


def classifier(images, labels, steps=1500):
    """Convolutions with batch norm and strides, which no encoder of the battery has: {image: class}."""
    torch.manual_seed(123)
    sides, layers = (1, 24, 48, 64), []
    for here, there in zip(sides, sides[1:], strict=False):
        layers += [nn.Conv2d(here, there, 3, stride=2, padding=1), nn.BatchNorm2d(there), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 16, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        F.cross_entropy(net(images[rows]), labels[rows], label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def right(net, split):
    """Share of images that are said to be of their class."""
    told = [net(split.read(rows)).argmax(1) for rows in torch.arange(len(split)).split(500)]
    return (torch.cat(told) == split.conditions.strata).double().mean().item()


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("seed", range(3))
def test_clothes_are_near_real(seed, tmp_path):
    run = Path(os.environ.get("IRDM_PROOFS", tmp_path)) / f"fashion-{seed}"
    if not (run / "result.json").exists():
        assert main(["train", "fashion", "--seed", str(seed), "--out", str(run)]) == 0
    scores, loaded = read_result(run).scores, load_run(run)
    train, val = loaded.dataset.train, loaded.dataset.val
    net = classifier(train.read(torch.arange(len(train))), train.conditions.strata)
    named = [right(net, loaded.drawn(val.conditions[torch.arange(len(val))], seed=draw)) for draw in DRAWS]
    share = sum(named) / len(named) / right(net, val)
    neighbours = scores["nearest_neighbour_ratio"].held_out.value
    ratio, unseen = scores["sw_ratio"], scores["sw_ratio_unseen"]
    print(f"{seed}: {ratio.held_in.value} held in, {ratio.held_out.value} out, {unseen.held_out.value} unseen; {share}")
    assert ratio.held_in.value <= 1.3 and ratio.held_out.value <= 1.5 and unseen.held_out.value <= 1.5
    assert neighbours >= 0.95 and share >= 0.95
