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
