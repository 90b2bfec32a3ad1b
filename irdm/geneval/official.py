"""The official scorer as its own process, in its own environment: it needs mmdet, which irdm does not.

PYTHON REPO/evaluation/evaluate_images.py FOLDER --outfile OUT --model-config CONFIG --model-path DIR
    --options model=STEM
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from irdm.files import sha256_of
from irdm.geneval.layout import Sample
from irdm.progress import Say, silent

SCRIPT, NAMES = Path("evaluation/evaluate_images.py"), Path("evaluation/object_names.txt")
TAIL = 1500  # characters of the scorer's own messages that an error shows
PROBE = """
import json
from importlib import import_module, metadata
names = {"torch": "torch", "mmdet": "mmdet", "mmcv": "mmcv", "open_clip": "open_clip_torch",
         "clip_benchmark": "clip_benchmark", "pandas": "pandas"}
found, missing = {}, {}
for module, package in names.items():
    try:
        version = getattr(import_module(module), "__version__", None)
        found[module] = str(version or metadata.version(package))
    except Exception as error:
        missing[module] = f"{type(error).__name__}: {error}"
cuda = "torch" in found and import_module("torch").cuda.is_available()
print("irdm", json.dumps({"found": found, "missing": missing, "cuda": cuda}))
"""


class OfficialScorer:
    """GenEval's own script. Everything that can be found out beforehand is: files, packages, CUDA."""

    kind = "official"
    metric = "GenEval"

    def __init__(self, python: Path | None, repo: Path | None, config: Path | None, weights: Path | None):
        """Raises ValueError naming everything that is missing.

        Args:
            python: of the environment that has mmdet.
            repo: a checkout of the authors' repository, or of a port with the same script.
            config: mmdet's, of the very weights.
            weights: the detector's .pth.
        """
        script = repo and repo / SCRIPT
        wanted = {"--python": python, "--repo": script, "--config": config, "--weights": weights}
        if lacking := [
            f"{option} ({'not given' if path is None else f'no file {path}'})"
            for option, path in wanted.items() if path is None or not path.is_file()
        ]:  # fmt: skip
            raise ValueError(
                f"The official scorer needs {', '.join(lacking)}: its own Python, a checkout of GenEval, the "
                "detector's configuration and weights. docs/geneval.md says how to set them up; --scorer "
                "transformers needs none of them and is another metric."
            )
        assert python and repo and config and weights and script
        if weights.suffix != ".pth":
            raise ValueError(f"{weights} is not a .pth file, and the official scorer reads no other.")
        self.python, self.script, self.config, self.weights = python, script, config, weights
        files = {"script": script, "names": repo / NAMES, "config": config, "weights": weights}
        self.identity: dict[str, Any] = {
            "files": {name: sha256_of(path) for name, path in files.items() if path.is_file()},
            "packages": self._packages(),
        }

    def _packages(self) -> dict[str, str]:
        done = self._run(["-c", PROBE], None)
        line = next((line for line in done.stdout.splitlines() if line.startswith("irdm ")), None)
        if line is None:
            raise ValueError(f"{self.python} does not run: {(done.stderr or done.stdout)[-TAIL:].strip()}")
        report = json.loads(line.removeprefix("irdm "))
        if report["missing"]:
            said = "; ".join(f"{name} ({why})" for name, why in report["missing"].items())
            raise ValueError(
                f"{self.python} cannot import what the official scorer needs: {said}. Install it in that environment."
            )
        if not report["cuda"]:
            raise ValueError(f"The official scorer runs on CUDA alone, and the torch of {self.python} finds none.")
        return report["found"]

    def __call__(self, folder: Path, samples: Sequence[Sample], out: Path, progress: Say = silent) -> None:
        """Run it on a folder. Raises ValueError, with what it said last, when it fails or writes nothing."""
        progress(f"the official scorer looks at {len(samples)} images; it says nothing until it is done")
        log = out.with_suffix(".log")
        out.unlink(missing_ok=True)
        done = self._run(
            [
                *(str(self.script), str(folder.resolve()), "--outfile", str(out.resolve())),
                *("--model-config", str(self.config.resolve()), "--model-path", str(self.weights.resolve().parent)),
                *("--options", f"model={self.weights.stem}"),
            ],
            log,
        )
        said = log.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()
        if done.returncode:
            raise ValueError(f"The official scorer failed with exit code {done.returncode}. It said last:\n{said}")
        if not out.is_file() or not out.read_text(encoding="utf-8").strip():
            raise ValueError(f"The official scorer ended well and wrote no verdict. It said last:\n{said or 'nothing'}")

    def _run(self, arguments: Sequence[str], log: Path | None) -> subprocess.CompletedProcess[str]:
        """In an environment that this Python's own packages do not reach."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.python.absolute()), *arguments]
        try:
            if log is None:
                return subprocess.run(command, env=own, capture_output=True, text=True, check=False)
            with open(log, "w", encoding="utf-8") as file:
                return subprocess.run(command, env=own, stdout=file, stderr=subprocess.STDOUT, text=True, check=False)
        except OSError as error:
            raise ValueError(
                f"{self.python} cannot be started: {error.strerror}. Give a Python with --python."
            ) from None
