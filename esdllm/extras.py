"""esdllm's own plugin: its commands that need an extra come by the hook, as any package's do.

A catalogue is filled without them, so what they import is imported when commands are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from esdllm.hookspecs import hookimpl

__all__ = ["esdllm_commands"]


@hookimpl
def esdllm_commands() -> Mapping[str, Callable[..., Any]]:
    """Offer `esdllm tune`, `esdllm lm-eval` and `esdllm serve`; without their extra they say how to install it."""
    from esdllm.cli.command import command, needing
    from esdllm.cli.harness import lm_eval, passing_on
    from esdllm.cli.options.serve import ServeOptions
    from esdllm.cli.options.tune import TuneOptions

    return {
        "tune": needing(["optuna"], "tune", command(TuneOptions)),
        "lm-eval": passing_on("lm-eval", needing(["lm_eval"], "eval", lm_eval)),
        "serve": needing(["prometheus_client", "starlette", "uvicorn"], "serve", command(ServeOptions)),
    }
