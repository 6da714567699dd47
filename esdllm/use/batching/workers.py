"""Who decodes the batches: this process, or several, one per device or a share of the CPU's threads."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch

from esdllm.checkpoints.loading import Model, load_model
from esdllm.config import DecodeConfig
from esdllm.errors import EsdllmError, UnavailableError
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.allocator import keep_freed_memory
from esdllm.runtime.engine import Engine
from esdllm.runtime.records import Generation
from esdllm.use.batching.rows import write_rows

__all__ = ["Batch", "Done", "PromptAnswer", "Setup", "alone", "decode", "decode_elsewhere", "places"]


class Batch(NamedTuple):
    """Prompts to decode together."""

    number: int
    """of the batch, from 0"""
    prompts: tuple[tuple[int, ...], ...]
    """token ids"""
    heads: tuple[dict[str, Any], ...]
    """what each row of the output begins with"""
    file: Path
    """where its rows go"""

    def singly(self) -> list[Batch]:
        """Return its prompts as batches of one."""
        return [
            self._replace(prompts=(prompt,), heads=(head,))
            for prompt, head in zip(self.prompts, self.heads, strict=True)
        ]


class PromptAnswer(NamedTuple):
    """What a prompt came to."""

    text: str = ""
    """the answer"""
    tokens: int = 0
    """of the answer"""
    forwards: int = 0
    """forward passes that were made for it, or for its whole batch"""
    error: str = ""
    """why there is no answer; empty where there is one"""

    def row(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row of the output that begins with `head`."""
        found = self._asdict()
        error = found.pop("error")
        return {**head, **({"error": error} if error else found)}


class Done(NamedTuple):
    """A batch whose rows are written."""

    number: int
    """of the batch"""
    tokens: int
    """tokens of all answers"""
    forwards: int
    """forward passes"""
    seconds: float
    """wall-clock time of the steps"""


@attrs.frozen
class Setup:
    """What a worker needs to load the model and build its engine."""

    model: str
    """as `load_model` takes it"""
    config: dict[str, Any]
    """as `DecodeConfig.from_dict` takes it"""
    device: str | None = None
    """where to compute; the GPU if there is one and else the CPU if None"""
    dtype: str | None = None
    """of the weights; the checkpoint's own if None"""
    quantize: str | None = None
    """how linear layers' weights are held"""
    threads: int | None = None
    """of the CPU; what torch takes if None"""
    family: str | None = None
    """of which family the model is, as `load_model` takes it; None where its config.json tells"""
    compute: str | None = None
    """the kernel of linear layers, as `load_model` takes it"""

    @property
    def place(self) -> str:
        """The model's name; of a folder the whole path."""
        folder = Path(self.model).expanduser()
        return str(folder.resolve()) if folder.is_dir() else self.model

    def load(self, catalogue: Catalogue) -> Model:
        """Return the model."""
        held: Any = {"quantize": self.quantize, "compute": self.compute, "family": self.family}
        return load_model(self.model, self.device, self.dtype, catalogue, **held)


