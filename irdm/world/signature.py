"""What this world is, in one hash: a network that learned another one is of no use here."""

from __future__ import annotations

import hashlib
import json
from functools import cache

from irdm.world import captions, language, scene, splits


@cache
def signature() -> str:
    """sha256 of all that decides pictures, captions and what is held out."""
    seen = {name: [(str(ask), texts) for ask, texts in asks] for name, asks in splits.captions_of("seen").items()}
    looks = [scene.SHAPES, scene.COLOURS, scene.SIZES, scene.SHADE, scene.LEVEL, scene.TINT, scene.SLOPE]
    facts = [scene.CELLS, scene.CELL, scene.SIDE, looks, captions.EMBEDDER, language.TOKENS, seen]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
