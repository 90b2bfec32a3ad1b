"""What a step of training changes, saved and restored as one: on any number of processes, whatever saved it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from irdm.checkpoint import Progress, Writer, load_latest, load_optimizer, optimizer_tensors, restore
from irdm.controller import Controller
from irdm.distributed import Ranks
from irdm.ema import EMA
from irdm.ops.shards import is_divided


class State:
    """The trained parameters, their average, the optimizer, the controller and how far the run is.

    A checkpoint holds whole tensors and nothing of the ranks that made them. It is written in a thread, from a copy in
    the main memory of the main rank, while training goes on: one at a time.
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

    def resume(self) -> list[str]:
        """Continue from the newest usable checkpoint, if there is any; what to tell the user.

        Raises ValueError when there are some and none is usable, or it is of another network.
        """
        found, refused = load_latest(self.folder)
        told = [f"warning: {problem} Using the one before." for problem in refused]
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
            if ranks.is_main:
                state = {"progress": asdict(self.progress), "controller": self.controller.state_dict()}
                self.writer.write(self.progress.step, copy, state)
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
