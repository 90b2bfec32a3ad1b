"""The average of the trained parameters."""

import pytest
import torch
from torch import nn

from irdm.ema import EMA


def network():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_the_average_follows_by_its_decay_with_a_quick_start():
    module = network()
    ema = EMA(dict(module.named_parameters()), 0.9)
    expected = module.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            module.weight.add_(0.1)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(ema.state_dict()["weight"], expected)


def test_it_is_applied_inside_a_block_and_the_parameters_come_back_even_after_an_error():
    module = network()
    own = module.weight.detach().clone()
    ema = EMA(dict(module.named_parameters()), 0.5)
    with torch.no_grad():
        ema.averages["weight"].zero_()
    identity = module.weight
    with pytest.raises(RuntimeError, match="stop"), ema.applied():
        assert module.weight is identity and not module.weight.any()
        raise RuntimeError("stop")
    assert torch.equal(module.weight, own) and not ema.averages["weight"].any()


def test_off_it_is_the_parameters_and_costs_no_memory():
    module = network()
    ema = EMA(dict(module.named_parameters()), None)
    ema.update(0)
    with ema.applied():
        assert torch.equal(ema.state_dict()["weight"], module.weight)
    assert not ema.averages


def test_only_what_is_trained_is_averaged_and_a_state_comes_back():
    module = network()
    module.bias.requires_grad_(False)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    ema, other = EMA(trained, 0.9), EMA(trained, 0.9)
    with torch.no_grad():
        ema.averages["weight"].fill_(7)
    other.load_state_dict(ema.state_dict())
    assert list(other.state_dict()) == ["weight"] and (other.state_dict()["weight"] == 7).all()
    assert other.averages["weight"].data_ptr() != ema.averages["weight"].data_ptr()
