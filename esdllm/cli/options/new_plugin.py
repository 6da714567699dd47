"""What `esdllm new-plugin` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
from esdllm.cli.options import Debug
from esdllm.cli.plugin_kinds import KINDS


@attrs.frozen(kw_only=True)
class NewPluginOptions:
    """Write a pip package with one working component, its tests and a README.

    The package is called esdllm-NAME. Prints the folder.

    \b
    esdllm new-plugin nearby --kind scorer
    esdllm new-plugin nearby --kind scorer --to ~/plugins
    """

    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the component: lower case, words joined by hyphens.")
    ]
    kind: Annotated[
        str,
        typer.Option(
            "--kind", "-k", metavar="KIND", help=f"One of {', '.join(KINDS)}.", autocompletion=completing.fixed(*KINDS)
        ),
    ]
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder to write the package into [the working folder].")
    ] = None
    debug: Debug = False
