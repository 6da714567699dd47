"""The `esdllm` command."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see `esdllm.cli.app.run`.

    Whatever takes time to import is imported here, so that Ctrl-C meanwhile ends the command without a traceback.
    """
    try:
        from esdllm.cli.app import run

        return run(arguments)
    except KeyboardInterrupt:
        return 130
