"""What is taken for a prompt file of GenEval's, and what is refused."""

import hashlib
import json

import pytest
from geneval.small import LINES, line, write_prompts

from irdm.geneval.prompts import OBJECTS, read_prompts


def test_lines_are_read_and_given_back_as_they_were(tmp_path):
    path = write_prompts(tmp_path)
    found = read_prompts(path)
    assert [prompt.metadata for prompt in found.prompts] == LINES
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.counts["colors"] == 2 and not found.is_published
    assert "8 prompts, not the published 553" in str(found)


def test_the_classes_are_those_of_coco_in_order_under_genevals_names():
    assert len(OBJECTS) == len(set(OBJECTS)) == 80
    assert [OBJECTS.index(name) for name in ("person", "computer mouse", "tv remote", "computer keyboard")] == [
        0, 64, 65, 66
    ]  # fmt: skip
    assert OBJECTS[-1] == "toothbrush"


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ("not json", "is no JSON"),
        ("[1]", "should be a group of fields"),
        (json.dumps(line("color", ("car", 1))), "tag should be 'single_object', 'two_object'"),
        (json.dumps(line("colors", ("car", 1, {"color": "crimson"}))), "color should be 'red'"),
        (json.dumps(line("colors", ("car", 1, {"colour": "red"}))), "colour Extra inputs"),
        (json.dumps(line("counting", ("buss", 2))), "did you mean 'bus'"),
        (json.dumps(line("counting", ("bus", 0))), "count should be at least 1"),
        (json.dumps(line("counting", ("bus", True))), "count should be a whole number"),
        (json.dumps(line("counting")), "include needs at least 1"),
        (json.dumps(line("position", ("cow", 1, {"position": ["left of", 0]}))), "not before it"),
        (json.dumps(line("position", ("cow", 1), ("cup", 1, {"position": ["near", 0]}))), "'left of'"),
        (json.dumps(line("colors", ("car", 1), prompt=" ")), "prompt should look like"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, odd, says):
    path = write_prompts(tmp_path)
    path.write_text(path.read_text() + odd + "\n")
    with pytest.raises(ValueError, match="line 9 is no prompt of GenEval") as error:
        read_prompts(path)
    assert says in str(error.value)


def test_a_category_without_a_prompt_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of counting, position"):
        read_prompts(write_prompts(tmp_path, [each for each in LINES if each["tag"] not in ("counting", "position")]))


def test_a_file_that_is_not_there_says_where_it_is_from(tmp_path):
    with pytest.raises(ValueError, match="not part of irdm"):
        read_prompts(tmp_path / "absent.jsonl")
