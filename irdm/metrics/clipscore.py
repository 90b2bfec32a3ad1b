"""CLIPScore (Hessel et al., 2021): how well an image fits its prompt, as OpenAI's CLIP ViT-L/14 sees it.

    score = 100 cos(image embedding, text embedding)

Its mean is cut at 0, as torchmetrics does, whose default model this is. (The paper has 2.5 max(cos, 0) of ViT-B/32.)

Letters: n images with their prompts.
"""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from irdm.metrics.pickscore import mean_score
from irdm.metrics.score import Score
from irdm.metrics.text_scorer import TextScorer, check_scores

CLIP = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"


class ClipScore(TextScorer):
    """The published model with its own processor."""

    name, folder = "CLIPScore", "clipscore"
    model_source = processor_source = CLIP

    def of_cosines(self, cosines: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """100 cos."""
        return 100 * cosines

    def summary(self, scores: Float64[Tensor, " n"], *, seed: int = 0) -> dict[str, Score]:
        """The mean, at least 0, with a bootstrap interval over prompts."""
        check_scores(scores)
        found = mean_score(scores, seed)
        low, high = found.ci95 or (0.0, 0.0)
        found = found.model_copy(update={"value": max(found.value, 0.0), "ci95": (max(low, 0.0), max(high, 0.0))})
        says = "How well the images fit their prompts, as CLIP sees it; higher is better."
        notes = {"rows": len(scores)}
        return {self.folder: Score(label=self.name, direction="higher", says=says, mean=found, notes=notes)}
