"""A file of prompts answered into a file: planned as a whole, done batch by batch, taken up again where it stopped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from esdllm.checkpoints.loading import Model
from esdllm.config import DecodeConfig
from esdllm.errors import EsdllmError, InputError, UnavailableError
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import prepare
from esdllm.use.batching.grouping import alike
from esdllm.use.batching.journal import Journal
from esdllm.use.batching.locking import locked
from esdllm.use.batching.rows import BadLine, Line, check_kind, read_lines, write_rows
from esdllm.use.batching.workers import Batch, Done, Setup, alone, decode, decode_elsewhere, places

__all__ = ["BatchResult", "BatchRun", "Progress"]


Elsewhere = Callable[[Sequence[Batch]], Iterator[Done]]
"""Decodes batches, and yields each once its rows are written."""


class Progress(NamedTuple):
    """How far a run is."""

    prompts: int
    """answered, those before this process included"""
    of: int
    """prompts to answer"""
    share: float
    """of the whole work, in positions of the canvases, from 0 to 1"""


@attrs.frozen
class BatchResult:
    """What a run did."""

    prompts: int
    """prompts that have an answer now"""
    before: int
    """of which were answered before this process began"""
    bad: tuple[BadLine, ...]
    """lines without an answer, and why"""
    batches: int
    """batches that this process decoded"""
    tokens: int
    """tokens of the answers that this process decoded"""
    forwards: int
    """forward passes of this process, or of all of its processes together"""
    seconds: float
    """wall-clock time of their steps"""


@attrs.frozen
class BatchRun:
    """Answers the prompts of `source` into `output`.

    What is done stands in a folder beside the output (`Journal`), and what is left is cut into batches as if nothing had
    happened: a run that was killed and taken up again makes the same file as one that was not. It may go on with another
    `batch`, as where memory ran out, with other `jobs`, elsewhere and on another device: none of it is part of what was asked.
    """

    source: Path
    """.jsonl, .csv or .parquet"""
    output: Path
    """likewise; rows in the order of the input"""
    setup: Setup
    """model and settings"""
    batch: int = 8
    """prompts decoded together at most"""
    jobs: int = 1
    """processes of this machine"""
    chat: bool | None = None
    """whether text goes through the chat template; None where the checkpoint brings one"""
    elsewhere: Elsewhere | None = None
    """who decodes, where it is neither this process nor `jobs` of this machine"""

    def __call__(
        self, catalogue: Catalogue, restart: bool = False, watch: Callable[[Progress], None] = lambda _: None
    ) -> BatchResult:
        """Do what is left to do; `watch` is called at the start and after every batch.

        Raises:
            InputError: the input cannot be read; the folder is of a run with other settings; the output is there already.
            UnavailableError: another run is writing the output; the device is not available, a batch does not fit into memory,
                a process died.
        """
        check_kind(self.output)
        if self.source.resolve() == self.output.resolve():
            raise InputError(f"{self.output} is the input too; name another --output")
        lines, bad = read_lines(self.source)
        journal = Journal(self.output)
        with locked(journal.folder, self.output):
            return self._answer(journal, lines, bad, catalogue, restart, watch)

    def _answer(
        self,
        journal: Journal,
        lines: list[Line],
        bad: list[BadLine],
        catalogue: Catalogue,
        restart: bool,
        watch: Callable[[Progress], None],
    ) -> BatchResult:
        elsewhere = self.elsewhere
        if elsewhere is None and self.jobs > 1:
            elsewhere = partial(decode_elsewhere, places(self.setup, self.jobs))
        setup = self.setup
        if elsewhere:  # here only the tokenizer is needed
            setup = Setup(setup.model, {}, "meta", family=setup.family)
        model, config = setup.load(catalogue), DecodeConfig.from_dict(self.setup.config)
        if model.codec is None:
            raise InputError(f"text needs a tokenizer: {model.codec_error or 'this model has none'}")
        chat = model.chats(self.chat)
        finished = journal.open(self._settings(chat), restart)
        lines, prompts, refused = _encoded(model, config, lines, chat)
        bad = sorted([*bad, *refused], key=lambda line: line.number)
        known = set() if finished else {row["line"] for row in journal.rows()}
        left = [] if finished else [i for i, line in enumerate(lines) if line.number not in known]
        batches = self._batches(journal, lines, prompts, left)
        stream = elsewhere(batches) if elsewhere else _decoded_here(model, config, catalogue, batches)
        made = [] if finished else list(_watched(stream, batches, prompts, config.gen_length, watch))
        if not finished:
            self._publish(journal, _complete(journal, lines), bad)
        failed = journal.failed()
        before = len(lines) - len(left) - sum(line.number in known or finished for line in failed)
        return BatchResult(
            prompts=len(lines) - len(failed),
            before=before,
            bad=tuple(sorted([*bad, *failed], key=lambda line: line.number)),
            batches=len(made),
            tokens=sum(one.tokens for one in made),
            forwards=sum(one.forwards for one in made),
            seconds=sum(one.seconds for one in made),
        )

    def _publish(self, journal: Journal, rows: Sequence[Mapping[str, Any]], bad: Sequence[BadLine]) -> None:
        """Write the output, and note beside it what has no answer: the lines that hold no prompt, and those that failed."""
        failed = [{"line": row["line"], "error": row["error"]} for row in rows if "error" in row]
        write_rows(self.output, [row for row in rows if "error" not in row])
        bad_lines = sorted([*(line.number for line in bad), *(line["line"] for line in failed)])
        journal.finish({"prompts": len(rows) - len(failed), "bad_lines": bad_lines, "failed": failed})

    def _settings(self, chat: bool) -> dict[str, Any]:
        """Return what was asked, which a run that goes on must share."""
        return {
            "esdllm": version("esdllm"),
            "model": self.setup.place,
            "family": self.setup.family,
            "dtype": self.setup.dtype,
            "quantize": self.setup.quantize,
            "compute": self.setup.compute,
            "chat": chat,
            "input": hashlib.sha256(self.source.read_bytes()).hexdigest(),
            "config": self.setup.config,
        }

    def _batches(
        self, journal: Journal, lines: Sequence[Line], prompts: Sequence[tuple[int, ...]], left: Sequence[int]
    ) -> list[Batch]:
        """Return the batches of the prompts that are left; they are numbered on from those that are done."""
        named = any(line.id is not None for line in lines)
        heads = [{"line": line.number, **({"id": line.id} if named else {}), "prompt": line.shown} for line in lines]
        first = max(journal.batches(), default=-1) + 1
        batches = []
        for number, group in enumerate(alike([len(prompts[i]) for i in left], self.batch), first):
            rows = [left[i] for i in group]
            batches.append(
                Batch(number, tuple(prompts[i] for i in rows), tuple(heads[i] for i in rows), journal.batch(number))
            )
        return batches


def _complete(journal: Journal, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the rows of a run, one per line.

    Raises:
        UnavailableError: a line has none, or several; nothing is published.
    """
    rows, wanted = journal.rows(), [line.number for line in lines]
    if (answered := [row["line"] for row in rows]) != wanted:
        wrong = sorted((Counter(answered) - Counter(wanted)) | (Counter(wanted) - Counter(answered)))
        raise UnavailableError(
            f"the answers of {len(wrong)} lines, the first of them line {wrong[0]}, are missing from {journal.folder} or there "
            "twice: something else wrote there; give --restart to begin again"
        )
    return rows


