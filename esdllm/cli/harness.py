"""`esdllm lm-eval`."""

from __future__ import annotations

import typer

EVERYTHING = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""settings of a command that takes whatever it is given"""


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness's command with the model `esdllm` added; all arguments go to it.

    \b
    esdllm lm-eval --model esdllm --model_args pretrained=tiny-llada,preset=es-dllm --tasks gsm8k --limit 10
    esdllm lm-eval run --help
    """
    from esdllm.measure.evaluation.harness import run  # lm-eval is optional, and slow to import

    run(context.args)
