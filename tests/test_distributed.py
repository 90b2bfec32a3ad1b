"""What ranks tell each other, without any."""

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
