"""`esdllm trace`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from esdllm.checkpoints.loading import Model
from esdllm.cli.progress import CountingBar
from esdllm.cli.prompts import read_prompt
from esdllm.cli.shared import (
    BlockLength,
    ChatTemplate,
    Choice,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    GenLength,
    ModelName,
    PresetName,
    ProfileName,
    Quantize,
    Seed,
    Sets,
    check_writable,
    counted,
    default_model,
    fixed_sets,
    load,
    stderr,
)
from esdllm.config import DecodeConfig
from esdllm.errors import InputError
from esdllm.measure.evaluation import Contender, check_names
from esdllm.measure.tracing import Trace, page
from esdllm.measure.tracing import trace as traced
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.runtime.engine import Engine


def trace(
    prompt: Annotated[str, typer.Argument(help="The prompt, in quotes; - reads standard input.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers here.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="CONTENDER",
            help="A second run beside it: a preset or a TOML file, with its own settings after it, such as "
            '"es-dllm importance.alpha=1.0".',
        ),
    ] = None,
    model: ModelName = None,
    preset: PresetName = None,
    profile: ProfileName = None,
    config: ConfigFile = None,
    sets: Sets = None,
    gen_length: GenLength = None,
    block_length: BlockLength = None,
    seed: Seed = None,
    times: Annotated[
        bool, typer.Option("--times/--no-times", help="Decode once more, for the time of each step.")
    ] = True,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    chat: ChatTemplate = None,
    debug: Debug = False,
) -> None:
    """Record what a run computes, skips and refreshes, and write a page that shows it.

    The page is one file that fetches nothing: the canvas over the steps, each layer's work, variation, importance and
    confidence, the time of each step, each token's story. The lengths and the seed hold for both runs, --set and --config
    for the first alone. The answers go to standard output.

    \b
    esdllm trace "Sort these numbers: 31, 4, 15." --html trace.html
    esdllm trace "What is 12 + 7?" --preset es-dllm --against dual-cache --html both.html
    esdllm trace "What is 12 + 7?" --against "es-dllm importance.alpha=1.0" --html both.html --json both.json
    """
    if html is None and json_file is None:
        raise InputError("a trace with nowhere to go; give --html FILE, --json FILE or both")
    for path in (html, json_file):
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder; name a file")
        check_writable(path)
    choice = Choice(preset, config, sets, {"gen_length": gen_length, "block_length": block_length}, profile=profile)
    catalogue, console = Catalogue.load(), stderr()
    runs = {_name(choice): choice.config(catalogue)}
    if against is not None:
        other = Contender.of(against, catalogue, sets=fixed_sets(gen_length, block_length), project=choice.project)
        check_names([other, *(Contender(name, decode) for name, decode in runs.items())])
        Components.resolve(other.config, catalogue)  # a wrong option is found before weights are read
        runs[other.name] = other.config
    text = read_prompt(prompt)
    name = model or default_model(catalogue)
    loaded = load(name, device, dtype, catalogue, quantize)
    found = _traces(runs, loaded, name, text, chat, seed, times, catalogue, console)
    for one in found:
        typer.echo(one.text if len(found) == 1 else f"{one.name}: {one.text}")
        console.print(_summary(one), style="dim", soft_wrap=True, markup=False)
    if html is not None:
        html.write_text(page(found), encoding="utf-8")
        console.print(f"{html}: {_size(html)}; open it in a browser", style="dim", soft_wrap=True, markup=False)
    if json_file is not None:
        told = json.dumps([one.to_dict() for one in found], ensure_ascii=False, separators=(",", ":"))
        json_file.write_text(told + "\n", encoding="utf-8")
        console.print(f"{json_file}: {_size(json_file)}", style="dim", soft_wrap=True, markup=False)


def _traces(
    runs: dict[str, DecodeConfig],
    model: Model,
    model_name: str,
    prompt: str,
    chat: bool | None,
    seed: int | None,
    times: bool,
    catalogue: Catalogue,
    console: Console,
) -> list[Trace]:
    """Return the traces of a prompt under each configuration, with a bar meanwhile."""
    engines = {name: Engine.build(model, config, catalogue) for name, config in runs.items()}
    found = []
    with CountingBar(console, at_once=False) as bar:
        for name, engine in engines.items():
            watch = partial(_tell, bar, bar.add_task(name), name)
            one = traced(engine, prompt, name=name, model=model_name, chat=chat, seed=seed, timed=times, watch=watch)
            found.append(one)
            engine.close()
    return found


def _tell(bar: Progress, task: TaskID, name: str, stage: str, decided: int, masks: int) -> None:
    bar.update(task, description=f"{name}: {stage}", completed=decided, total=masks)


def _name(choice: Choice) -> str:
    """Return what the first run is called: its preset or profile, its file, and what --set sets."""
    start = [choice.profile or choice.base(), choice.file.stem if choice.file else None]
    return " ".join([word for word in start if word] + list(choice.sets)) or "as configured"


def _summary(found: Trace) -> str:
    times = "" if found.seconds is None else f" in {found.seconds:.2f} s"
    work = f"{found.layer_share:.1%} of all positions in all layers"
    return f"{found.name}: {counted(len(found.steps), 'forward')}{times}, {work}"


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
