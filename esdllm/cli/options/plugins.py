"""What `esdllm plugins` is asked."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
from esdllm.cli.options import Debug, Json


@attrs.frozen(kw_only=True)
class PluginsListOptions:
    """List all components, their options, and who offers them.

    \b
    esdllm plugins
    esdllm plugins importance
    esdllm plugins --json
    """

    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="Only one kind, such as skip or cache.",
            autocompletion=completing.kinds,
        ),
    ] = None
    as_json: Json = False
    debug: Debug = False
