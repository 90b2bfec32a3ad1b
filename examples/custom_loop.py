"""Train your own network on your own tensors: `python examples/custom_loop.py` draws a ring of points in one step."""

import math

import torch
from torch import nn

from irdm.controller import Controller, ControllerConfig
from irdm.distances import NystromMMD
from irdm.gradcache import GradientCache
from irdm.objective import Objective

ROLLOUT, STEPS = 512, 400


def real_points(n: int) -> torch.Tensor:
    angle = 2 * math.pi * torch.rand(n)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2)


def train() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    train_points, val_points = real_points(4000), real_points(2000)
    generator = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    encoders = {"points": nn.Identity(), "radius": Radius()}

    distances = {
        name: NystromMMD(landmarks=256, bandwidths=(0.25, 0.5, 1.0)).fit(encoder(train_points))
        for name, encoder in encoders.items()
    }
    floors = {name: distances[name](encoder(val_points[:ROLLOUT])).item() for name, encoder in encoders.items()}
    objective, controller = Objective(distances, floors), Controller(ControllerConfig(kind="uniform"), floors)

    optimizer = torch.optim.AdamW(generator.parameters())
    cache = GradientCache(encoders, micro_batch=128)
    for step in range(STEPS):
        noise = torch.randn(ROLLOUT, 8)
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / STEPS)

        features = cache.forward(lambda rows, noise=noise: generator(noise[rows]), ROLLOUT)
        loss = objective(features, None, controller.weights, step)
        cache.backward(loss.gradients)
        optimizer.step()
        controller.update(loss.scores)
        if step % 100 == 99:  # each score beside that of real points it has not seen
            print(f"step {step + 1}:", {name: f"{s / floors[name]:.1f}" for name, s in loss.scores.items()})
    return generator, val_points


class Radius(nn.Module):
    def forward(self, points):
        return points.norm(dim=1, keepdim=True)


if __name__ == "__main__":
    train()
