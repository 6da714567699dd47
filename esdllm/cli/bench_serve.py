"""`esdllm bench serve`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import attrs
import torch

from esdllm.checkpoints.loading import Model, random_model
from esdllm.cli.bench_serve_tables import print_serving
from esdllm.cli.choice import Choice
from esdllm.cli.geometry import named_model
from esdllm.cli.loading import load
from esdllm.cli.options.bench_serve import BACKLOG, SLOTS, BenchServeOptions
from esdllm.cli.progress import CountingBar
from esdllm.cli.scheduling import scheduling_policy
from esdllm.cli.shared import check_writable, hint_dtype, print_json, stderr
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
_PROMPT_TOKENS = "16:64"
_IN_PROCESS = (
    *(
        "slots",
        "max_queue",
        "policy",
        "patience",
        "static",
        "geometry_name",
        "preset",
        "config",
        "sets",
        "block_length",
        "device",
    ),
    *("dtype", "quantize", "compute", "threads"),
)
"""fields that are of a model in this process"""


@attrs.frozen(kw_only=True)
class BenchServe(BenchServeOptions):
    """Puts loads on slots or a server, and prints the latencies."""

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
        policy = scheduling_policy(self.policy or "refreshes-together", self.patience)
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
                    slots=self.slots or SLOTS,
                    max_queue=self.max_queue,
                    policy=policy,
                    static=self.static,
                    seed=self.seed,
                    catalogue=catalogue,
                    tell=tell,
                ),
            )
            around = {**environment(model), "threads": torch.get_num_threads(), "slots": self.slots or SLOTS}
        return attrs.evolve(self._report(name, wanted, runs, around), config=config.to_dict())

    def _loaded(self, catalogue: Catalogue) -> tuple[str, Model]:
        name, found = named_model(self.model, self.geometry_name, catalogue)
        if isinstance(found, str):
            return name, load(found, self, catalogue)
        model = random_model(
            found, self.device, self.dtype, catalogue, quantize=self.quantize, compute=self.compute, family=self.family
        )
        hint_dtype(model.adapter.device, model.adapter.dtype)
        return name, model

    def _loads(self) -> list[Load]:
        loads = loads_of(self.rate, self.burst, self.concurrency, self.slots or SLOTS)
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
        raise InputError(f"--burst {burst} without --rate; say how many requests come per second")
    closed = concurrency or ([] if rates else [BACKLOG * slots])
    return [*(Load(rate=rate, burst=burst) for rate in rates or ()), *(Load(concurrency=n) for n in closed)]
