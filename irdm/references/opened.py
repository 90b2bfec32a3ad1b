"""A finished reference, opened: what training minimises beside what evaluation compares with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from irdm.distances import AnyDistance, Distance
from irdm.judging import Judge
from irdm.metrics.ratio_bank import RatioBank
from irdm.reference import Reference, fit_distance
from irdm.store import FeatureStore


class ReferenceSet:
    """A reference directory. `judge` is its other half, which evaluation opens by itself."""

    def __init__(self, path: Path, device: str = "cpu"):
        """Raises ValueError when `path` holds no finished reference or a file is missing or cut short."""
        self.path, self.device, self.judge = Path(path), device, Judge(path, device)

    @property
    def manifest(self) -> dict[str, Any]:
        """Name, address, plan, and the hash of every file."""
        return self.judge.folder.manifest

    @property
    def names(self) -> tuple[str, ...]:
        """Every encoder."""
        return self.judge.names

    @cached_property
    def distances(self) -> dict[str, Distance]:
        """The fitted distance of each encoder, on the device. Raises ValueError for a file that was altered."""
        return {name: self._distance(name) for name in self.names}

    @cached_property
    def floors(self) -> dict[str, float]:
        """What fresh real images score under each distance at the rollout of the reference."""
        return {name: self._floor(name) for name in self.names}

    @cached_property
    def banks(self) -> dict[str, RatioBank]:
        """The real sides of SW_r and MMDr."""
        return self.judge.banks()

    def check(self, encoders: Mapping[str, nn.Module], weights: Path | None = None) -> None:
        """Raises ValueError unless each encoder is, to the byte, the one that made the reference."""
        self.judge.check(encoders, weights)

    def store(self, split: str) -> FeatureStore:
        """The features of the images of `train` or `val`.

        Raises ValueError when it is damaged, was removed, or is not the one that the reference was built from.
        """
        store = FeatureStore(self.path / split)
        if store.address != self.manifest["stores"][split]:
            raise ValueError(
                f"{store.path} is not the store that {self.path} was built from; build the reference again."
            )
        return store

    def training(
        self,
        names: Sequence[str],
        distance_config: AnyDistance,
        joint: bool,
        *,
        rollout: int | None = None,
        seed: int | None = None,
    ) -> Reference:
        """A distance of this configuration and its floor for each encoder named, on the device.

        Those of the reference where they are the ones asked for; otherwise fitted now, streaming, from its stores.

        Args:
            names: encoders, as a rule those that train.
            distance_config: what training minimises.
            joint: match features together with one-hot labels.
            rollout: batch size of the floors; None is the reference's.
            seed: of the fit; None is the reference's.

        Raises:
            ValueError: for an encoder that the reference does not have, or a store that is missing or damaged.
        """
        chosen, plan = self.judge.chosen(names), self.manifest["plan"]
        size: int = plan["training"]["rollout"] if rollout is None else rollout
        draws: int = plan["seed"] if seed is None else seed
        asked = ({"distance": distance_config.model_dump(mode="json"), "rollout": size}, draws, joint)
        if asked == (plan["training"], plan["seed"], False):
            distances = {name: self._distance(name) for name in chosen}
            return Reference(distances, {name: self._floor(name) for name in chosen})
        train, val = self.store("train"), self.store("val")
        if joint and train.class_names != val.class_names:
            raise ValueError(
                f"{self.path}: train has the classes {list(train.class_names)[:5]} ... and val "
                f"{list(val.class_names)[:5]} ...; a joint distance needs the same in both."
            )
        classes = max(len(store.class_names) for store in (train, val))
        fitted = {
            name: fit_distance(
                distance_config,
                train[name],
                val[name],
                (train.labels, val.labels),
                classes,
                joint=joint,
                rollout=size,
                seed=draws,
                device=self.device,
            )
            for name in chosen
        }
        return Reference({n: distance for n, (distance, _) in fitted.items()}, {n: f for n, (_, f) in fitted.items()})

    def _distance(self, name: str) -> Distance:
        config: Any = TypeAdapter(AnyDistance).validate_python(self.manifest["plan"]["training"]["distance"])
        distance = config.build()
        distance.load_state_dict(self.judge.folder.tensors(f"training/{name}.safetensors")[0])
        return distance.to(self.device)

    def _floor(self, name: str) -> float:
        return float(self.judge.folder.tensors(f"training/{name}.safetensors")[1]["floor"])


def open_reference(path: Path, device: str = "cpu") -> ReferenceSet:
    """The reference at `path`. Raises ValueError when it is unfinished, damaged, or of another version."""
    return ReferenceSet(path, device)


def describe(reference: ReferenceSet) -> Iterator[str]:
    """What `irdm reference show` prints: which images, which encoders, counts, seeds, floors and hashes."""
    folder, plan = reference.judge.folder, reference.judge.folder.plan
    judging, training = plan["judging"], plan["training"]
    yield f"reference  {folder.name}"
    yield f"address    {folder.address}"
    for split in ("train", "val"):
        yield f"{split:10} {plan[split]['count']} images, sha256 {plan[split]['fingerprint']}"
    names = [*plan["classes"][:8], *(["..."] if len(plan["classes"]) > 8 else [])]
    yield f"classes    {len(plan['classes'])}: {', '.join(names)}"
    size = plan["preprocessing"]["size"]
    yield f"images as  {size} x {size}, {plan['preprocessing']['crop']}; seed {plan['seed']}"
    yield f"distance   {training['distance']['kind']}, floors at a rollout of {training['rollout']}"
    yield f"ratios     draws of {reference.judge.draw_rows}, {judging['directions']} directions, "
    yield f"           {judging['rff_features']} Fourier features of seed {judging['rff_seed']}"
    yield f"panel      {plan['panel']}: {len(plan['encoders'])} encoders"
    yield f"  {'encoder':16} {'split':9} {'floor':>11}  sha256"
    for name, identity in plan["encoders"].items():
        split = "held out" if name in plan["held_out"] else "trains"
        yield f"  {name:16} {split:9} {reference.floors[name]:11.4g}  {identity}"
    yield f"built by   {folder.manifest['command'] or 'library calls'}"
