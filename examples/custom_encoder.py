"""Add an encoder of your own to a battery: anything frozen and differentiable that maps images to features.

python examples/custom_encoder.py
"""

import torch
from torch import nn

from irdm.conditions import draw
from irdm.data import DigitsConfig
from irdm.encoders import Battery, Encoder, LocalBatteryConfig
from irdm.evaluation import EvaluationConfig, evaluate, real_of
from irdm.generate import Drawn
from irdm.generators import MLPConfig
from irdm.metrics.score import Score


class Spectrum(nn.Module):
    """Log amplitudes of the two-dimensional Fourier transform."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(images, norm="ortho").abs().clamp_min(1e-3).log().flatten(1)


def main() -> dict[str, Score]:
    """Scores of an untrained generator under two fitted encoders and the new one."""
    digits = DigitsConfig().build()
    fitted = LocalBatteryConfig(held_in=("content",), held_out=("pca",), steps=50).fit(digits)
    width = Spectrum()(digits.train.images[:1]).shape[1]
    encoders = {**fitted.encoders, "spectrum": Encoder("spectrum", width, Spectrum())}
    battery = Battery(encoders, held_in=("content",), held_out=("pca", "spectrum"))

    config = EvaluationConfig(directions=128, resamples=8)
    real = real_of(digits, battery, config)
    conditions = real.train.conditions[draw(real.train.conditions, 600, "example", 0)]
    generator = MLPConfig().build(digits.image_shape, conditions.spec)
    _, scores = evaluate(Drawn(generator, conditions, digits.image_shape, seed=0), real, encoders, config)
    for name, estimate in scores["sw_ratio"].encoders.items():
        print(f"{name:12} {estimate.value:6.2f}  (real: {estimate.control:.2f})")
    return scores


if __name__ == "__main__":
    main()
