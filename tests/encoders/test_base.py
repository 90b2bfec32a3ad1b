"""What every encoder and battery promises, and what makes two encoders the same."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from irdm.encoders import Battery, Encoder
from irdm.encoders.base import encoder_identity


class Broken(nn.Module):
    def forward(self, images):
        return (images.flatten(1) - 2).sqrt()


def test_non_finite_encoder_is_named():
    encoder = Encoder("broken", 16, Broken())
    with pytest.raises(ValueError, match="'broken' returned NaN or infinity for 2 of 2"):
        encoder(torch.rand(2, 1, 4, 4))
    assert encoder(torch.full((2, 1, 4, 4), torch.nan)).isnan().all(), "bad images are the generator's failure"


def flat(name, dim=16):
    return Encoder(name, dim, nn.Flatten())


def test_a_battery_checks_its_division():
    a = flat("a")
    for encoders, held_in, held_out in (
        ({"a": a}, ("a",), ("a",)),
        ({"a": a}, (), ()),
        ({"a": a}, ("a", "b"), ()),
        ({}, (), ()),
    ):
        with pytest.raises(ValueError, match="exactly one"):
            Battery(encoders, held_in, held_out)


def test_some_of_a_battery():
    battery = Battery({name: flat(name) for name in "abc"}, "ab", "c")
    some, others = battery.only(["c", "a"])
    assert some.held_in == ("a",) and some.held_out == ("c",) and others == ("b",) and some["a"] is battery["a"]
    assert battery.only(None)[0].held_in == ("a", "b") and battery.only(None)[1] == ()
    with pytest.raises(ValueError, match="no encoder x here; choose from a, b, c"):
        battery.only(["a", "x"])


class Scaled(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


class Hidden(nn.Module):
    def __init__(self, value, persistent=False):
        super().__init__()
        self.register_buffer("table", torch.full((3,), float(value)), persistent=persistent)


def gelu_then(value):
    return lambda rows: value


DIFFERENT = {
    "a number": [Scaled(size=value) for value in (1, 2, 2.5, True, None)],
    "a text": [Scaled(mode=value) for value in ("bilinear", "bicubic")],
    "a tuple": [Scaled(sizes=value) for value in ((1, 2), (2, 1), (1, 2, 3))],
    "a table": [Scaled(table=value) for value in ({"a": 1}, {"a": 2}, {"b": [1, (2, 3)]}, {"b": [1, (2, 4)]})],
    "a set": [Scaled(kinds=value) for value in ({"a", "b"}, {"a", "c"})],
    "a name of one's own": [Scaled(_size=1), Scaled(_size=2), Scaled(size=1)],
    "a function": [Scaled(act=value) for value in (F.relu, F.gelu, partial(F.gelu, approximate="tanh"))],
    "a type of numbers": [Scaled(dtype=value) for value in (torch.float16, torch.float32)],
    "an array": [Scaled(mean=np.array([1.0, value])) for value in (1, 2)],
    "a tensor that is no buffer": [Scaled(mean=torch.tensor([1.0, value])) for value in (1, 2)],
    "a buffer that is not saved": [Hidden(1), Hidden(2), Hidden(3)],
    "a class": [nn.ReLU(), nn.GELU(), nn.Sequential(nn.ReLU())],
    "what is printed": [nn.AvgPool2d(2), nn.AvgPool2d(3), nn.AvgPool2d(2, ceil_mode=True)],
    "deep inside": [nn.Sequential(nn.Flatten(), nn.Sequential(Scaled(size=value))) for value in (1, 2)],
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_encoders_that_differ_have_different_identities(what):
    """Most have no parameter, and the same printed form: a hash of weights and text takes one for another."""
    found = [encoder_identity(Encoder("x", 3, module)) for module in DIFFERENT[what]]
    assert len(set(found)) == len(found)


def test_weights_names_types_and_shapes_count():
    def linear(change=lambda module: module):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return change(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)))

    def nudge(module):
        module[1].bias.data[0] += 1e-6
        return module

    def turn(module):
        module[1].weight.data = module[1].weight.data.T.contiguous()
        return module

    found = [
        encoder_identity(linear(change)) for change in (lambda m: m, nudge, turn, nn.Module.half, nn.Module.double)
    ]
    assert len(set(found)) == 5 and found[0] == encoder_identity(linear())


def test_copies_are_the_same_wherever_they_lie():
    class Printed(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.device = gelu_then(3), torch.device("cpu")

        def extra_repr(self):
            return f"pool={self.pool}"  # with the address of the function

    network = nn.Sequential(nn.Conv2d(3, 4, 3), Printed(), Hidden(2), nn.BatchNorm2d(4))
    first = Encoder("x", 4, network)
    twin = copy.deepcopy(first).to(memory_format=torch.channels_last).train()
    twin.network[1].pool, twin.network[1].device = gelu_then(3), torch.device("meta")
    twin.network[0].register_forward_hook(lambda *_: None)
    assert encoder_identity(first) == encoder_identity(twin)
    assert len(encoder_identity(first)) == 64
