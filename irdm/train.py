"""Train a one-step generator by representation distribution matching: build everything, then one loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from irdm.against import evaluate_run
from irdm.build import (
    build_battery,
    build_generator,
    build_optimizer,
    build_training,
    check_floors,
    open_run_reference,
    resolve_device,
)
from irdm.checkpoint import Progress, load_latest, load_optimizer, optimizer_tensors, restore, save_checkpoint
from irdm.conditions import draw
from irdm.controller import Controller
from irdm.data.checks import check_real
from irdm.distributed import Ranks
from irdm.ema import EMA
from irdm.estimate import say_expected
from irdm.evaluation import QuickCheck, Result, check_held_out
from irdm.files import locked
from irdm.generate import sample_grid
from irdm.gradcache import GradientCache
from irdm.images import save_png
from irdm.log import MetricsLog, progress_line
from irdm.objective import Objective
from irdm.ops.sampling import normal_rows, seed_for
from irdm.presets import RunConfig
from irdm.process import interruptible, keep_freed_memory
from irdm.reference.fit import MIN_FLOOR_ROWS
from irdm.run import check_record, claim_run, record_of, write_record
from irdm.tracker import require


def train(config: RunConfig, out: Path, command: str = "irdm train") -> Result | None:
    """Train to the end, resuming from the newest checkpoint in `out`, then evaluate. Returns the result on rank 0.

    `out` is described in docs/design.md. The same call resumes an interrupted run, on a CPU bit-identically.

    Raises:
        ValueError: when `out` holds a run of another configuration or on other data, or no checkpoint in it is usable.
        FloatingPointError: when `max_skipped` steps in a row had a non-finite loss or gradient.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, when the state has been saved.
    """
    began = time.monotonic()
    keep_freed_memory()
    device = resolve_device(config.device)
    ranks = Ranks.start(device)
    say: Callable[[str], None] = (lambda text: print(text, flush=True)) if ranks.is_main else (lambda text: None)
    with ExitStack() as held:
        # What can be found out is found out before anything is written.
        require(config.tracker)
        ranks.check(config.rollout, config.shard)
        dataset = ranks.main_first(config.data.build)
        with ranks.together():
            conditions = dataset.train.conditions
            check_floors(config, len(dataset.val))
            begun = any((out / "checkpoints").glob("step-*"))
            generator = build_generator(config, dataset.image_shape, conditions.spec, restored=begun).to(device)
            if config.shard:
                ranks.divide(generator.divisible(), config.generator.kind)
            prebuilt = open_run_reference(config, dataset, device)
            if ranks.is_main:
                looked_at = prebuilt is not None and prebuilt.has_images
                notes = dataset.notes if looked_at else check_real(dataset, fewest=MIN_FLOOR_ROWS, progress=say)
                for note in [*generator.look_at(conditions), *notes]:
                    say(note)
        with ranks.together():
            if ranks.is_main:
                claim_run(out, config)
                held.enter_context(locked(out, "trained"))
                check_record(out, dataset, prebuilt, generator)
        say(f"{dataset.name}: {len(dataset.train)} training images, {len(dataset.val)} held out; device {device}")
        say_expected(config, dataset, device, ranks.size, begun, say)

        # The frozen side: encoders, distances, floors.
        progress = Progress()
        with progress.timed("encoders"):
            battery = ranks.main_first(lambda: build_battery(config, dataset, prebuilt, device, say))
        with progress.timed("reference"), ranks.together():
            reference = build_training(config, dataset, battery, prebuilt, device, ranks, say)
            objective = Objective(reference.distances, reference.floors, self_normalise=config.self_normalise)
            controller = Controller(config.controller, reference.floors)
            judged = config.evaluation if ranks.is_main or ranks.divided else None  # what is divided draws together
            check = QuickCheck(dataset, battery, judged, device=device) if judged else None

        # The moving side: generator, optimizer, average.
        trained = generator.trained()
        names, parameters = list(trained), list(trained.values())
        optimizer = build_optimizer(config, parameters)
        ema = EMA(trained, config.ema_decay)
        with ranks.together():
            resumed, refused = load_latest(out / "checkpoints")
            for problem in refused:
                say(f"warning: {problem} Using the one before.")
            if resumed is not None:
                restore(trained, resumed.tensors["generator"], out)
                ema.load_state_dict(resumed.tensors["ema"])
                load_optimizer(optimizer, names, resumed.tensors["training"])
                controller.load_state_dict(resumed.state["controller"])
                progress = Progress(**resumed.state["progress"])
                say(f"resuming after step {progress.step}")
            if ranks.is_main:
                write_record(out, record_of(config, dataset, battery, reference, prebuilt, generator))
        del resumed  # its tensors are as large as all of the above
        log = MetricsLog(out / "metrics.jsonl", progress.step, ranks.is_main, say, config.tracker)

        def save() -> None:
            tensors = {"generator": {name: p.detach() for name, p in trained.items()}, "ema": ema.state_dict()}
            whole = ranks.whole({**tensors, "training": optimizer_tensors(optimizer, names)})
            with ranks.together():
                if ranks.is_main:
                    state = {"progress": asdict(progress), "controller": controller.state_dict()}
                    save_checkpoint(out / "checkpoints", progress.step, whole, state, config.keep_checkpoints)

        share = ranks.share(config.rollout)
        size = share.stop - share.start
        encoders = {name: battery.encoders[name] for name in battery.held_in}
        versions = generator.buffer_versions()
        cache = GradientCache(encoders, min(config.micro_batch or size, size), config.graph_bytes)
        resumed_at, resumed_clock, last_line = progress.step, time.monotonic(), 0.0

        with interruptible() as interrupted:
            while progress.step < config.steps:
                tick, core_tick, step = time.monotonic(), time.process_time(), progress.step

                # A fresh rollout, decided by (seed, step) alone: this rank's share of its conditions and its noise.
                asked = conditions[draw(conditions, config.rollout, "train", config.seed, step)[share]]
                tau = None if asked.tau is None or not config.joint else asked.tau[0:size].to(device)
                inputs = asked.inputs(device)
                noise = normal_rows(share, generator.noise_shape, "train", config.seed, step)
                torch.manual_seed(seed_for("network", config.seed, step, ranks.rank))  # dropout, if the network has any

                # One exact gradient over the whole of it: features, then theirs, then the parameters'.
                optimizer.zero_grad(set_to_none=True)
                idle = [name for name, weight in controller.weights.items() if weight == 0]
                features = cache.forward(
                    lambda rows, noise=noise, inputs=inputs: generator(
                        noise[rows].to(device), **{name: value[rows] for name, value in inputs.items()}
                    ),
                    size,
                    idle,
                )
                loss = objective(features, tau, controller.weights, step, ranks)
                cache.backward(loss.gradients if math.isfinite(loss.value) else {})
                generator.check_buffers(versions)
                ranks.sum_gradients(parameters)
                grad_norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm).item()

                # A step that is not finite moves nothing: not the weights, not their average, not the controller.
                lr, weights = config.learning_rate(step), dict(controller.weights)
                skip = ranks.any(not (math.isfinite(loss.value) and math.isfinite(grad_norm)))
                if skip:
                    progress.skipped, progress.in_a_row = progress.skipped + 1, progress.in_a_row + 1
                    say(f"step {step + 1}: the loss or its gradient is not finite; skipped ({progress.skipped} so far)")
                else:
                    progress.in_a_row = 0
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    if loss.gradients:  # all satisfied: nothing moves, on one rank or many
                        optimizer.step()
                    ema.update(step)
                    controller.update(loss.scores)
                progress.step = done = step + 1

                # Look, save, and stop when asked to.
                last = done == config.steps
                progress.train_seconds += time.monotonic() - tick
                progress.core_seconds += time.process_time() - core_tick
                line = {"step": done, "loss": loss.value, "scores": loss.scores, "weights": weights, "lr": lr}
                line |= {"grad_norm": grad_norm, "skipped": progress.skipped, "seconds": progress.train_seconds}
                looking = last or done % config.check_every == 0
                if looking and check is not None:
                    with ema.applied():
                        line["check"] = check_held_out(check(generator, config.seed), progress.checks)
                        picture = sample_grid(
                            generator, conditions.spec, dataset.image_shape, config.seed, cache.micro_batch, device
                        )
                    if ranks.is_main:
                        save_png(out / "samples" / f"step-{done:08d}.png", picture)
                rate = (done - resumed_at) * config.rollout / (time.monotonic() - resumed_clock)
                line |= {"images_per_second": rate, "core_seconds": progress.core_seconds}
                if looking or skip or done % config.log_every == 0:
                    log.write(line)
                if looking or time.monotonic() - last_line > 5:
                    last_line = time.monotonic()
                    say(progress_line(line, reference.floors, config.steps, config.rollout))
                if progress.in_a_row == config.max_skipped:
                    raise FloatingPointError(
                        f"{config.max_skipped} steps in a row were not finite, the last at step {done}; the newest "
                        f"checkpoint in {out / 'checkpoints'} is from before them. Lower --lr or --clip-norm."
                    )
                stop = ranks.any(bool(interrupted))
                if last or stop or (done % config.checkpoint_every == 0 and not skip):
                    save()
                if stop:  # at the last step, too: the same command then only evaluates
                    say(f"stopped at step {done}; everything is saved. Run the same command again to go on.")
                    interrupted.stop()

        if config.evaluation is None:
            return None
        seconds = progress.seconds | {"train": progress.train_seconds, "this_call": time.monotonic() - began}
        training = progress.summary(config.rollout, ranks.size)
        return evaluate_run(
            out, is_locked=True, ranks=ranks, training=training, seconds=seconds, command=command, progress=say
        )
