"""A generator inside a page draws what PyTorch draws, from noise that is normal; what a page cannot do is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import needs_browser, opened, titled
from scipy import stats
from test_report import fake_result, fake_run
from torch import nn

from irdm.browser import FILE, MOST, Unwritable, program_of, read_program, write_program
from irdm.conditions import ClassSpec, NoSpec, PromptSpec, to_texts
from irdm.data import WorldConfig
from irdm.evaluation import write_result
from irdm.files import read_tensors, write_tensors
from irdm.generators import ConvConfig, Generator, KleinConfig, MLPConfig, ReLUMLPConfig
from irdm.report import write_report

SCRIPT = Path(__file__).parents[1] / "irdm" / "report" / "draw.js"
NAMES = ClassSpec(names=("</script><b>", "shoe", "hat"))
KINDS = {
    "mlp": (MLPConfig(width=64), (1, 8, 8), NAMES),
    "conv": (ConvConfig(), (1, 28, 28), NAMES),
    "odd": (ConvConfig(depth=1, coarsest=4, style_rate=0.25), (3, 21, 34), NoSpec()),
}


def strong(kind):
    """A generator of pictures from black to white: fresh ones are nearly grey."""
    config, shape, spec = KINDS[kind]
    generator = config.build(shape, spec).eval()
    for name, layer in generator.named_children():
        if name in ("to_pixels", "to_picture", "to_detail"):
            layer.weight.data *= 8
    return generator, spec


def worst(page, folder):
    """How many grey levels the page finds itself from PyTorch."""
    text = page.read_text().replace(
        "</body>",
        '<script>addEventListener("load", () => setTimeout(() => { document.title = '
        'document.querySelector("#draw").dataset.worst; }, 1000))</script></body>',
    )
    (folder / "worst.html").write_text(text)
    return int(titled((folder / "worst.html").as_uri(), folder))


@needs_browser
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_draws_what_pytorch_draws(tmp_path, kind):
    generator, spec = strong(kind)
    write_result(tmp_path / "result.json", fake_result(verdict=None, ladder=None))
    write_program(tmp_path / FILE, generator, spec)
    assert np.ptp(read_program(tmp_path / FILE).tensors["check.pictures"].numpy()) > 150
    page = write_report(tmp_path)
    assert worst(page, tmp_path) <= 1
    assert kind != "conv" or "draw" in opened(page, tmp_path)


class Blocks(Generator):
    """What transformers and decoders of latents are made of."""

    def __init__(self):
        super().__init__()
        self.noise_shape = (8, 4, 4)
        self.maps, self.group = nn.Linear(8, 24), nn.GroupNorm(2, 8)
        for parameter in (self.group.weight, self.group.bias):
            nn.init.normal_(parameter)

    def forward(self, noise, captions=None):
        tokens = nn.functional.layer_norm(noise.flatten(2).mT, (8,))
        q, k, v = self.maps(tokens).unflatten(-1, (3, 2, 4)).unbind(2)
        q = q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6)
        even, odd = k.reshape(-1, 16, 2, 2, 2).unbind(-1)
        turned = torch.stack([-odd, even], dim=-1).flatten(3)
        q, k, v = (part.permute(0, 2, 1, 3) for part in (q, turned, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        both = torch.cat([mixed, tokens - mixed / (2 * noise.new_ones(1))], dim=1)[:, -24:24]
        maps = self.group(both.mT.reshape(-1, 8, 4, 4))
        return (nn.functional.pixel_shuffle(maps, 2) * 0.2 + 0.5).clamp(0, 1)[:, :1]


@needs_browser
def test_the_page_draws_what_transformers_and_decoders_do(tmp_path):
    write_result(tmp_path / "result.json", fake_result(verdict=None, ladder=None))
    torch.manual_seed(0)
    write_program(tmp_path / FILE, Blocks().eval(), NoSpec())
    assert np.ptp(read_program(tmp_path / FILE).tensors["check.pictures"].numpy()) > 150
    assert worst(write_report(tmp_path), tmp_path) <= 1


@needs_browser
def test_the_page_draws_captions_of_the_world(tmp_path):
    write_result(tmp_path / "result.json", fake_result(verdict=None, ladder=None))
    spec = WorldConfig(rows=60).build().train.conditions.spec
    generator = KleinConfig(model=Path("world"), length=12).build((3, 16, 16), spec).eval().requires_grad_(False)
    write_program(tmp_path / FILE, generator, spec)
    page = write_report(tmp_path)
    assert worst(page, tmp_path) <= 1 and page.stat().st_size < 5e6
    assert "a circle left of a square" in page.read_text()


@needs_browser
def test_the_page_sees_a_wrong_picture(tmp_path):
    generator, spec = strong("mlp")
    run = fake_run(tmp_path / "run", steps=3)
    write_program(run / FILE, generator, spec)
    tensors, notes = read_tensors(run / FILE, "")
    tensors["check.pictures"] = tensors["check.pictures"].clone()
    old = int(tensors["check.pictures"][2, 0, 3, 3])
    tensors["check.pictures"][2, 0, 3, 3] = old - 100 if old > 127 else old + 100
    write_tensors(run / FILE, tensors, notes)
    assert abs(worst(write_report(run), tmp_path) - 100) <= 1


@needs_browser
def test_noise_of_the_page_is_normal(tmp_path):
    drawn = "[[0, 0], [0, 1], [1, 0], [4294967295, 9]].map(([seed, picture]) => [...normal(20001, seed, picture)])"
    script = f"{SCRIPT.read_text()}\ndocument.title = JSON.stringify({drawn});"
    (tmp_path / "noise.html").write_text(f"<!doctype html><title></title><script>{script}</script>")
    noise = np.array(json.loads(titled((tmp_path / "noise.html").as_uri(), tmp_path)))
    assert noise.shape == (4, 20001)
    for row in noise:
        assert stats.kstest(row, "norm").pvalue > 1e-4
        assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < 0.03
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.03
    assert stats.kstest((noise**2).sum(0), "chi2", (4,)).pvalue > 1e-4


class Odd(Generator):
    """Draws one picture by any function of the noise."""

    def __init__(self, function):
        super().__init__()
        self.noise_shape, self.function, self.scale = (4,), function, nn.Parameter(torch.ones(4))

    def forward(self, noise, captions=None):
        return self.function(noise * self.scale).view(-1, 1, 2, 2)


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        (ReLUMLPConfig().build((1, 2, 2), NoSpec()), "uses relu"),
        (Odd(lambda x: x.clamp(0, 2)), "uses clamp"),
        (Odd(lambda x: x / x.sigmoid()), "uses div"),
        (Odd(lambda x: x.sigmoid_()), "uses sigmoid_"),
        (Odd(lambda x: torch.nn.functional.softmax(x, 1)), "uses _softmax"),
        (Odd(lambda x: torch.ones(1, 4)), "reads its noise by"),
        (MLPConfig(width=1300).build((1, 8, 8), NoSpec()), f"a page holds {MOST:,} at most"),
    ],
)
def test_what_a_page_cannot_draw_is_refused(tmp_path, generator, said):
    (tmp_path / FILE).write_text("that of an earlier generator")
    with pytest.raises(Unwritable, match=said):
        write_program(tmp_path / FILE, generator.eval(), NoSpec())
    assert not (tmp_path / FILE).exists()


class Reader(Odd):
    """Reads a text, by something that is no operation on tensors."""

    def forward(self, noise, captions):
        return super().forward(noise + torch.tensor([[len(text)] for text in to_texts(captions)]))


class Written(Reader):
    """Says how it is written for a page."""

    def written(self, conditions):
        lengths = torch.tensor([[float(len(text))] for text in conditions.captions()])
        return lambda noise, lengths: Odd.forward(self, noise + lengths), {"lengths": lengths}


def test_a_kind_says_how_it_is_written_for_a_page():
    spec = PromptSpec(embedder="none", width=1, examples=("a", "a cat"))
    with pytest.raises(Unwritable, match="captions"):
        program_of(Reader(torch.sigmoid), spec)
    program = program_of(Written(torch.sigmoid), spec)
    assert program.captions == ["a", "a cat"] and program.asked_by == "caption"
    assert program.tensors["choice.lengths"].flatten().tolist() == [1, 5]


def test_a_page_that_would_be_too_large_leaves_the_generator_out(tmp_path, monkeypatch):
    run = fake_run(tmp_path / "run", steps=3)
    write_program(run / FILE, *strong("conv"))
    assert 'id="draw"' in write_report(run).read_text()
    monkeypatch.setattr("irdm.report.page.LARGEST", 1_000_000)
    text = write_report(run).read_text()
    assert 'id="draw"' not in text and "With the generator in it this page would have " in text


@pytest.mark.parametrize("change", ["no tensors", "notes", "step", "type"])
def test_a_broken_file_is_named(tmp_path, change):
    run = fake_run(tmp_path / "run", steps=3)
    write_program(run / FILE, *strong("mlp"))
    tensors, notes = read_tensors(run / FILE, "")
    if change == "no tensors":
        (run / FILE).write_bytes(b"no")
    elif change == "type":
        write_tensors(run / FILE, {**tensors, "w0": tensors["w0"].double()}, notes)
    else:
        altered = notes["steps"].replace('"linear"', '"eval"') if change == "step" else "{"
        write_tensors(run / FILE, tensors, {**notes, "steps": altered})
    with pytest.raises(ValueError, match=f"{FILE}.*irdm eval"):
        write_report(run)
