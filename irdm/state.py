"""What a step of training changes, saved and restored as one: on any number of processes, whatever saved it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from irdm.checkpoint import Progress, Writer, load_latest, load_optimizer, optimizer_tensors, remove_unfinished, restore
from irdm.controller import Controller
from irdm.distributed import Ranks
from irdm.ema import EMA
from irdm.ops.shards import is_divided


class State:
    """The trained parameters, their average, the optimizer, the controller and how far the run is.

    Any number of ranks goes on from a checkpoint, whatever number wrote it. It is written in a thread, from a copy in
    main memory, while training goes on, one at a time: by the main rank, or each its own part of divided tensors.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        trained: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        ema: EMA,
        controller: Controller,
        progress: Progress,
    ) -> None:
        """`folder` holds the checkpoints, the newest `keep` of them."""
        self.folder, self.trained, self.optimizer = folder, dict(trained), optimizer
        self.ema, self.controller, self.progress = ema, controller, progress
        self.writer = Writer(folder, keep)

    def resume(self, ranks: Ranks) -> list[str]:
        """Continue from the newest usable checkpoint, if there is any; what to tell the user. Removes unfinished ones.

        Raises ValueError when there are some and none is usable, or it is of another network.
        """
        found, refused = load_latest(self.folder)
        instead = "Starting again." if found is None else "Using the one before."
        told = [f"warning: {problem} {instead}" for problem in refused]
        if ranks.is_main:
            remove_unfinished(self.folder)
        if found is None:
            return told
        restore(self.trained, found.tensors["generator"], self.folder.parent)
        self.ema.load_state_dict(found.tensors["ema"])
        load_optimizer(self.optimizer, list(self.trained), found.tensors["training"])
        self.controller.load_state_dict(found.state["controller"])
        self.progress = Progress(**found.state["progress"])
        return [*told, f"resuming after step {self.progress.step}"]

    def save(self, ranks: Ranks, *, wait: bool) -> None:
        """Copy everything, and begin to write it; or end with it, with `wait`. Every rank must call this.

        Raises OSError, on all ranks, when this or the last checkpoint could not be written.
        """
        tensors = {"generator": self.trained, "ema": self.ema.state_dict()}
        copy = ranks.snapshot({**tensors, "training": optimizer_tensors(self.optimizer, list(self.trained))})
        with ranks.together():
            if ranks.is_main or ranks.divided:
                state = {"progress": asdict(self.progress), "controller": self.controller.state_dict()}
                self.writer.write(self.progress.step, copy, state, ranks.part if ranks.divided else (0, 1))
                if wait:
                    self.writer.wait()

    def release(self, generator: nn.Module) -> None:
        """Give back the memory of a network whose training has ended, and of all that belongs to it.

        What is judged is loaded anew, and a device need not hold both. Neither can be used again.
        """
        self.optimizer.state.clear()
        self.ema.averages.clear()
        for parameter in generator.parameters():
            parameter.grad = None
            if not is_divided(parameter):
                parameter.data = parameter.data.new_empty(0)