def places(setup: Setup, jobs: int) -> list[Setup]:
    """Return a setup for each of `jobs` processes: a GPU each, or an equal share of the CPU's threads.

    Raises:
        UnavailableError: there are fewer GPUs, or one is named for all.
    """
    device = setup.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return [attrs.evolve(setup, device=device, threads=max(1, torch.get_num_threads() // jobs))] * jobs
    if ":" in device:
        raise UnavailableError(f"--jobs {jobs} on {device}: several processes take a device each; give --device cuda")
    found = torch.cuda.device_count()
    if jobs > found:
        raise UnavailableError(f"--jobs {jobs}, but this machine has {found} GPUs; give --jobs {max(1, found)}")
    return [attrs.evolve(setup, device=f"{device}:{number}") for number in range(jobs)]


def decode(engine: Engine, batch: Batch) -> Done:
    """Decode a batch and write its rows.

    Where it fails its prompts are decoded one by one, so that a prompt that fails spoils no answer but its own: its row says why.

    Raises:
        UnavailableError: it does not fit into memory, or the machine is at fault and not a prompt.
    """
    found = _decoded(engine, batch)
    if isinstance(found, EsdllmError) and len(batch.prompts) > 1:
        made = [(one, _decoded(engine, one)) for one in batch.singly()]
    else:
        made = [(batch, found)]
    write_rows(batch.file, [row for one, result in made for row in _rows(one, result)])
    results = [result for _, result in made if isinstance(result, Generation)]
    return Done(
        batch.number,
        sum(result.answer_tokens for result in results),
        sum(result.forwards for result in results),
        sum(result.seconds for result in results),
    )


def alone(error: EsdllmError) -> str:
    """Return what an error says of the only prompt that was given."""
    return str(error).replace("prompt 0", "the prompt")


def _decoded(engine: Engine, batch: Batch) -> Generation | EsdllmError:
    """Return what a batch comes to, an error too."""
    try:
        return engine.generate([list(prompt) for prompt in batch.prompts])
    except UnavailableError:
        raise
    except EsdllmError as error:
        return error.with_traceback(None)  # its frames hold the run's tensors
    except torch.OutOfMemoryError as error:
        longest = max(map(len, batch.prompts))
        raise UnavailableError(
            f"{len(batch.prompts)} prompts of up to {longest} tokens do not fit into memory; give a smaller --batch"
        ) from error


def _rows(batch: Batch, result: Generation | EsdllmError) -> list[dict[str, Any]]:
    """Return a row per prompt: its answer, or, of a batch of one, why there is none."""
    if isinstance(result, EsdllmError):
        return [PromptAnswer(error=alone(result)).row(batch.heads[0])]
    texts = result.text or [""] * len(result.answers)
    return [
        PromptAnswer(text, len(answer), result.forwards).row(head)
        for head, text, answer in zip(batch.heads, texts, result.answers, strict=True)
    ]


def decode_elsewhere(setups: Sequence[Setup], batches: Sequence[Batch]) -> Iterator[Done]:
    """Yield batches as they are done by processes, one per setup, which end with this one.

    Raises:
        EsdllmError: what a process raised, or that one died.
    """
    context = multiprocessing.get_context("spawn")
    todo = list(reversed(batches))
    with ExitStack() as stack:
        open_: dict[Connection, Batch | None] = {}
        for setup in setups[: len(batches)]:
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, attrs.asdict(setup)), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            stack.callback(mine.close)
            theirs.close()  # so that the pipe ends with the process
            open_[mine] = None
        while open_:
            for connection in wait(list(open_)):
                if not isinstance(connection, Connection):
                    raise AssertionError("only connections are waited for")
                said = _hear(connection, open_[connection])
                if isinstance(said, Done):
                    yield said
                if todo:
                    open_[connection] = todo.pop()
                    connection.send(open_[connection])
                else:
                    del open_[connection]
                    connection.send(None)


def _hear(connection: Connection, batch: Batch | None) -> Done | None:
    """Return what a process says: that it is ready (None), or which batch it has done."""
    try:
        said = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        what = "while loading the model" if batch is None else f"in a batch of {len(batch.prompts)} prompts"
        raise UnavailableError(
            f"a process died {what}; often memory ran out: give fewer --jobs or a smaller --batch"
        ) from error
    if isinstance(said, Exception):
        raise said
    found: Done | None = said
    return found


def _work(connection: Connection, settings: dict[str, Any]) -> None:
    """Load, and decode what comes until nothing comes; the other end's death ends it too."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the first process ends the others
    try:
        setup = Setup(**settings)
        if setup.threads:
            torch.set_num_threads(setup.threads)
        catalogue = Catalogue.load()
        engine = Engine.build(setup.load(catalogue), DecodeConfig.from_dict(setup.config), catalogue)
        connection.send(None)
        while (batch := connection.recv()) is not None:
            connection.send(decode(engine, batch))
    except (EOFError, BrokenPipeError):
        return
    except EsdllmError as error:
        connection.send(type(error)(str(error)))
    except Exception as error:  # a fault of ours, which should be seen as one
        told = f"in another process: {type(error).__name__}: {error}"
        connection.send(RuntimeError(f"{told}\n{traceback.format_exc()}"))
