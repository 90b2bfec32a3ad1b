"""Train your own network on your own tensors: `python examples/custom_loop.py` draws a ring of points in one step."""

import math

import torch
from torch import nn

from irdm.controller import Controller, ControllerConfig
from irdm.distances import NystromMMDConfig
from irdm.gradcache import accumulate_gradients
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

    config = NystromMMDConfig(landmarks=256, bandwidths=(0.25, 0.5, 1.0))
    distances = {name: config.build().fit(encoder(train_points), seed=0) for name, encoder in encoders.items()}
    floors = {name: distances[name](encoder(val_points[:ROLLOUT])).item() for name, encoder in encoders.items()}
    objective, controller = Objective(distances, floors), Controller(ControllerConfig(kind="uniform"), floors)

    optimizer = torch.optim.AdamW(generator.parameters())
    outcomes = []
    for step in range(STEPS):
        noise = torch.randn(ROLLOUT, 8)

        def gradients(features, step=step):
            outcomes.append(objective(features, None, controller.weights, step))
            return outcomes[-1].gradients

        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / STEPS)
        accumulate_gradients(lambda rows, noise=noise: generator(noise[rows]), encoders, gradients, ROLLOUT, 128)
        optimizer.step()
        controller.update(outcomes[-1].scores)
        if step % 100 == 99:  # each score beside that of real points it has not seen
            print(f"step {step + 1}:", {name: f"{s / floors[name]:.1f}" for name, s in outcomes[-1].scores.items()})
    return generator, val_points


class Radius(nn.Module):
    def forward(self, points):
        return points.norm(dim=1, keepdim=True)


if __name__ == "__main__":
    train()
