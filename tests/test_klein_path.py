"""All of text to image on a tiny klein, by the commands that a user types: only the folder of the model is another.

prompts -> teacher renders -> contexts -> reference -> training (all weights, adapters, and both divided over two
processes) -> samples -> GenEval's folder -> export -> the official pipeline loads it and draws our image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import sharded
import torch
from PIL import Image
from tiny_klein import medium

pytest.importorskip("diffusers")

from irdm.checkpoint import load_checkpoint  # noqa: E402
from irdm.cli import main  # noqa: E402
from irdm.conditions import to_bytes  # noqa: E402
from irdm.distributed import Ranks  # noqa: E402
from irdm.evaluation import read_result  # noqa: E402
from irdm.generators.klein_teacher import load_pipeline  # noqa: E402
from irdm.generators.klein_tiny import cached_tiny  # noqa: E402
from irdm.geneval import read_prompts, rendered  # noqa: E402
from irdm.reference import open_reference  # noqa: E402
from irdm.run import load_run  # noqa: E402

TEXTS = [
    f"a {colour} {thing}" for colour in ("red", "blue", "green", "black") for thing in ("cube", "cat", "tree", "car")
]
SMALL = ["--rollout", "32", "--battery.steps", "2", "--checkpoint-every", "1", "--check-every", "2"]
SMALL += ["--data.embedder", "ngrams", "--micro-batch", "8", "--distance.landmarks", "32", "--ema-decay", "0.9"]
SMALL += ["--log-every", "1"]
GENEVAL = [
    ("single_object", [{"class": "cat", "count": 1}], "a red cat"),
    ("two_object", [{"class": "cat", "count": 1}, {"class": "car", "count": 1}], "a cat and a car"),
    ("counting", [{"class": "cat", "count": 2}], "two cats"),
    ("colors", [{"class": "car", "count": 1, "color": "blue"}], "a blue car"),
    ("position", [{"class": "cat", "count": 1}, {"class": "car", "count": 1, "position": ["left of", 0]}], "car, cat"),
    ("color_attr", [{"class": "cat", "count": 1, "color": "red"}, {"class": "car", "count": 1, "color": "blue"}], "x"),
]


def done(*words) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Everything up to the runs: of one process, and of two."""
    folder = tmp_path_factory.mktemp("klein")
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
    asked = [json.dumps({"tag": tag, "include": include, "prompt": text}) for tag, include, text in GENEVAL]
    (folder / "geneval.jsonl").write_text("\n".join(asked) + "\n")
    drawn = ["--model", "tiny", "--size", "32", "--length", "96", "--precision", "float32", "--seeds", "10"]
    done("render", folder / "prompts.txt", "--out", folder / "renders", *drawn, "--micro-batch", "32")
    places = ["--data.path", folder / "renders", "--data.evaluation-prompts", folder / "geneval.jsonl"]
    some = ["klein-tiny", *places, *SMALL]
    data = [*some, "--steps", "2"]
    done("contexts", *data, "--out", folder / "contexts")
    build = ["--battery.steps", "2", "--data.embedder", "ngrams", "--rollout", "32", "--distance.landmarks", "32"]
    build += ["--joint", "true", "--out", folder / "reference"]
    done("reference", "build", "tiny", "--preset", "klein-tiny", *places, *build)
    given = [*data, "--generator.contexts", folder / "contexts", "--reference", folder / "reference"]
    lora, quick = [*given, "--generator.lora-rank", "4"], [*some, "--evaluation", "none"]
    done("train", *lora, "--out", folder / "lora")
    done("train", *data, "--out", folder / "full")
    done("train", *quick, "--steps", "1", "--out", folder / "resumed")
    medium(folder / "medium")
    runs = {
        "two": data,
        "two-lora": [*lora, "--evaluation", "none"],
        "resumed": [*quick, "--steps", "2"],
        "odd": [*quick, "--steps", "3"],
    }
    words = {n: ["train", *map(str, some), "--shard", "true", "--out", str(folder / n)] for n, some in runs.items()}
    (folder / sharded.RUNS).write_text(json.dumps(words))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*torchrun, sharded.__file__, folder], timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, "\n".join(line for line in found.stderr.splitlines() if "[rank" in line)
    return folder


def state(run, step=2, group="generator"):
    return load_checkpoint(run / "checkpoints" / f"step-{step:08d}").tensors[group]


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def gap(one, two):
    """The largest difference of two states, as a share of the largest number."""
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max() for name in one) / max(t.abs().max() for t in one.values())


