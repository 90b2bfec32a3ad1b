"""The page of a run: it shows what the run draws, refuses what it cannot draw, and is for this machine alone."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from browser import needs_browser, titled
from PIL import Image

import irdm.play.draw
from irdm.build import build_generator
from irdm.cli import main
from irdm.conditions import ClassSpec, PromptSpec
from irdm.play import Server
from irdm.play.draw import MOST, Player
from irdm.presets import digits_smoke, klein_tiny
from irdm.run import LoadedRun

DIGITS = ClassSpec(names=tuple("0123456789"))
PROMPTS = PromptSpec(embedder="none", width=1, examples=("a red cube", "<b>&"))


def player(monkeypatch, config, shape, spec, **options) -> Player:
    """Of a run that was not trained."""
    generator = build_generator(config, shape, spec).eval()
    run = LoadedRun(Path("runs/<name>"), config, generator, "cpu", 7, spec, shape, {}, "")
    monkeypatch.setattr(irdm.play.draw, "load_run", lambda *given: run)
    return Player(run.path, "cpu", **options)


@pytest.fixture
def digits(monkeypatch):
    return player(monkeypatch, digits_smoke(), (1, 8, 8), DIGITS)


@contextmanager
def served(one):
    with Server(one) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def asked(server, path="", host=None, **query):
    request = Request(f"{server.address}{path}?{urlencode(query)}", headers={"Host": host} if host else {})
    with urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def pixels(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))).astype(int)


def test_what_is_shown_is_what_the_run_draws(digits):
    with served(digits) as server:
        (shown,) = json.loads(asked(server, "draw", wanted="3", count=4, seed=5))
        again = json.loads(asked(server, "draw", wanted="3", count=2, seed=7))[0]
    generator, noise = digits.run.generator, [torch.Generator().manual_seed(5 + i) for i in range(4)]
    noise = torch.stack([torch.randn(*generator.noise_shape, generator=one) for one in noise])
    wanted = (generator(noise, labels=torch.full((4,), 3))[:, 0] * 255).round().int().numpy()
    assert all(np.array_equal(pixels(one), other) for one, other in zip(shown["pictures"], wanted, strict=True))
    assert shown["name"] == "one step" and shown["evaluations"] == 1 and 0 < shown["seconds"] < 60
    assert again["pictures"] == shown["pictures"][2:]


def test_all_classes_take_turns(digits):
    turns, own = (
        digits("", 11, 0)[0].pictures,
        [digits(name, 1, seed)[0].pictures[0] for seed, name in enumerate("012")],
    )
    assert turns[:3] == own and len(turns) == 11


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"wanted": "boat"}, "There is no class boat"),
        ({"count": 0}, f"expected 1 to {MOST}"),
        ({"count": MOST + 1}, f"expected 1 to {MOST}"),
        ({"seed": 2**32}, "a seed from 0 to"),
        ({"seed": "x"}, "expected whole numbers"),
        ({"wanted": "x" * 2001}, "at most 2000 characters"),
    ],
)
def test_what_cannot_be_drawn_is_said(digits, query, said):
    with served(digits) as server:
        with pytest.raises(HTTPError) as refused:
            asked(server, "draw", **query)
        assert refused.value.code == 400 and said in json.loads(refused.value.read())["error"]
        assert json.loads(asked(server, "draw", count=1))


def test_only_this_machine_is_answered(digits):
    with served(digits) as server:
        assert server.server_address[0] == "127.0.0.1"
        page = asked(server, host="localhost:1")
        assert "<h1>&lt;name&gt;</h1>" in page and "<option>9</option>" in page
        for path, host, code in (("", "evil.example", 403), ("draw", "evil.example:80", 403), ("../x", None, 404)):
            with pytest.raises(HTTPError) as refused:
                asked(server, path, host)
            assert refused.value.code == code
    with pytest.raises(OSError, match="Give another --host or --port"), Server(digits) as one:
        Server(digits, port=one.server_address[1])


def test_the_command_opens_the_run_first(tmp_path, capsys):
    assert main(["play", str(tmp_path / "none")]) == 1 and "give a run directory" in capsys.readouterr().err
    assert main(["play", "run", "--port", "70000"]) == 2


PROBE = """<script>setTimeout(() => { form.next.click(); setTimeout(() => {
  const good = [...document.images].filter((i) => i.naturalWidth).length;
  document.title = JSON.stringify({good, all: document.images.length, kept: old.children.length,
    seed: form.seed.value, said: [...document.querySelectorAll("figcaption")].map((e) => e.textContent)});
}, 800); }, 800)</script>"""


def looked_at(server, monkeypatch, folder):
    page = server.page() + PROBE
    monkeypatch.setattr(server, "page", lambda: page)
    return json.loads(titled(server.address, folder))


@needs_browser
def test_in_a_browser(digits, monkeypatch, tmp_path):
    with served(digits) as server:
        seen = looked_at(server, monkeypatch, tmp_path)
    assert seen["good"] == seen["all"] == 16 and seen["kept"] == 1 and seen["seed"] == "8"
    assert seen["said"][0].startswith("One step · ") and seen["said"][0].endswith(" ms a picture")


@needs_browser
def test_klein_beside_its_teacher(monkeypatch, tmp_path):
    pytest.importorskip("diffusers")
    one = player(monkeypatch, klein_tiny(), (3, 32, 32), PROMPTS)
    ours, theirs = one("two cats", 2, 3)
    assert (ours.evaluations, theirs.evaluations, theirs.name) == (1, 4, "teacher, 4 steps")
    one.teacher.steps = 1  # of one step, an untrained student is its teacher, from the same noise
    single = one("two cats", 2, 3)[1]
    far = [[np.abs(pixels(a) - pixels(b)).max() for a, b in zip(ours.pictures, other, strict=True)]
           for other in (single.pictures, theirs.pictures)]  # fmt: skip
    assert max(far[0]) <= 1 and min(far[1]) > 1
    with served(one) as server:
        assert '<option value="&lt;b&gt;&amp;">' in server.page()
        seen = looked_at(server, monkeypatch, tmp_path)
    assert seen["good"] == seen["all"] == 32 and len(seen["said"]) == 2
