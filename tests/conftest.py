"""For every test: shapes in signatures are checked, seeds are fixed, and nothing touches the user's own cache.

With `pytest -n 2` (pytest-xdist) each worker has its share of the cores, and so have the commands that its tests start.
"""

from __future__ import annotations

import os
import signal
import sys

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # before torch is imported; two of it with two threads each slow each other many times over
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // WORKERS))

import jaxtyping  # noqa: E402

jaxtyping.install_import_hook("irdm", "shapes.check")  # before the first import of irdm

import pytest  # noqa: E402
import torch  # noqa: E402

try:
    import torchvision  # noqa: F401
except RuntimeError as error:  # compiled for another build of torch; timm and dreamsim use none of its operators
    if "operator torchvision::nms does not exist" not in str(error):
        raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    operators = torch.library.Library("torchvision", "DEF")  # kept alive by this name
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except ImportError:
    pass  # the tests of the panel need it and say so

torch.set_num_threads(max(1, min(2, (os.cpu_count() or 1) // WORKERS)))


# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Fitted batteries go to a temporary folder that the whole session shares, subprocesses included."""
    os.environ["IRDM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def unchecked():
    """Shapes are not checked, as in use: for tests of what a user with wrong shapes is told."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
