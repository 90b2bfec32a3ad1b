"""Train a one-step generator by representation distribution matching: build everything, then one loop."""

from __future__ import annotations

import copy
import ctypes
import json
import math
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from irdm.checkpoint import load_latest, load_optimizer, optimizer_tensors, save_checkpoint, write_atomic
from irdm.controller import Controller
from irdm.distributed import Ranks
from irdm.evaluate import QuickCheck, sample_grid
from irdm.gradcache import accumulate_gradients
from irdm.images import save_png
from irdm.objective import Objective
from irdm.ops.sampling import generator_for, normal_rows, seed_for
from irdm.presets import RunConfig
from irdm.reference import embed_labels
from irdm.run import (
    MetricsLog,
    build_battery,
    build_generator,
    build_training_reference,
    claim_run,
    describe_reference,
    evaluate_run,
    resolve_device,
    restore_generator,
)

LR_ROLLOUT = 5120  # the rollout at which `lr` is quoted; the rate scales with the square root


def train(config: RunConfig, out: Path, command: str = "irdm train") -> dict:
    """Train to the end, resuming from the newest checkpoint in `out`, then evaluate. Returns the result.

    The run directory `out` is described in docs/design.md. Repeating the same call resumes an interrupted run, and on a
    CPU the resumed run is bit-identical to an uninterrupted one.

    Raises:
        ValueError: when `out` holds a run of another configuration, or no checkpoint in it is usable.
        FloatingPointError: when `max_skipped` steps in a row had a non-finite loss or gradient.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, when the state has been saved.
    """
    began = time.monotonic()
    keep_freed_memory()
    device = resolve_device(config.device)
    ranks = Ranks.start(device)
    say = _printer(ranks)
    if config.rollout < ranks.size:
        raise ValueError(f"The rollout is {config.rollout}, but there are {ranks.size} ranks, and each needs an image.")
    dataset = config.data.build()
    present = len(dataset.train.labels.unique())
    if config.rollout < present:
        raise ValueError(
            f"The rollout is {config.rollout}, but '{dataset.name}' has {present} classes and each needs at least one "
            f"image a step. Raise --rollout to {present} or more."
        )
    # A network that cannot be built is found out before anything is written.
    generator = None if (out / "config.json").exists() else build_generator(config, dataset).to(device)
    if ranks.is_main:
        claim_run(out, config)
    ranks.barrier()
    say(f"{dataset.name}: {len(dataset.train)} training images, {dataset.num_classes} classes; device {device}")

    # The moving side: generator, its average, optimizer.
    resumed, refused = load_latest(out / "checkpoints")
    for problem in refused:
        say(f"warning: {problem} Using the one before.")
    if resumed is not None:
        generator, ema = (
            restore_generator(config, dataset.image_shape, dataset.num_classes, resumed.tensors[name], device)
            for name in ("generator", "ema")
        )
    else:
        generator = generator or build_generator(config, dataset).to(device)
        ema = copy.deepcopy(generator)
    ema.requires_grad_(False)
    noise_shape: tuple[int, ...] = generator.noise_shape  # type: ignore[assignment]
    parameters = [p for p in generator.parameters() if p.requires_grad]
    on_cuda = device.startswith("cuda")  # there the fused update needs no temporary copy of the weights
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=on_cuda, foreach=not on_cuda
    )

    # The frozen side: encoders, references, floors.
    clock = time.monotonic()
    if not ranks.is_main:
        ranks.barrier()  # the main rank fits the battery, the others read its cache
    battery = build_battery(config, dataset, device, say)
    if ranks.is_main:
        ranks.barrier()
    encoders = {name: battery.encoders[name] for name in battery.held_in}
    seconds = {"encoders": time.monotonic() - clock}
    clock = time.monotonic()
    reference = build_training_reference(config, dataset, battery, device, say)
    objective = Objective(reference.distances, reference.floors, self_normalise=config.self_normalise)
    judged = config.evaluation if ranks.is_main else None
    check = QuickCheck(battery, dataset, judged, device) if judged else None
    seconds["reference"] = time.monotonic() - clock
    if ranks.is_main:
        described = describe_reference(config, reference, battery, dataset)
        write_atomic(out / "reference.json", json.dumps(described, indent=1))

    controller = Controller(config.controller, reference.floors)
    state = {"step": 0, "skipped": 0, "in_a_row": 0, "train_seconds": 0.0, "core_seconds": 0.0, "checks": [], **seconds}
    if resumed is not None:
        load_optimizer(optimizer, resumed.tensors["training"])
        controller.load_state_dict(resumed.state["controller"])
        state = resumed.state["progress"]
        say(f"resuming after step {state['step']}")
    del resumed  # its tensors are as large as all of the above
    log = MetricsLog(out / "metrics.jsonl", state["step"], write=ranks.is_main)

    def save() -> None:
        if ranks.is_main:
            tensors = {
                "generator": generator.state_dict(),
                "ema": ema.state_dict(),
                "training": optimizer_tensors(optimizer),
            }
            body = {"progress": state, "controller": controller.state_dict()}
            save_checkpoint(out / "checkpoints", state["step"], tensors, body, config.keep_checkpoints)
        ranks.barrier()

    labels = systematic_labels(dataset.train.labels, config.rollout)
    share = ranks.share(config.rollout)
    own_labels = labels[share].to(device)
    tau = embed_labels(own_labels, dataset.num_classes) if config.joint else None
    micro_batch = min(config.micro_batch or config.rollout, len(own_labels))
    resumed_at, resumed_clock, last_line = state["step"], time.monotonic(), 0.0

    with interruptible() as interrupted:
        while state["step"] < config.steps:
            tick, core_tick = time.monotonic(), time.process_time()
            step = state["step"]
            lr = learning_rate(config, step)
            noise = normal_rows(share, noise_shape, "train", config.seed, step)
            torch.manual_seed(seed_for("network", config.seed, step, ranks.rank))  # dropout, if the network has any

            # One exact gradient over the whole rollout.
            optimizer.zero_grad(set_to_none=True)
            idle = [name for name, weight in controller.weights.items() if weight == 0]
            outcome = None

            def feature_gradients(features: dict[str, Tensor], step: int = step) -> dict[str, Tensor]:
                nonlocal outcome
                outcome = objective(features, tau, controller.weights, step, ranks)
                return outcome.gradients if math.isfinite(outcome.loss) else {}

            accumulate_gradients(
                lambda rows, noise=noise: generator(noise[rows].to(device), own_labels[rows]),
                encoders,
                feature_gradients,
                len(own_labels),
                micro_batch,
                idle=idle,
                graph_bytes=int(config.graph_memory_gib * 2**30),
            )
            assert outcome is not None
            ranks.sum_gradients(parameters)
            grad_norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm).item()

            # A step that is not finite moves nothing: not the weights, not their average, not the controller.
            weights = controller.weights
            skip = ranks.any(not (math.isfinite(outcome.loss) and math.isfinite(grad_norm)), device)
            if skip:
                state["skipped"] += 1
                state["in_a_row"] += 1
                say(f"step {step + 1}: the loss or its gradient is not finite; skipped ({state['skipped']} so far)")
            else:
                state["in_a_row"] = 0
                for group in optimizer.param_groups:
                    group["lr"] = lr
                if outcome.gradients:  # all satisfied: nothing moves, on one rank or many
                    optimizer.step()
                update_average(ema, generator, config.ema_decay, step)
                controller.update(outcome.scores)
            state["step"] = done = step + 1

            # Look, save, and stop when asked to.
            last = done == config.steps
            state["train_seconds"] += time.monotonic() - tick
            state["core_seconds"] += time.process_time() - core_tick
            line = {"step": done, "loss": outcome.loss, "lr": lr, "grad_norm": grad_norm, "skipped": state["skipped"]}
            line |= {"scores": outcome.scores, "weights": dict(weights)}
            looking = last or done % config.check_every == 0
            if looking and check is not None and judged is not None:
                line["check"] = check_held_out(check(ema), state["checks"])
                grid = sample_grid(ema, dataset, config.seed, judged.micro_batch, device)
                save_png(out / "samples" / f"step-{done:08d}.png", grid)
            if looking or skip or done % config.log_every == 0:
                rate = (done - resumed_at) * config.rollout / (time.monotonic() - resumed_clock)
                spent = {"seconds": state["train_seconds"], "core_seconds": state["core_seconds"]}
                log.write(line | {"images_per_second": rate, **spent})
                if looking or time.monotonic() - last_line > 5:
                    last_line = time.monotonic()
                    left = (config.steps - done) * config.rollout / rate
                    say(_progress(done, config.steps, line, reference.floors, rate, left))
            if state["in_a_row"] == config.max_skipped:
                raise FloatingPointError(
                    f"{config.max_skipped} steps in a row were not finite, the last at step {done}; the newest "
                    f"checkpoint in {out / 'checkpoints'} is from before them. Lower --lr or --clip-norm."
                )
            stop = ranks.any(bool(interrupted), device)
            if last or stop or (done % config.checkpoint_every == 0 and not skip):
                save()
            if stop:  # at the last step, too: the same command then only evaluates
                say(f"stopped at step {done}; everything is saved. Run the same command again to go on.")
                if interrupted == [signal.SIGTERM]:
                    sys.exit(128 + signal.SIGTERM)
                raise KeyboardInterrupt

    result = {}
    if judged:
        seconds = {
            "encoders": state["encoders"],
            "reference": state["reference"],
            "train": state["train_seconds"],
            "this_call": time.monotonic() - began,
        }
        training = {
            "steps": config.steps,
            "skipped_steps": state["skipped"],
            "images_per_second": config.steps * config.rollout / state["train_seconds"],
            "core_seconds": state["core_seconds"],
            "ranks": ranks.size,
            "alarms": sum(entry["alarm"] for entry in state["checks"]),
        }
        result = evaluate_run(out, training=training, seconds=seconds, command=command, progress=say)
    ranks.barrier()
    return result


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed buffers: it would return each to the kernel, and every step pay its page faults."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def learning_rate(config: RunConfig, step: int) -> float:
    """lr * sqrt(rollout / 5120), after a linear warm-up along a cosine to final_lr times that. `step` is from 0."""
    peak = config.lr * math.sqrt(config.rollout / LR_ROLLOUT)
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    part = (step - config.warmup) / max(1, config.steps - config.warmup)
    return peak * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * part)))


