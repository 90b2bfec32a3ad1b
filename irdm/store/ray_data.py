"""The engine Ray Data: blocks of images read by tasks, embedded by stateful actors, on a cluster of any size.

    blocks ──► tasks that read and decode ──► actors that hold all encoders ──► this process, in the blocks' order

Placing, waiting, retries, restarts and spilling are Ray's. Every machine must see the images under the same path and
have irdm installed. Blocks travel as safetensors, and images that are k/255 as bytes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int64
from safetensors.torch import load, save
from torch import Tensor, nn

from irdm.data.base import Split
from irdm.store.engine import Embedded, Engine, embed_block, read_block

RETRIES = 4  # of a block whose worker died, and restarts of a worker
TENSORS, NOTES = "tensors", "notes"  # columns of the tables that travel: safetensors; seconds or an error as JSON


def on_ray(address: str | None = None, workers: int | None = None) -> Engine:
    """The engine on the cluster at `address`, or the one this process is connected to, or one started on this machine.

    Args:
        address: such as 10.0.0.1:6379; None is $RAY_ADDRESS, or this machine.
        workers: actors that hold the encoders; None is as many as the cluster has GPUs, or CPUs for, less one to read.

    Raises:
        ValueError: without the package ray, when no cluster answers, or it is too small.
    """
    try:
        import ray.data  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise ValueError(f"The engine ray needs the package ray ({error}): pip install 'irdm[ray]'.") from None

    def engine(
        split: Split, encoders: Mapping[str, nn.Module], blocks: Sequence[Int64[Tensor, " _"]], device: str
    ) -> Iterator[Embedded]:
        if blocks:
            connect(address)
            yield from _stream(split, encoders, blocks, device, workers)

    return engine


def connect(address: str | None) -> None:
    """Connect to the cluster, or start one here. Raises ValueError when none answers."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "on this machine"
        raise ValueError(f"No Ray cluster answers {where} ({error}); `ray status` should, from here.") from None


def _stream(
    split: Split,
    encoders: Mapping[str, nn.Module],
    blocks: Sequence[Int64[Tensor, " _"]],
    device: str,
    workers: int | None,
) -> Iterator[Embedded]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    size, share = _shares(ray.cluster_resources(), device, workers)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    reading = ray.put((os.getcwd(), split, list(blocks)))
    embedding = ray.put({name: copy.deepcopy(encoder).cpu() for name, encoder in encoders.items()})
    image = 8 * math.prod(split.image_shape) * max(map(len, blocks))  # bytes of a block, as read and as sent
    with DataContext.current(context):
        data = ray.data.range(len(blocks), override_num_blocks=len(blocks))
        # Their own demands on memory keep the two apart: Ray would put reading into the actors, one after the other.
        task: Any = _read  # Ray's types know no further arguments
        data = data.map_batches(task, fn_args=([reading],), num_cpus=1, memory=image, max_retries=RETRIES, **_BY_ROW)
        data = data.map_batches(
            _Encoders,
            fn_constructor_args=([embedding], device.partition(":")[0], torch.get_num_threads()),
            compute=ActorPoolStrategy(size=size),
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            **share,
            **_BY_ROW,
        )
        try:
            for table in data.iter_batches(batch_size=1, batch_format="pyarrow"):
                yield _unpacked(table)
        except RayError as error:
            raise OSError(
                f"Ray gave up, after {RETRIES} retries of what failed: {str(error).strip().splitlines()[-1]} What is "
                "finished stays; repeat the command."
            ) from error


_BY_ROW: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}  # a row is a block


def _shares(there: Mapping[str, float], device: str, workers: int | None) -> tuple[int, dict[str, float]]:
    """How many actors hold the encoders, and what each of them takes of the cluster."""
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    if cpus < 2 or (device != "cpu" and not gpus):
        raise ValueError(
            f"The Ray cluster has {cpus} CPUs and {gpus} GPUs; expected at least 2 CPUs, one that reads and one that "
            f"embeds, and a GPU for --device {device.partition(':')[0]}."
        )
    if device != "cpu":
        return min(workers or gpus, gpus), {"num_gpus": 1, "num_cpus": 0}
    threads = min(torch.get_num_threads(), cpus - 1)
    return min(workers or cpus, (cpus - 1) // threads), {"num_cpus": threads}


@lru_cache(maxsize=1)
def _fetched(reference: Any) -> tuple[Split, list[Tensor]]:
    """What all tasks of a worker share, brought to it once."""
    import ray

    os.environ["LOCAL_WORLD_SIZE"] = str(os.cpu_count())  # a task reads in one thread: Ray gives it one CPU
    where, split, blocks = ray.get(reference)
    with contextlib.suppress(OSError):  # a machine without that folder: full paths will do there
        os.chdir(where)
    return split, blocks


def _read(table: Any, reading: list[Any]) -> Any:
    """A task: the images of the block of this number."""

    def work() -> Any:
        split, blocks = _fetched(reading[0])
        images, seconds = read_block(split, blocks[table["id"][0].as_py()])
        levels = (images * 255).round().clamp(0, 255).to(torch.uint8)
        exact = torch.equal(levels.float() / 255, images)
        return _packed({"images": levels if exact else images.contiguous()}, {"seconds": seconds})

    return _or_error(work)


class _Encoders:
    """An actor: all encoders, held on its device."""

    def __init__(self, encoders: list[Any], device: str, threads: int):
        import ray

        torch.set_num_threads(threads)  # those of the process that asked: their number decides rounding
        self.device = device
        held: Any = ray.get(encoders[0])
        self.encoders = {name: encoder.to(device) for name, encoder in held.items()}

    def __call__(self, table: Any) -> Any:
        if "error" in (notes := json.loads(table[NOTES][0].as_py())):
            return table

        def work() -> Any:
            images = load(table[TENSORS][0].as_py())["images"]
            images = images.float() / 255 if images.dtype == torch.uint8 else images
            done = embed_block(self.encoders, images, self.device, notes["seconds"])
            tensors = {f".{name}": rows.cpu().contiguous() for name, rows in done.features.items()}
            small = {} if done.thumbnails is None else {"thumbnails": done.thumbnails}
            return _packed(tensors | small, {"seconds": done.seconds})

        return _or_error(work)


def _or_error(work: Callable[[], Any]) -> Any:
    """What work makes; or its error, which Ray would wrap beyond recognition, as a table to be raised at its turn."""
    try:
        return work()
    except (ValueError, OSError) as error:
        return _packed({}, {"error": [type(error).__name__, str(error)]})


def _packed(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Any:
    import pyarrow

    columns = {TENSORS: [save(dict(tensors))], NOTES: [json.dumps(notes)]}
    return pyarrow.table(columns, schema=pyarrow.schema([(TENSORS, pyarrow.large_binary()), (NOTES, pyarrow.string())]))


def _unpacked(table: Any) -> Embedded:
    """What an actor made. Raises what a worker raised."""
    notes = json.loads(table[NOTES][0].as_py())
    if "error" in notes:
        kind, message = notes["error"]
        raise OSError(message) if kind != "ValueError" else ValueError(message)
    tensors, seconds = load(table[TENSORS][0].as_py()), notes["seconds"]
    features = {name[1:]: tensors[name] for name in seconds if name in tensors}
    return Embedded(features, tensors.get("thumbnails"), seconds)
