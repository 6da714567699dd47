"""The process in which one run is measured: a job on standard input, what was found on standard output, both as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from esdllm.errors import EsdllmError
from esdllm.measure.benchmarking.fresh import CONVERTER, Found, Job
from esdllm.measure.benchmarking.runners import runner
from esdllm.measure.benchmarking.running import decoded, environment, own_peak, threads, work_shares
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.allocator import keep_freed_memory

__all__ = ["answer"]


def answer(text: str) -> dict[str, Any]:
    """Return what a job found, or the error that it came to."""
    job = CONVERTER.structure(json.loads(text), Job)
    catalogue = Catalogue.load()
    try:
        with threads(job.setting.threads):
            model = job.setting.load(catalogue)
            if job.contender is None:
                return {"found": CONVERTER.unstructure(own_peak(model))}
            one = runner(job.contender, job.setting, model, catalogue)
            first = decoded(one, _silent, warming=True)
            sample = decoded(one, _silent)
            shares = work_shares(one, _silent) if job.profiled else None
            return {"found": CONVERTER.unstructure(Found(sample, first, shares, environment(model)))}
    except EsdllmError as error:
        return {"error": str(error)}


def _silent(name: str) -> None:
    """Tell nobody."""


if __name__ == "__main__":
    keep_freed_memory()
    print(json.dumps(answer(sys.stdin.read())))
