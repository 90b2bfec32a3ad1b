"""For every test: shapes in signatures are checked, seeds are fixed, and nothing touches the user's own cache."""

from __future__ import annotations

import os

import jaxtyping

jaxtyping.install_import_hook("irdm", "shapes.check")  # before the first import of irdm

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(min(2, os.cpu_count() or 1))


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
