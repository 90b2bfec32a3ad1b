"""Add an encoder of your own to a battery: anything frozen and differentiable that maps images to features.

python examples/custom_encoder.py
"""

import torch
from torch import nn

from irdm.data import DigitsConfig
from irdm.encoders import Battery, Encoder, LocalBatteryConfig
from irdm.evaluate import EvaluationConfig, evaluate
from irdm.generators import MLPConfig


class Spectrum(nn.Module):
    """Log amplitudes of the two-dimensional Fourier transform."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(images, norm="ortho").abs().clamp_min(1e-3).log().flatten(1)


def main() -> dict:
    """Scores of an untrained generator under two fitted encoders and the new one."""
    digits = DigitsConfig().build()
    fitted = LocalBatteryConfig(held_in=("supervised",), held_out=("pca",), steps=50).fit(digits)
    width = Spectrum()(digits.train.images[:1]).shape[1]
    encoders = {**fitted.encoders, "spectrum": Encoder("spectrum", width, Spectrum())}
    battery = Battery(encoders, held_in=("supervised",), held_out=("pca", "spectrum"))

    generator = MLPConfig().build(digits.image_shape, digits.num_classes)
    result = evaluate(generator, battery, digits, EvaluationConfig(replicates=2, directions=128)).result
    for name, score in result["sw_ratio"]["per_encoder"].items():
        print(f"{name:12} {score['value']:6.2f}  (real: 1.00)")
    return result


if __name__ == "__main__":
    main()
