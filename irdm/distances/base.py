"""What every distance is: a module that owns a frozen reference of real data and scores generated features against it.

Dimension letters: n generated rows; r real rows; d features of the encoder; c columns of the condition tau.

With a condition the compared features are Phi = [phi - center | beta tau], beta = sigma / s: sigma is the bandwidth of
the encoder's features (median distance, times the distance's `scale`) and s the bandwidth wanted for the condition
(section "Joint matching" of docs/method.md).
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor, nn

from irdm.config import Config
from irdm.ops.kernels import median_distance
from irdm.ops.rows import Rows, row_blocks, sample_rows
from irdm.ops.sampling import generator_for

_BANDWIDTH_ROWS = 10_000  # the median distance is taken over a random sample of this many rows


class DistanceConfig(Config):
    """What the configuration of every distance has in common."""

    condition_bandwidth: PositiveFloat | None = None
    """Bandwidth s of the condition tau in its own units, when there is one; None means 1."""


C = TypeVar("C", bound=DistanceConfig)


class Distance(nn.Module, ABC, Generic[C]):
    """A differentiable distance between generated features and a frozen reference.

    A subclass names the tensors of its reference in `owned`, builds them in `_fit` from joint rows, and scores joint
    rows with them in `_compare`. They are buffers, so `.to()`, `state_dict()` and `load_state_dict()` work whatever was
    fitted; the saved state also holds the configuration, and loads only into a distance of the same one.
    """

    owned: ClassVar[tuple[str, ...]] = ()
    """The tensors that `_fit` assigns."""

    center: Tensor
    beta: Tensor
    sigma: Tensor
    tau_width: Tensor
    seed: Tensor

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config
        for name in ("center", *self.owned):  # empty until fitted or loaded, then of whatever shape that gave
            self.register_buffer(name, torch.empty(0))
        for name in ("sigma", "beta"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        for name in ("tau_width", "seed"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def fit(self, real: Rows, tau: Rows | None = None, *, seed: int) -> Distance:
        """Freeze the reference.

        Args:
            real: real features [r, d]: a tensor, or a store read block by block.
            tau: their conditions [r, c], row for row; None compares the marginals.
            seed: of every draw made here and, for a distance that draws at each step, there.

        Raises:
            ValueError: when the rows are not [r, d] with r >= 2, hold a NaN or an infinity, do not match tau, or do not
                vary although a bandwidth is needed.
        """
        _check_matrix("real", real)
        if len(real) < 2:
            raise ValueError(f"Got {len(real)} real rows, expected at least 2: one row says nothing about a spread.")
        if tau is not None:
            _check_matrix("tau", tau)
            if len(tau) != len(real):
                raise ValueError(f"Got {len(real)} real rows and {len(tau)} rows of tau; pair every row with its own.")
            _stream_mean("tau", tau)
        device = self.center.device
        dtype = torch.promote_types(real[0:1].dtype, torch.float32)
        self.center = _stream_mean("real", real).to(device, dtype)
        self.seed = torch.tensor(seed, dtype=torch.int64, device=device)
        sigma = self._bandwidth(sample_rows(real, _BANDWIDTH_ROWS, generator_for(seed, "bandwidth")))
        if sigma == 0 and (self._needs_bandwidth() or tau is not None):
            raise ValueError(
                f"The median distance between two of the {len(real)} real rows is 0, so the kernel has no bandwidth: "
                "most rows coincide. Check that the encoder sees the images and that the data set is not one image."
            )
        self.sigma = torch.tensor(sigma, dtype=torch.float64, device=device)
        self.beta = self.sigma / (self.config.condition_bandwidth or 1.0)
        self.tau_width = torch.tensor(tau.shape[1] if tau is not None else 0, dtype=torch.int64, device=device)
        with torch.no_grad():
            self._fit(_JointRows(self, real, tau), seed)
        return self

    def forward(
        self, fake: Float[Tensor, "n d"], tau: Float[Tensor, "n c"] | None = None, *, step: int = 0
    ) -> Float[Tensor, ""]:
        """The distance of generated features to the reference; differentiable in `fake`, pure in all its arguments.

        Args:
            fake: generated features [n, d].
            tau: their conditions [n, c]; given exactly when the reference was fitted with one.
            step: the training step, which seeds the draws of a distance that draws.

        Returns:
            A scalar; NaN (with a NaN gradient) when `fake` holds a NaN or an infinity, so that a trainer can skip the
            step.

        Raises:
            ValueError: when not fitted, or when the shapes do not match the reference.
        """
        if not self.center.numel():
            raise ValueError(f"{type(self).__name__} has no reference yet: call fit(real, seed=...) or load one.")
        _check_matrix("fake", fake)
        if tau is not None:
            _check_matrix("tau", tau)
        if fake.shape[1] != len(self.center) or not len(fake):
            raise ValueError(
                f"Got generated features {tuple(fake.shape)}, expected [n >= 1, {len(self.center)}] as in the "
                "reference: embed both with the same encoder."
            )
        if (0 if tau is None else tau.shape[1]) != int(self.tau_width) or (tau is not None and len(tau) != len(fake)):
            raise ValueError(
                f"Got tau {None if tau is None else tuple(tau.shape)} for {len(fake)} generated rows, expected "
                + (f"[{len(fake)}, {int(self.tau_width)}]" if self.tau_width else "None: the reference is marginal")
                + ". Fit and compare with the same kind of condition."
            )
        with torch.autocast(fake.device.type, enabled=False):  # half precision would swamp the differences
            features = self._join(fake.to(torch.promote_types(fake.dtype, torch.float32)), tau)
            if not torch.isfinite(features).all():
                return features.sum() * torch.nan
            return self._compare(features, step)

    @abstractmethod
    def _fit(self, real: Rows, seed: int) -> None:
        """Build the reference from joint real rows [r, d + c]."""

    @abstractmethod
    def _compare(self, fake: Float[Tensor, "n w"], step: int) -> Float[Tensor, ""]:
        """The distance of joint generated rows [n, d + c]."""

    def _join(self, phi: Tensor, tau: Tensor | None) -> Tensor:
        """Phi = [phi - center | beta tau]. Centred, since |a|^2 + |b|^2 - 2ab cancels when the mean is large."""
        centred = phi - self.center.to(phi)
        return centred if tau is None else torch.cat([centred, tau.detach().to(phi) * self.beta.to(phi)], dim=1)

    def _needs_bandwidth(self) -> bool:
        """Whether features whose median distance is zero are an error even without a condition."""
        return False

    def _bandwidth(self, rows: Tensor) -> float:
        """The median distance between two rows; 0 when it is no more than rounding."""
        median = median_distance(rows.to(self.center) - self.center)
        if not math.isfinite(median):
            raise ValueError(
                f"The real rows reach {rows.abs().max():.2g}, too large to square in {self.center.dtype}: scale the "
                "features down, or give them as float64."
            )
        # Distances below the rounding of the raw features are rounding, not data.
        return median if median > 4 * torch.finfo(self.center.dtype).eps * float(self.center.norm()) else 0.0

    def get_extra_state(self) -> Tensor:
        """The configuration, as the bytes of its JSON: part of `state_dict`, and a tensor like the rest of it."""
        return torch.tensor(list(self.config.model_dump_json().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises ValueError when the state was fitted with another configuration."""
        fitted, own = json.loads(bytes(state.tolist())), self.config.model_dump(mode="json")
        if differing := [name for name in {**fitted, **own} if fitted.get(name) != own.get(name)]:
            found, expected = (
                ", ".join(f"{name}={fields.get(name)}" for name in differing) for fields in (fitted, own)
            )
            raise ValueError(
                f"The reference was fitted with {found}, but this distance is configured with {expected}: build the "
                "distance from the configuration of the reference, or fit it again."
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None:
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _JointRows:
    """Real rows and their conditions, seen as joint rows [r, d + c] on the device of the reference."""

    def __init__(self, distance: Distance, real: Rows, tau: Rows | None) -> None:
        self._distance, self._real, self._tau = distance, real, tau
        self.shape = (len(real), real.shape[1] + (tau.shape[1] if tau is not None else 0))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        tau = None if self._tau is None else self._tau[index]
        return self._distance._join(self._real[index].to(self._distance.center), tau)


def _check_matrix(name: str, rows: Rows) -> None:
    if len(rows.shape) != 2:
        raise ValueError(
            f"Got {name} of shape {tuple(rows.shape)}, expected a matrix [rows, columns]: flatten it first."
        )


def _stream_mean(name: str, rows: Rows) -> Tensor:
    """The mean row in float64, after checking that every entry is finite."""
    total: Tensor | None = None
    seen = 0
    for block in row_blocks(rows):
        bad = ~torch.isfinite(block).all(dim=1)
        if bad.any():
            first = seen + int(bad.nonzero()[0, 0])
            raise ValueError(
                f"Found {int(bad.sum())} rows with a NaN or an infinity in {name} (the first is row {first}): find the "
                "image or the encoder precision that makes them."
            )
        total = block.double().sum(dim=0) if total is None else total + block.double().sum(dim=0)
        seen += len(block)
    assert total is not None
    return total / seen
