"""`esdllm simulate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer
from rich.text import Text

from esdllm.checkpoints.loading import describe_weights, resolve_device
from esdllm.cli.bench_serve import loads_of
from esdllm.cli.bench_serve_tables import latency_table
from esdllm.cli.bench_tables import numbers_table, three_digits, wide_console
from esdllm.cli.choice import Choice
from esdllm.cli.command import command
from esdllm.cli.cost import Measure, PeakBandwidth, PeakGflops, roofline
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
from esdllm.serving.scheduler import ADMISSIONS, POLICIES, Scheduler

__all__ = ["Simulate"]

_STATIC = "static"
_FORMAT = "esdllm-simulated-1"


@attrs.frozen(kw_only=True)
class Simulate:
    """Simulate serving: the scheduler before machines of any number and speed.

    No weights are loaded. Rows make the steps that they would make, and a step takes what its arithmetic and traffic to memory
    take at the machine's peaks, and --step-ms. Each --policy is one line, and so is `static`: batches that wait for their
    longest answer.

    \b
    esdllm simulate --geometry llada-8b --peak-gflops 600000 --peak-gbs 2500 --step-ms 2 --rate 4 --rate 8 --slots 16
    esdllm simulate --geometry llada-8b --peak-gflops 600000 --peak-gbs 2500 --replicas 64 --rate 400 --requests 4000
    esdllm simulate --geometry small --measure --concurrency 16 --policy oldest --policy widest --policy static
    """

    rate: Annotated[
        list[float] | None,
        typer.Option(metavar="R", help="R requests a second on average, as a Poisson process; repeatable."),
    ] = None
    burst: Annotated[int, typer.Option(metavar="N", min=1, help="With --rate, requests come N at a moment.")] = 1
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", min=1, help="N requests under way, each followed by the next; repeatable [2 a slot]."
        ),
    ] = None
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="Requests of each run.")] = 400
    prompt_tokens: Annotated[
        str, typer.Option(metavar="LENGTHS", help="Of each prompt: 64, 16:64 (uniform), lognormal:MEDIAN:SIGMA:MOST.")
    ] = "16:64"
    answer_tokens: Annotated[str, typer.Option(metavar="LENGTHS", help="Of each answer, likewise.")] = "16:256"
    multiple: Annotated[int, typer.Option(metavar="N", min=1, help="Lengths are rounded up to multiples of N.")] = 16
    replicas: Annotated[int, typer.Option(metavar="N", min=1, help="Machines; a request goes where fewest are.")] = 1
    slots: Annotated[int, typer.Option(metavar="N", min=1, help="Rows decoded side by side on each.")] = 8
    max_queue: Annotated[int | None, typer.Option(metavar="N", min=0, help="Requests that may wait on each [all].")] = (
        None
    )
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help=f"Who goes first: {', '.join(POLICIES)}; or {_STATIC}; repeatable [all of them]."
        ),
    ] = None
    patience: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Steps of others that a row sees before it goes first.")
    ] = None
    admission: Annotated[str, typer.Option(metavar="NAME", help=f"Who is admitted: {', '.join(ADMISSIONS)}.")] = (
        "in-order"
    )
    within: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Latency up to which an answer counts for goodput [any].")
    ] = None
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time after which a request is given up [none].")
    ] = None
    tokens_per_step: Annotated[
        float, typer.Option(metavar="X", min=1, help="Commits of a step on average, where logits decide how many.")
    ] = 1.0
    step_ms: Annotated[float, typer.Option(metavar="X", min=0, help="Milliseconds of each step beside its cost.")] = 0.0
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of lengths and arrivals.")] = 0
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
    peak_gflops: PeakGflops = None
    peak_gbs: PeakBandwidth = None
    measure: Measure = False
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: png, svg, pdf.")] = None
    as_json: Json = False
    debug: Debug = False

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
        every = [*POLICIES, _STATIC]
        for name in self.policy or ():
            if name not in every:
                raise InputError(f"--policy {name}: {known(name, every)}")
        if self.admission not in ADMISSIONS:
            raise InputError(f"--admission {self.admission}: {known(self.admission, ADMISSIONS)}")
        for name, seconds in (("--within", self.within), ("--timeout", self.timeout)):
            if seconds is not None and not seconds > 0:
                raise InputError(f"{name} {seconds:g}; give seconds, above 0")
        return list(dict.fromkeys(self.policy or every))

    def _making(self, catalogue: Catalogue) -> tuple[str, Callable[[str], Replica]]:
        """Return what is simulated, and what makes a machine that serves by a policy."""
        name, described = named_model(self.model, self.geometry_name, catalogue)
        choice = Choice.of(self)
        components = Components.resolve(choice.config(catalogue), catalogue)
        weights = describe_weights(described, self.dtype, self.quantize, catalogue, family=self.family)
        device = resolve_device(self.device)
        peaks = roofline(self.peak_gflops, self.peak_gbs, self.measure, device, weights.dtype)
        if peaks is None:
            raise InputError(
                "a step's seconds follow from what the machine reaches; give --peak-gflops and --peak-gbs, or --measure"
            )
        time = StepSeconds(peaks, self.step_ms / 1e3)
        pricing = Pricing.of(components, weights.spec, weights.dtype.itemsize, weights.bytes, time)
        courses = Courses(components, weights.spec, self.tokens_per_step)
        machines = f"{counted(self.replicas, 'replica')} of {counted(self.slots, 'slot')}"
        title = f"{name}, {choice.label()}, {machines}, {peaks.gflops:g} GFLOPs a second"
        return title, lambda policy: self._replica(policy, courses, pricing)

    def _replica(self, name: str, courses: Courses, pricing: Pricing) -> Replica:
        queue = self.requests if self.max_queue is None else self.max_queue
        if name == _STATIC:
            return StaticReplica(self.slots, queue, courses, pricing)
        patient = "patience" in attrs.fields_dict(POLICIES[name]) and self.patience is not None
        policy = POLICIES[name](**({"patience": self.patience} if patient else {}))
        scheduler = Scheduler(slots=self.slots, max_queue=queue, policy=policy, admission=ADMISSIONS[self.admission]())
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


simulate = command(Simulate)


def _print(title: str, found: list[tuple[Load, Simulated]]) -> None:
    console = wide_console()
    console.print(title, soft_wrap=True, markup=False)
    heads = ["answered", "refused\nor late", "in time,\na second", "tokens\na second", "slots\nbusy, %", "rows\na step"]
    table = numbers_table("a run", [*heads, "refreshes,\n% of steps"])
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
