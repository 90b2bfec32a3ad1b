"""`irdm export`: the averaged weights of a run as diffusers, Black Forest Labs' code and ComfyUI read them.

    diffusers   transformer/ of a diffusers folder; with `whole` all of it, which a pipeline opens at once
    bfl         model.safetensors under Black Forest Labs' names, without a prefix
    lora        pytorch_lora_weights.safetensors, which `pipeline.load_lora_weights` opens
    lora-bfl    the same adapters under the names of ComfyUI

Each folder holds a card, README.md, and images that its snippet draws again. They come from the files as they were
written, read back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from irdm.conditions import to_bytes
from irdm.export.card import Drawing, write_card
from irdm.files import replaced_folder, visible, write_tensors
from irdm.generators import Klein, KleinConfig
from irdm.generators.klein_folder import PARTS
from irdm.generators.klein_lora import lora_file, lora_file_bfl, merged
from irdm.generators.klein_names import to_bfl
from irdm.generators.klein_weights import NOTES
from irdm.images import image_grid, save_png
from irdm.progress import Say, silent
from irdm.run import LoadedRun, load_run
from irdm.text.contexts import DTYPES

FORMATS: dict[str, tuple[str, bool]] = {
    "diffusers": ("transformer/diffusion_pytorch_model.safetensors", False),
    "bfl": ("model.safetensors", False),
    "lora": ("pytorch_lora_weights.safetensors", True),
    "lora-bfl": ("lora_bfl.safetensors", True),
}
"""The file of each, and whether it holds adapters."""
SHOWN = 2  # images on a card


def export_run(
    run: Path,
    to: str,
    out: Path | None = None,
    *,
    whole: bool = False,
    dtype: str | None = None,
    base: str | None = None,
    prompts: Sequence[str] = (),
    device: str = "cpu",
    progress: Say = silent,
) -> Path:
    """Write a run's averaged weights in a format, and return the folder: `out`, or RUN/export/<to>.

    Args:
        run: the directory of a run of klein.
        to: one of FORMATS; adapters are merged into the weights where the format has none.
        out: a folder that is not there yet, or empty.
        whole: with all other parts of the model that was trained, for `diffusers`.
        dtype: float32 or bfloat16; None is that of the run, and float32 for adapters.
        base: what the snippet loads the other parts from; None is the name on the hub, or the run's own folder.
        prompts: for the images of the card; none takes two of the run's examples.
        device: where these are drawn.
        progress: receives a line of text now and then.

    Raises:
        ValueError: for a run of another generator, adapters of a run that has none, `whole` in another format, or a
            folder that holds something.
        OSError: when it cannot be written.
    """
    name, adapters = FORMATS[to]
    if whole and to != "diffusers":
        raise ValueError(f"--whole is the whole folder of a pipeline, and --to is {to}; use --to diffusers.")
    out = out or run / "export" / to
    if out.exists() and (not out.is_dir() or visible(out)):
        raise ValueError(f"{out} is not an empty folder; give another --out, or delete it.")
    loaded = load_run(run, device)
    config, generator = loaded.config.generator, loaded.generator
    if not isinstance(config, KleinConfig) or not isinstance(generator, Klein):
        raise ValueError(f"{run} has trained a generator '{config.kind}'; `irdm export` writes klein.")
    if generator.folder.tells_pictures:
        raise ValueError(
            f"{run} has trained {generator.folder.path}, whose transformer tells pictures where other programs expect "
            "velocities: they cannot draw it. `irdm sample` and `irdm play` do."
        )
    if adapters and config.base and config.base.suffix != ".safetensors":
        raise ValueError(
            f"The adapters of {run} stand on {config.base}, and no other program reads a {config.base.suffix} below "
            "adapters. Use --to diffusers or --to bfl, which merge them, or train on the same weights as .safetensors."
        )
    if adapters and config.lora_rank is None:
        raise ValueError(f"{run} has trained all weights, and has no adapters: use --to diffusers or --to bfl.")
    texts = tuple(prompts) or tuple(loaded.spec.each(1, SHOWN).captions())
    if not texts:
        raise ValueError(f"{run} keeps no captions to draw for the card; give some with --prompts.")
    dtype = dtype or ("float32" if adapters else config.precision)

    with replaced_folder(out) as folder:
        write, notes = WRITERS[to](generator)
        state = {key: tensor.to(DTYPES[dtype]) for key, tensor in write.items()}
        notes |= {NOTES: json.dumps(provenance(loaded, generator), sort_keys=True)}
        entry = write_tensors(folder / name, state, notes)
        del write, state
        if to == "diffusers":
            parts = [part for part in PARTS if part != "transformer"] if whole else []
            shutil.copy(generator.folder.path / "transformer" / "config.json", folder / "transformer")
            for part in parts:
                shutil.copytree(generator.folder.path / part, folder / part)
            if whole:
                shutil.copy(generator.folder.path / "model_index.json", folder)
        progress(f"{to}: {entry['bytes'] / 2**20:,.0f} MiB of weights")

        written = reopened(config, loaded, folder / name, dtype, to)
        drawings = draw(loaded, generator, written, texts, device)
        for drawing in drawings:
            save_png(folder / drawing.file, image_grid(drawing.image[None], columns=1, scale=1))
        write_card(folder / "README.md", loaded, to, name, dtype, base, whole, drawings, entry["sha256"])
    return out


def provenance(loaded: LoadedRun, generator: Klein) -> dict[str, str]:
    """Where exported weights are from: hashes of the run's weights, and of the transformer that they changed."""
    return {
        "base": generator.folder.hashes["transformer"],
        "run": loaded.weights,
        "step": str(loaded.step),
        "length": str(generator.texts.length),
    }