def systematic_labels(labels: Tensor, count: int) -> Tensor:
    """`count` labels [count] with the class frequencies of `labels`, every class at least once when count allows."""
    order = labels.cpu().sort().values
    drawn = order[((torch.arange(count, dtype=torch.float64) + 0.5) * len(order) / count).long()]
    classes = order.unique()
    missing = [c for c in classes.tolist() if c not in set(drawn.tolist())]
    for label in missing:  # a rare class takes a place from the most frequent one
        drawn[(drawn == drawn.mode().values).nonzero()[0, 0]] = label
    return drawn[torch.randperm(count, generator=generator_for("labels", count))]


@torch.no_grad()
def update_average(ema: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights, its decay at most (1 + step) / (10 + step) for a quick start."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)
    for mine, theirs in zip(ema.buffers(), network.buffers(), strict=True):
        mine.copy_(theirs)


def check_held_out(ratios: dict[str, float], history: list[dict]) -> dict:
    """Append a quick check to the history. The alarm says that held-in fell while held-out rose, twice in a row."""
    entry = {**ratios, "alarm": False}
    recent = [*history[-2:], entry]
    if len(recent) == 3 and all("held_in" in e and "held_out" in e for e in recent):
        steps = pairwise(recent)
        entry["alarm"] = all(b["held_in"] < a["held_in"] and b["held_out"] > a["held_out"] for a, b in steps)
    history.append(entry)
    return entry


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of stopping at once; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _progress(done: int, steps: int, line: dict, floors: dict[str, float], rate: float, left: float) -> str:
    excess = sum(line["scores"][name] / floors[name] for name in floors) / len(floors)
    text = f"step {done}/{steps}  score/floor {excess:.2f}  {rate:,.0f} images/s  {left:.0f} s left"
    if check := line.get("check"):
        text += "  SW ratio " + ", ".join(f"{k.replace('_', '-')} {check[k]:.2f}" for k in check if k != "alarm")
        text += "  ALARM: held-in falls while held-out rises" if check["alarm"] else ""
    return text


def _printer(ranks: Ranks) -> Callable[[str], None]:
    return (lambda text: print(text, flush=True)) if ranks.is_main else (lambda text: None)
