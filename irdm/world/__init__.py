"""A world in which captions, pictures and the judge are all known exactly: shapes in four cells of 16x16 pixels."""

from irdm.world.build import make, picture
from irdm.world.captions import CATEGORIES, EMBEDDER, Ask, Part, embed, read
from irdm.world.judge import correct, read_scenes, shows
from irdm.world.scene import COLOURS, SHAPES, SIDE, draw_scenes
from irdm.world.signature import signature
from irdm.world.splits import captions_of, is_held_out

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "EMBEDDER",
    "SHAPES",
    "SIDE",
    "Ask",
    "Part",
    "captions_of",
    "correct",
    "draw_scenes",
    "embed",
    "is_held_out",
    "make",
    "picture",
    "read",
    "read_scenes",
    "shows",
    "signature",
]