def reopened(config: KleinConfig, loaded: LoadedRun, file: Path, dtype: str, to: str) -> Klein:
    """The generator that a file makes of the published model."""
    update = {"weights": file, "weights_sha256": None, "compile": False}  # as the pipeline will draw with it
    if not to.startswith("lora"):
        update |= {"lora_rank": None, "base": None, "precision": dtype}
    return config.model_copy(update=update).build(loaded.image_shape, loaded.spec)


@torch.no_grad()
def draw(loaded: LoadedRun, trained: Klein, written: Klein, texts: Sequence[str], device: str) -> list[Drawing]:
    """An image a text, from noise that its number seeds, by the written weights, and how far the run's own is."""
    drawings = []
    for seed, text in enumerate(texts):
        noise = torch.randn(1, *trained.noise_shape, generator=torch.Generator().manual_seed(seed)).to(device)
        images = [
            generator.to(device).eval()(noise, to_bytes([text]).to(device)).cpu()[0] for generator in (trained, written)
        ]
        drawings.append(
            Drawing(f"image-{seed}.png", text, seed, images[-1], (images[-1] - images[0]).abs().max().item())
        )
    return drawings


def _bfl(generator: Klein) -> tuple[dict[str, Tensor], dict[str, str]]:
    return to_bfl(merged(generator.transformer)), {"format": "pt"}


def _diffusers(generator: Klein) -> tuple[dict[str, Tensor], dict[str, str]]:
    return merged(generator.transformer), {"format": "pt"}


def _lora(generator: Klein) -> tuple[dict[str, Tensor], dict[str, str]]:
    return lora_file(generator.transformer)


def _lora_bfl(generator: Klein) -> tuple[dict[str, Tensor], dict[str, str]]:
    return lora_file_bfl(generator.transformer)


WRITERS: Mapping[str, Callable[[Klein], tuple[dict[str, Tensor], dict[str, str]]]] = {
    "diffusers": _diffusers,
    "bfl": _bfl,
    "lora": _lora,
    "lora-bfl": _lora_bfl,
}
