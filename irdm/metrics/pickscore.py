"""PickScore (Kirstain et al., 2023): how much people like an image for its prompt, by a CLIP-H taught on their choices.

    score = exp(logit scale) cos(image embedding, text embedding)

Reported as a mean, and as the share of prompts where one generator's image scores above another's for the same noise.

Letters: n images with their prompts.
"""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from irdm.metrics.intervals import bootstrap_interval, fold_means, folds
from irdm.metrics.score import Estimate, Score
from irdm.metrics.text_scorer import TextScorer, check_scores


class PickScore(TextScorer):
    """The published model, and the processor of the CLIP-H that it was made of."""

    name, folder = "PickScore", "pickscore"
    model_source = "yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800"
    processor_source = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c"

    def of_cosines(self, cosines: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """exp(logit scale) cos."""
        return self.model.logit_scale.double().exp().cpu() * cosines

    def summary(self, scores: Float64[Tensor, " n"], *, seed: int = 0) -> dict[str, Score]:
        """`pickscore`."""
        return pickscore(scores, seed=seed)


def pickscore(
    scores: Float64[Tensor, " n"], real: Float64[Tensor, " n"] | None = None, *, seed: int = 0
) -> dict[str, Score]:
    """The mean score, with a bootstrap interval over prompts, beside that of real images of the same prompts."""
    check_scores(scores)
    control = None if real is None else real.mean().item()
    says = (
        "How much people like the images for their prompts, as a model taught on their choices says; higher is better."
    )
    score = Score(label="PickScore", direction="higher", says=says, mean=mean_score(scores, seed, control))
    return {"pickscore": score.model_copy(update={"notes": {"rows": len(scores)}})}


def win_rate(ours: Float64[Tensor, " n"], theirs: Float64[Tensor, " n"], *, seed: int = 0) -> tuple[Estimate, Estimate]:
    """The share of prompts where our image scores above theirs, ties counting half; and the mean difference.

    Row i of both must be of one prompt and, for two generators, of one noise: the bootstrap draws pairs. A rate of 0.5
    is a draw.

    Raises ValueError for unequal numbers of rows, fewer than 8, NaN or infinity.
    """
    check_scores(ours)
    check_scores(theirs)
    if len(ours) != len(theirs):
        raise ValueError(f"Got {len(ours)} and {len(theirs)} scores; a win is decided between images of one prompt.")
    wins = (ours > theirs).double() + 0.5 * (ours == theirs).double()
    return mean_score(wins, seed), mean_score(ours - theirs, seed)


def mean_score(rows: Float64[Tensor, " n"], seed: int, control: float | None = None) -> Estimate:
    """The mean, with a bootstrap interval over prompts."""
    replicates = fold_means(rows, folds(len(rows), seed)).tolist()
    return Estimate(
        value=rows.mean().item(), ci95=bootstrap_interval(rows, seed), control=control, replicates=tuple(replicates)
    )
