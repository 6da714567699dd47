"""`esdllm lm-eval`."""

from __future__ import annotations

from collections.abc import Callable

import typer

__all__ = ["lm_eval", "passing_on"]


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness's command with the model `esdllm` added; all arguments go to it.

    \b
    esdllm lm-eval --model esdllm --model_args pretrained=tiny-llada,preset=es-dllm --tasks gsm8k --limit 10
    esdllm lm-eval run --help
    """
    from esdllm.measure.evaluation.harness import run  # lm-eval is optional, and slow to import

    run(context.args)


def passing_on(name: str, run: Callable[[typer.Context], None]) -> typer.Typer:
    """Return a command that takes whatever it is given, `--help` too."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    everything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, add_help_option=False, context_settings=everything)(run)
    return app
