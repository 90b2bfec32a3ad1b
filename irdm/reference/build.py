"""Building a reference on disk: real images -> encoders -> two stores -> what judges, and what trains.

What a reference holds is described in `irdm.store.reference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import torch
from pydantic import Field

from irdm.config import Config, free
from irdm.data.base import Dataset
from irdm.data.checks import check_real
from irdm.distances import AnyDistance, Joint, NystromMMDConfig, is_joint
from irdm.distributed import Ranks
from irdm.encoders import FITTED, AnyBattery, Battery
from irdm.encoders.base import encoder_identity
from irdm.evaluation import EvaluationConfig
from irdm.evaluation.sensitivity import LADDER as LADDER_FILE
from irdm.evaluation.sensitivity import ladder_rows, measure, write_sensitivity
from irdm.files import (
    MANIFEST,
    claimed,
    file_entry,
    hash_of,
    read_manifest,
    read_sealed,
    remove,
    sealed_folder,
    sha256_of,
    visible,
    write_manifest,
    write_tensors,
)
from irdm.progress import Say, silent
from irdm.reference.fit import fit_distance
from irdm.reference.opened import OpenReference, open_reference, what_is_fitted, write_fitted
from irdm.store import Engine, FeatureStore, build_store, plain, real_identity
from irdm.store.reader import state_of
from irdm.store.real import write_real
from irdm.store.reference import ENCODERS, FORMAT, LADDER, PLAN, ROWS, SAMPLES, THUMBNAILS, WEIGHTS

SHEET = 60  # val images that are kept for reports


class ReferenceConfig(Config):
    """What decides a reference beside its images and its encoders."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the order of the rows, the fits and every draw."""
    rollout: int = Field(default=5120, ge=2)
    """Batch size of training that the floors are for."""
    distance: AnyDistance = NystromMMDConfig()
    """What training minimises."""
    joint: Joint = False
    """Encoders whose features are matched together with their conditions: all (true), none (false) or those named."""
    table_rows: int = Field(default=50_000, ge=64)
    """At most this many rows of train and of val are kept to judge with."""
    ladder: int = free(1000, ge=0)
    """At most this many val images, and a third of them, are damaged to measure what the scores see; 0: none."""
    judge_only: bool = free(False)
    """Fit nothing for training: enough to judge images, and the same call without it adds the rest later."""


