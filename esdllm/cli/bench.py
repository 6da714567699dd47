"""`esdllm bench`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from esdllm.checkpoints.loading import resolve_device
from esdllm.cli.bench_tables import print_comparison, print_curve, print_report
from esdllm.cli.choice import fixed_sets, tell_found
from esdllm.cli.geometry import GeometryName, named_model
from esdllm.cli.options import BlockLength, Debug, Device, Dtype, GenLength, Json, ModelName, Quantize, Sets
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
    """


_PromptLength = Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of each prompt.")]
_Batch = Annotated[int, typer.Option(metavar="N", min=1, help="Prompts decoded together.")]
_Threads = Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads that torch uses [as it is].")]
_Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Measured runs of each contender.")]
_Sample = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Make at most N steps of each plan, and take the others of the plan to last as long [all].",
    ),
]
_Fresh = Annotated[bool, typer.Option("--fresh", help="Measure each run in a process of its own.")]
_WithPeak = Annotated[
    bool, typer.Option("--peak/--no-peak", help="Measure what matrix products and memory reach at best.")
]
_Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: png, svg, pdf.")]


@app.command("run")
def run(
    contenders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONTENDER [KEY=VALUE]...]...",
            help="A preset, a TOML file, or `bare` (the loop without a framework), and settings after it. The first is what "
            f"the others are compared with. [{', '.join(DEFAULTS)}]",
        ),
    ] = None,
    model: ModelName = None,
    geometry_name: GeometryName = None,
    prompt_length: _PromptLength = 512,
    gen_length: GenLength = None,
    block_length: BlockLength = None,
    batch: _Batch = 1,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    threads: _Threads = None,
    sets: Sets = None,
    rounds: _Rounds = 5,
    sample: _Sample = None,
    fresh: _Fresh = False,
    profile: Annotated[bool, typer.Option("--profile", help="Tell where the time of each kind of step goes.")] = False,
    peak: _WithPeak = True,
    plot: _Plot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure contenders in turns: speed, steps, FLOPs, memory.

    \b
    esdllm bench --geometry small vanilla es-dllm refresh.prompt_refresh=256
    esdllm bench -m DIR --dtype bfloat16 es-dllm es-dllm compile=true --profile
    """
    check_format(plot)
    check_writable(plot)
    catalogue = Catalogue.load()
    setting = _setting(catalogue, model, geometry_name, prompt_length, batch, device, dtype, quantize, threads, sample)
    named = _contenders(contenders or [], catalogue, gen_length, block_length, sets)
    hint_dtype(resolve_device(device), setting.weights(catalogue).dtype)
    report = _measure(catalogue, named, rounds, fresh, profile, peak)(setting)
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)
    _draw(plot, lambda path: plot_report(report, path))


@app.command("curve")
def curve_(
    words: Annotated[
        list[str],
        typer.Argument(metavar="SIZE... [CONTENDER [KEY=VALUE]...]...", help="The sizes, and contenders as for `run`."),
    ],
    over: Annotated[str, typer.Option(metavar="WHAT", help=f"What grows: {', '.join(AXES)}.")],
    model: ModelName = None,
    geometry_name: GeometryName = None,
    prompt_length: _PromptLength = 512,
    gen_length: GenLength = None,
    block_length: BlockLength = None,
    batch: _Batch = 1,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    threads: _Threads = None,
    sets: Sets = None,
    rounds: _Rounds = 3,
    sample: _Sample = None,
    fresh: _Fresh = False,
    plot: _Plot = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure time and memory as work grows, and the slope.

    With `--over length` a size is that of the canvas, prompt and answer.

    \b
    esdllm bench curve --over length 256 512 1024 vanilla es-dllm --gen-length 16
    esdllm bench curve --over batch 1 2 4 8 es-dllm --plot batch.png
    """
    check_format(plot)
    check_writable(plot)
    if over not in AXES:
        raise InputError(f"--over {over}; {known(over, AXES)}")
    catalogue = Catalogue.load()
    sizes, others = [int(word) for word in words if word.isdecimal()], [word for word in words if not word.isdecimal()]
    setting = _setting(catalogue, model, geometry_name, prompt_length, batch, device, dtype, quantize, threads, sample)
    named = _contenders(others, catalogue, gen_length, block_length, sets)
    hint_dtype(resolve_device(device), setting.weights(catalogue).dtype)
    measure = _measure(catalogue, named, rounds, fresh, profile=False, peak=False)
    found = curve(setting, named, over, sizes, measure)
    if as_json:
        print_json(found.to_dict())
    else:
        print_curve(found)
    _draw(plot, lambda path: plot_curve(found, path))


@app.command("compare")
def compare_(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="What `esdllm bench --json` wrote.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The same, of another version or machine.")],
    debug: Debug = False,
) -> None:
    """Compare two reports of the same benchmark: B over A.

    Reports that did not measure the same are refused.
    """
    print_comparison(compare(read_report(before), read_report(after)))


def _setting(
    catalogue: Catalogue,
    model: str | None,
    geometry_name: str | None,
    prompt_length: int,
    batch: int,
    device: str | None,
    dtype: str | None,
    quantize: str | None,
    threads: int | None,
    sample: int | None,
) -> Setting:
    """Return the setting."""
    name, found = named_model(model, geometry_name or (None if model else _DEFAULT_GEOMETRY), catalogue)
    made = None if isinstance(found, str) else found
    given = {"threads": threads} if threads else {}
    return Setting(name, made, prompt_length, batch, device, dtype, quantize, **given, sample=sample)


def _contenders(
    words: Sequence[str],
    catalogue: Catalogue,
    gen_length: int | None,
    block_length: int | None,
    sets: Sequence[str] | None,
) -> list[BenchContender]:
    project = current_project(None)
    found = contenders_named(words, catalogue, [*fixed_sets(gen_length, block_length), *(sets or ())], project)
    tell_found(project, environment_layers())
    return found


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


def _draw(path: Path | None, draw: Callable[[Path], None]) -> None:
    if path:
        draw(path)
        stderr().print(f"wrote {path}", style="dim", soft_wrap=True, markup=False)
