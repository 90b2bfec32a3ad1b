"""Conditions as a table, and the one law by which rows are drawn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irdm.conditions import (
    Classes,
    Conditions,
    Prompts,
    PromptSpec,
    Unconditional,
    class_count,
    draw,
    draws,
    proportioned,
    to_bytes,
    to_texts,
)

NAMES = ("cat", "dog", "owl")


def labelled(*counts):
    return Classes(torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)), NAMES[: len(counts)])


def prompted(count=9, sources=("coco", "geneval")):
    """A third of the rows from the first source; every caption and every row of tau is another."""
    spec = PromptSpec(embedder="test", width=3, sources=sources, examples=("a cat", "ein Käse", "zwei", "three"))
    source = (torch.arange(count) % 3 > 0).long() if len(sources) > 1 else None
    return Prompts([f"row {i} ☂" for i in range(count)], torch.randn(count, 3), source, spec)


@pytest.mark.parametrize("conditions", [labelled(3, 2, 4), Unconditional(9), prompted(), prompted(sources=("coco",))])
def test_a_table_of_conditions(conditions):
    assert isinstance(conditions, Conditions) and len(conditions) == 9
    some = conditions[torch.tensor([8, 0, 3])]
    assert len(some) == len(some.captions()) == 3 and len(conditions[2:5]) == 3
    assert all(len(tensor) == 3 for tensor in some.inputs().values())
    again = conditions.spec.restore(9, conditions.state)
    assert again.fingerprint == conditions.fingerprint != conditions[:8].fingerprint
    assert type(conditions.spec)(**conditions.spec.model_dump()) == conditions.spec
    if conditions.tau is None:
        assert conditions.spec.width == 0 and not some.inputs()
    else:
        assert conditions.tau.shape == (9, conditions.spec.width)
    assert conditions.spec.groups == (0 if conditions.strata is None else len(conditions.strata.unique()))


def test_tau_of_classes_is_one_hot():
    assert torch.equal(labelled(3, 2, 4).tau[3:5], torch.eye(3)[[1, 1]])


def test_captions_are_bytes_for_a_generator_and_texts_again():
    texts = ["", "a cat", "Käse ☂ 猫", "x" * 70, " spaces\n"]
    kept = to_bytes(texts)
    assert kept.dtype == torch.uint8 and kept.shape == (5, 70) and to_texts(kept) == texts
    assert to_bytes([""]).shape == (1, 1) and to_texts(to_bytes([])) == []
    assert kept[1, :6].tolist() == [*b"a cat", 0]
    for bad in ("a\0b", "\udcff"):
        with pytest.raises(ValueError, match="character zero|surrogates not allowed"):
            to_bytes([bad])


def test_prompts_hold_their_sources_in_proportion_and_take_any_text():
    table = prompted(900)
    assert table.tau is not None and table.strata is not None
    rows = draw(table, 300, 0, 1)
    assert torch.bincount(table.strata[rows]).tolist() == [100, 200]
    some = table[rows]
    assert (
        some.tau is not None
        and torch.equal(some.tau, table.tau[rows])
        and some.captions() == [table.captions()[i] for i in rows.tolist()]
    )
    assert some.spec == table.spec == table[:5].spec, "of the data set, whichever rows these are"
    assert table.spec.each(2, most=2).captions() == ["a cat", "a cat", "three", "three"]
    asked = table.spec.named(["anything", "else"], 3)
    assert asked.captions() == ["anything", "else", "anything"] and asked.tau is None and asked.strata is None
    assert asked.fingerprint != asked[:2].fingerprint
    same = Prompts(table.captions(), table.tau + 1e-6, table.strata, table.spec)
    assert same.fingerprint == table.fingerprint, "rounding on another device is not another data set"
    with pytest.raises(ValueError, match=r"Got 2 captions with tau \(3, 3\) and None sources"):
        Prompts(["a", "b"], torch.zeros(3, 3), None, table.spec)
    with pytest.raises(ValueError, match="'conv' draws classes, and these images have captions"):
        class_count(table.spec, "conv")


def test_classes_by_name_or_number():
    spec = labelled(1, 1, 1).spec
    assert spec.named(["owl", "0"], 5).captions() == ["owl", "cat", "owl", "cat", "owl"]
    assert spec.each(2).labels.tolist() == [0, 0, 1, 1, 2, 2] and spec.each(1, most=2).labels.tolist() == [0, 2]
    with pytest.raises(ValueError, match="no class fox; choose from cat, dog, owl"):
        spec.named(["fox"], 1)
    with pytest.raises(ValueError, match="no classes"):
        Unconditional(3).spec.named(["cat"], 1)
    with pytest.raises(ValueError, match="Labels run from 0 to 3, but there are 3 class names"):
        Classes(torch.arange(4), NAMES)
    digits = Classes(torch.arange(3), ("7", "8", "9")).spec
    assert digits.named(["7"], 1).labels.tolist() == [0], "a name comes before a number"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 200), st.integers(0, 9), st.integers(0, 9))
def test_a_draw_holds_the_proportions_and_repeats_no_row_needlessly(counts, count, seed, step):
    table = labelled(*counts)
    rows = draw(table, count, seed, step)
    assert torch.equal(rows, draw(table, count, seed, step)) and len(rows) == count
    for stratum, size in enumerate(counts):
        exact = count * size / len(table)
        drawn = int((table.labels[rows] == stratum).sum())
        assert int(exact) <= drawn <= int(exact) + 1 or abs(drawn - exact) < 1e-9
    times = torch.bincount(rows, minlength=len(table))
    assert times.max() - times.min() <= 1, "every row before any a second time"


def test_draws_are_fresh_at_every_step_and_every_row_has_its_chance():
    table = labelled(50, 30, 20)
    steps = [draw(table, 10, 0, step) for step in range(400)]
    assert not torch.equal(steps[0], steps[1]) and not torch.equal(draw(table, 10, 1, 0), steps[0])
    times = torch.bincount(torch.cat(steps), minlength=100).float()
    assert times.min() > 15 and times.max() < 70, "40 expected of each"
    rare = [int((labelled(97, 2, 1).labels[draw(labelled(97, 2, 1), 10, 0, step)] == 2).sum()) for step in range(1000)]
    assert 0.07 < sum(rare) / 1000 < 0.13, "a class of one in a hundred comes once in ten draws of ten"
    places = torch.stack([table.labels[rows] for rows in steps])
    assert (places.float().mean(0) - 0.7).abs().max() < 0.15, "the order of a draw says nothing of the class"


def test_several_draws_share_no_row_and_each_holds_the_proportions():
    table = labelled(50, 30, 20)
    three = draws(table, 30, 3, "x")
    assert three.shape == (3, 30) and len(three.flatten().unique()) == 90
    for rows in three:
        assert (torch.bincount(table.labels[rows], minlength=3) - torch.tensor([15, 9, 6])).abs().max() <= 1
    for bad in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            draws(table, *bad, "x")


def test_held_out_rows_take_the_proportions_of_train():
    train = labelled(80, 15, 5)
    assert len(proportioned(labelled(40, 8, 2), train)) == 50, "as close as whole rows can be"
    rows = proportioned(labelled(20, 20, 20), train)
    kept = torch.bincount(labelled(20, 20, 20).labels[rows], minlength=3)
    assert kept.tolist() == [20, 4, 1]
    assert len(proportioned(Unconditional(7), Unconditional(3))) == 7
    with pytest.raises(ValueError, match="both have classes"):
        proportioned(Unconditional(7), train)
