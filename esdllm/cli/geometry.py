"""The model of a command that measures or predicts: a checkpoint, or a geometry with random weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from esdllm.cli.shared import default_model
from esdllm.config.project import MODEL_VARIABLE
from esdllm.errors import InputError
from esdllm.measure.benchmarking import geometry
from esdllm.plugins.catalogue import Catalogue

__all__ = ["named_model"]


def named_model(
    model: str | None, geometry_name: str | None, catalogue: Catalogue
) -> tuple[str, str | Mapping[str, Any]]:
    """Return what a model is called, and its name or, of a geometry, its config.json.

    A geometry goes over a model that only the environment names; without either it is the shipped checkpoint.
    """
    if geometry_name and model and model != os.environ.get(MODEL_VARIABLE):
        raise InputError(f"--model {model} and --geometry {geometry_name} are two models; give one")
    if geometry_name:
        return geometry_name, geometry(geometry_name, catalogue)
    name = model or default_model(catalogue)
    return name, name
