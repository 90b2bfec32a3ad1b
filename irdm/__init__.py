"""irdm: one-step image generators by Representation Distribution Matching (arXiv 2607.02375)."""

__version__ = "0.1.0"
