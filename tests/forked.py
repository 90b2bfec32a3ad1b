"""Ranks as forks of one process that has imported everything: many groups of any size in the time of one import."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def forked(size: int, function: Callable[..., Any], *args: Any) -> list[int]:
    """function(*args) in `size` processes as torchrun would start them; their exit codes, -9 for a killed one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            code = 1
            try:
                told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
                told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in told.items()})
                function(*args)
                if dist.is_initialized():
                    dist.destroy_process_group()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def save(out: Path, found: Any) -> None:
    """What a rank found, for the test to read."""
    torch.save(found, out / f"{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}.pt")
