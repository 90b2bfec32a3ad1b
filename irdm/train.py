"""Train a one-step generator by representation distribution matching: build everything, then one loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import nn

from irdm.against import evaluate_run
from irdm.build import (
    build_battery,
    build_optimizer,
    build_training,
    check_floors,
    open_run_reference,
    place_generator,
    resolve_device,
)
from irdm.checkpoint import Progress, has_checkpoint
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
from irdm.log import MetricsLog, Pace
from irdm.objective import Objective
from irdm.ops.sampling import seed_for
from irdm.presets import RunConfig
from irdm.process import interruptible, keep_freed_memory
from irdm.reference.fit import MIN_FLOOR_ROWS
from irdm.rollouts import Rollouts
from irdm.run import check_record, claim_run, record_of, write_record
from irdm.state import State
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
        held.enter_context(ranks)
        dataset = ranks.main_first(config.data.build)
        with ranks.together():
            conditions = dataset.train.conditions
            check_floors(config, len(dataset.val))
            begun = has_checkpoint(out / "checkpoints")
            shape, spec = dataset.image_shape, conditions.spec
            generator = place_generator(config, shape, spec, device, ranks, restored=begun)
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
        parameters = list(trained.values())
        optimizer, ema = build_optimizer(config, parameters), EMA(trained, config.ema_decay)
        state = State(out / "checkpoints", config.keep_checkpoints, trained, optimizer, ema, controller, progress)
        with ranks.together():
            for told in state.resume(ranks):
                say(told)
            progress = state.progress
            if ranks.is_main:
                write_record(out, record_of(config, dataset, battery, reference, prebuilt, generator))
        log = MetricsLog(out / "metrics.jsonl", progress.step, ranks.is_main, say, config.tracker)

        share = ranks.share(config.rollout)
        size = share.stop - share.start
        encoders = {name: battery.encoders[name] for name in battery.held_in}
        versions = generator.buffer_versions()
        alone = parameters if device == "cpu" and not ranks.divided else ()  # whose gradients nothing else waits for
        cache = GradientCache(encoders, min(config.micro_batch or size, size), config.graph_bytes, alone)
        told_of = {"seed": config.seed, "steps": config.steps, "joint": bool(config.joint), "device": device}
        rollouts = Rollouts(conditions, generator.noise_shape, config.rollout, share, **told_of)
        pace = Pace(progress.step, config.rollout)

        with interruptible() as interrupted, rollouts, state.writer:
            while progress.step < config.steps:
                tick, core_tick, step = time.monotonic(), time.process_time(), progress.step

                # A fresh rollout, decided by (seed, step) alone: this rank's share of its conditions and its noise.
                asked = rollouts(step)
                torch.manual_seed(seed_for("network", config.seed, step, ranks.rank))  # dropout, if the network has any

                # One exact gradient over the whole of it: features, then theirs, then the parameters'.
                optimizer.zero_grad(set_to_none=True)
                idle = [name for name, weight in controller.weights.items() if weight == 0]
                features = cache.forward(partial(asked.images, generator), size, idle)
                loss = objective(features, asked.tau, controller.weights, step, ranks, config.rollout)
                cache.backward(loss.gradients)
                generator.check_buffers(versions)
                ranks.sum_gradients(parameters)
                norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
                # The one moment of a step at which the host waits for the device.
                ended = bool(interrupted) or state.writer.failed
                (value, *each, grad_norm), finite, stop = ranks.read([loss.terms, norm], ended)
                scores = dict(zip(loss.names, each, strict=True))

                # A step that is not finite moves nothing: not the weights, not their average, not the controller.
                lr, weights = config.learning_rate(step), dict(controller.weights)
                if not finite:
                    say(progress.skip(config.max_skipped))
                else:
                    progress.in_a_row = 0
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    if loss.gradients:  # all satisfied: nothing moves, on one rank or many
                        optimizer.step()
                    ema.update(step)
                    controller.update(scores)
                progress.step = done = step + 1

                # Look, save, and stop when asked to.
                last = done == config.steps
                progress.train_seconds += time.monotonic() - tick
                progress.core_seconds += time.process_time() - core_tick
                line = {"step": done, "loss": value, "scores": scores, "weights": weights, "lr": lr}
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
                line |= {"images_per_second": pace(done), "core_seconds": progress.core_seconds}
                if looking or not finite or done % config.log_every == 0:
                    log.write(line)
                if looking or pace.silent > 5:
                    say(pace.line(line, reference.floors, config.steps))
                if last or stop or (done % config.checkpoint_every == 0 and finite):
                    state.save(ranks, wait=last or stop)
                if stop:  # at the last step, too: the same command then only evaluates
                    say(f"stopped at step {done}; everything is saved. Run the same command again to go on.")
                    interrupted.stop()

        if config.evaluation is None:
            return None
        state.release(generator)
        seconds = progress.seconds | {"train": progress.train_seconds, "this_call": time.monotonic() - began}
        training = progress.summary(config.rollout, ranks.size)
        return evaluate_run(
            out, is_locked=True, ranks=ranks, training=training, seconds=seconds, command=command, progress=say
        )
