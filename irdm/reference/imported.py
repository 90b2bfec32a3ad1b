"""Distances that were fitted elsewhere, read into a reference that training minimises.

The authors of RDM fit a joint kernel under each encoder and keep {Z, alpha, sigma, k_rr, beta}: landmarks of
[phi | beta tau] with their coefficients, the bandwidth, the mean kernel of the real pool, and the weight of the text.
That is all that training needs. What is not in it: floors, so that only uniform weights can be used, and real rows, so
that a run is judged by the images of its own data.

    REF/manifest.json            name, address, what each encoder's distance is
    REF/training/<encoder>/      a fitted distance, as in a reference that was built

Letters: m landmarks, d features of an encoder, c columns of tau, w = d + c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from irdm.distances import AnyDistance, Joint, NystromMMDConfig, is_joint
from irdm.distances.nystrom import NystromMMD
from irdm.encoders.panel import PANEL
from irdm.fields import nearest, shown
from irdm.files import (
    MANIFEST,
    hash_of,
    read_manifest,
    read_sealed,
    read_tensors,
    replaced_folder,
    sha256_of,
    unpickled,
    write_manifest,
)
from irdm.progress import Say, silent
from irdm.reference.fit import Reference
from irdm.reference.opened import FILE, write_fitted

KEYS = ("Z", "alpha", "sigma", "k_rr", "beta")
NAME = re.compile(r"(?P<encoder>.+?)(_joint)?(_M\d+)?")
MATTERS = ("kernel", "bandwidths", "repulsion")  # of a Nystrom MMD, when it is fitted already
AGAIN = "Import it again."


class ImportedReference:
    """Distances by encoder, without floors and without real images."""

    has_images = False

    def __init__(self, path: Path, device: str = "cpu"):
        """Raises ValueError when `path` holds no imported reference, or one that is damaged."""
        self.path, self.device = Path(path), device
        body = read_manifest(self.path / MANIFEST, AGAIN)
        self.name, self.address, self.plan = body["name"], body["address"], body["imported"]
        self.names: tuple[str, ...] = tuple(self.plan["encoders"])
        self.tau_width: int = self.plan["tau_width"]
        for name in self.names:
            read_sealed(self.path / "training" / name, AGAIN, content=False)

    def check(self, spec: Any) -> None:
        """Raises ValueError when the conditions of a run are embedded other than those of the reference."""
        if getattr(spec, "width", 0) != self.tau_width or spec.kind != "prompts":
            found = f"captions in {spec.width} columns" if spec.kind == "prompts" else "no captions"
            raise ValueError(
                f"The reference {self.path} matches images with text embeddings of {self.tau_width} columns, and the "
                f"data has {found}. Embed the captions as its authors did: 1152 columns are those of SigLIP2, "
                "--data.embedder siglip2."
            )

    def training(
        self,
        names: Sequence[str],
        distance_config: AnyDistance,
        *,
        joint: Joint,
        rollout: int,
        seed: int,
        progress: Say = silent,
    ) -> Reference:
        """The distances of the encoders named; their floors are not known.

        Raises ValueError for encoders that it lacks, and for another kernel than it was fitted with.
        """
        if missing := [name for name in names if name not in self.names]:
            raise ValueError(
                f"The reference {self.path} was imported without {', '.join(missing)}: it has {', '.join(self.names)}. "
                "Train these alone: --battery.held-in with their names."
            )
        ours, theirs = distance_config.model_dump(), NystromMMDConfig().model_dump()
        odd = [f"distance.{name} is {ours.get(name)}" for name in ("kind", *MATTERS) if ours.get(name) != theirs[name]]
        odd += [f"joint is {shown(joint)}"] * (not all(is_joint(joint, name) for name in names))
        if odd:
            raise ValueError(
                f"The reference {self.path} is of joint Nystrom MMDs with one Gaussian kernel, and the run asks for "
                f"another distance: {', '.join(odd)}. Leave these at their defaults."
            )
        progress(
            f"distances of {self.path}, fitted elsewhere: landmarks, bandwidths and the weight of the text are theirs; "
            "floors are not known"
        )
        return Reference({name: self._fitted(name) for name in names}, dict.fromkeys(names))

    def _fitted(self, name: str) -> NystromMMD:
        record = read_sealed(self.path / "training" / name, AGAIN)
        if record.get("of") != self.address:
            raise ValueError(f"{self.path / 'training' / name} is of another reference. {AGAIN}")
        distance = NystromMMDConfig.model_validate(self.plan["encoders"][name]["distance"]).build()
        distance.load_state_dict(read_tensors(self.path / "training" / name / FILE, AGAIN)[0])
        return distance.to(self.device)


def is_imported(path: Path) -> bool:
    """Whether a directory holds distances that were imported. Raises ValueError when it is damaged."""
    try:
        return "imported" in read_manifest(path / MANIFEST, AGAIN)
    except FileNotFoundError:
        return False


def to_judge(path: Path | None) -> Path | None:
    """The reference that a run of it is judged by; None, its own data, when it was imported or there is none."""
    return None if path is None or is_imported(path) else path


def import_reference(name: str, places: Sequence[Path], out: Path, progress: Say = silent) -> ImportedReference:
    """Read bundles into the directory `out`, which is whole or absent.

    Args:
        name: what the reference is called.
        places: .pt files, each of an encoder by its name (mae_joint_M8192.pt) or of several ({encoder: bundle}), or
            folders of such files.
        out: a new directory.
        progress: receives a line of text an encoder.

    Raises ValueError for a file that is no bundle, an encoder that there is none of, or has other features, and an
    `out` that is there.
    """
    if out.exists():
        raise ValueError(f"{out} is there already; delete it, or give another --out.")
    found = {encoder: (path, bundle) for path in _files(places) for encoder, bundle in _bundles(path)}
    widths = {}
    distances = {}
    for encoder, (path, bundle) in found.items():
        distances[encoder] = _distance(encoder, bundle, f"{path} ({encoder})")
        widths[encoder] = int(distances[encoder].tau_width)
    if len(set(widths.values())) > 1:
        raise ValueError(f"The bundles have text of unlike widths: {widths}. Import those of one run together.")
    encoders = {
        encoder: {
            "distance": distance.config.model_dump(mode="json"),
            "landmarks": len(distance.landmarks),
            "file": found[encoder][0].name,
            "sha256": sha256_of(found[encoder][0]),
        }
        for encoder, distance in distances.items()
    }
    plan = {"encoders": encoders, "tau_width": next(iter(widths.values()))}
    address = hash_of(plan)
    with replaced_folder(out) as folder:
        for encoder, distance in distances.items():
            write_fitted(folder / "training" / encoder, address, distance, None)
            progress(f"{encoder}: {len(distance.landmarks)} landmarks, bandwidth {float(distance.sigma):.4g}")
        write_manifest(folder / MANIFEST, {"name": name, "address": address, "imported": plan})
    return ImportedReference(out)


def describe_imported(reference: ImportedReference) -> Iterator[str]:
    """What `irdm reference show` prints of it."""
    yield f"reference  {reference.name}, imported"
    yield f"address    {reference.address}"
    yield f"distance   nystrom-mmd, joint with text embeddings of {reference.tau_width} columns"
    yield "floors     not in it: only --controller.kind uniform can train with it"
    yield "real rows  not in it: a run is judged by the images of its own data"
    yield f"encoders   {len(reference.names)}"
    for name, entry in reference.plan["encoders"].items():
        scale, bandwidth = (entry["distance"][key] for key in ("scale", "condition_bandwidth"))
        text = f"{entry['landmarks']} landmarks, {scale:g} of the median, text at {bandwidth:.4g}"
        yield f"  {name:16} {text}  {entry['sha256']}"


def _files(places: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        some = sorted(place.glob("*.pt")) if place.is_dir() else [place]
        if not some or not all(path.is_file() for path in some):
            raise ValueError(
                f"{place} is no .pt file, and no folder of them: give the bundles of the authors' release."
            )
        found += some
    return found


def _bundles(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(encoder, bundle) of a file."""
    body = unpickled(path)
    if not isinstance(body, Mapping):
        raise ValueError(f"{path} holds a {type(body).__name__}, expected {{{', '.join(KEYS)}}} of an encoder.")
    if body and all(isinstance(value, Mapping) for value in body.values()):
        yield from body.items()
        return
    match = NAME.fullmatch(path.stem)
    yield (match["encoder"] if match else path.stem), body


