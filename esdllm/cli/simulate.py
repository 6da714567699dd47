"""`esdllm simulate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
from rich.text import Text

from esdllm.checkpoints.loading import describe_weights, resolve_device
from esdllm.cli.bench_serve import loads_of
from esdllm.cli.bench_serve_tables import latency_table
from esdllm.cli.bench_tables import numbers_table, three_digits, wide_console
from esdllm.cli.choice import Choice
from esdllm.cli.cost import roofline
from esdllm.cli.geometry import named_model
from esdllm.cli.options.simulate import STATIC, SimulateOptions
from esdllm.cli.progress import CountingBar
from esdllm.cli.scheduling import scheduling_admission, scheduling_policy
from esdllm.cli.shared import check_writable, counted, print_json, stderr
from esdllm.errors import InputError, known
from esdllm.measure.benchmarking.serving import Lengths, Load
from esdllm.measure.plots import check_format
from esdllm.measure.simulating import (
    Courses,
    Pricing,
    Simulated,
    Simulation,
    SlotReplica,
    StaticReplica,
    StepSeconds,
    TimeLimits,
    asked,
)
from esdllm.measure.simulating.plots import plot_simulated
from esdllm.measure.simulating.replicas import Replica
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.serving.scheduler import POLICIES, Scheduler

__all__ = ["Simulate"]

_FORMAT = "esdllm-simulated-1"


@attrs.frozen(kw_only=True)
class Simulate(SimulateOptions):
    """Simulates every load under every policy, and prints the latencies."""

    @property
    def gen_length(self) -> None:
        """Each request has a length of its own."""
        return None

    def run(self) -> None:
        """Simulate, print, and draw."""
        check_format(self.plot)
        check_writable(self.plot)
        loads, names = self._loads(), self._names()
        catalogue = Catalogue.load()
        title, make = self._making(catalogue)
        found = [*self._simulated(loads, names, make)]
        if self.as_json:
            runs = [{"load": load.name, **one.to_dict()} for load, one in found]
            print_json({"format": _FORMAT, "asked": self._asked(), "title": title, "runs": runs})
        else:
            _print(title, found)
        if self.plot:
            plot_simulated(found, title, self.plot)
            stderr().print(f"wrote {self.plot}", style="dim", soft_wrap=True, markup=False)

    def _loads(self) -> list[Load]:
        if self.rate and self.concurrency:
            raise InputError("--rate and --concurrency are two kinds of traffic; simulate one after the other")
        return loads_of(self.rate, self.burst, self.concurrency, self.slots * self.replicas)

    def _names(self) -> list[str]:
        every = [*POLICIES, STATIC]
        for name in self.policy or ():
            if name not in every:
                raise InputError(f"--policy {name}: {known(name, every)}")
        scheduling_admission(self.admission)
        for name, seconds in (("--within", self.within), ("--timeout", self.timeout)):
            if seconds is not None and not seconds > 0:
                raise InputError(f"{name} {seconds:g}; give seconds, above 0")
        return list(dict.fromkeys(self.policy or every))

    def _making(self, catalogue: Catalogue) -> tuple[str, Callable[[str], Replica]]:
        """Return what is simulated, and what makes a machine that serves by a policy."""
        name, described = named_model(self.model, self.geometry_name, catalogue)
        choice = Choice.of(self)
        components = Components.resolve(choice.config(catalogue), catalogue)
        device = resolve_device(self.device)
        weights = describe_weights(
            described, self.dtype, self.quantize, catalogue, device, compute=self.compute, family=self.family
        )
        peaks = roofline(self.peak_gflops, self.peak_gbs, self.measure, device, weights.dtype)
        if peaks is None:
            raise InputError(
                "a step's seconds follow from what the machine reaches; give --peak-gflops and --peak-gbs, or --measure"
            )
        time = StepSeconds(peaks, self.step_ms / 1e3)
        pricing = Pricing.of(components, weights.spec, weights.dtype.itemsize, weights.bytes, time)
        courses = Courses(components, weights.spec, self.tokens_per_step)
        machines = f"{counted(self.replicas, 'replica')} of {counted(self.slots, 'slot')}"
        title = f"{name}, {choice.label()}, {machines}, {peaks.gflops:g} GFLOPs per second"
        return title, lambda policy: self._replica(policy, courses, pricing)

    def _replica(self, name: str, courses: Courses, pricing: Pricing) -> Replica:
        queue = self.requests if self.max_queue is None else self.max_queue
        if name == STATIC:
            return StaticReplica(self.slots, queue, courses, pricing)
        patience = self.patience if "patience" in attrs.fields_dict(POLICIES[name]) else None
        policy, admission = scheduling_policy(name, patience), scheduling_admission(self.admission)
        scheduler = Scheduler(slots=self.slots, max_queue=queue, policy=policy, admission=admission)
        return SlotReplica(scheduler, courses, pricing)

    def _simulated(
        self, loads: list[Load], names: list[str], make: Callable[[str], Replica]
    ) -> Iterator[tuple[Load, Simulated]]:
        prompts, answers = Lengths.parse(self.prompt_tokens), Lengths.parse(self.answer_tokens)
        wanted = asked(self.requests, prompts, answers, self.seed, self.multiple)
        limits = TimeLimits(latency=self.within, timeout=self.timeout)
        with CountingBar(stderr()) as bar:
            task = bar.add_task("runs", total=len(loads) * len(names))
            for load in loads:
                for name in names:
                    machines = [make(name) for _ in range(self.replicas)]
                    yield load, Simulation(load, wanted, limits, self.seed).run(name, machines, self.slots)
                    bar.advance(task)

    def _asked(self) -> Mapping[str, Any]:
        names = (
            "requests",
            "prompt_tokens",
            "answer_tokens",
            "multiple",
            "replicas",
            "slots",
            "max_queue",
            "admission",
        )
        more = ("patience", "within", "timeout", "tokens_per_step", "step_ms", "seed")
        return {name: getattr(self, name) for name in (*names, *more)}


def _print(title: str, found: list[tuple[Load, Simulated]]) -> None:
    console = wide_console()
    console.print(title, soft_wrap=True, markup=False)
    heads = [
        "answered",
        "refused\nor late",
        "in time,\nper second",
        "tokens\nper second",
        "slots\nbusy, %",
        "rows\nper step",
    ]
    table = numbers_table("per run", [*heads, "refreshes,\n% of steps"])
    for load, one in found:
        answered = one.requests - one.refused - one.late
        table.add_row(
            Text(f"{load.name}, {one.name}"),
            str(answered),
            str(one.refused + one.late),
            *(three_digits(x) for x in (one.goodput, one.throughput, 100 * one.busy, one.width, 100 * one.refreshes)),
        )
    console.print(table)
    runs = ((Text(f"{load.name}, {one.name}"), one.latency, one.first) for load, one in found)
    console.print(latency_table("first commit", runs))