def test_prompts_become_a_reference_of_captioned_images(path):
    rows = [json.loads(line) for line in (path / "renders/captions.jsonl").read_text().splitlines()]
    assert len(rows) == 160 and {row["caption"] for row in rows} == {*TEXTS}
    reference = open_reference(path / "reference")
    assert reference.spec.free_text and reference.plan["training"]["joint"]
    found = next(iter(reference.manifest["overlap"].values()))
    assert found == {"prompts": 6, "found": 2, "share": 0.125}, "a red cat and a blue car are two of sixteen texts"
    tau = reference.real().train.conditions.tau
    assert tau is not None and tau.shape == (len(reference.real().train), 256)
    assert reference.floors and all(floor is not None for floor in reference.floors.values())


@pytest.mark.parametrize("name", ["lora", "full", "two"])
def test_a_run_is_judged_with_its_texts(path, name):
    result = read_result(path / name / "result.json")
    assert {"joint_ratio", "sw_ratio"} <= set(result.scores) and "label_accuracy" not in result.scores
    page = (path / name / "report.html").read_text()
    assert sum(text in page for text in TEXTS) > 5
    lines = lines_of(path / name)
    assert lines[-1]["step"] == 2 and lines[-1]["skipped"] == 0 and lines[-1]["check"]
    assert (path / name / "samples/step-00000002.png").exists()
    kept = state(path / name, group="ema")
    assert kept and all("lora_" in key for key in kept) == (name == "lora"), "adapters alone, or all weights"


