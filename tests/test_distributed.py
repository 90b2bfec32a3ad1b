"""What ranks tell each other, without any."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from irdm.distributed import Ranks


def test_a_failure_in_nested_blocks_is_told_once_and_keeps_its_message():
    told = []

    class Heard(Ranks):
        def any(self, flag):
            told.append(flag)
            return flag

    ranks = Heard()
    with pytest.raises(ValueError, match="broken"), ranks.together(), ranks.together():
        raise ValueError("broken")
    assert told == [True], "the others have left by then: a second message would wait for them"
    with ranks.together(), ranks.together():
        pass
    assert told == [True, False, False]


def test_a_rank_whose_peer_failed_leaves_without_a_message():
    class PeerFailed(Ranks):
        def any(self, flag):
            return True

    with pytest.raises(SystemExit), PeerFailed().together():
        pass


def test_gradients_are_summed_in_messages_of_some_size_each_once(monkeypatch):
    import torch

    from irdm import distributed

    sent = []

    def doubles(flat):
        sent.append(len(flat))
        flat.mul_(2)

    monkeypatch.setattr(distributed, "BUCKET", 5)
    monkeypatch.setattr(distributed.dist, "all_reduce", doubles)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 3, 7, 1)]
    for number, parameter in enumerate(parameters[:3]):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    Ranks(0, 2).sum_gradients(parameters)
    assert sent == [6, 7, 1], "at least five numbers each, and the rest"
    assert [parameter.grad.unique().tolist() for parameter in parameters] == [[2], [4], [6], [0]]


LEAVES = """
import atexit, os
names = lambda: [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
atexit.register(lambda: print(f"at the end {sum('gloo' in name for name in names())} threads"))  # runs last
from irdm.distributed import Ranks
ranks = Ranks.start("cpu")
import torch.distributed.fsdp
ranks.any(False)
print(f"before {sum('gloo' in name for name in names()) > 0}")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_no_thread_of_gloo_is_left_when_a_rank_ends(tmp_path):
    """One that is left may abort the process while Python ends, and torchrun then kills the other ranks."""
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run([*torchrun, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("before True") == 2 and done.stdout.count("at the end 0 threads") == 2, done.stdout


ENDS = """
import atexit
from irdm.errors import leave
class Cleared:
    def __del__(self):
        print("cleared")
kept = Cleared()
atexit.register(print, "registered")
print("done", end="")
leave(3)
"""


def test_a_rank_leaves_with_its_code_and_words_before_memory_is_cleared():
    for size, cleared in (("2", ""), ("1", "cleared\n")):
        told = {**os.environ, "WORLD_SIZE": size}
        done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, env=told)
        assert (done.returncode, done.stdout) == (3, f"doneregistered\n{cleared}"), done.stderr
