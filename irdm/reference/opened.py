"""A finished reference on disk, opened: what training minimises beside what evaluation compares with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from irdm.distances import AnyDistance, Distance, Joint
from irdm.evaluation.sensitivity import LADDER as LADDER_FILE
from irdm.evaluation.sensitivity import Sensitivity, read_sensitivity
from irdm.files import read_sealed, sealed_folder, write_tensors
from irdm.progress import Say, silent
from irdm.reference.fit import Reference, fit_reference
from irdm.store.reference import LADDER, StoredReference

FILE = "distance.safetensors"


class OpenReference(StoredReference):
    """A finished reference, both halves."""

    def training(
        self,
        names: Sequence[str],
        distance_config: AnyDistance,
        *,
        joint: Joint,
        rollout: int,
        seed: int,
        progress: Say = silent,
    ) -> Reference:
        """A distance of this configuration and its floor for each encoder named, on the reference's device.

        Those of the reference where they are the ones asked for; otherwise fitted now, streaming, from its stores.

        Args:
            names: encoders, as a rule those that train.
            distance_config: what training minimises.
            joint: encoders whose features are matched together with their conditions.
            rollout: batch size of the floors.
            seed: of the fit.
            progress: receives a line of text now and then.

        Raises:
            ValueError: for an encoder that the reference does not have, or a store that is missing or damaged.
        """
        chosen = self.chosen(names)
        asked = what_is_fitted(distance_config, joint=joint, rollout=rollout, seed=seed)
        if asked == self.plan["training"] and all(f"training/{name}" in self._parts for name in chosen):
            fitted = {name: self._fitted(name) for name in chosen}
            return Reference(
                {n: distance for n, (distance, _) in fitted.items()}, {n: f for n, (_, f) in fitted.items()}
            )
        train, val = self.store("train"), self.store("val")
        return fit_reference(
            distance_config,
            {name: train[name] for name in chosen},
            {name: val[name] for name in chosen},
            (train.conditions, val.conditions),
            joint=joint,
            rollout=rollout,
            seed=seed,
            device=self.device,
            progress=progress,
        )

    @property
    def floors(self) -> dict[str, float | None]:
        """What fresh real images score under each distance that was fitted; none when built to judge only."""
        return {
            name: self._parts[f"training/{name}"]["floor"] for name in self.names if f"training/{name}" in self._parts
        }

    @property
    def ladder(self) -> Sensitivity | None:
        """What the scores see; None where it was not measured. Raises ValueError when it is damaged."""
        if LADDER not in self._parts:
            return None
        read_sealed(self.path / LADDER, self._mend)
        return read_sensitivity(self.path / LADDER / LADDER_FILE)

    def _fitted(self, name: str) -> tuple[Distance[Any], float | None]:
        config: AnyDistance = TypeAdapter(AnyDistance).validate_python(self.plan["training"]["distance"])
        distance = config.build()
        distance.load_state_dict(self.tensors(f"training/{name}", FILE)[0])
        return distance.to(self.device), self.floors[name]


def what_is_fitted(distance: AnyDistance, *, joint: Joint, rollout: int, seed: int) -> dict[str, Any]:
    """What decides the training half beside the features, as plain JSON."""
    return {
        "distance": distance.identity(),
        "joint": joint if isinstance(joint, bool) else [*joint],
        "rollout": rollout,
        "seed": seed,
    }


def write_fitted(folder: Path, of: str, distance: Distance[Any], floor: float | None) -> None:
    """The training half under one encoder."""
    with sealed_folder(folder, {"of": of, "floor": floor}) as (partial, record):
        record["files"][FILE] = write_tensors(partial / FILE, distance.state_dict())


def open_reference(path: Path, device: str = "cpu") -> OpenReference:
    """The reference at `path`. Raises ValueError when it is unfinished, damaged, or of another version."""
    return OpenReference(path, device)


def describe(reference: OpenReference) -> Iterator[str]:
    """What `irdm reference show` prints: which images, which encoders, counts, seeds, floors and hashes."""
    plan, spec, training = reference.plan, reference.spec, reference.plan["training"]
    yield f"reference  {reference.name}"
    yield f"address    {reference.address}"
    for split in ("train", "val"):
        yield f"{split:10} {plan[split]['count']} images, sha256 {plan[split]['fingerprint']}"
    few = spec.each(1, 8).captions()
    names = ", ".join(dict.fromkeys(filter(None, few))) + (", ..." if spec.width > len(few) else "")
    yield f"conditions {spec.says}" + (f": {names}" if spec.width else "")
    for file, found in reference.manifest.get("overlap", {}).items():
        yield f"prompts    {found['found']} of {found['prompts']} of {file} are in the pool, {found['share']:.1%} of it"
    yield f"images     {' x '.join(map(str, reference.image_shape))} (channels, height, width); seed {plan['seed']}"
    joint = training["joint"]
    matched = "joint with the conditions" if joint else "marginal"
    matched += f" under {', '.join(joint)}, marginal under others" if isinstance(joint, list) and joint else ""
    yield f"distance   {training['distance']['kind']}, {matched}, floors at a rollout of {training['rollout']}"
    yield f"judging    at most {plan['table_rows']} rows of train and of val, moments of all train rows"
    yield f"encoders   {plan['battery']['kind']}, {len(reference.names)}"
    yield f"  {'encoder':16} {'split':9} {'floor':>11}  sha256"
    for name, identity in plan["encoders"].items():
        split = "held out" if name in reference.held_out else "trains"
        yield f"  {name:16} {split:9} {_floor(reference.floors, name):>11}  {identity}"
    if (ladder := reference.ladder) is not None:
        yield f"sees       in {ladder.rows} val images that were damaged: who objects, and which encoders do not see it"
        for rung in ladder.rungs:
            if rung.stated:
                blind = ", ".join(name for name in ladder.real if rung.says in ladder.blind(name))
                yield f"  {rung.says:36} {', '.join(rung.seen or ()) or 'nobody':32} {blind}".rstrip()
    yield f"built by   {reference.manifest['command'] or 'a library call'}"


def _floor(floors: Mapping[str, float | None], name: str) -> str:
    floor = floors.get(name)
    return ("unknown" if floor is None else f"{floor:.4g}") if name in floors else "not fitted"
