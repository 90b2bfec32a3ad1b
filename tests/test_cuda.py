"""What a GPU computes is what a CPU does; skipped, and said so, where there is none. `benchmarks/gpu.sh` runs them."""

import pytest
import torch

from irdm.conditions import Unconditional
from irdm.data.base import TensorSplit
from irdm.distances import AnyDistance
from irdm.gradcache import GradientCache
from irdm.ops.kernels import squared_mmd
from irdm.ops.kmeans import kmeans
from irdm.ops.radial import Gaussian
from irdm.ops.sliced import sliced_wasserstein2, unit_directions
from irdm.presets import PRESETS
from irdm.store import build_store
from irdm.train import train

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def both(work, *tensors):
    """What a function of tensors gives on either device."""
    return work(*tensors), work(*(tensor.cuda() for tensor in tensors)).cpu()


def test_the_mmd_and_its_gradient():
    fake, landmarks, alpha = torch.randn(700, 96), torch.randn(300, 96), torch.rand(2, 300) / 300

    def run(fake, landmarks, alpha):
        fake = fake.clone().requires_grad_()
        value = squared_mmd(fake, landmarks, alpha, Gaussian((0.001, 0.01)))
        return torch.cat([value.detach().float()[None], torch.autograd.grad(value, fake)[0].flatten()])

    here, there = both(run, fake, landmarks, alpha)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-6)


def test_sliced_distances_and_centres():
    x, y, directions = torch.randn(512, 32), torch.randn(400, 32), unit_directions(32, 64, 0)
    torch.testing.assert_close(*both(sliced_wasserstein2, x, y, directions), rtol=1e-4, atol=1e-6)
    apart = torch.cat([torch.randn(100, 8) + 20 * k for k in range(4)])
    centres = both(lambda rows: kmeans(rows, 4, torch.Generator().manual_seed(0)), apart)
    torch.testing.assert_close(*centres, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["nystrom-mmd", "exact-mmd", "rff-mmd", "frechet", "sliced-wasserstein", "drifting"])
def test_each_distance(kind):
    from pydantic import TypeAdapter

    options = {"landmarks": 32} if kind == "nystrom-mmd" else {}
    distance = TypeAdapter(AnyDistance).validate_python({"kind": kind, **options}).build()
    distance.fit(torch.randn(256, 16), seed=0)
    fake = torch.randn(64, 16) + 0.3
    here = distance(fake, step=1)
    torch.testing.assert_close(distance.cuda()(fake.cuda(), step=1).cpu(), here, rtol=1e-3, atol=1e-5)


def test_the_gradient_cache_keeps_graphs_or_not():
    torch.manual_seed(0)
    generator, encoder = (
        torch.nn.Linear(8, 48).cuda(),
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)).cuda(),
    )
    noise, gradients = torch.randn(32, 8).cuda(), []
    for kept in (0, 1 << 30):
        cache = GradientCache({"e": encoder.requires_grad_(False)}, 8, kept)
        generator.zero_grad()
        cache.forward(lambda rows: generator(noise[rows]).view(-1, 3, 4, 4), 32)
        cache.backward({"e": torch.ones(32, 5).cuda()})
        gradients.append(generator.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_a_store_and_a_training(tmp_path):
    images = (torch.rand(64, 3, 8, 8) * 255).round() / 255
    split, network = (
        TensorSplit(images, Unconditional(64)),
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 7)),
    )
    here = build_store(split, {"e": network}, tmp_path / "cpu")["e"][:]
    there = build_store(split, {"e": network.cuda()}, tmp_path / "cuda", device="cuda")["e"][:]
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)
    config = PRESETS["digits-smoke"]().model_copy(update={"evaluation": None, "steps": 6, "device": "cuda"})
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-00000006").is_dir()
