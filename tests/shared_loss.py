"""What 1, 2, 3 and 4 ranks make of one rollout under every distance; tests/test_objective.py starts this.

python shared_loss.py OUT: writes RANK-of-SIZE.pt for each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import torch
from forked import forked, save
from pydantic import TypeAdapter
from torch import nn

from irdm.conditions import Classes
from irdm.distances import AnyDistance
from irdm.distributed import Ranks
from irdm.gradcache import GradientCache
from irdm.objective import Objective
from irdm.reference.fit import fit_reference

ROLLOUT, SIZES = 13, (1, 2, 3, 4)
FIELDS = {"nystrom-mmd": {"landmarks": 40}, "rff-mmd": {"features": 50}, "sliced-wasserstein": {"directions": 3}}
KINDS = [config.model_fields["kind"].default for config in get_args(get_args(AnyDistance)[0])]
CONFIGS = {kind: {"kind": kind, **FIELDS.get(kind, {})} for kind in KINDS} | {
    "wide": {"kind": "nystrom-mmd", "landmarks": 40, "kernel": "laplace", "bandwidths": (1.0, 2.0, 3.0)},
    "unbiased": {"kind": "exact-mmd", "repulsion": "unbiased", "batch": 50},
    "energy": {"kind": "nystrom-mmd", "landmarks": 20, "kernel": "energy"},
}


def look(out: Path) -> None:
    """One rank: references and floors fitted together, a loss and its gradient, and that of the network's weights."""
    ranks = Ranks.start("cpu")
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    encoder = nn.Linear(4, 5).double().requires_grad_(False)
    noise, real = torch.randn(ROLLOUT, 3).double(), torch.randn(200, 5).double()
    names = ("a", "b", "c")
    sides = tuple(Classes(torch.arange(n) % 3, names) for n in (150, 50))
    tau = nn.functional.one_hot(torch.arange(ROLLOUT) % 3, 3).double()
    references = {
        name: fit_reference(
            TypeAdapter(AnyDistance).validate_python(fields), {name: real[:150]}, {name: real[150:]}, sides,
            joint=True, rollout=ROLLOUT, seed=0, ranks=ranks,
        )
        for name, fields in CONFIGS.items()
    }  # fmt: skip
    distances = {name: reference.distances[name] for name, reference in references.items()}
    floors = {name: reference.floors[name] for name, reference in references.items()}
    share = ranks.share(ROLLOUT)
    own = noise[share]
    cache = GradientCache(dict.fromkeys(CONFIGS, encoder), 2, 0)
    features = cache.forward(lambda rows: generator(own[rows]), len(own))
    loss = Objective(distances, floors)(features, tau[share], dict.fromkeys(CONFIGS, 1.0), 7, ranks, ROLLOUT)
    cache.backward(loss.gradients)
    ranks.sum_gradients(generator.parameters())
    told = fit_reference(  # floors beyond what is held out: told from all pairs
        TypeAdapter(AnyDistance).validate_python(CONFIGS["nystrom-mmd"]), {"x": real[:150]}, {"x": real[150:]}, sides,
        joint=False, rollout=500, seed=0, ranks=ranks,
    ).floors["x"]  # fmt: skip
    found = {
        "value": loss.terms, "floors": torch.tensor([*floors.values(), told], dtype=torch.float64),
        "weights": torch.cat([p.grad.flatten() for p in generator.parameters()]),
        "fitted": {n: {k: v for k, v in d.state_dict().items() if v.is_floating_point()} for n, d in distances.items()},
        "gradients": {name: ranks.gather(gradient, ROLLOUT) for name, gradient in loss.gradients.items()},
    }  # fmt: skip
    save(out, found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    codes = {size: forked(size, look, Path(sys.argv[1])) for size in SIZES}
    sys.exit(any(code for found in codes.values() for code in found))
