"""A file of prompts, decoded by a cluster: this process reads, writes and remembers, workers decode."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import pyarrow
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from esdllm import errors
from esdllm.errors import EsdllmError, UnavailableError
from esdllm.serving.ray.cluster import joined, shares
from esdllm.serving.ray.rows import Decoder
from esdllm.use.batching import Batch, Done, PromptAnswer, Setup, write_rows

__all__ = ["RayWorkers"]

_AHEAD = 3
"""batches that a worker has at a time: slots that one leaves free are the next one's"""
_ATTEMPTS = 3
"""how often a batch may be begun: whoever begins it again does so since a worker died"""
_COLUMNS = [("batch", pyarrow.int64()), ("row", pyarrow.int64()), ("prompt", pyarrow.list_(pyarrow.int64()))]


@attrs.frozen
class RayWorkers:
    """Decodes batches on a cluster, as `BatchRun.elsewhere`. Only this process writes, so machines need share no disk."""

    setup: Setup
    """model and settings; a model's folder lies at the same place on each machine"""
    slots: int
    """rows that a worker decodes side by side"""
    address: str = ""
    """of the cluster; see `joined`"""
    workers: int | None = None
    """how many; see `shares`"""

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Done]:
        """Yield batches as their rows are written. What a worker had not answered when it died is begun again.

        Raises:
            EsdllmError: what a worker raised.
            UnavailableError: there is no such cluster, it is too small, or workers died again and again.
        """
        if not batches:
            return
        missing = {batch.number: batch for batch in batches}
        rows: defaultdict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
        with joined(self.address) as machines:
            for row in self._decoded(batches, machines):
                number = row["batch"]
                rows[number][row["row"]] = row
                if len(rows[number]) == len(missing[number].prompts):
                    yield self._written(missing.pop(number), rows.pop(number))
        if missing:
            raise UnavailableError(f"the cluster left {len(missing)} batches out; the same command goes on with them")

    def _decoded(self, batches: Sequence[Batch], machines: Sequence[Mapping[str, float]]) -> Iterator[dict[str, Any]]:
        """Yield the rows of all batches as they are decoded, in any order."""
        share = shares(machines, self.workers, self.setup.device)
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        options = {
            **attrs.asdict(self.setup),
            "model": self.setup.place,
            "threads": None if share.gpus else share.cpus,
            "slots": self.slots,
            "length": max(map(len, prompts)) + self.setup.config["gen_length"],
        }
        attempts = ray.remote(_Attempts).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        pool = ray.data.ActorPoolStrategy(
            size=min(share.workers, len(batches)),
            max_concurrent_calls_per_actor=_AHEAD,
            max_tasks_in_flight_per_actor=_AHEAD,
            enable_true_multi_threading=True,
        )
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters is raised
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_arrow(list(map(_table, batches))).map_batches(
            _TellingDecoder,
            fn_constructor_kwargs={"attempts": attempts, "options": options},
            batch_size=max(len(batch.prompts) for batch in batches),
            compute=pool,
            num_cpus=share.cpus,
            num_gpus=share.gpus,
        )
        try:
            for found in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                yield from map(_sound, found.to_pylist())
        except RayTaskError:  # a fault of ours, which should be seen as one
            raise
        except RayError as error:
            raise UnavailableError(
                f"the cluster failed: {error!s:.300}; the same command goes on from there"
            ) from error

    def _written(self, batch: Batch, rows: Mapping[int, Mapping[str, Any]]) -> Done:
        """Write a batch's rows."""
        made = [rows[at] for at in range(len(batch.prompts))]
        answers = [PromptAnswer(*(row[name] for name in PromptAnswer._fields)) for row in made]
        write_rows(batch.file, [answer.row(head) for answer, head in zip(answers, batch.heads, strict=True)])
        return Done(
            batch.number,
            sum(answer.tokens for answer in answers),
            sum(answer.forwards for answer in answers),
            sum(row["seconds"] for row in made) / self.slots,
        )


def _table(batch: Batch) -> Any:
    """Return a batch as a table of Arrow."""
    rows = [{"batch": batch.number, "row": at, "prompt": prompt} for at, prompt in enumerate(batch.prompts)]
    return pyarrow.Table.from_pylist(rows, pyarrow.schema(_COLUMNS))


def _sound(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row, or raise what its worker met."""
    if row["fault"]:
        kind, _, told = row["fault"].partition(": ")
        raise vars(errors).get(kind, EsdllmError)(told)
    return row


class _Attempts:
    """Counts, for all workers, how often each batch was begun."""

    def __init__(self) -> None:
        self._counts = Counter[int]()

    def begin(self, number: int) -> int:
        """Return how often a batch was begun, this time included."""
        self._counts[number] += 1
        return self._counts[number]


class _TellingDecoder:
    """A `Decoder` that tells of its errors in a column, so that they arrive as they were."""

    def __init__(self, attempts: Any, options: Mapping[str, Any]) -> None:
        self._attempts, self._fault = attempts, None
        try:
            self._decoder = Decoder(**options)
        except EsdllmError as error:
            self._fault = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if self._fault is not None:
                raise self._fault
            self._begin({int(number) for number in batch["batch"]}, len(batch["prompt"]))
            columns, fault = self._decoder(batch), ""
        except EsdllmError as error:
            columns, fault = {**batch}, f"{type(error).__name__}: {error}"
        return {**columns, "fault": [fault] * len(batch["prompt"])}

    def _begin(self, numbers: set[int], prompts: int) -> None:
        if max(ray.get([self._attempts.begin.remote(number) for number in numbers])) > _ATTEMPTS:
            raise UnavailableError(
                f"workers died {_ATTEMPTS} times with a batch of {prompts} prompts; often memory ran out: give fewer --jobs or a "
                "smaller --batch"
            )
