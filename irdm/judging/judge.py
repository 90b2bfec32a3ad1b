"""A reference, opened for judging: its encoders, and the scores of a table of features under each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from irdm.encoders.base import Battery
from irdm.encoders.families import PanelNetwork
from irdm.encoders.local import LocalBatteryConfig
from irdm.encoders.panel import PanelBatteryConfig, fingerprint
from irdm.judging.bank import KINDS, BankConfig, EncoderBank, OnDevice, joined
from irdm.judging.folder import ENCODERS, SAMPLES, ReferenceFolder
from irdm.metrics.base import Tables, matched
from irdm.metrics.frechet_distance import frechet_distances
from irdm.metrics.manifold import precision_recall_density_coverage
from irdm.metrics.memorisation import memorisation
from irdm.metrics.ratio_bank import RatioBank
from irdm.store import weights_identity


def encoder_identity(encoder: nn.Module, weights: Path | None = None) -> str:
    """What decides an encoder's features: the hashes of a pretrained one's files and table row, else of its weights."""
    network = getattr(encoder, "network", None)
    return fingerprint(network.entry, weights) if isinstance(network, PanelNetwork) else weights_identity(encoder)


class Judge:
    """The judging half of a reference."""

    def __init__(self, path: Path, device: str = "cpu"):
        """Raises ValueError when `path` holds no finished reference or a file is missing or cut short."""
        self.folder, self.device = ReferenceFolder(path), device
        plan = self.folder.plan
        self.identities: dict[str, str] = plan["encoders"]
        self.names = tuple(self.identities)
        self.held_out = tuple(plan["held_out"])
        self.size: int = plan["preprocessing"]["size"]
        self.config = BankConfig.model_validate(plan["judging"])

    def chosen(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The names in the reference's order; None is all. Raises ValueError for encoders that it does not have."""
        if unknown := [name for name in names or () if name not in self.names]:
            raise ValueError(
                f"The reference {self.folder.name} ({self.folder.path}) has no encoder {', '.join(unknown)}: it is of "
                f"the panel '{self.folder.plan['panel']}', {', '.join(self.names)}. Choose among these, or build a "
                "reference of the panel you want."
            )
        return tuple(name for name in self.names if names is None or name in names)

    def battery(self, names: Sequence[str] | None = None, weights: Path | None = None) -> Battery:
        """The encoders that made the reference, all or some, on its device.

        Raises ValueError when weights are missing or not those of the reference, or the encoders were somebody's own.
        """
        chosen, config = self.chosen(names), self.folder.plan["battery"]
        held_in = tuple(name for name in chosen if name not in self.held_out)
        held_out = tuple(name for name in chosen if name in self.held_out)
        if config["kind"] == "local":
            state, _ = self.folder.tensors(ENCODERS)
            whole = LocalBatteryConfig.model_validate(config)
            classes = len(self.folder.plan["classes"])
            fitted = whole.restore((3, self.size, self.size), classes, state)
            battery = Battery({name: fitted[name] for name in chosen}, held_in, held_out)
        elif config["kind"] == "panel":
            battery = PanelBatteryConfig(held_in=held_in, held_out=held_out, weights=weights).fit()
        else:
            raise ValueError(f"The reference {self.folder.name} was built with encoders of your own; pass them.")
        self.check(dict(battery.encoders.items()), weights)
        return battery.to(self.device)

    def check(self, encoders: Mapping[str, nn.Module], weights: Path | None = None) -> None:
        """Raises ValueError unless each encoder is the one that made the reference, to the byte."""
        self.chosen(list(encoders))
        odd = [n for n, encoder in encoders.items() if encoder_identity(encoder, weights) != self.identities[n]]
        if odd:
            raise ValueError(
                f"The encoders {', '.join(odd)} are not those that made the reference {self.folder.name}: their "
                "weights or their settings differ, so features cannot be compared. Use the weights of the reference, "
                "or build it again with these."
            )

    def samples(self) -> Tensor:
        """A few val images, uint8 [n, 3, size, size]."""
        return self.folder.tensors(SAMPLES)[0]["images"]

    @property
    def draw_rows(self) -> int:
        """Images of a full draw of the ratios: as many are needed for the narrowest intervals."""
        return min(self.config.rows, self.folder.plan["train"]["count"], self.folder.plan["val"]["count"] // 2)

    def banks(self, names: Sequence[str] | None = None) -> dict[str, RatioBank]:
        """The real sides of the ratios, by kind."""
        banks = self._encoder_banks(self.chosen(names))
        return {kind: joined(kind, banks, self.held_out) for kind in KINDS}

    def _encoder_banks(self, names: Sequence[str]) -> dict[str, EncoderBank]:
        files = {name: self.folder.tensors(f"judging/{name}.safetensors", self.device) for name in names}
        return {name: EncoderBank.load(*file) for name, file in files.items()}

    def scores(
        self, generated: Tables, *, seed: int = 0, progress: Callable[[str], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Every metric of feature tables, by name; encoders without a table are named `missing`, and the score partial.

        Raises ValueError naming an encoder whose table has too few rows, another width, or NaN.
        """
        say = progress or (lambda text: None)
        names = self.chosen(list(generated))
        generated = {name: OnDevice(generated[name], self.device) for name in names}
        banks = self._encoder_banks(names)
        train, val = {n: bank.train for n, bank in banks.items()}, {n: bank.val for n, bank in banks.items()}
        settings: dict[str, Any] = {"held_out": self.held_out, "seed": seed}
        scores: dict[str, dict[str, Any]] = {}
        for kind in KINDS:
            say(kind)
            scores[kind] = joined(kind, banks, self.held_out).score(generated)
        say("frechet_distance")
        moments = {name: bank.moments for name, bank in banks.items()}
        scores |= frechet_distances(generated, moments, val, **settings)
        say("precision, recall, density, coverage")
        most = self.config.manifold_rows
        scores |= precision_recall_density_coverage(
            {name: matched(generated[name], most, seed) for name in names},
            {name: table[:most] for name, table in train.items()},
            {name: table[:most] for name, table in val.items()},
            k=self.config.neighbours,
            **settings,
        )
        say("closeness to train, authenticity")
        scores |= memorisation(generated, train, val, **settings)
        missing = [name for name in self.names if name not in names]
        for score in scores.values():
            score["missing"] = missing
            score["name"] += " (partial)" if missing else ""
        return scores
