"""The training of the world's teacher, from nothing to a diffusers folder with its numbers.

A picture x and noise e are paired (`irdm.world.coupling`); at a time t the network sees z = (1 - t) x + t e and tells
the picture, of which the velocity e - x is made (Lipman et al., 2023, arXiv 2210.02747), so that x = z - t v, klein's
own rule. The loss is that of the velocity, but no larger than at SMALLEST for the same error of the picture.

    OUT/plan.json        what decides the weights; written first
    OUT/start/           the folder as it was before the first step, its text encoder trained
    OUT/checkpoints/     weights, their average, the optimizer
    OUT/metrics.jsonl    a line every some steps
    OUT/klein/           the teacher: a diffusers folder in half precision, with world.json, its card
    OUT/result.json      the card again, written last

Letters: n scenes; l text tokens of d numbers.
"""

from __future__ import annotations

import json
import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional as F

from irdm.checkpoint import load_latest, load_optimizer, optimizer_tensors, restore, save_checkpoint
from irdm.ema import EMA
from irdm.files import claimed, replaced_folder, write_manifest
from irdm.generators.klein import positions
from irdm.generators.klein_folder import open_folder
from irdm.generators.klein_teacher import load_pipeline
from irdm.generators.klein_world import world_pipeline
from irdm.log import MetricsLog
from irdm.ops.sampling import generator_for
from irdm.process import interruptible, keep_freed_memory
from irdm.progress import Say
from irdm.teacher.config import TeacherConfig
from irdm.teacher.judged import judged_teacher
from irdm.teacher.reader import teach_to_read
from irdm.text.contexts import ContextEncoder
from irdm.world import CATEGORIES, captions_of, make, signature
from irdm.world.coupling import paired
from irdm.world.language import LONGEST

PLAN, CARD = "plan.json", "world.json"
BETAS = (0.9, 0.95)
SMALLEST = 0.1  # time


def train_teacher(config: TeacherConfig, out: Path, say: Say = print) -> dict[str, Any]:
    """Train to the end of the time, resuming from the newest checkpoint in `out`; returns the card.

    Raises ValueError when `out` holds something else, KeyboardInterrupt or SystemExit after Ctrl-C or SIGTERM, when the
    state has been saved.
    """
    keep_freed_memory()
    plan = {"teacher": config.identity(), "world": signature()}
    with claimed(out, PLAN, plan, "teacher of the world"):
        start = out / "start"
        if not start.is_dir():
            with replaced_folder(start) as folder:
                _write_start(config, folder, say)
        flow = Flow(config, start)
        with interruptible() as interrupted:
            card = flow.train(out, say, interrupted)
        with replaced_folder(out / "klein") as folder:
            flow.write(folder)
        card["judged"] = judged_teacher(out / "klein", config.judged, say)
        for place in (out / "klein" / CARD, out / "result.json"):
            write_manifest(place, {"world": signature(), "teacher": config.model_dump(), **card})
    return card


def _write_start(config: TeacherConfig, folder: Path, say: Say) -> None:
    torch.manual_seed(config.seed)
    pipeline = world_pipeline(config.width, config.heads, config.blocks)
    read = teach_to_read(pipeline, config.reading_steps, config.seed, say)
    pixels = F.pixel_unshuffle(make(6000, config.seed, "seen")[0] * 2 - 1, 2)
    bn = pipeline.vae.bn
    for k in range(3):  # a colour has one mean and one variance, wherever it stands in a token
        one = pixels[:, 4 * k : 4 * k + 4]
        bn.running_mean[4 * k : 4 * k + 4], bn.running_var[4 * k : 4 * k + 4] = one.mean(), one.var()
    _save(pipeline, folder)
    write_manifest(folder / CARD, {"world": signature(), "sentences_read": read})


def _save(pipeline: Any, folder: Path) -> None:
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


class Flow:
    """A transformer in training. Its latents are pixels, whitened: the VAE is the identity."""

    def __init__(self, config: TeacherConfig, start: Path):
        self.config, self.start = config, start
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

    def train(self, out: Path, say: Say, interrupted) -> dict[str, Any]:
        """The steps that are left; returns what they took."""
        config, trained = self.config, dict(self.net.named_parameters())
        optimizer = torch.optim.AdamW(trained.values(), config.lr, BETAS, weight_decay=config.weight_decay)
        ema = EMA(trained, config.ema_decay)
        step, seconds, cores = 0, 0.0, 0.0
        resumed, refused = load_latest(out / "checkpoints")
        for problem in refused:
            say(f"warning: {problem} Using the one before.")
        if resumed is not None:
            restore(trained, resumed.tensors["generator"], out)
            ema.load_state_dict(resumed.tensors["ema"])
            load_optimizer(optimizer, list(trained), resumed.tensors["training"])
            step, seconds, cores = resumed.step, resumed.state["seconds"], resumed.state["core_seconds"]
            say(f"resuming after step {step}, {seconds / 60:.1f} minutes")

        def save() -> None:
            tensors = {"generator": {name: p.detach() for name, p in trained.items()}, "ema": ema.state_dict()}
            tensors["training"] = optimizer_tensors(optimizer, list(trained))
            save_checkpoint(out / "checkpoints", step, tensors, {"seconds": seconds, "core_seconds": cores}, keep=2)

        log = MetricsLog(out / "metrics.jsonl", step, say=say)
        total, saved, mean = 60 * config.minutes, seconds, None
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
                    f"step {step}   loss {mean:.4f}   {step * config.batch / seconds:.0f} scenes/s   "
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
        _save(load_pipeline(self.start, torch.float16, transformer=self.net), folder)
        write_manifest(folder / CARD, {"world": signature()})

    def velocity(
        self, z: Float32[Tensor, "n 12 8 8"], time: Float32[Tensor, " n"], context: Float32[Tensor, "n l d"]
    ) -> Float32[Tensor, "n 12 8 8"]:
        """e - x, as the network has it."""
        image_ids, text_ids = positions(self.rows, self.columns, context.shape[1], z.device)
        tokens = self.net(
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
        config, draw = self.config, generator_for("world teacher", self.config.seed, step)
        texts = []
        for row, number in enumerate(torch.rand(config.batch, generator=draw).tolist()):
            some = self.captions[CATEGORIES[row % len(CATEGORIES)]]
            texts.append(some[int(number * len(some))])
        pictures, noise = paired(texts, draw)
        x = (F.pixel_unshuffle(pictures * 2 - 1, 2) - self.mean) / self.std
        e = F.pixel_unshuffle(noise, 2)
        t = torch.sigmoid(config.time_mean + config.time_std * torch.randn(len(x), generator=draw))
        t = torch.where(torch.rand(len(x), generator=draw) < config.noise_share, 1.0, t)
        at = t[:, None, None, None]
        told = self.velocity((1 - at) * x + at * e, t, torch.stack([self.contexts[text] for text in texts]))
        loss = ((told - (e - x)) * at / at.clamp(min=SMALLEST)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        return loss.item()
