"""GenEval (Ghosh et al., 2023, arXiv 2310.11513): does an image show the objects, counts, colours and places asked for?

Six categories of prompts, a detector, and rules. The published score is that of the official scorer, which runs as its
own process (`official`); the scorer of `detector` needs nothing but transformers and open_clip, and is another metric.
"""

from irdm.geneval.comparing import compare_scored
from irdm.geneval.layout import Samples, render, rendered
from irdm.geneval.prompts import Prompt, PromptFile, read_prompts
from irdm.geneval.scoring import record_golden, score_folder, try_golden
from irdm.geneval.summary import Scored, read_scored

__all__ = [
    "Prompt",
    "PromptFile",
    "Samples",
    "Scored",
    "compare_scored",
    "read_prompts",
    "read_scored",
    "record_golden",
    "render",
    "rendered",
    "score_folder",
    "try_golden",
]
