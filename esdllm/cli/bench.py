"""`esdllm bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
import typer
from typer.core import TyperGroup

from esdllm.checkpoints.loading import resolve_device
from esdllm.cli.bench_serve import BenchServe
from esdllm.cli.bench_tables import print_comparison, print_curve, print_report
from esdllm.cli.choice import fixed_sets, tell_found
from esdllm.cli.command import command
from esdllm.cli.geometry import GeometryName, named_model
from esdllm.cli.options import (
    BlockLength,
    Compute,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    Json,
    ModelName,
    Quantize,
    Sets,
)
from esdllm.cli.progress import CountingBar
from esdllm.cli.shared import check_writable, hint_dtype, print_json, stderr
from esdllm.config.project import current_project, environment_layers
from esdllm.errors import InputError, known
from esdllm.measure.benchmarking import (
    AXES,
    DEFAULTS,
    BenchContender,
    Peak,
    Report,
    Setting,
    bench,
    bench_fresh,
    compare,
    contenders_named,
    curve,
    read_report,
)
from esdllm.measure.benchmarking.plots import plot_curve, plot_report
from esdllm.measure.plots import check_format
from esdllm.plugins.catalogue import Catalogue

_DEFAULT_GEOMETRY = "tiny"


class _RunIsMeant(TyperGroup):
    """A group whose command `run` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before words that begin with no command."""
        asked = args[:1]
        if not asked or asked[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["run", *args]
        found: list[str] = super().parse_args(ctx, args)
        return found


app = typer.Typer(name="bench", cls=_RunIsMeant, rich_markup_mode=None, add_completion=False)


@app.callback()
def bench_() -> None:
    """Measure speed: contenders side by side on one model.

    Words that begin with no command are those of `run`, whose options `esdllm bench run --help` lists.

    \b
    esdllm bench
    esdllm bench --geometry small --prompt-length 512 vanilla dual-cache es-dllm
    esdllm bench --geometry small es-dllm bare --profile --json > now.json
    esdllm bench compare before.json now.json
    esdllm bench curve --over length 256 512 1024 vanilla es-dllm --gen-length 16
    esdllm bench serve --rate 1 --rate 2 --static
    """


_Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: png, svg, pdf.")]


@attrs.frozen(kw_only=True)
class _Measuring:
    """What is asked of every measurement."""

    model: ModelName = None
    family: FamilyName = None
    geometry_name: GeometryName = None
    prompt_length: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of each prompt.")] = 512
    gen_length: GenLength = None
    block_length: BlockLength = None
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts decoded together.")] = 1
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads that torch uses [as it is].")] = None
    sets: Sets = None
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Make at most N steps of each plan, and take the others of the plan to last as long [all].",
        ),
    ] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure each run in a process of its own.")] = False
    plot: _Plot = None
    as_json: Json = False
    debug: Debug = False

    def setting(self, catalogue: Catalogue) -> Setting:
        """Return what the contenders have in common; says where its dtype is slow."""
        asked = self.geometry_name or (None if self.model else _DEFAULT_GEOMETRY)
        name, found = named_model(self.model, asked, catalogue)
        made = None if isinstance(found, str) else found
        threads = {"threads": self.threads} if self.threads else {}
        setting = Setting(
            name,
            made,
            self.prompt_length,
            self.batch,
            self.device,
            self.dtype,
            self.quantize,
            family=self.family,
            compute=self.compute,
            **threads,
            sample=self.sample,
        )
        hint_dtype(resolve_device(self.device), setting.weights(catalogue).dtype)
        return setting

    def contenders_of(self, words: Sequence[str], catalogue: Catalogue) -> list[BenchContender]:
        """Return the contenders that words name."""
        project, fixed = current_project(None), [*fixed_sets(self.gen_length, self.block_length), *(self.sets or ())]
        found = contenders_named(words, catalogue, fixed, project)
        tell_found(project, environment_layers())
        return found

    def check_plot(self) -> None:
        """Find out before the long work whether its picture can be written."""
        check_format(self.plot)
        check_writable(self.plot)

    def draw(self, draw: Callable[[Path], None]) -> None:
        """Draw what was measured, if that is asked."""
        if self.plot:
            draw(self.plot)
            stderr().print(f"wrote {self.plot}", style="dim", soft_wrap=True, markup=False)


_Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Measured runs of each contender.")]


@attrs.frozen(kw_only=True)
class BenchRun(_Measuring):
    """Measure contenders in turns: speed, steps, FLOPs, memory.

    \b
    esdllm bench --geometry small vanilla es-dllm refresh.prompt_refresh=256
    esdllm bench -m DIR --dtype bfloat16 es-dllm es-dllm compile=true --profile
    """

    contenders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONTENDER [KEY=VALUE]...]...",
            help="A preset, a TOML file, or `bare` (the loop without a framework), and settings after it. The first is what "
            f"the others are compared with. [{', '.join(DEFAULTS)}]",
        ),
    ] = None
    rounds: _Rounds = 5
    profile: Annotated[bool, typer.Option("--profile", help="Tell where the time of each kind of step goes.")] = False
    peak: Annotated[
        bool, typer.Option("--peak/--no-peak", help="Measure what matrix products and memory reach at best.")
    ] = True

    def run(self) -> None:
        """Measure, print, and draw."""
        self.check_plot()
        catalogue = Catalogue.load()
        contenders = self.contenders_of(self.contenders or [], catalogue)
        measure = _measure(catalogue, contenders, self.rounds, self.fresh, self.profile, self.peak)
        report = measure(self.setting(catalogue))
        if self.as_json:
            print_json(report.to_dict())
        else:
            print_report(report)
        self.draw(lambda path: plot_report(report, path))


@attrs.frozen(kw_only=True)
class BenchCurve(_Measuring):
    """Measure time and memory as work grows, and the slope.

    With `--over length` a size is that of the canvas, prompt and answer.

    \b
    esdllm bench curve --over length 256 512 1024 vanilla es-dllm --gen-length 16
    esdllm bench curve --over batch 1 2 4 8 es-dllm --plot batch.png
    """

    words: Annotated[
        list[str],
        typer.Argument(metavar="SIZE... [CONTENDER [KEY=VALUE]...]...", help="The sizes, and contenders as for `run`."),
    ]
    over: Annotated[str, typer.Option(metavar="WHAT", help=f"What grows: {', '.join(AXES)}.")]
    rounds: _Rounds = 3

    def run(self) -> None:
        """Measure size by size, print, and draw."""
        self.check_plot()
        if self.over not in AXES:
            raise InputError(f"--over {self.over}; {known(self.over, AXES)}")
        catalogue = Catalogue.load()
        sizes = [int(word) for word in self.words if word.isdecimal()]
        contenders = self.contenders_of([word for word in self.words if not word.isdecimal()], catalogue)
        measure = _measure(catalogue, contenders, self.rounds, self.fresh, profile=False, peak=False)
        found = curve(self.setting(catalogue), contenders, self.over, sizes, measure)
        if self.as_json:
            print_json(found.to_dict())
        else:
            print_curve(found)
        self.draw(lambda path: plot_curve(found, path))


@attrs.frozen(kw_only=True)
class BenchCompare:
    """Compare two reports of the same benchmark: B over A.

    Reports that did not measure the same are refused.
    """

    before: Annotated[Path, typer.Argument(metavar="A.json", help="What `esdllm bench --json` wrote.")]
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The same, of another version or machine.")]
    debug: Debug = False

    def run(self) -> None:
        """Read both, and print what changed."""
        print_comparison(compare(read_report(self.before), read_report(self.after)))


for _name, _asked in (("run", BenchRun), ("curve", BenchCurve), ("compare", BenchCompare), ("serve", BenchServe)):
    app.command(_name)(command(_asked))


def _measure(
    catalogue: Catalogue, named: Sequence[BenchContender], rounds: int, fresh: bool, profile: bool, peak: bool
) -> Callable[[Setting], Report]:
    """Return what measures the contenders under a setting, with a bar for each."""

    def measure(setting: Setting) -> Report:
        runs = rounds if fresh else 1 + rounds + profile
        with CountingBar(stderr()) as bar:
            bars = {contender.name: bar.add_task(contender.name, total=runs) for contender in named}

            def tell(name: str) -> None:
                bar.advance(bars[name])

            if fresh:
                return bench_fresh(
                    setting, named, rounds=rounds, profiled=profile, peak=peak, catalogue=catalogue, progress=tell
                )
            return bench(
                setting,
                named,
                rounds=rounds,
                profiled=profile,
                peak=None if peak else _no_peak,
                catalogue=catalogue,
                progress=tell,
            )

    return measure


def _no_peak(model: object) -> Peak | None:
    return None
