"""The server that clients are tried on, and what bare requests to it get."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import httpx

__all__ = ["ASKED", "BEGUN", "DECODING", "ESDLLM", "KEY", "MODEL", "TURNS", "Served", "serving"]

KEY = "key-of-the-clients"
MODEL = "tiny-llada"
ASKED = "What is 12 + 7?"
BEGUN = "1 2 3"
TURNS = [{"role": "user", "content": ASKED}]
ESDLLM = (sys.executable, "-m", "esdllm")
DECODING = ("--preset", "es-dllm-parallel", "--gen-length", "64", "--block-length", "16")


@attrs.frozen
class Served:
    """A server, and what it answers."""

    url: str
    folder: Path
    """for files"""

    @property
    def base(self) -> str:
        """What clients call the base URL."""
        return f"{self.url}/v1"

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Return the answer to a bare request."""
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.post(self.base + path, json={"model": MODEL, **body}, headers=headers, timeout=120)

    def chat(self, **body: Any) -> str:
        """Return the text of an answer to `TURNS`."""
        said: str = self.post("/chat/completions", messages=TURNS, **body).json()["choices"][0]["message"]["content"]
        assert said
        return said

    def continued(self, **body: Any) -> str:
        """Return how `BEGUN` goes on, without the chat template."""
        said: str = self.post("/completions", prompt=BEGUN, **body).json()["choices"][0]["text"]
        assert said
        return said


@contextmanager
def serving() -> Iterator[Served]:
    """Serve the shipped model by the command, at a free port, until the end."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        keys, log = folder / "keys", folder / "log"
        keys.write_text(KEY + "\n")
        command = [*ESDLLM, "serve", "--model", MODEL, "--port", "0", "--api-key-file", str(keys), *DECODING]
        with log.open("w") as told:
            process = subprocess.Popen(
                [*command, "--slots", "4", "--max-queue", "8", "--ignore", "tools"],
                stdout=subprocess.DEVNULL,
                stderr=told,
            )
        try:
            yield Served(_address(process, log), folder)
        finally:
            process.terminate()
            process.wait(60)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return where a server serves, as soon as it says so."""
    while not (found := re.search(r" at (http://\S+?),", log.read_text())):
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        time.sleep(0.1)
    return found[1]