def build_reference(
    name: str,
    dataset: Dataset,
    battery: Battery,
    path: Path,
    config: ReferenceConfig | None = None,
    *,
    battery_config: AnyBattery | None = None,
    weights: Path | None = None,
    micro_batch: int = 64,
    device: str = "cpu",
    ranks: Ranks | None = None,
    command: str | None = None,
    progress: Say | None = None,
    engine: Engine = plain,
) -> OpenReference:
    """Build the reference at `path`, or what is missing or damaged of it, and open it.

    Interrupted or killed, the same call goes on at the next missing part. Every part records its hashes when it is
    written, and is kept only when its content still has them. Under torchrun every rank calls this: rows of the stores
    are divided first, then the encoders, one rank an encoder. Nothing is summed across ranks, so the files are the same
    for any number of them. Memory: the kept rows of one encoder and what its distance samples.

    Args:
        name: what it is called in results.
        dataset: `train`, which a generator should learn, and `val`, real images that are not in it.
        battery: the encoders.
        path: its directory, which all ranks share.
        config: None is the default.
        battery_config: what made the battery and can make it again; None for encoders of your own.
        weights: folder of the weights of pretrained encoders.
        micro_batch: images read and embedded at once; changes memory, not results beyond rounding.
        device: where to compute.
        ranks: this process among its peers.
        command: what the user typed, for messages and `irdm reference show`.
        progress: receives a line of text now and then.
        engine: what reads and embeds images (`irdm.store.engine`); no byte of the reference depends on it.

    Raises:
        ValueError: for fewer than 50 images, val images that are train's, an image that cannot be used, a directory
            that holds something else, or one that another process is building.
        OSError: when the disk is full or cannot be written; what is finished stays.
    """
    config, ranks, path = config or ReferenceConfig(), ranks or Ranks(), Path(path)
    say = progress if progress and ranks.is_main else silent
    if micro_batch < 1:
        raise ValueError(f"Got a micro-batch of {micro_batch} images; expected at least 1.")
    with ranks.together():
        for note in check_real(dataset, progress=progress) if ranks.is_main else []:
            say(note)
    if not config.judge_only and dataset.train.conditions.spec != dataset.val.conditions.spec:
        raise ValueError(
            f"{dataset.train.name} and {dataset.val.name} have other classes, so that what real images score cannot be "
            "told class by class. Give val the classes of train, or build the reference to judge only."
        )
    plan = plan_of(dataset, battery.to(device), config, battery_config, weights)
    job = _Job(path, plan, dataset, battery, config, device)
    finished = False
    with ExitStack() as held:
        with ranks.together():
            if ranks.is_main:
                if (path / PLAN).exists():
                    say(f"comparing what is in {path} with its hashes")
                finished = job.is_finished()
            if ranks.is_main and not finished:
                held.enter_context(claimed(path, PLAN, plan, "reference"))
                job.drop_damaged(say)
                (path / MANIFEST).unlink(missing_ok=True)
        if ranks.any(finished):
            say(f"{path} is there already")
            return open_reference(path, device)
        train, val = (
            build_store(
                getattr(dataset, split),
                dict(battery.encoders.items()),
                path / split,
                seed=config.seed,
                micro_batch=micro_batch,
                device=device,
                ranks=ranks,
                progress=partial(lambda split, text: say(f"{split}: {text}"), split),
                identity=plan["encoders"],
                thorough=True,
                engine=engine,
            )
            for split in ("train", "val")
        )
        with ranks.together():
            own = [*battery.encoders][ranks.rank :: ranks.size]
            for number, encoder in enumerate(own):
                at = f"{encoder} ({number + 1} of {len(own)} encoders)"
                job.fit(encoder, train, val, partial(lambda at, text: say(f"{at}: {text}"), at))
        with ranks.together():
            if ranks.is_main:
                job.finish(name, train, val, command)
                if LADDER in job.wanted and not (path / LADDER).exists():
                    job.measure(micro_batch, say)
                    job.finish(name, train, val, command)
    return open_reference(path, device)


def plan_of(
    dataset: Dataset,
    battery: Battery,
    config: ReferenceConfig,
    battery_config: AnyBattery | None = None,
    weights: Path | None = None,
) -> dict[str, Any]:
    """Everything that decides the content of a reference, as plain JSON. Its hash is the address.

    Arguments are those of `build_reference`.
    """
    identities = {name: encoder_identity(encoder, weights) for name, encoder in battery.encoders.items()}
    return {
        "format": FORMAT,
        **real_identity(dataset, identities, battery.held_out, table_rows=config.table_rows, seed=config.seed),
        "specs": {side: getattr(dataset, side).conditions.spec.identity() for side in ("train", "val")},
        "battery": battery_config.identity() if battery_config else {"kind": "own"},
        "training": what_is_fitted(config.distance, joint=config.joint, rollout=config.rollout, seed=config.seed),
    }


