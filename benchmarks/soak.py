"""Random traffic on a session, as long as you like: every answer is that of its prompt alone, and nothing leaks.

    python benchmarks/soak.py --requests 10000 --model tiny-llada --model tiny-dream

Requests come in bursts and trickles; some stream, some have stop strings, other lengths or temperatures, some are cancelled
after a while, some have a deadline. Every request is checked; the first that fails ends the run.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import product
from random import Random
from threading import Event, Timer
from typing import Annotated, Any

import attrs
import psutil
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from esdllm import Catalogue, Engine, configure, load_model
from esdllm.serving.requests import Completion, FinishReason, Request, Update
from esdllm.serving.session import Session, Ticket
from esdllm.serving.stopping import StopStrings

LENGTHS = (1, 5, 8, 16, 24)
SEEDS = 2
PROMPTS = ("What is 2 + 3?", "Sort 5 2 9.", "Who are you?", "Reverse: abc", "Bonjour, ça va ?", "What is 7 + 8?")
SAMPLERS: tuple[dict[str, Any], ...] = ({}, {"sampler": {"name": "gumbel", "temperature": 0.8}})
SLOTS = 8


@attrs.define(eq=False)
class Asked:
    """A request, and what was told of it."""

    request: Request
    expected: str
    """the answer alone, before its stop strings"""
    updates: list[Update] = attrs.field(factory=list)
    over: Event = attrs.field(factory=Event)

    def listen(self, update: Update) -> None:
        """Note an update."""
        self.updates.append(update)
        if update.completion is not None:
            self.over.set()

    def check(self) -> Completion:
        """Return how it ended.

        Raises:
            AssertionError: it is not what it is alone, or what was told is not the answer.
        """
        if not self.over.wait(600):
            raise AssertionError(f"{self.request} has no answer")
        completion = self.updates[-1].completion
        assert completion is not None
        told = "".join(update.new for update in self.updates)
        assert told == completion.text, (self.request, told, completion.text)
        if completion.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
            cut = StopStrings(self.request.stop).cut(self.expected)
            assert completion.text == self.expected[:cut], (self.request, completion.text, self.expected)
        else:
            assert completion.error is None, completion.error
            assert self.expected.startswith(completion.text), (self.request, completion.text, self.expected)
        return completion


class Traffic:
    """Makes requests, of which what each is alone is known."""

    def __init__(self, engine: Engine, random: Random) -> None:
        self._engine, self._random, self._catalogue = engine, random, Catalogue.load()
        self._known: dict[Any, str] = {}
        for prompt, seed, length, sampler in product(PROMPTS, range(SEEDS), LENGTHS, SAMPLERS):
            self._alone(prompt, seed, {"gen_length": length, **sampler})

    def ask(self) -> Asked:
        """Return a request."""
        random = self._random
        settings: dict[str, Any] = {"gen_length": random.choice(LENGTHS), **random.choice(SAMPLERS)}
        prompt, seed = random.choice(PROMPTS), random.randrange(SEEDS)
        expected = self._alone(prompt, seed, settings)
        stop: tuple[str, ...] = ()
        if expected and random.random() < 0.4:
            start = random.randrange(len(expected))
            stop = (expected[start : start + random.randint(1, 4)], "never there")
        timeout = random.choice([None, None, None, None, 0.02, 0.5])
        how = {"stream": random.random() < 0.6, "drafts": random.random() < 0.2, "logprobs": random.random() < 0.2}
        request = Request(prompt=prompt, seed=seed, settings=settings, stop=stop, timeout=timeout, **how)
        return Asked(request, expected)

    def _alone(self, prompt: str, seed: int, settings: dict[str, Any]) -> str:
        key = prompt, seed, repr(settings)
        if key not in self._known:
            config = self._engine.components.varied(settings, self._catalogue).config
            text = Engine.build(self._engine.model, config, self._catalogue).generate(prompt, seed=seed).text
            assert text is not None
            self._known[key] = text[0]
        return self._known[key]


def soak(model: str, requests: int, seed: int, console: Console) -> dict[str, Any]:
    """Return what came of random traffic on a model."""
    random = Random(seed)
    engine = Engine.build(load_model(model, device="cpu"), configure("es-dllm", sets=["block_length=8"]))
    traffic, process = Traffic(engine, random), psutil.Process()
    counts: Counter[str] = Counter()
    held = 0
    with Session.open(engine, slots=SLOTS, length=96, max_queue=requests) as session, Progress(console=console) as bar:
        task, waiting = bar.add_task(model, total=requests), []
        for number in range(requests):
            asked = traffic.ask()
            ticket = session.submit(asked.request, asked.listen)
            waiting.append(asked)
            counts["streams"] += asked.request.stream
            if random.random() < 0.2:
                _cancel_later(ticket, random)
                counts["asked to be cancelled"] += 1
            if len(waiting) > random.choice([4, 16, 64]):
                for each in waiting:
                    counts[each.check().finish_reason.value] += 1
                waiting.clear()
                bar.update(task, completed=number)
            if number == requests // 5:  # by then everything has been made once
                held = process.memory_info().rss
        for each in waiting:
            counts[each.check().finish_reason.value] += 1
        bar.update(task, completed=requests)
        state = session.state()
        leaked = state.running + state.waiting
    grown = process.memory_info().rss - held
    return {"requests": requests, **counts, "slots leaked": leaked, "memory grown (MB)": round(grown / 1e6, 1)}


def _cancel_later(ticket: Ticket, random: Random) -> None:
    timer = Timer(random.choice([0.0, 0.05, 0.3]), ticket.cancel)
    timer.daemon = True
    timer.start()


def main(
    model: Annotated[list[str] | None, typer.Option(help="Checkpoint; may be given several times.")] = None,
    requests: Annotated[int, typer.Option(help="Requests for each model.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the traffic.")] = 0,
) -> None:
    """Let random traffic onto sessions, and check every answer."""
    console = Console()
    table = Table(
        "model", "what", "number", title="Random traffic: all answers as alone, deltas joined are the answers"
    )
    for name in model or ["tiny-llada", "tiny-dream"]:
        began = time.perf_counter()
        for what, number in soak(name, requests, seed, console).items():
            table.add_row(name, what, f"{number}")
        table.add_row(name, "seconds", f"{time.perf_counter() - began:.0f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
