"""Real clients, unmodified, against a real `esdllm serve`: what each asks for, and what works.

    pip install openai litellm langchain-openai guidellm "esdllm[serve,eval]"
    python benchmarks/clients.py

Every answer is compared with the one that a bare HTTP request gets. A client that is not installed is named, and left
out. Editors and pages that are no Python packages are there by the bodies that their public source sends.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import attrs
import typer
from on_server.calls import continue_calls, open_webui_calls, zed_calls
from on_server.ground import MODEL, Served, serving
from on_server.libraries import langchain_client, litellm_client, openai_client
from on_server.programs import curl_client, guidellm_client, harness_client
from rich.console import Console
from rich.table import Table


@attrs.frozen
class Client:
    """A client, and how it is tried."""

    name: str
    check: Callable[[Served], Iterator[str]]
    """yields what works, and raises at what does not"""
    package: str | None = None
    """whose version is told; without it, the client is not run"""
    program: str | None = None
    """that must be there"""

    def version(self) -> str | None:
        """Return its version; None if it is not installed."""
        if self.program is not None:
            told = shutil.which(self.program) and subprocess.run(
                [self.program, "--version"], capture_output=True, text=True
            )
            return told.stdout.split()[1] if told else None
        if self.package is None:
            return "by its calls"
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


CLIENTS = (
    Client("openai", openai_client, "openai"),
    Client("litellm", litellm_client, "litellm"),
    Client("langchain-openai", langchain_client, "langchain-openai"),
    Client("curl", curl_client, program="curl"),
    Client("guidellm", guidellm_client, "guidellm"),
    Client("lm-eval", harness_client, "lm-eval"),
    Client("Continue", continue_calls),
    Client("Zed", zed_calls),
    Client("Open WebUI", open_webui_calls),
)


def tried(client: Client, served: Served) -> tuple[list[str], str]:
    """Return what works, and what failed."""
    works: list[str] = []
    try:
        works.extend(client.check(served))
    except Exception as error:
        return works, f"{type(error).__name__}: {error}"[:500]
    return works, ""


def main(only: Annotated[list[str] | None, typer.Option(help="Client; may be given several times.")] = None) -> None:
    """Try clients on a server that is started for it."""
    console, failed = Console(), False
    table = Table("client", "version", "works", "fails", title=f"Clients of `esdllm serve --model {MODEL}`")
    with serving() as served:
        for client in CLIENTS:
            if only and client.name not in only:
                continue
            if (number := client.version()) is None:
                table.add_row(client.name, "not installed", "", "")
                continue
            works, fails = tried(client, served)
            failed |= bool(fails)
            table.add_row(client.name, number, ", ".join(works), fails)
    console.print(table)
    raise typer.Exit(failed)


if __name__ == "__main__":
    typer.run(main)
