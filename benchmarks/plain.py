"""The six distances and the MMD as a careful user would write them: autograd for everything, on the same reference.

float64 for a covariance, chunks and checkpoints where a matrix would be n x n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from irdm.distances import Distance
from irdm.ops.sampling import seed_for
from irdm.ops.sliced import unit_directions

STEP = 3


def mmd(fake: Tensor, landmarks: Tensor, alpha: Tensor, gammas: Sequence[float], chunk: int = 1024) -> Tensor:
    """Kernel chunks, recomputed in the backward pass, so that n x n is never stored."""

    def part(x: Tensor, every: Tensor) -> Tensor:
        near, far = _squares(x, every), _squares(x, landmarks)
        total = x.new_zeros(())
        for b, gamma in enumerate(gammas):
            repulsion = torch.exp(-gamma * near).sum() / len(every) ** 2
            attraction = (torch.exp(-gamma * far) @ alpha[b]).sum() / len(every)
            total = total + (repulsion - 2 * attraction) / len(gammas)
        return total

    parts = [checkpoint(part, rows, fake, use_reentrant=False) for rows in fake.split(chunk)]
    return torch.stack(parts).sum()


def whole_mmd(fake: Tensor, landmarks: Tensor, alpha: Tensor, gammas: Sequence[float]) -> Tensor:
    """The equation in one piece, n x n and all: what a compiler is given."""
    near, far = _squares(fake, fake), _squares(fake, landmarks)
    total = fake.new_zeros(())
    for b, gamma in enumerate(gammas):
        total = total + torch.exp(-gamma * near).mean() - 2 * (torch.exp(-gamma * far) @ alpha[b]).mean()
    return total / len(gammas)


def _squares(x: Tensor, y: Tensor) -> Tensor:
    return (x.square().sum(dim=1, keepdim=True) + y.square().sum(dim=1) - 2 * x @ y.T).clamp(min=0)


def _real(distance: Distance, count: int, *keys: int) -> Tensor:
    """The real rows that a distance with a pool draws at this step."""
    return distance.config.draw(distance.pool, count, distance.seed, STEP, *keys)


def _nystrom(fake: Tensor, distance: Distance) -> Tensor:
    return mmd(fake, distance.landmarks, distance.alpha, distance.kernel.gammas) + distance.constant


def _exact(fake: Tensor, distance: Distance) -> Tensor:
    real = _real(distance, len(fake))
    mean = real.new_full((1, len(real)), 1 / len(real))
    return mmd(fake, real, mean, distance.kernel.gammas) + distance.constant


def _rff(fake: Tensor, distance: Distance) -> Tensor:
    waves = (fake @ distance.frequencies + distance.phases).cos() * math.sqrt(2 / distance.config.features)
    return (waves.mean(dim=0) - distance.means).square().sum()


def _frechet(fake: Tensor, distance: Distance) -> Tensor:
    """The trace of the root through the eigenvalues of S_r (S_g + jitter), which are real and not negative."""
    rows = fake.double()
    product = distance.covariance @ (rows.T.cov() + distance.config.jitter * torch.eye(rows.shape[1]).to(rows))
    root = torch.linalg.eigvals(product).real.clamp(min=1e-30).sqrt().sum()
    spread = rows.var(dim=0).sum() + distance.covariance.trace()
    return (rows.mean(dim=0) - distance.mean).square().sum() + spread - 2 * root


def _sliced(fake: Tensor, distance: Distance) -> Tensor:
    seed = seed_for(int(distance.seed), "directions", STEP)
    directions = unit_directions(fake.shape[1], distance.config.directions, seed).to(fake)
    real = _real(distance, len(fake))
    return ((fake @ directions).sort(dim=0).values - (real @ directions).sort(dim=0).values).square().mean()


def _drifting(fake: Tensor, distance: Distance) -> Tensor:
    """The goal without a gradient, then a squared error."""
    n, width = fake.shape
    with torch.no_grad():
        targets = torch.cat([fake, _real(distance, n, 0)])
        apart = torch.cdist(fake, targets)
        scale = apart.mean()
        unit = scale / math.sqrt(width)
        apart = apart / scale + torch.cat([100 * torch.eye(n), torch.zeros(n, n)], dim=1).to(apart)
        goal = fake / unit
        for radius in distance.config.radii:
            logits = -apart / radius
            affinity = (logits.softmax(dim=1) * logits.softmax(dim=0)).clamp(min=1e-6).sqrt()
            negative, positive = affinity[:, :n], affinity[:, n:]
            weights = torch.cat(
                [-negative * positive.sum(dim=1, keepdim=True), positive * negative.sum(dim=1, keepdim=True)], dim=1
            )
            force = weights @ (targets / unit) - weights.sum(dim=1, keepdim=True) * (fake / unit)
            goal = goal + force / force.square().mean().sqrt()
    return (fake / unit - goal).square().mean()


PLAIN: dict[str, Callable[[Tensor, Distance], Tensor]] = {
    "nystrom-mmd": _nystrom,
    "exact-mmd": _exact,
    "rff-mmd": _rff,
    "frechet": _frechet,
    "sliced-wasserstein": _sliced,
    "drifting": _drifting,
}
