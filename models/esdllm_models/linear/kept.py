"""What was measured of kernels, kept on disk by processor, torch and shapes, so that the same machine chooses the same again.

One file of JSON each, written whole or not at all. The first that is written stays: of processes that measure at once, all
take what one of them found.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import attrs
import torch

from esdllm import multiplies_bfloat16
from esdllm_models.linear.timing import Matrix, Seconds

__all__ = ["Measurements", "measurement_key"]

_FORMAT = 1
"""of a file, and of how its numbers are measured"""
_HIDING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""variables by which instruction sets are hidden from torch's libraries"""


@attrs.frozen
class Measurements:
    """The files of a folder."""

    folder: Path

    @classmethod
    def of_user(cls) -> Measurements:
        """Return those of the user: in ESDLLM_HOME, else `esdllm` in XDG_CACHE_HOME, else in ~/.cache."""
        home = os.environ.get("ESDLLM_HOME", "").strip()
        cache = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
        return cls((Path(home) if home else Path(cache) / "esdllm").expanduser() / "kernels")

    def path(self, key: Mapping[str, Any]) -> Path:
        """Return the file of a measurement."""
        return self.folder / f"{sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.json"

    def find(self, key: Mapping[str, Any], names: Sequence[str]) -> dict[str, Seconds] | None:
        """Return what is kept of a measurement of these kernels; None if that is nothing, damaged or another's."""
        try:
            held = json.loads(self.path(key).read_text(encoding="utf-8"))
            if held["key"] != key:
                return None
            found = {name: Seconds(*held["seconds"][name]) for name in names}
            return found if all(_sound(one) for one in found.values()) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def keep(self, key: Mapping[str, Any], found: Mapping[str, Seconds]) -> tuple[Mapping[str, Seconds], str]:
        """Return what holds from now on, and why it is not kept, empty if it is.

        That is what was found, unless another process kept its own meanwhile.
        """
        path, names = self.path(key), list(found)
        text = json.dumps({"key": key, "seconds": {name: attrs.astuple(one) for name, one in found.items()}}, indent=1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", encoding="utf-8", dir=self.folder, suffix=".part", delete=False) as file:
                file.write(text)
            try:
                stood = path.exists()  # asked first: what comes between is another process' own, and whole
                if self.find(key, names) is None:
                    _publish(Path(file.name), path, replace=stood)
            finally:
                Path(file.name).unlink(missing_ok=True)
        except OSError as error:
            return found, f"not kept: {self.folder} cannot be written ({error.strerror})"
        return self.find(key, names) or found, ""


def measurement_key(
    matrices: Sequence[Matrix], names: Sequence[str], dtype: torch.dtype, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return all that a measurement hangs on: what is visible of the processor, torch, threads, kernels and shapes."""
    environ = os.environ if environ is None else environ
    return {
        "format": _FORMAT,
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": multiplies_bfloat16(),
        "hidden": {name: environ[name].strip().upper() for name in _HIDING if environ.get(name, "").strip()},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": sorted(names),
        "matrices": sorted([*attrs.astuple(matrix)] for matrix in matrices),
    }


def _processor() -> str:
    """Return the processor's name; a virtual one's says little, so what it can do is part of the key beside."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return " ".join(part for name in ("model name", "cpu family", "model") if (part := told.get(name))) or (
        platform.processor() or platform.machine()
    )


def _publish(written: Path, path: Path, replace: bool) -> None:
    """Put a whole file in its place, unless one is there that was not to be replaced."""
    if not replace:
        try:
            os.link(written, path)
            return
        except FileExistsError:
            return
        except OSError:
            pass  # a file system without links
    os.replace(written, path)


def _sound(one: Seconds) -> bool:
    return all(
        type(value) in (int, float) and isfinite(value) and value > 0
        for value in (one.few, *(() if one.many is None else (one.many,)))
    )
