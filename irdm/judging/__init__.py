"""The half of a reference that judges: banks of real features, and the scores of images against them.

Shares only `ops` with training (docs/design.md); the half that trains is `irdm.references`.
"""

from irdm.judging.bank import BankConfig
from irdm.judging.evaluate import MIN_IMAGES, evaluate_source
from irdm.judging.folder import ReferenceFolder
from irdm.judging.judge import Judge

__all__ = ["MIN_IMAGES", "BankConfig", "Judge", "ReferenceFolder", "evaluate_source"]
