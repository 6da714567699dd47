"""A run's folder, which outlives the process: what the run is, and a file for every batch that is done."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from esdllm.errors import InputError
from esdllm.parsing import parse_json
from esdllm.use.batching.rows import BadLine, write_atomically
from esdllm.use.jsonl import sound_json_lines

__all__ = ["Journal"]

_HEAD = "run.json"


@attrs.frozen
class Journal:
    """The folder beside an output file: `answers.jsonl.run/` with run.json, and batch-00000.jsonl and so on while it runs."""

    output: Path
    """the file that the run makes"""

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.output.with_name(self.output.name + ".run")

    def open(self, settings: Mapping[str, Any], restart: bool = False) -> bool:
        """Begin a run or go on with one; return whether it is finished already.

        Raises:
            InputError: the folder is of a run with other settings (says which), or cannot be written; no run made the output
                that is there.
        """
        if restart:
            self.clear()
        held = self._held()
        if held is None and self.output.exists():
            raise InputError(f"{self.output} is there already; name another --output, or give --restart to replace it")
        if held is None or not (held.get("finished") or any(self.folder.glob("batch-*.jsonl"))):
            self._begin(settings)
            return False
        if found := _differences(held["settings"], settings):
            raise InputError(
                f"{self.folder} is of a run with other settings: {'; '.join(found)}. Give the same, name another --output, or "
                "give --restart to begin again"
            )
        return bool(held.get("finished")) and self.output.exists()

    def _begin(self, settings: Mapping[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write({"settings": settings})
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {error.strerror}; name another --output") from error

    def clear(self) -> None:
        """Remove the run and its output."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
        self.output.unlink(missing_ok=True)

    def batches(self) -> list[int]:
        """Return the numbers of the batches that are done."""
        return sorted(int(file.stem.removeprefix("batch-")) for file in self.folder.glob("batch-*.jsonl"))

    def batch(self, number: int) -> Path:
        """Return a batch's file."""
        return self.folder / f"batch-{number:05}.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """Return what is done, by line: of a prompt whose decoding failed the `error`.

        Raises:
            InputError: a file is not as it was written.
        """
        rows = []
        for number in self.batches():
            for where, row in sound_json_lines(self.batch(number), "answers", "{}"):
                if type(row.get("line")) is not int:
                    raise InputError(f"{where} is damaged; remove the file to have its prompts answered again")
                rows.append(row)
        return sorted(rows, key=lambda row: int(row["line"]))

    def failed(self) -> list[BadLine]:
        """Return the lines of a finished run whose decoding failed."""
        found = (self._held() or {}).get("finished") or {}
        return [BadLine(line["line"], line["error"]) for line in found.get("failed", [])]

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Note that the output is there, and how many batches had how many prompts; remove the batches, which it holds."""
        held = self._held() or {}
        sizes = Counter(self.batch(number).read_bytes().count(b"\n") for number in self.batches())
        self._write({**held, "finished": {**facts, "batches": {str(size): sizes[size] for size in sorted(sizes)}}})
        for file in self.folder.glob("batch-*"):
            file.unlink()

    def _held(self) -> dict[str, Any] | None:
        path = self.folder / _HEAD
        if not path.is_file():
            return None
        try:
            found = parse_json(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}; give --restart to begin again") from error
        if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
            raise InputError(f"{path} is of no run; name another --output, or give --restart to replace it")
        return found

    def _write(self, content: Mapping[str, Any]) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / _HEAD, text.encode())


def _differences(held: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """Return a few words on every setting that differs."""
    before, after = dict(_flat(held)), dict(_flat(now))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [
        f"{key} has changed" if key == "input" else f"{key} was {_shown(before.get(key))}, is {_shown(after.get(key))}"
        for key in keys
    ]


def _flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        found += _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else [(before + key, value)]
    return found


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False, default=str)
