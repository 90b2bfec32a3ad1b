"""metrics.jsonl: what comes again is dropped, and what was damaged is said."""

import json

import pytest

from irdm.log import MetricsLog, read_log


def filled(path, steps=4):
    log = MetricsLog(path, 0, write=True)
    for step in range(1, steps + 1):
        log.write({"step": step, "loss": 1 / step})
    return path.read_bytes()


def test_lines_after_the_resumed_step_come_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path)
    MetricsLog(path, 2, write=True).write({"step": 3, "loss": float("nan"), "scores": {"a": float("inf")}})
    MetricsLog(path, 0, write=False).write({"step": 9})
    lines, notes = read_log(path)
    assert lines == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": None, "scores": {"a": None}},
    ]
    assert not notes and all(json.loads(line) for line in path.read_text().splitlines())
    assert read_log(tmp_path / "none.jsonl") == ([], [])


def test_a_line_cut_by_a_kill_is_left_out_and_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(filled(path)[:-9])
    lines, notes = read_log(path)
    assert [line["step"] for line in lines] == [1, 2, 3] and notes == [
        "The last line of metrics.jsonl was cut short, as by a kill; it is left out."
    ]
    said = []
    MetricsLog(path, 4, write=True, say=said.append)
    assert said == [f"warning: {note}" for note in notes] and not read_log(path)[1]


@pytest.mark.parametrize("bit", range(0, 8))
def test_any_flipped_bit_is_noticed(tmp_path, bit):
    path = tmp_path / "metrics.jsonl"
    content = filled(path)
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(bytes(damaged))
        lines, notes = read_log(path)
        assert notes or lines == read_lines(content), f"byte {place}"
        assert all(line in read_lines(content) for line in lines), f"byte {place}"


def read_lines(content):
    return [{k: v for k, v in json.loads(line).items() if k != "crc"} for line in content.splitlines()]
