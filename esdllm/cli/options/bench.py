"""What `esdllm bench` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import attrs
import typer
from typer.core import TyperGroup

from esdllm.cli import completing
from esdllm.cli.command import command
from esdllm.cli.options import (
    BlockLength,
    Compute,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    GeometryName,
    Json,
    ModelName,
    Quantize,
    Sets,
)
from esdllm.cli.options.bench_serve import BenchServeOptions


class _RunIsMeant(TyperGroup):
    """A group whose command `run` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` before words that begin with no command."""
        asked = args[:1]
        meant = (
            asked[0] not in (*self.commands, *self.get_help_option_names(ctx)) if asked else not ctx.resilient_parsing
        )
        if meant:  # but not where a shell completes the commands
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
    esdllm bench --geometry small es-dllm bare --breakdown --json > now.json
    esdllm bench compare before.json now.json
    esdllm bench curve --over length 256 512 1024 vanilla es-dllm --gen-length 16
    esdllm bench serve --rate 1 --rate 2 --static
    """


_Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: png, svg, pdf.")]
_Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Measured runs of each contender.")]


@attrs.frozen(kw_only=True)
class _MeasuringOptions:
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


@attrs.frozen(kw_only=True)
class BenchRunOptions(_MeasuringOptions):
    """Measure contenders in turns: speed, steps, FLOPs, memory.

    \b
    esdllm bench --geometry small vanilla es-dllm refresh.prompt_refresh=256
    esdllm bench -m DIR --dtype bfloat16 es-dllm es-dllm compile=true --breakdown
    """

    contenders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONTENDER [KEY=VALUE]...]...",
            autocompletion=completing.contenders,
            help="A preset, a TOML file, or `bare` (the loop without a framework), and settings after it. The first is what "
            "the others are compared with. [vanilla, dual-cache, es-dllm]",
        ),
    ] = None
    rounds: _Rounds = 5
    breakdown: Annotated[bool, typer.Option("--breakdown", help="Tell where the time of each kind of step goes.")] = (
        False
    )
    peak: Annotated[
        bool, typer.Option("--peak/--no-peak", help="Measure what matrix products and memory reach at best.")
    ] = True


@attrs.frozen(kw_only=True)
class BenchCurveOptions(_MeasuringOptions):
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
    over: Annotated[str, typer.Option(metavar="WHAT", help="What grows: length, batch, layers, vocab.")]
    rounds: _Rounds = 3


@attrs.frozen(kw_only=True)
class BenchCompareOptions:
    """Compare two reports of the same benchmark: B over A.

    Reports that did not measure the same are refused.
    """

    before: Annotated[Path, typer.Argument(metavar="A.json", help="What `esdllm bench --json` wrote.")]
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The same, of another version or machine.")]
    debug: Debug = False


_COMMANDS = {
    "run": BenchRunOptions,
    "curve": BenchCurveOptions,
    "compare": BenchCompareOptions,
    "serve": BenchServeOptions,
}
for _name, _options in _COMMANDS.items():
    app.command(_name)(command(_options))
