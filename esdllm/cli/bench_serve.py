"""`esdllm bench serve`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import attrs
import torch
import typer

from esdllm.checkpoints.loading import Model, random_model
from esdllm.cli.bench_serve_tables import print_serving
from esdllm.cli.choice import Choice
from esdllm.cli.geometry import GeometryName, named_model
from esdllm.cli.options import (
    BlockLength,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    Json,
    ModelName,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
)
from esdllm.cli.progress import CountingBar
from esdllm.cli.shared import check_writable, hint_dtype, load, print_json, stderr
from esdllm.config.project import KEY_VARIABLE, MODEL_VARIABLE
from esdllm.errors import InputError
from esdllm.measure.benchmarking.running import environment, threads
from esdllm.measure.benchmarking.serving import (
    Lengths,
    Load,
    ServeReport,
    ServerTarget,
    ServeRun,
    Wanted,
    bench_engine,
    bench_server,
    drawn,
    read_wanted,
)
from esdllm.measure.benchmarking.serving.plots import plot_serving
from esdllm.measure.plots import check_format
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine

__all__ = ["BenchServe", "loads_of"]

_WHOLE = {"early_stop": False}  # so that answers are as long as they were drawn
_BACKLOG = 2  # requests for each slot
_SLOTS = 8
_PROMPT_TOKENS = "16:64"
_IN_PROCESS = (
    *("slots", "max_queue", "static", "geometry_name", "preset", "config", "sets", "block_length", "device"),
    *("dtype", "quantize", "threads"),
)
"""fields that are of a model in this process"""


@attrs.frozen(kw_only=True)
class BenchServe:
    """Measure requests under load: latency, first text, goodput, tokens a second.

    Without --url the model decodes in this process, in slots that are refilled as rows end; --static compares that with batches
    that wait for their longest answer. Answers are as long as is drawn, unless --input brings the requests. To a server that
    asks for a key goes the one in ESDLLM_API_KEY.

    \b
    esdllm bench serve --geometry small --answer-tokens 16:256 --static
    esdllm bench serve --rate 0.5 --rate 1 --rate 2 --requests 100 --within 10
    esdllm bench serve --url http://127.0.0.1:8000 --rate 4 --burst 8 --input wanted.jsonl --plot load.png
    """

    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Root of a server that speaks OpenAI's API [none: in this process]."),
    ] = None
    rate: Annotated[
        list[float] | None,
        typer.Option(
            metavar="R",
            help="Open loop: R requests a second on average, as a Poisson process; repeatable: one run each.",
        ),
    ] = None
    burst: Annotated[int, typer.Option(metavar="N", min=1, help="With --rate, requests come N at a moment.")] = 1
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help=f"Closed loop: N requests under way, each followed by the next; repeatable [{_BACKLOG} a slot].",
        ),
    ] = None
    requests: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests of each run [64, or all of --input].")
    ] = None
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTHS", help="Of each prompt: 64, 16:64 (uniform), lognormal:MEDIAN:SIGMA:MOST [16:64]."
        ),
    ] = None
    answer_tokens: Annotated[
        str, typer.Option(metavar="LENGTHS", help="Of each answer, likewise; of a line of --input that does not say.")
    ] = "16:256"
    input: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Requests as JSON lines: prompt or messages, and max_tokens and seed if told."
        ),
    ] = None
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of lengths, prompts and arrivals.")] = 0
    within: Annotated[
        float, typer.Option(metavar="SECONDS", help="Latency up to which a request counts for goodput.")
    ] = 10.0
    slots: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"Rows decoded side by side, in this process [{_SLOTS}].")
    ] = None
    max_queue: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Requests that may wait, in this process [all].")
    ] = None
    static: Annotated[
        bool, typer.Option("--static", help="Also measure static batches, of as many rows as there are slots.")
    ] = False
    model: ModelName = None
    family: FamilyName = None
    geometry_name: GeometryName = None
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    block_length: BlockLength = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads that torch uses [as it is].")] = None
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: png, svg, pdf.")] = None
    as_json: Json = False
    debug: Debug = False

    @property
    def gen_length(self) -> None:
        """Each request has a length of its own."""
        return None

    def run(self) -> None:
        """Measure, print, and draw."""
        check_format(self.plot)
        check_writable(self.plot)
        if not self.within > 0:
            raise InputError(f"--within {self.within:g}; give seconds, above 0")
        report = self._of_server() if self.url else self._of_engine()
        if self.as_json:
            print_json(report.to_dict())
        else:
            print_serving(report)
        if self.plot:
            plot_serving(report, self.plot)
            stderr().print(f"wrote {self.plot}", style="dim", soft_wrap=True, markup=False)

    def _of_server(self) -> ServeReport:
        given = [name for name in _IN_PROCESS if getattr(self, name) is not None and getattr(self, name) is not False]
        if given:
            names = {"geometry_name": "geometry", "sets": "set"}
            options = " and ".join(f"--{names.get(name, name).replace('_', '-')}" for name in given)
            raise InputError(f"{options} with --url: that is of a model in this process; leave out either")
        model = None if self.model == os.environ.get(MODEL_VARIABLE) else self.model
        target = ServerTarget.at(self.url or "", model, os.environ.get(KEY_VARIABLE, ""))
        wanted, loads = self._wanted(None), self._loads()
        runs = self._with_bar(
            len(wanted) * len(loads), lambda tell: bench_server(target, loads, wanted, seed=self.seed, tell=tell)
        )
        return self._report(target.model, wanted, runs, {"url": target.url})

    def _of_engine(self) -> ServeReport:
        catalogue, loads = Catalogue.load(), self._loads()
        choice = Choice.of(self, suited={} if self.input else _WHOLE)
        config = choice.config(catalogue)
        with threads(self.threads or torch.get_num_threads()):
            name, model = self._loaded(catalogue)
            engine, wanted = Engine.build(model, config, catalogue), self._wanted(model)
            runs = self._with_bar(
                len(wanted) * len(loads) * (1 + self.static),
                lambda tell: bench_engine(
                    engine,
                    loads,
                    wanted,
                    slots=self.slots or _SLOTS,
                    max_queue=self.max_queue,
                    static=self.static,
                    seed=self.seed,
                    catalogue=catalogue,
                    tell=tell,
                ),
            )
            around = {**environment(model), "threads": torch.get_num_threads(), "slots": self.slots or _SLOTS}
        return attrs.evolve(self._report(name, wanted, runs, around), config=config.to_dict())

    def _loaded(self, catalogue: Catalogue) -> tuple[str, Model]:
        name, found = named_model(self.model, self.geometry_name, catalogue)
        if isinstance(found, str):
            return name, load(found, self.device, self.dtype, catalogue, self.quantize, self.family)
        model = random_model(found, self.device, self.dtype, catalogue, quantize=self.quantize, family=self.family)
        hint_dtype(model.adapter.device, model.adapter.dtype)
        return name, model

    def _loads(self) -> list[Load]:
        loads = loads_of(self.rate, self.burst, self.concurrency, self.slots or _SLOTS)
        if len(set(loads)) < len(loads):
            raise InputError("a rate or a concurrency is given twice; give each once")
        return loads

    def _wanted(self, model: Model | None) -> list[Wanted]:
        prompts, answers = Lengths.parse(self.prompt_tokens or _PROMPT_TOKENS), Lengths.parse(self.answer_tokens)
        if self.input and self.prompt_tokens:
            raise InputError(
                f"--prompt-tokens {self.prompt_tokens} with --input: its prompts are as they are; leave out either"
            )
        if self.input:
            return read_wanted(self.input, self.requests, answers, self.seed)
        spec = model.spec if model else None
        return drawn(
            self.requests or 64, prompts, answers, spec.vocab if spec else None, self.seed, spec.mask_id if spec else -1
        )

    def _report(
        self, name: str, wanted: Sequence[Wanted], runs: Sequence[ServeRun], around: dict[str, object]
    ) -> ServeReport:
        lengths = {"prompt_tokens": self.prompt_tokens or _PROMPT_TOKENS, "answer_tokens": self.answer_tokens}
        source = {"input": str(self.input)} if self.input else lengths
        return ServeReport(
            name, {"requests": len(wanted), "seed": self.seed, **source}, self.within, around, None, tuple(runs)
        )

    def _with_bar(self, total: int, measure: Callable[[Callable[[], None]], list[ServeRun]]) -> list[ServeRun]:
        with CountingBar(stderr()) as bar:
            task = bar.add_task("requests", total=total)
            return measure(lambda: bar.advance(task))


def loads_of(rates: Sequence[float] | None, burst: int, concurrency: Sequence[int] | None, slots: int) -> list[Load]:
    """Return the loads that options ask for: open ones, then closed ones; a backlog for so many slots if none is asked for.

    Raises:
        InputError: there are bursts, and no rate.
    """
    if burst > 1 and not rates:
        raise InputError(f"--burst {burst} without --rate; say how many requests come a second")
    closed = concurrency or ([] if rates else [_BACKLOG * slots])
    return [*(Load(rate=rate, burst=burst) for rate in rates or ()), *(Load(concurrency=n) for n in closed)]
