"""The card of exported weights: what they are, how to draw their images again, how they were made, what they score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from irdm import __version__
from irdm.evaluation.result import RESULT, read_result
from irdm.files import write_atomic
from irdm.generators import Klein, KleinConfig
from irdm.geneval import read_scored
from irdm.geneval.summary import RESULT as GENEVAL
from irdm.run import LoadedRun
from irdm.text.contexts import hash_file

HUB = {(5, 20, 24): "black-forest-labs/FLUX.2-klein-4B"}
"""The name of a published model by its blocks of both kinds and its heads; this one is under the Apache License 2.0."""


@dataclass(frozen=True)
class Drawing:
    """An image of a card: [3, h, w], of a prompt and a seed, and how far it is from what the run itself draws."""

    file: str
    prompt: str
    seed: int
    image: Tensor
    off: float


def write_card(
    path: Path,
    loaded: LoadedRun,
    to: str,
    file: str,
    dtype: str,
    base: str | None,
    whole: bool,
    drawings: Sequence[Drawing],
    sha256: str,
) -> None:
    """Write README.md of an export; its front matter is what the Hugging Face hub reads.

    Raises ValueError when a result of the run is damaged.
    """
    config, generator = loaded.config.generator, loaded.generator
    assert isinstance(config, KleinConfig) and isinstance(generator, Klein)
    sizes = generator.folder.transformer
    known = HUB.get((sizes["num_layers"], sizes["num_single_layers"], sizes["num_attention_heads"]))
    base = base or known or str(generator.folder.path)
    _, height, width = loaded.image_shape
    length, images = generator.texts.length, loaded.config.rollout * loaded.step
    kind = "all weights" if config.lora_rank is None else f"adapters (LoRA) of rank {config.lora_rank}"
    precision = config.precision if to.startswith("lora") else dtype  # adapters are float32 on whatever is below
    front = ["---", *([f"base_model: {known}", "license: apache-2.0"] if known else [])]
    front += ["pipeline_tag: text-to-image", "library_name: diffusers", "tags: [one-step, flux2, irdm]", "---"]
    lines = [
        *front,
        "",
        "# FLUX.2 [klein] in one step",
        "",
        f"One evaluation of the transformer draws an image of {width}x{height}. Trained from the four-step model by "
        f"Representation Distribution Matching (arXiv 2607.02375) with irdm {__version__}: {kind}, {loaded.step} steps "
        f"of {loaded.config.rollout} images.",
        "",
        "## Use",
        "",
        "```python",
        snippet(to, file, precision, base, whole, (height, width), length, drawings[0], generator.folder.base),
        "```",
        "",
        f"All of these arguments matter. The pipeline's own defaults are 50 steps, 1024x1024 and {512} tokens of text, "
        f"and nothing in this folder can change them. The model was trained with text of **{length} tokens**, padding "
        "included: at another length it sees something else. Programs that pad further, as ComfyUI does to 512, draw "
        "other images. The prompt is given by name: the first argument without one is an image.",
        "",
        "On a CPU that draws these files to the bit. On other devices rounding differs.",
        "",
        "| prompt | seed | file |",
        "|---|---|---|",
        *(f"| {_cell(d.prompt)} | {d.seed} | ![]({d.file}) |" for d in drawings),
        "",
        *_rounding(drawings, to),
        "## Training",
        "",
        f"- {images:,} images; text of {length} tokens; {width}x{height}; seed {loaded.config.seed}",
        f"- averaged weights of step {loaded.step}, sha256 `{loaded.weights}`; this file: `{sha256}`, {dtype}",
        *(f"- {part} that it started from: sha256 `{found}`" for part, found in generator.folder.hashes.items()),
        *_overlap(loaded.recorded.get("overlap", {})),
        "",
        "What differs from irdm's defaults:",
        "",
        "```json",
        json.dumps(_without_folders(loaded.config.identity()), indent=1),
        "```",
        "",
        "## Results",
        "",
        *_results(loaded.path),
    ]
    write_atomic(path, "\n".join(lines) + "\n")


def snippet(
    to: str, file: str, dtype: str, base: str, whole: bool, size: tuple[int, int], length: int, drawing: Drawing,
    student: Path | None = None,
) -> str:  # fmt: skip
    """Python that draws an image of the card again, run in the folder of the export.

    `student`: the file, to be brought there, whose transformer is below adapters.
    """
    kind, (height, width) = f"torch.{dtype}", size
    pipeline, parts = json.dumps(base), ["Flux2KleinPipeline"]
    load, after = "", ""
    if to == "diffusers" and whole:
        pipeline = '"."'
    elif to == "diffusers":
        load = (
            f'transformer = Flux2Transformer2DModel.from_pretrained(".", subfolder="transformer", torch_dtype={kind})\n'
        )
    elif to == "bfl":
        load = _single_file(file, pipeline, kind)
    else:
        if student is not None:
            load = f"# {student.name}: what the adapters were trained on, sha256 {hash_file(student)}\n"
            load += _single_file(student.name, pipeline, kind)
        after = f'pipe.load_lora_weights(".", weight_name="{file}")\n'
    if load:
        parts.append("Flux2Transformer2DModel")
    given = "transformer=transformer, " if load else ""
    return (
        f"import torch\nfrom diffusers import {', '.join(parts)}\n\n{load}"
        f"pipe = Flux2KleinPipeline.from_pretrained({pipeline}, {given}torch_dtype={kind})\n{after}"
        "image = pipe(\n"
        f"    prompt={json.dumps(drawing.prompt, ensure_ascii=False)},\n"
        f"    num_inference_steps=1,\n    height={height},\n    width={width},\n    max_sequence_length={length},\n"
        "    guidance_scale=1.0,\n"
        f"    generator=torch.Generator().manual_seed({drawing.seed}),  # on the CPU: the same noise everywhere\n"
        ').images[0]\nimage.save("image.png")'
    )


def _single_file(file: str, pipeline: str, kind: str) -> str:
    return (
        "transformer = Flux2Transformer2DModel.from_single_file(\n"
        f'    "{file}", config={pipeline}, subfolder="transformer", torch_dtype={kind}\n)\n'
    )


def _rounding(drawings: Sequence[Drawing], to: str) -> list[str]:
    """What the export itself changed."""
    off = max(drawing.off for drawing in drawings)
    if to == "lora-bfl":
        return ["The adapters are the run's own, to the bit; q, k and v are one here, which rounds otherwise.", ""]
    if off == 0:
        return ["They are the run's own images, to the bit.", ""]
    return [f"The run's own images differ from them by at most {off:.2g} of the range of a pixel: rounding.", ""]


def _overlap(found: dict[str, Any]) -> list[str]:
    """How much of an evaluation was in the data."""
    if not found:
        return ["- whether prompts of an evaluation were among the captions was not looked at"]
    return [
        f"- {said['found']} of the {said['prompts']} prompts of {Path(file).name} are among the captions: "
        f"{said['share']:.1%} of the training rows"
        for file, said in found.items()
    ]


def _results(run: Path) -> list[str]:
    """The scores that lie in the run's directory: its own, and GenEval's by each scorer."""
    lines = []
    if (run / RESULT).is_file():
        result = read_result(run / RESULT)
        lines += [*([result.verdict.sentence, ""] if result.verdict else [])]
        lines += ["| score | held out | held in | real images |", "|---|---|---|---|"]
        for score in result.scores.values():
            first = score.held_out or score.mean or score.held_in
            if first is not None:
                numbers = (score.held_out or score.mean, score.held_in)
                cells = [f"{estimate.value:.4g}" if estimate else "" for estimate in numbers]
                control = "" if first.control is None else f"{first.control:.4g}"
                lines.append(f"| {score.label} | {' | '.join(cells)} | {control} |")
        lines.append("")
    for file in sorted((run / "geneval").glob(f"scored-*/{GENEVAL}")):
        scored = read_scored(file)
        low, high = scored.overall.ci95
        rates = ", ".join(f"{tag} {rate.value:.3f}" for tag, rate in scored.rates.items())
        pick = "not measured" if scored.pickscore is None else f"{scored.pickscore.value:.2f}"
        lines += [
            f"{scored.metric}: {scored.overall.value:.3f} (95% {low:.3f} to {high:.3f}; {rates}); PickScore of the "
            f"same images: {pick}.",
            "",
            f"Scorer: `{json.dumps(scored.scorer, sort_keys=True)}`",
            "",
        ]
    return lines or ["Not judged."]


def _without_folders(value: Any) -> Any:
    """The names of files without where they lie on some machine."""
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
