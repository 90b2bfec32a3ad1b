"""Signs of life between processes: one that was killed, hangs or was cut off is named, and the others do not wait.

A collective alone waits for a lost process as long as the group's timeout, which must be as long as the longest piece
of work that one process does alone. Every process therefore counts up in the group's store each BEAT, and looks at the
count of the next one; each costs a few messages a second, however many there are.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time

import torch.distributed as dist

BEAT = 1.0  # seconds between two signs
LOST = 60.0  # seconds without one until a process counts as lost
MEND = "What was saved stays; start again."
GRACE = 10.0  # seconds for this process to leave by itself, with a better message, before it is ended


class Heartbeat:
    """Signs of one rank, from `start` to `stop`, in the store that torchrun or the first rank serves.

    When a rank is lost or failed, this process ends with code 1 after GRACE, whatever it waits for. Whoever found it
    says which. A rank that has not begun, or has left well, is missed by nobody.
    """

    def __init__(self, rank: int, size: int, name: str) -> None:
        """`name` is of these signs: other ones of the same group do not disturb them."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
        self._store, self._rank, self._size = dist.PrefixStore(name, store), rank, size
        self._serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun does, mostly
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._store.set(f"name/{self._rank}", f"rank {self._rank} (process {os.getpid()} on {platform.node()})")
        self._thread.start()

    def stop(self, failed: bool = False, lost: bool = False) -> None:
        """Leave: well, or because this rank `failed`, for which the others will not wait, or another was `lost`."""
        self._stopped.set()
        self._thread.join()
        try:
            if failed:
                self._blame([self._rank], "failed; its own message says why")
            self._store.set(f"left/{self._rank}", "")
        except RuntimeError:
            return  # the store is gone, and with it whoever could read this
        if (failed or lost) and self._serves:
            time.sleep(5 * BEAT)  # the others may ask the store

    def lost(self) -> str | None:
        """Which rank is gone and what is known of it: asked by one that could not reach the others."""
        try:
            counts = [self._count(rank) for rank in range(self._size)]
            for _ in range(4):
                if self._has("lost"):
                    return self._store.get("lost").decode().partition(":")[2]
                time.sleep(BEAT)
            still = [rank for rank, count in enumerate(counts) if 0 < count == self._count(rank)]
            if still := [rank for rank in still if rank != self._rank and not self._has(f"left/{rank}")]:
                self._blame(still, "killed or cut off")
                return self._store.get("lost").decode().partition(":")[2]
        except RuntimeError:
            return "rank 0 or torchrun, which served the store of all ranks"
        return None

    def _run(self) -> None:
        following, seen, since = (self._rank + 1) % self._size, 0, time.monotonic()
        while not self._stopped.wait(BEAT):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                count, now = self._count(following), time.monotonic()
                if count != seen:
                    seen, since = count, now
                elif seen and now - since > LOST and not self._has(f"left/{following}"):
                    self._blame([following], f"gave no sign for {LOST:g} s: killed, hanging or cut off")
                if self._has("lost"):
                    self._end(self._store.get("lost").decode())
            except RuntimeError as error:
                self._end(f"{self._rank}:the store of all ranks is gone, and so is rank 0 or torchrun ({error})")

    def _count(self, rank: int) -> int:
        return self._store.add(f"beat/{rank}", 0)

    def _has(self, key: str) -> bool:
        return self._store.check([key])

    def _blame(self, ranks: list[int], what: str) -> None:
        """The first word stands, and who said it will say it to the user."""
        names = " and ".join(self._store.get(f"name/{rank}").decode() for rank in ranks)
        self._store.compare_set("lost", "", f"{self._rank}:{names} {what}")

    def _end(self, told: str) -> None:
        finder, _, what = told.partition(":")
        if self._stopped.wait(GRACE):
            return
        if int(finder) == self._rank:
            print(f"irdm: error: {what.splitlines()[0]}. {MEND}", file=sys.stderr, flush=True)
        os._exit(1)
