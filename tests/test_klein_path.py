"""All of text to image on a tiny klein, by the commands that a user types: only the folder of the model is another.

prompts -> teacher renders -> contexts -> reference -> training (LoRA, and all weights) -> samples -> GenEval's folder
-> export -> the official pipeline loads it and draws our image.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from irdm.cli import main  # noqa: E402
from irdm.evaluation import read_result  # noqa: E402
from irdm.files import read_tensors  # noqa: E402
from irdm.generators.klein_teacher import load_pipeline  # noqa: E402
from irdm.generators.klein_tiny import cached_tiny  # noqa: E402
from irdm.reference import open_reference  # noqa: E402
from irdm.run import load_run  # noqa: E402

TEXTS = [
    f"a {colour} {thing}" for colour in ("red", "blue", "green", "black") for thing in ("cube", "cat", "tree", "car")
]
SMALL = ["--rollout", "32", "--steps", "2", "--battery.steps", "2", "--checkpoint-every", "1", "--check-every", "2"]
SMALL += ["--data.embedder", "ngrams", "--micro-batch", "16", "--distance.landmarks", "32"]
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
    """Everything up to the two runs."""
    folder = tmp_path_factory.mktemp("klein")
    (folder / "prompts.txt").write_text("\n".join(TEXTS))
    asked = [json.dumps({"tag": tag, "include": include, "prompt": text}) for tag, include, text in GENEVAL]
    (folder / "geneval.jsonl").write_text("\n".join(asked) + "\n")
    real = folder / "renders"
    drawn = [
        "--model",
        "tiny",
        "--size",
        "32",
        "--precision",
        "float32",
        "--micro-batch",
        "32",
        "--seeds",
        "10",
        "--length",
        "96",
    ]
    done("render", folder / "prompts.txt", "--out", real, *drawn)
    data = ["klein-tiny", "--data.path", real, "--data.evaluation-prompts", folder / "geneval.jsonl", *SMALL]
    done("contexts", *data, "--out", folder / "contexts")
    build = [
        "--preset",
        "klein-tiny",
        *data[1:5],
        "--data.embedder",
        "ngrams",
        "--rollout",
        "32",
        "--battery.steps",
        "2",
    ]
    build += ["--distance.landmarks", "32", "--joint", "true"]
    done("reference", "build", "tiny", *build, "--out", folder / "reference")
    given = [*data, "--generator.contexts", folder / "contexts", "--reference", folder / "reference"]
    done("train", *given, "--generator.lora-rank", "4", "--out", folder / "lora")
    done("train", *data, "--out", folder / "full")
    return folder


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


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_run_is_judged_with_its_texts(path, name):
    result = read_result(path / name / "result.json")
    assert {"joint_ratio", "sw_ratio"} <= set(result.scores) and "label_accuracy" not in result.scores
    page = (path / name / "report.html").read_text()
    assert sum(text in page for text in TEXTS) > 5
    lines = [json.loads(line) for line in (path / name / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and lines[-1]["skipped"] == 0
    (saved,) = (path / name / "checkpoints").glob("step-*2/ema.safetensors")
    kept = read_tensors(saved, "")[0]
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
    run = load_run(path / "full")
    done("export", path / "full", "--to", "diffusers", "--whole", "--out", path / "exported")
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


def test_genevals_folder_of_a_run(path):
    done(
        "geneval",
        "render",
        path / "lora",
        "--prompts",
        path / "geneval.jsonl",
        "--samples",
        "2",
        "--out",
        path / "images",
    )
    assert [file.name for file in sorted((path / "images/00000/samples").iterdir())] == ["0000.png", "0001.png"]
    assert Image.open(path / "images/00000/samples/0000.png").size == (32, 32)
