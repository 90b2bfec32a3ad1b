"""What both trainings of the world's teacher share: a transformer, captions, a loss, and the loop with its checkpoints.

    OUT/checkpoints/     weights, their average, the optimizer
    OUT/metrics.jsonl    a line every some steps

Letters: n scenes; l text tokens of d numbers.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from irdm.checkpoint import load_latest, load_optimizer, optimizer_tensors, restore, save_checkpoint
from irdm.ema import EMA
from irdm.generators.klein import positions
from irdm.generators.klein_folder import open_folder
from irdm.generators.klein_teacher import load_pipeline
from irdm.log import MetricsLog
from irdm.ops.sampling import generator_for
from irdm.process import interruptible
from irdm.progress import Say
from irdm.teacher.config import TrainingConfig
from irdm.text.contexts import ContextEncoder
from irdm.world import CATEGORIES, captions_of
from irdm.world.language import LONGEST

BETAS = (0.9, 0.95)
TOOK = ("seconds", "core_seconds", "loss")  # of a training so far, the last a running mean
SMALLEST = 0.1  # time, by which an error of the picture is divided


class Training(ABC):
    """A transformer in training. Its latents are pixels, whitened: the VAE is the identity."""

    name: str
    """Of the draws, and in lines of progress."""

    def __init__(self, config: TrainingConfig, seed: int, start: Path):
        """Begin with the transformer of a folder, `start`."""
        self.config, self.seed, self.start = config, seed, start
        folder = open_folder(start)
        self.net = folder.load_transformer(torch.float32)
        bn: Any = folder.load_vae(torch.float32).bn
        self.mean = bn.running_mean[:, None, None]
        self.std = (bn.running_var + bn.eps).sqrt()[:, None, None]
        self.rows, self.columns = folder.noise_shape((3, 16, 16))[1:]
        self.captions = {
            name: [text for _, some in asks for text in some] for name, asks in captions_of("seen").items()
        }
        texts = [*chain.from_iterable(self.captions.values())]
        encoder = ContextEncoder(start, LONGEST, torch.float32)
        contexts = torch.cat([encoder(texts[i : i + 256]) for i in range(0, len(texts), 256)])
        self.contexts = dict(zip(texts, contexts, strict=True))

    @abstractmethod
    def loss(self, texts: list[str], context: Float32[Tensor, "n l d"], draw: torch.Generator) -> Float32[Tensor, ""]:
        """Of a batch of captions."""

    def train(self, out: Path, say: Say) -> dict[str, Any]:
        """The steps that are left, resuming from the newest checkpoint; returns what all took.

        Raises KeyboardInterrupt or SystemExit after Ctrl-C or SIGTERM, when the state has been saved.
        """
        config, trained = self.config, dict(self.net.named_parameters())
        optimizer = torch.optim.AdamW(trained.values(), config.lr, BETAS, weight_decay=config.weight_decay)
        ema = EMA(trained, config.ema_decay)
        step, seconds, cores, mean = 0, 0.0, 0.0, None
        resumed, refused = load_latest(out / "checkpoints")
        for problem in refused:
            say(f"warning: {problem} Using the one before.")
        if resumed is not None:
            restore(trained, resumed.tensors["generator"], out)
            ema.load_state_dict(resumed.tensors["ema"])
            load_optimizer(optimizer, list(trained), resumed.tensors["training"])
            step, (seconds, cores, mean) = resumed.step, (resumed.state[key] for key in TOOK)
            say(f"resuming after step {step}, {seconds / 60:.1f} minutes")

        def save() -> None:
            tensors = {"generator": {name: p.detach() for name, p in trained.items()}, "ema": ema.state_dict()}
            tensors["training"] = optimizer_tensors(optimizer, list(trained))
            state: dict[str, Any] = dict(zip(TOOK, (seconds, cores, mean), strict=True))
            save_checkpoint(out / "checkpoints", step, tensors, state, keep=2)

        out.mkdir(exist_ok=True)
        log = MetricsLog(out / "metrics.jsonl", step, say=say)
        total, saved = 60 * config.minutes, seconds
        with interruptible() as interrupted:
            while seconds < total:
                tick, core_tick = time.monotonic(), time.process_time()
                rate = config.lr * min(1.0, (step + 1) / max(1, config.warmup), (1 - seconds / total) / config.falling)
                loss = self._step(step, rate, optimizer)
                ema.update(step)
                step += 1
                seconds, cores = seconds + time.monotonic() - tick, cores + time.process_time() - core_tick
                mean = loss if mean is None else 0.98 * mean + 0.02 * loss
                if step % config.log_every == 0 or seconds >= total:
                    line = {"step": step, "loss": mean, "lr": rate, "seconds": seconds, "core_seconds": cores}
                    log.write(line)
                    say(
                        f"{self.name}: step {step}   loss {mean:.4f}   {step * config.batch / seconds:.0f} scenes/s   "
                        f"{seconds / 60:.1f} of {config.minutes:g} minutes"
                    )
                if interrupted or seconds - saved > 60 * config.checkpoint_minutes or seconds >= total:
                    save()
                    saved = seconds
                if interrupted:
                    say(f"stopped at step {step}; everything is saved. Run the same command again to go on.")
                    interrupted.stop()
        for name, average in ema.state_dict().items():
            trained[name].data.copy_(average)
        return {"steps": step, "scenes": step * config.batch, "seconds": seconds, "core_seconds": cores, "loss": mean}

    def write(self, folder: Path) -> None:
        """The pipeline with this transformer, in half precision."""
        save_pipeline(load_pipeline(self.start, torch.float16, transformer=self.net), folder)

    def velocity(
        self,
        z: Float32[Tensor, "n 12 8 8"],
        time: Float32[Tensor, " n"],
        context: Float32[Tensor, "n l d"],
        net: nn.Module | None = None,
    ) -> Float32[Tensor, "n 12 8 8"]:
        """e - x, as the network in training has it, or another."""
        image_ids, text_ids = positions(self.rows, self.columns, context.shape[1], z.device)
        tokens = (net or self.net)(
            hidden_states=z.flatten(2).mT,
            encoder_hidden_states=context,
            timestep=time,
            img_ids=image_ids,
            txt_ids=text_ids,
            guidance=None,
            return_dict=False,
        )[0]
        return tokens.mT.reshape(z.shape)

    def _step(self, step: int, rate: float, optimizer: torch.optim.Optimizer) -> float:
        draw, texts = generator_for(f"world {self.name}", self.seed, step), []
        for row, number in enumerate(torch.rand(self.config.batch, generator=draw).tolist()):
            some = self.captions[CATEGORIES[row % len(CATEGORIES)]]
            texts.append(some[int(number * len(some))])
        loss = self.loss(texts, torch.stack([self.contexts[text] for text in texts]), draw)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        return loss.item()


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """In half precision."""
    from transformers.utils import logging

    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        nn.Module.to(part, torch.float16)
    logging.disable_progress_bar()
    try:
        pipeline.save_pretrained(folder)
    finally:
        logging.enable_progress_bar()
    for path in folder.rglob("*.json"):  # which say in what folder a part once lay
        content = json.loads(path.read_text())
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n")