def _encoded(
    model: Model, config: DecodeConfig, lines: Sequence[Line], chat: bool
) -> tuple[list[Line], list[tuple[int, ...]], list[BadLine]]:
    """Return the lines that can be decoded, their tokens, and those that cannot."""
    good, prompts, bad = [], [], []
    for line in lines:
        prompt: Any = line.prompt if isinstance(line.prompt, str) else list(line.prompt)
        try:
            prepared = prepare(model, [prompt], None, config.gen_length, False, chat)
        except EsdllmError as error:
            bad.append(BadLine(line.number, alone(error)))
            continue
        good.append(line)
        prompts.append(tuple(prepared.tokens[0, : prepared.starts[0]].tolist()))
    return good, prompts, bad


def _decoded_here(model: Model, config: DecodeConfig, catalogue: Catalogue, batches: Sequence[Batch]) -> Iterator[Done]:
    """Yield batches as they are done by this process."""
    if batches:
        engine = Engine.build(model, config, catalogue)
        for batch in batches:
            yield decode(engine, batch)


def _watched(
    stream: Iterator[Done],
    batches: Sequence[Batch],
    prompts: Sequence[Sequence[int]],
    gen_length: int,
    watch: Callable[[Progress], None],
) -> Iterator[Done]:
    """Yield what comes, telling `watch` how far the run is; of `prompts`, those in no batch were answered before."""
    work = {batch.number: _work(batch.prompts, gen_length) for batch in batches}
    counts = {batch.number: len(batch.prompts) for batch in batches}
    whole, left = max(1, _work(prompts, gen_length)), set(work)

    def tell() -> None:
        count = len(prompts) - sum(counts[number] for number in left)
        watch(Progress(count, len(prompts), 1 - sum(work[number] for number in left) / whole))

    tell()
    for one in stream:
        left.remove(one.number)
        tell()
        yield one


def _work(prompts: Sequence[Sequence[int]], gen_length: int) -> int:
    """Return the positions of the prompts' canvases."""
    return sum(len(prompt) + gen_length for prompt in prompts)
