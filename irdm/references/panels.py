"""The encoders of a reference: pretrained ones from the panel, or small ones fitted to its own train images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from irdm.data.base import Dataset, Split
from irdm.data.sources import ImageSource
from irdm.encoders import LocalBatteryConfig, PanelBatteryConfig
from irdm.encoders.base import Battery
from irdm.ops.sampling import generator_for, sample_indices

LOCAL_SIZE = 32  # pixels a side that two CPU cores can fit and run a local battery on
PANEL_SIZE = 256
LOCAL_ROWS = 20_000  # at most this many images fit a local battery


@dataclass(frozen=True)
class Panel:
    """Encoders with the name of the panel they are, and the configuration that loads them again (None: their own)."""

    name: str
    battery: Battery
    config: LocalBatteryConfig | PanelBatteryConfig | None = None
    weights: Path | None = None


def panel_battery(names: str, weights: Path | None = None, say: Callable[[str], None] | None = None) -> Panel:
    """The pretrained encoders `panel` (all fourteen) or some of them, comma-separated.

    Raises ValueError for an unknown name, and naming every encoder whose weights are missing.
    """
    config = PanelBatteryConfig(weights=weights)
    if names != "panel":
        asked = tuple(name.strip() for name in names.split(",") if name.strip())
        PanelBatteryConfig(held_in=asked)  # names what is unknown
        held_in, held_out = (tuple(n for n in side if n in asked) for side in (config.held_in, config.held_out))
        config = PanelBatteryConfig(held_in=held_in, held_out=held_out, weights=weights)
    return Panel(names, config.fit(progress=say), config.model_copy(update={"weights": None}), weights)


def local_battery(
    source: ImageSource,
    size: int = LOCAL_SIZE,
    config: LocalBatteryConfig | None = None,
    cache_dir: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Panel:
    """Encoders fitted to at most 20,000 random images of a source; no weights are needed.

    Images of one class cannot teach the supervised encoders anything, so these are left out then.
    """
    config = config or LocalBatteryConfig()
    if len(source.class_names) < 2:
        split = {
            side: tuple(n for n in getattr(config, side) if not n.startswith("supervised"))
            for side in ("held_in", "held_out")
        }
        config = config.model_copy(update=split)
    rows = sample_indices(len(source), LOCAL_ROWS, generator_for("local battery", config.seed)).sort().values
    images = torch.empty(len(rows), 3, size, size)
    for image, pixels in zip(images, source.decoded(rows.tolist(), size), strict=True):
        torch.div(pixels, 255, out=image)
    split = Split(images, source.labels[rows])
    classes = source.class_names
    dataset = Dataset("local", split, split, split, len(classes), classes)  # a battery reads the train split alone
    return Panel("local", config.fit(dataset, cache_dir=cache_dir, progress=say), config)