def _distance(encoder: str, bundle: Mapping[str, Any], where: str) -> NystromMMD:
    """The fitted distance of a bundle. The image part is moved to its mean, which changes no kernel."""
    if encoder not in PANEL:
        raise ValueError(f"{where}: there is no encoder '{encoder}'{nearest(encoder, PANEL)}")
    if missing := [key for key in KEYS if key not in bundle]:
        raise ValueError(
            f"{where} has {', '.join(map(str, bundle)) or 'nothing'} and lacks {', '.join(missing)}; a joint one has "
            f"{', '.join(KEYS)}."
        )
    try:
        rows, alpha = (torch.as_tensor(bundle[key]).double() for key in ("Z", "alpha"))
        sigma, constant, beta = (float(bundle[key]) for key in ("sigma", "k_rr", "beta"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: {error}; expected Z and alpha as tensors, the others as numbers.") from None
    d, shape = PANEL[encoder].dim, tuple(rows.shape)
    if rows.ndim != 2 or alpha.numel() != len(rows) or not len(rows) > 0 or shape[1] <= d:
        raise ValueError(
            f"{where} has Z {shape} and alpha {tuple(alpha.shape)}; expected Z [m, {d} + c] with the {d} features of "
            f"{encoder} before the c of the text, and alpha [m]."
        )
    stated = {key: bundle[key] for key in ("d_img", "d_txt") if key in bundle}
    if stated not in ({}, {"d_img": d, "d_txt": shape[1] - d}):
        raise ValueError(f"{where} says {stated}, but {encoder} has {d} features and Z {shape[1]} columns.")
    numbers = torch.tensor([sigma, constant, beta])
    if not (rows.isfinite().all() and alpha.isfinite().all() and numbers.isfinite().all() and (numbers > 0).all()):
        raise ValueError(
            f"{where} has sigma {sigma:g}, k_rr {constant:g}, beta {beta:g}; these must be positive, and all of Z and "
            "alpha finite."
        )
    config = NystromMMDConfig(
        landmarks=len(rows), scale=float(bundle.get("sigma_scale", 1.0)), condition_bandwidth=sigma / beta
    )
    distance, center = config.build(), rows[:, :d].mean(0)
    distance.center = center.float()
    distance.landmarks = torch.cat([rows[:, :d] - distance.center.double(), rows[:, d:]], dim=1).float()
    distance.alpha = alpha.reshape(1, -1).float()
    distance.constant = torch.tensor(constant, dtype=torch.float64)
    distance.sigma, distance.beta = (torch.tensor(number, dtype=torch.float64) for number in (sigma, beta))
    distance.tau_width = torch.tensor(shape[1] - d)
    return distance
