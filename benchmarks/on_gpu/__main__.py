"""Runs one stage: python on_gpu STAGE FILE TOY."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from on_gpu import STAGES
from on_gpu.ground import Ground

if __name__ == "__main__":
    name, file, toy = sys.argv[1:]
    stage = STAGES[name]
    import_module(f"on_gpu.{stage.module}").run(Ground(name, Path(file), toy == "1"), **stage.arguments)
