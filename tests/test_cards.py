"""What klein takes on cards that are named: the counted 4B against the specification's figures, and the knobs."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from irdm.cards import BUS, KINDS, cards_of, ways
from irdm.check import Needs
from irdm.cli import main
from irdm.conditions import NoSpec, PromptSpec
from irdm.estimate import estimate, generator_cost
from irdm.fields import UsageError
from irdm.generators import KleinConfig
from irdm.generators.klein_folder import published_sizes
from irdm.generators.klein_tiny import cached_tiny
from irdm.presets import PRESETS
from irdm.text.contexts import ContextEncoder

SPEC = PromptSpec(embedder="none", width=1152)
SHAPE = (3, 512, 512)
TINY = (3, 32, 32)


counted = cache(generator_cost)


@pytest.fixture(scope="module")
def costs():
    """Of the published model with all weights and with adapters."""
    sized = PRESETS["klein"]().generator.model_copy(update={"model": published_sizes()})
    return {rank: generator_cost(sized.model_copy(update={"lora_rank": rank}), SHAPE, SPEC) for rank in (None, 64)}


def test_cards_are_named_by_number_and_kind():
    eight, one = cards_of("8xH200"), cards_of("h200")
    assert (eight.count, eight.kind, one.count) == (8, "H200", 1)
    assert eight.memory == 141e9 and 400e12 < eight.rate < 989e12
    for wrong in ("8xH2O", "0xH200", "x", "8x"):
        with pytest.raises(UsageError, match="--for is"):
            cards_of(wrong)
    assert all(cards_of(kind) for kind in KINDS)


def test_the_published_model_has_its_size_and_takes_what_it_was_measured_to_take(costs):
    """45 TFLOP an image with recomputation (forward 6.93, of the decoder 2.52); 62 GB of weights and moments."""
    run = PRESETS["klein"]()
    generator = run.generator.model_copy(update={"model": published_sizes()})
    cost = costs[None]
    assert cost.parameters == 3_875_544_576
    assert cost.flops == pytest.approx(6.93e12 + 2.52e12, rel=0.05)  # attention is not counted
    assert cost.graph_bytes == pytest.approx((0.17 + 0.40) * 2**30, rel=0.05)
    run = run.model_copy(update={"generator": generator})
    one, eight, divided = (
        estimate(run.model_copy(update={"shard": shard}), SHAPE, SPEC, ranks, cost)
        for ranks, shard in ((1, False), (8, False), (8, True))
    )
    weights = "weights, moments, gradient"  # no average
    assert one.memory[weights] == eight.memory[weights] == pytest.approx(62e9, rel=0.01)
    assert divided.memory[weights] == pytest.approx(62e9 / 8, rel=0.01)
    assert one.memory["frozen weights"] == pytest.approx(0.17e9 + 6.2e9, rel=0.1)  # VAE, and 27 layers of Qwen3-4B
    assert 40e12 < one.flops / run.rollout < 80e12  # 45, and the encoders


def test_adapters_of_the_published_model():
    with torch.device("meta"):
        network = KleinConfig(model=published_sizes(), lora_rank=64, precision="bfloat16").build(SHAPE, SPEC)
    assert sum(p.numel() for p in network.trained().values()) / 1e6 == pytest.approx(96.3, abs=0.1)
    assert network.bytes_aside == pytest.approx(6.2e9, rel=0.1)


def test_the_text_encoder_is_counted_from_its_configuration():
    encoder = ContextEncoder(cached_tiny(), 48)
    found = sum(p.numel() for name, p in encoder.network.named_parameters() if "norm" not in name)
    assert encoder.parameters == found


@pytest.fixture(scope="module")
def tiny():
    return PRESETS["klein-tiny"]()


def test_every_way_to_train_has_a_line(tiny, monkeypatch):
    monkeypatch.setattr("irdm.cards.generator_cost", counted)
    lines = ways(tiny, TINY, SPEC, cards_of("2xH100"))
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "all weights",
        "all weights, divided (--shard)",
        "adapters (--generator.lora-rank 64)",
        "adapters, divided (--shard)",
    ]
    assert all(re.search(r"GiB a GPU of 74\.5, .* for 20 steps, 0 GPU-hours", line) for line in lines[1:])
    assert len(ways(tiny, TINY, SPEC, cards_of("H100"))) == 3  # nothing to divide over
    (_, other) = ways(PRESETS["digits"](), (1, 8, 8), NoSpec(), cards_of("H100"))
    assert other.startswith("as configured: ")


def test_cards_that_are_here_are_measured(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("irdm.cards.generator_cost", counted)
    monkeypatch.setattr("irdm.check.matmul_rate", lambda device: 5e14)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    one = SimpleNamespace(name="NVIDIA X", total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: one)
    needs = Needs(tiny, tmp_path)
    needs.__dict__["device"] = "cuda:0"
    assert needs.can_choose and not Needs(PRESETS["digits"](), tmp_path).can_choose
    lines = ways(tiny, TINY, SPEC, needs.cards)
    assert lines[0] == "on 2 x NVIDIA X, by count and one product measured here:" and len(lines) == 5


@pytest.mark.parametrize(
    ("fields", "gigabytes", "knob"),
    [
        ({"micro_batch": 64}, 0.03, "encode captions once (`irdm contexts`), set --generator.gradient-checkpointing"),
        ({"micro_batch": 64}, 0.0001, "train adapters"),
    ],
)
def test_what_does_not_fit_is_told_a_knob(tiny, fields, gigabytes, knob, monkeypatch):
    monkeypatch.setitem(KINDS, "SMALL", (gigabytes, 1))
    monkeypatch.setattr("irdm.cards.generator_cost", counted)
    lines = ways(tiny.model_copy(update=fields), TINY, SPEC, cards_of("2xSMALL"))
    assert "does not fit (" in lines[1] and knob in lines[1]


def test_the_battery_of_the_published_model_is_told(costs, monkeypatch):
    """bfloat16, what it takes, and which knobs make a card of 24 GB do."""
    monkeypatch.setattr("irdm.cards.generator_cost", lambda config, *_: costs[config.lora_rank])
    run = PRESETS["klein"]()
    lines = ways(run, SHAPE, SPEC, cards_of("8xH200"))
    assert "14 encoders compute in bfloat16 (inception in float32)" in lines[-1]
    assert re.search(r"float32: (\d+\.\d) GiB on the GPU, (\d\.\d) at a time with --battery.offload", lines[-1])
    assert not any("does not fit" in line for line in lines)
    whole, divided = (float(re.findall(r": (.*) GiB a GPU", line)[0]) for line in lines[3:5])
    assert whole - divided == pytest.approx((7.22 + 1.44) * 7 / 8 + 0.36, abs=0.2), (
        "the base too, and no gradient twice"
    )
    *_, small, _ = ways(run, SHAPE, SPEC, cards_of("RTX4090"))
    knobs = small.splitlines()[1].split("): ", 1)[1]
    assert "`irdm contexts`" in knobs and "--battery.offload" in knobs
    (fewer,) = re.findall(r"--micro-batch (\d)", knobs)
    done = {"battery": run.battery.model_copy(update={"offload": True}), "micro_batch": int(fewer)}
    without = replace(costs[64], frozen=costs[64].frozen - run.generator.model_copy(
        update={"model": published_sizes()}).encoder().parameters * 2)  # fmt: skip
    generator = run.generator.model_copy(update={"model": published_sizes(), "lora_rank": 64})
    found = estimate(run.model_copy(update=done | {"generator": generator}), SHAPE, SPEC, 1, without)
    assert sum(found.memory.values()) < 24e9, "and it fits then"
    runs = [run.model_copy(update=done | {"micro_batch": size}) for size in (8, 1)]
    few, often = (hours(ways(one, SHAPE, SPEC, cards_of("H200"))) for one in runs)
    assert often - few == pytest.approx(2 * 300 * (10240 - 1280) * 4 * 3.838e9 / BUS / 3600, rel=0.02), "eight times"


def hours(lines):
    """Of adapters on one card."""
    return float(re.findall(r"([\d,]+) GPU-hours", lines[2])[0].replace(",", ""))


def test_the_command(capsys):
    assert main(["check", "klein-tiny", "--for", "8xH2O"]) == 2
    assert "a number and a card, such as 8xH200" in capsys.readouterr().err
    main(["check", "digits", "--for", "4xA100"])
    assert "as configured: 0.0 GiB a GPU of 74.5" in capsys.readouterr().out
    main(["check", "--help"])
    assert "--for" in capsys.readouterr().out