class _Job:
    """A reference that is being built: its parts, which of them are whole, and how each is made."""

    def __init__(
        self,
        path: Path,
        plan: dict[str, Any],
        dataset: Dataset,
        battery: Battery,
        config: ReferenceConfig,
        device: str,
    ):
        self.path, self.plan, self.dataset, self.battery, self.config, self.device = (
            path, plan, dataset, battery, config, device,
        )  # fmt: skip
        self.address = hash_of(plan)
        halves = ["real"] if config.judge_only else ["real", "training"]
        self.wanted = [ROWS, *(f"{half}/{encoder}" for half in halves for encoder in plan["encoders"])]
        if plan["battery"]["kind"] in FITTED:
            self.wanted.append(ENCODERS)
        if ladder_rows(config.ladder, min(plan["val"]["count"], config.table_rows)):
            self.wanted.append(LADDER)

    def is_finished(self) -> bool:
        """Whether the reference is there, is of this plan, and no part of it is missing or altered."""
        try:
            found = open_reference(self.path)
            claim = hash_of(read_manifest(self.path / PLAN, ""))
            for split in ("train", "val"):
                found.store(split).verify()
        except (ValueError, OSError):
            return False  # it is built or repaired
        return found.address == claim == self.address and all(self._whole(part) for part in self.wanted)

    def drop_damaged(self, say: Say) -> None:
        """Remove what is there of parts that are not, to the byte, what was written."""
        for half in ("real", "training"):
            for encoder in visible(self.path / half):
                self._drop_damaged(f"{half}/{encoder}", say)
        for part in (ROWS, ENCODERS, LADDER):
            if (self.path / part).exists():
                self._drop_damaged(part, say)

    def fit(self, encoder: str, train: FeatureStore, val: FeatureStore, say: Say) -> None:
        """The parts of one encoder, unless they are there."""
        real, training = (self.path / half / encoder for half in ("real", "training"))
        if not real.exists():
            say("what evaluation compares with")
            rows = self.config.table_rows
            write_real(real, self.address, train[encoder], val[encoder], table_rows=rows, device=self.device)
        if not training.exists() and not self.config.judge_only:
            say("the distance and its floor")
            distance, floor = fit_distance(
                self.config.distance,
                train[encoder],
                val[encoder],
                (train.conditions, val.conditions),
                joint=is_joint(self.config.joint, encoder),
                rollout=self.config.rollout,
                seed=self.config.seed,
                device=self.device,
                progress=say,
            )
            write_fitted(training, self.address, distance, floor)

    def measure(self, micro_batch: int, say: Say) -> None:
        """The ladder of a reference that is whole but for it."""
        found, config = open_reference(self.path, self.device), self.config
        settings = EvaluationConfig(
            seed=config.seed, table_rows=config.table_rows, ladder=config.ladder, micro_batch=micro_batch
        )
        encoders = dict(self.battery.encoders.items())
        ladder = measure(
            self.dataset, encoders, found.real(), settings, device=self.device, thorough=True, progress=say
        )
        assert ladder is not None
        with sealed_folder(self.path / LADDER, {"of": self.address}) as (folder, record):
            write_sensitivity(folder / LADDER_FILE, ladder)
            record["files"][LADDER_FILE] = file_entry(folder / LADDER_FILE)

    def finish(self, name: str, train: FeatureStore, val: FeatureStore, command: str | None) -> None:
        """Write the parts that belong to no encoder, then say that the reference is whole."""
        stores = {"train": train, "val": val}
        if not (self.path / ROWS).exists():
            split = self.dataset.val
            shown = slice(0, split.at_once(SHEET))
            images = (split.read(val.index[shown]) * 255).round().clamp(0, 255).to(torch.uint8)
            samples = {"images": images, **state_of(val.conditions[shown])}
            kept = slice(0, self.config.table_rows)
            sides = {f"{side}.safetensors": state_of(store.conditions[kept]) for side, store in stores.items()}
            for side, store in stores.items():
                if store.thumbnails is not None:
                    sides[f"{side}.safetensors"][THUMBNAILS] = store.thumbnails[kept]
            self._write(ROWS, {**sides, SAMPLES: samples})
        if ENCODERS in self.wanted and not (self.path / ENCODERS).exists():
            self._write(ENCODERS, {WEIGHTS: self.battery.state_dict()})
        halves = (f"{half}/{encoder}" for half in ("real", "training") for encoder in self.plan["encoders"])
        there = [ROWS, ENCODERS, LADDER, *halves]
        parts = {part: sha256_of(self.path / part / MANIFEST) for part in there if (self.path / part).exists()}
        assert set(self.wanted) <= {*parts, LADDER}
        body: dict[str, Any] = {"name": name, "address": self.address, "plan": self.plan, "parts": parts}
        body["stores"] = {side: store.address for side, store in stores.items()}
        versions = {"torch": str(torch.__version__), "pillow": PIL.__version__}
        body |= {"overlap": self.dataset.overlap} if self.dataset.overlap else {}
        write_manifest(self.path / MANIFEST, {**body, "command": command, "versions": versions})

    def _write(self, part: str, files: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        with sealed_folder(self.path / part, {"of": self.address}) as (folder, record):
            record["files"] = {name: write_tensors(folder / name, tensors) for name, tensors in files.items()}

    def _whole(self, part: str) -> bool:
        try:
            return read_sealed(self.path / part, "").get("of") == self.address
        except ValueError:
            return False

    def _drop_damaged(self, part: str, say: Say) -> None:
        try:
            if read_sealed(self.path / part, "It is made again.").get("of") == self.address:
                return
            say(f"{self.path / part} is of another reference. It is made again.")
        except ValueError as error:
            say(str(error))
        remove(self.path / part)