def test_samples_of_any_text(path):
    done(
        "sample",
        path / "full",
        "--prompt",
        "a purple dog",
        "a red cube",
        "--count",
        "4",
        "--format",
        "files",
        "--out",
        path / "drawn",
    )
    rows = [json.loads(line) for line in (path / "drawn/captions.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == ["a purple dog", "a red cube"] * 2
    done("sample", path / "full", "--judged", "--format", "npz", "--out", path / "judged.npz")
    assert np.load(path / "judged.npz")["captions"].dtype == np.uint8
    assert main(["sample", str(path / "full"), "--classes", "a", "--prompt", "b"]) == 2
    assert main(["sample", str(path / "full"), "--prompt", "x" * 200]) == 1, "more than the generator reads"


def test_the_official_pipeline_loads_the_export_and_draws_our_image(path):
    run = load_run(path / "two")  # which two processes trained
    done("export", path / "two", "--to", "diffusers", "--whole", "--out", path / "exported")
    pipeline = load_pipeline(path / "exported", torch.float32)
    conditions = run.spec.named(["a red cube"], 1)
    seeded = torch.Generator().manual_seed(5)
    noise = torch.randn(1, *run.generator.noise_shape, generator=seeded)
    with torch.no_grad():
        ours = run.generator(noise, **conditions.inputs())
    said = {"prompt": "a red cube", "height": 32, "width": 32, "max_sequence_length": 96, "guidance_scale": 1.0}
    generator = torch.Generator().manual_seed(5)
    theirs = pipeline(**said, num_inference_steps=1, generator=generator, output_type="pt").images
    assert torch.equal(theirs.float(), ours)
    assert not torch.equal(
        load_pipeline(cached_tiny(), torch.float32)(
            **said, num_inference_steps=1, generator=torch.Generator().manual_seed(5), output_type="pt"
        ).images.float(),
        ours,
    ), "training moved it"


def test_genevals_prompts_are_drawn_from_a_run_and_from_its_teacher(path, capsys):
    """Student and teacher from one noise: sample 1 of prompt 2 is the generator's own image of that prompt and seed."""
    prompts, run = path / "geneval.jsonl", path / "full"
    assert main(["geneval", "render", str(run), "--prompts", str(prompts), "--samples", "2"]) == 0
    assert "12 images drawn" in capsys.readouterr().out
    loaded, noise = load_run(run), torch.randn(32, 4, 4, generator=torch.Generator().manual_seed(46_000_201))
    with torch.no_grad():
        image = loaded.generator(noise[None], to_bytes([GENEVAL[2][2]]))[0]
    found = np.array(Image.open(run / "geneval/00002/samples/0001.png")).transpose(2, 0, 1)
    assert np.abs(found - image.numpy() * 255).max() <= 0.51
    words = ["geneval", "render", str(cached_tiny()), "--prompts", str(prompts), "--samples", "2"]
    sizes = ["--size", "32", "--length", "96", "--precision", "float32"]
    assert main([*words, *sizes]) == 2 and "--out is missing" in capsys.readouterr().err
    assert main([*words, "--out", str(path / "teacher")]) == 1 and "tokens" in capsys.readouterr().err
    assert main([*words, *sizes, "--out", str(path / "teacher")]) == 0
    assert len(rendered(path / "teacher", read_prompts(prompts))) == 12
    assert main(["geneval", "render", str(run), "--prompts", str(prompts), "--steps", "4"]) == 2
    assert "--steps is of the teacher" in capsys.readouterr().err


# Two processes.


@pytest.mark.parametrize("case", sharded.CASES)
def test_gradients_norms_and_averages_are_those_of_one_process(path, case):
    """Sums and not averages, also after a forward without gradient; adapters on a frozen base; masters of bfloat16."""
    one, two = sharded.look(Ranks(), **sharded.CASES[case]), torch.load(path / "two.pt", weights_only=True)[case]
    assert two["kinds"] == ["DTensor"] and two["frozen"] == [], "all divided, and no gradient where nothing is trained"
    assert max(two["held"], two["sums"]) < 0.7 * one["held"], "each process holds its part, of the gradient too"
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)
    for what in ("gradients", "weights", "average", "applied"):
        assert gap(one[what], two[what]) < 1e-5, what
    assert gap(two["average"], two["applied"]) == 0


def test_masters_are_sent_in_the_precision_in_which_they_are_used(path):
    two = torch.load(path / "two.pt", weights_only=True)
    assert two["full"]["used"] == two["full"]["types"] == ["torch.float32"]
    assert two["bfloat16, checkpointing"]["used"] == ["torch.bfloat16"]
    assert two["bfloat16, checkpointing"]["types"] == ["torch.float32"], "weights and gradients"
    assert two["lora on bfloat16"]["used"] == ["torch.bfloat16", "torch.float32"], "the base, and adapters"


def test_a_whole_network_is_in_memory_once_a_machine(path):
    """The second process begins when the first holds no more than its part."""
    found = torch.load(path / "two.pt", weights_only=True)["placed"]
    whole = found["whole"]
    assert found["began"][0] < found["began"][1] and whole > 4e8
    assert max(found["most"]) < 1.4 * whole, "and a block, which is a quarter of it"
    assert max(found["now"]) < 0.75 * whole


def test_a_divided_run_is_that_of_one_process(path):
    for ours, theirs in zip(lines_of(path / "full"), lines_of(path / "two"), strict=True):
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
    for one, two in (("full", "two"), ("lora", "two-lora")):
        for group in ("generator", "ema"):
            assert gap(state(path / one, group=group), state(path / two, group=group)) < 1e-3, (two, group)
        assert state(path / one, group="training").keys() == state(path / two, group="training").keys()
    assert len(state(path / "two-lora")) == 60, "the adapters alone"
    names = {file.suffix for file in (path / "two" / "checkpoints").rglob("*") if file.is_file()}
    whole, half = ((path / run / "checkpoints/step-00000002" / "generator.safetensors") for run in ("full", "two"))
    halves = [half.parent / f"part-{rank}-of-2" / half.name for rank in (1, 2)]
    assert max(file.stat().st_size for file in halves) < 0.7 * whole.stat().st_size and not half.exists()
    assert names == {".safetensors", ".json"}, "nothing is a pickle"


def test_a_run_is_resumed_by_two_processes_and_by_one(path):
    run = path / "resumed"
    for group in ("generator", "ema"):
        assert gap(state(path / "full", group=group), state(run, group=group)) < 1e-3, group
    words = json.loads((path / sharded.RUNS).read_text())["resumed"]
    done(*words[: words.index("--steps")], "--steps", "3", "--out", run)
    assert gap(state(run, 2), state(run, 3)) > 0


def test_processes_skip_and_stop_together(path):
    """The gradient of one was not finite, one was told to end: both skipped, both stopped, and both went on."""
    lines = lines_of(path / "odd")
    assert [line["skipped"] for line in lines] == [1, 1, 1] and [line["step"] for line in lines] == [1, 2, 3]
    assert gap(state(path / "odd", 2), state(path / "odd", 3)) > 0
