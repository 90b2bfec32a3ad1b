"""What every distance is: a module that owns a frozen reference of real data and scores generated features against it.

Dimension letters: n generated rows; r real rows; d features of the encoder; c columns of the condition tau.

With a condition the compared features are Phi = [phi - center | beta tau], beta = sigma / s: sigma is the bandwidth of
the encoder's features (median distance, times the distance's `scale`) and s the bandwidth wanted for the condition
(section "Rows, center and condition" of docs/method.md; `residual` there and in `irdm.distances.inputs`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from irdm.distances.config import DistanceConfig
from irdm.distances.fitted import Fitted
from irdm.distances.inputs import JointRows, check_generated, join, located, true_median
from irdm.distributed import ALONE, Ranks
from irdm.ops.rows import Rows, sample_rows
from irdm.ops.sampling import generator_for
from irdm.progress import Say, silent

_BANDWIDTH_ROWS = 10_000  # the median distance is taken over a random sample of this many rows

C = TypeVar("C", bound=DistanceConfig)
D = TypeVar("D", bound="Distance[Any]")


class Distance(Fitted, ABC, Generic[C]):
    """A differentiable distance between generated features and a frozen reference.

        distance = NystromMMD(landmarks=256).fit(real)
        loss = distance(fake)

    A subclass names its configuration in `Config` and the tensors of its reference in `owned`, builds them in `_fit`
    from joint rows, and scores joint rows with them in `_compare`. Raises ValueError for fields that it does not have.
    """

    Config: ClassVar[type[Any]]
    owned: ClassVar[tuple[str, ...]] = ()
    """The tensors that `_fit` assigns: buffers, saved and moved with the module."""

    config: C
    center: Tensor
    slope: Tensor
    beta: Tensor
    sigma: Tensor
    tau_width: Tensor
    seed: Tensor
    progress: Say

    def __init__(self, config: C | None = None, /, **fields: Any) -> None:
        if config is not None and (fields or not isinstance(config, self.Config)):
            raise ValueError(f"{type(self).__name__} takes either a {self.Config.__name__} or its fields.")
        super().__init__(self.Config(**fields) if config is None else config)
        for name in ("center", *["slope"] * self.config.residual, *self.owned):  # empty, then as fitted or loaded
            self.register_buffer(name, torch.empty(0))
        for name in ("sigma", "beta"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        for name in ("tau_width", "seed"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def fit(
        self: D, real: Rows, tau: Rows | None = None, *, seed: int = 0, ranks: Ranks = ALONE, progress: Say = silent
    ) -> D:
        """Freeze the reference; returns the distance itself.

        Args:
            real: real features [r, d]: a tensor, or a store read block by block.
            tau: their conditions [r, c], row for row; None compares the marginals.
            seed: of every draw made here and, for a distance that draws at each step, there.
            ranks: processes that all have these rows and share the work.
            progress: receives a line of text now and then.

        Raises:
            ValueError: when the rows are not [r, d] with r >= 2, hold a NaN or an infinity, do not match tau, or do not
                vary although a bandwidth is needed.
        """
        self.progress, shared = progress, ranks if len(real) >= ranks.size else ALONE
        residual, dtype = self.config.residual, torch.promote_types(real[0:1].dtype, torch.float32)
        for name, found in located(real, tau, shared, residual=residual).items():
            setattr(self, name, found.to(self.center.device, dtype))
        self.seed, joint = torch.tensor(seed, dtype=torch.int64), JointRows(real, tau, self.center, self.join)
        sample = sample_rows(joint, _BANDWIDTH_ROWS, generator_for(seed, "bandwidth"))[:, : real.shape[1]]
        median = true_median(sample, self.center, len(real), needed=self._needs_bandwidth or tau is not None)
        self.sigma = torch.tensor(self._scale * median, dtype=torch.float64)
        self.beta = self.sigma / (self.config.condition_bandwidth or 1.0)
        self.tau_width = torch.tensor(tau.shape[1] if tau is not None else 0, dtype=torch.int64)
        with torch.no_grad():
            self._fit(joint, seed, shared)
        return self

    def forward(
        self, fake: Float[Tensor, "n d"], tau: Float[Tensor, "n c"] | None = None, *,
        step: int | None = 0, ranks: Ranks = ALONE,
    ) -> Float[Tensor, ""]:  # fmt: skip
        """The distance of generated features to the reference; differentiable in `fake`, pure in all its arguments.

        Args:
            fake: generated features [n, d].
            tau: their conditions [n, c]; given exactly when the reference was fitted with one.
            step: the training step, which seeds the draws of a distance that draws; None takes its whole pool instead
                of a batch, which gives the exact MMD's mean over the steps.
            ranks: processes that all have these rows and share the work: each gets the value, and a gradient in `fake`
                whose mean over the ranks is that of the value.

        Returns:
            A scalar; NaN (with a NaN gradient) when `fake` holds a NaN or an infinity, so that a trainer can skip the
            step.

        Raises:
            ValueError: when not fitted, or when the shapes do not match the reference.
        """
        check_generated(fake, tau, self.center.numel(), int(self.tau_width))
        with torch.autocast(fake.device.type, enabled=False):  # half precision would swamp the differences
            features = self.join(fake.to(torch.promote_types(fake.dtype, torch.float32)), tau)
            if features.is_cpu and features.detach().sum().isfinite():  # one pass; on a GPU asking would wait
                return self._compare(features, step, ranks).to(features.dtype)
            finite = torch.isfinite(features)
            value = self._compare(features.where(finite, 0), step, ranks)
            return (value * torch.where(finite.all(), 1.0, torch.nan)).to(features.dtype)

    def join(self, phi: Float[Tensor, "n d"], tau: Float[Tensor, "n c"] | None) -> Float[Tensor, "n w"]:
        """The joint rows Phi that are compared, of features in the reference's type and their conditions."""
        return join(phi, tau, self.center, self.beta, self.slope if self.config.residual else None)

    @abstractmethod
    def _fit(self, real: Rows, seed: int, ranks: Ranks) -> None:
        """Build the reference from joint real rows [r, d + c].

        Here and in `_compare` work may be divided by `ranks.share` and added by `ranks.sum`; the rest every rank does.
        """

    @abstractmethod
    def _compare(self, fake: Float[Tensor, "n w"], step: int | None, ranks: Ranks) -> Float[Tensor, ""]:
        """The distance of joint generated rows [n, d + c]."""

    @property
    def _scale(self) -> float:
        """The bandwidth sigma in median distances."""
        return 1.0

    @property
    def _needs_bandwidth(self) -> bool:
        """Whether features whose median distance is zero are an error even without a condition."""
        return False
