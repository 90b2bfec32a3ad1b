"""Verdicts on scenes made by hand: what the description of GenEval's rules says of each."""

import json

import numpy as np
import pytest
from geneval.small import line

from irdm.geneval.prompts import read_prompt
from irdm.geneval.rules import Detection, certain, faults, relations


def at(x, y, width=10, height=10, score=0.95, colour=""):
    """An object around a centre; its mask is the test's place for its colour."""
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return Detection(box, score, colour)  # pyright: ignore[reportArgumentType]


def verdict(scene, asked):
    prompt = read_prompt(json.dumps(asked), "test")
    colours = lambda objects, name: [str(one.mask) for one in objects]  # noqa: E731
    return faults(certain(scene, prompt.tag), prompt, colours)


RED, BLUE = {"colour": "red"}, {"colour": "blue"}
CAR = line("colors", ("car", 1, {"color": "red"}))
BUSES = line("counting", ("bus", 2), exclude=[("bus", 3)])
LEFT = line("position", ("dog", 1), ("cow", 1, {"position": ["left of", 0]}))
BELOW_RED = line("color_attr", ("dog", 1, {"color": "red"}), ("cow", 1, {"color": "blue", "position": ["below", 0]}))

SCENES = [  # (what it is, what was found, what was asked, what is wrong)
    ("the object is there", {"car": [at(5, 5)]}, line("single_object", ("car", 1)), ""),
    ("another object is there", {"bus": [at(5, 5)]}, line("single_object", ("car", 1)), "1 car expected, 0 found"),
    ("just at the threshold", {"car": [at(5, 5, score=0.3)]}, line("single_object", ("car", 1)), "0 found"),
    ("just above it", {"car": [at(5, 5, score=0.3001)]}, line("single_object", ("car", 1)), ""),
    ("more than asked for", {"car": [at(5, 5), at(20, 5)]}, line("single_object", ("car", 1)), ""),
    ("one of two", {"car": [at(5, 5)]}, line("two_object", ("car", 1), ("cow", 1)), "1 cow expected, 0 found"),
    ("as many as counted", {"bus": [at(5, 5), at(20, 5)]}, BUSES, ""),
    ("one too few", {"bus": [at(5, 5)]}, BUSES, "2 bus expected, 1 found"),
    ("one too many", {"bus": [at(5, 5), at(20, 5), at(40, 5)]}, BUSES, "fewer than 3 bus expected, 3 found"),
    ("counted at 0.9", {"bus": [at(5, 5), at(20, 5), at(40, 5, score=0.9)]}, BUSES, ""),
    ("right colour", {"car": [at(5, 5, **RED)]}, CAR, ""),
    ("wrong colour", {"car": [at(5, 5, **BLUE)]}, CAR, "1 red car expected, found blue"),
    ("only the most certain is looked at", {"car": [at(5, 5, score=0.6, **RED), at(9, 9, **BLUE)]}, CAR, "found blue"),
    ("left of it", {"dog": [at(50, 50)], "cow": [at(10, 50)]}, LEFT, ""),
    ("right of it", {"dog": [at(10, 50)], "cow": [at(50, 50)]}, LEFT, "cow is not left of dog"),
    ("no dog to be left of", {"cow": [at(10, 50)]}, LEFT, "which is not as it should be"),
    ("boxes that overlap at one place", {"dog": [at(50, 50)], "cow": [at(49, 50)]}, LEFT, "is not left of"),
    ("both colours, in place", {"dog": [at(5, 5, **RED)], "cow": [at(5, 50, **BLUE)]}, BELOW_RED, ""),
    ("the target has the wrong colour", {"dog": [at(5, 5, **BLUE)], "cow": [at(5, 50, **BLUE)]}, BELOW_RED, "not as"),
    ("colour is told before place", {"dog": [at(5, 50, **RED)], "cow": [at(5, 5, **RED)]}, BELOW_RED, "1 blue cow"),
]  # fmt: skip


@pytest.mark.parametrize(("scene", "asked", "wrong"), [case[1:] for case in SCENES], ids=[case[0] for case in SCENES])
def test_a_scene_is_judged_as_described(scene, asked, wrong):
    found = verdict(scene, asked)
    assert bool(found) == bool(wrong) and wrong in "; ".join(found)


def test_every_chosen_object_stands_right_to_every_object_of_the_target():
    asked = line("position", ("dog", 2), ("cow", 2, {"position": ["above", 0]}))
    dogs, cows = [at(10, 90), at(90, 90)], [at(45, 10), at(55, 10)]
    assert not verdict({"dog": dogs, "cow": cows}, asked)
    assert verdict({"dog": dogs, "cow": [cows[0], at(10, 60)]}, asked), "it is beside one of the dogs"


def test_sixteen_objects_of_a_class_are_looked_at():
    crowd = {"bus": [at(20 * i, 5) for i in range(40)]}
    assert len(certain(crowd, "counting")["bus"]) == 16
    assert not verdict(crowd, line("counting", ("bus", 16), exclude=[("bus", 17)]))


def test_relations_follow_their_definition_whatever_the_boxes():
    """Against the same rule, written as a direction and a margin an axis."""
    draws = np.random.default_rng(0)
    seen = set()
    for _ in range(500):
        (x, y, w, h), (u, v, p, q) = draws.uniform(0, 60, (2, 4)) + 1
        found = relations(at(x, y, w, h), at(u, v, p, q))
        length, names = np.hypot(x - u, y - v), set()
        for offset, sizes, less, more in (
            (x - u, w + p, "left of", "right of"), (y - v, h + q, "above", "below")
        ):  # fmt: skip
            if abs(offset) - 0.1 * sizes > 0.5 * length:
                names.add(more if offset > 0 else less)
        assert found == names
        seen |= found
    assert seen == {"left of", "right of", "above", "below"}


def test_two_relations_can_hold_and_none_in_one_place():
    assert relations(at(0, 0, 1, 1), at(100, 100, 1, 1)) == {"left of", "above"}
    assert relations(at(5, 5), at(5, 5)) == set()
