"""Label accuracy: does a generated image show the class it was asked for?"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from irdm.metrics.base import EvaluationConfig, Real, Sample, stratified_rows
from irdm.ops.sampling import generator_for

CLASSIFIER = "SVC(RBF) on pixels"
SIDE = 32


def label_accuracy(generated: Sample, real: Real, config: EvaluationConfig) -> dict:
    """Accuracy of a support vector machine on raw pixels, fit on real train images: an outsider to the battery.

    Images of more than 32 x 32 pixels are averaged down to that first: it would take hours on a hundred thousand.

    `real_test` is its accuracy on real test images: how far `generated` can be trusted. All three are null for data
    of a single class, where there is nothing to ask for. `replicates`: of each generated draw.
    """
    from sklearn.svm import SVC  # slow to import, and needed by this metric alone

    if len(real.train.labels.unique()) < 2:
        return {"generated": None, "real_test": None, "classifier": None, "replicates": None}
    count = min(len(real.train), config.classifier_rows)
    rows = stratified_rows(real.train.labels, count, generator_for("metrics", "accuracy", config.seed))
    images, labels = _pixels(real.train.images[rows]), real.train.labels[rows]
    classifier = SVC(C=10.0, kernel="rbf", gamma="scale").fit(images.numpy(), labels.numpy())

    def correct(sample: Sample) -> Float64[Tensor, " n"]:
        found = classifier.predict(_pixels(sample.images).numpy())
        return (torch.from_numpy(found) == sample.labels).double()

    hits = correct(generated)
    return {
        "generated": hits.mean().item(),
        "real_test": correct(real.test).mean().item(),
        "classifier": CLASSIFIER,
        "replicates": [draw.mean().item() for draw in hits.split(len(real.val))],
    }


def _pixels(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
    """Flat pixels of images of at most 32 x 32."""
    h, w = (min(side, SIDE) for side in images.shape[2:])
    small = images if images.shape[2:] == (h, w) else nn.functional.adaptive_avg_pool2d(images, (h, w))
    return small.flatten(1)
