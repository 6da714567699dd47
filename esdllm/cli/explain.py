"""`esdllm explain`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import attrs
import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from esdllm.checkpoints.loading import Weights, describe_weights, resolve_device
from esdllm.cli.choice import Choice
from esdllm.cli.cost import as_dicts, print_cost, roofline
from esdllm.cli.geometry import named_model
from esdllm.cli.options.explain import ExplainOptions
from esdllm.cli.shared import counted, print_json, shown, stdout
from esdllm.config import SECTIONS, ComponentConfig, DecodeConfig
from esdllm.config.options import inner_fields
from esdllm.errors import InputError
from esdllm.measure.cost import Costing, Roofline
from esdllm.measure.forecast import Forecast, PlanCount, Prediction, predict
from esdllm.plan import BlockCausal, Phase, StepPlan
from esdllm.plugins.auto import AUTO
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components


@attrs.frozen(kw_only=True)
class Explain(ExplainOptions):
    """Settles the configuration, plans its run, and prints both."""

    def run(self) -> None:
        """Print it, in the form that is asked for."""
        if self.as_json and self.as_toml:
            raise InputError("--json and --toml are two forms of output; give one")
        choice = Choice.of(self)
        catalogue = Catalogue.load()
        decode = choice.config(catalogue)
        components = Components.resolve(decode, catalogue)
        if self.as_toml:
            typer.echo(decode.to_toml(), nl=False)
        else:
            self._print(choice, components, catalogue)

    def _print(self, choice: Choice, components: Components, catalogue: Catalogue) -> None:
        """Print the configuration, the plan and the cost."""
        name, described = named_model(self.model, self.geometry_name, catalogue)
        device = resolve_device(self.device)
        weights = describe_weights(
            described, self.dtype, self.quantize, catalogue, device, compute=self.compute, family=self.family
        )
        spec = weights.spec
        if components.config.attention.name == AUTO:
            components = components.serving(catalogue, spec, device, weights.dtype)
        forecast = Forecast.of(components, spec, self.prompt_length, self.batch, device)
        reach = roofline(self.peak_gflops, self.peak_gbs, self.measure, device, weights.dtype)
        cost = _cost(forecast, components, weights, reach)
        if self.as_json:
            told = {
                "preset": choice.base(),
                "model": {"name": name, **attrs.asdict(spec)},
                **_as_dict(forecast, components),
            }
            print_json({**told, "cost": as_dicts(cost, reach) if cost else None})
            return
        console = stdout()
        _print_config(components, choice.label(), console)
        console.print()
        _print_run(forecast, components.config, f"{name}: {spec.n_layers} layers of {spec.hidden}", console)
        if cost:
            console.print()
            print_cost(cost, reach, console)


def _cost(forecast: Forecast, components: Components, weights: Weights, reach: Roofline | None) -> list[Prediction]:
    """Return the cost of each kind of step; nothing for a family that does not tell its feed-forward's size."""
    if not weights.spec.inside(0):
        return []
    size = weights.dtype.itemsize
    costing = Costing.of(components, weights.spec, forecast.batch, forecast.canvas, size, weights.bytes)
    return predict(forecast.plans, costing, reach)


def _options(component: Any, chosen: ComponentConfig) -> dict[str, Any]:
    """Return all options of a component, those left at their defaults too; components inside it as they were chosen."""
    if not attrs.has(type(component)):
        return {}
    inside = {field.name: chosen.options.get(field.name, field.default) for field in inner_fields(type(component))}
    return {**attrs.asdict(component, recurse=False), **inside}


def _as_dict(run: Forecast, components: Components) -> dict[str, Any]:
    config = components.config
    return {
        "config": config.to_dict(),
        "components": {
            name: {"name": chosen.name, **_options(getattr(components, name), chosen)}
            for name, chosen in ((name, getattr(config, name)) for name in SECTIONS)
        },
        "attention_choice": _choice(components),
        "prompt_length": run.prompt,
        "batch": run.batch,
        "canvas": run.canvas,
        "attention": None if run.attention is None else attrs.asdict(run.attention),
        "forwards": run.forwards,
        "refreshes": run.refreshes,
        "layer_share": run.layer_share,
        "one_position_a_step_assumed": run.adaptive,
        "plans": [
            {
                "steps": line.steps,
                "kind": line.kind,
                "window": line.window,
                "positions": line.plan.window,
                "keep": line.plan.keep,
                "decided": line.plan.decided,
                "visible": line.plan.visible,
                "phase": line.plan.phase.value,
                "share": line.share,
            }
            for line in run.plans
        ],
    }


def _choice(components: Components) -> dict[str, Any] | None:
    """Return what `auto` chose, and why not the others; None where a backend is named."""
    choice = components.attention_choice
    return {"name": choice.name, "others": dict(choice.others)} if choice else None


def _print_config(components: Components, label: str, console: Console) -> None:
    config = components.config
    console.print(Text("Configuration", style="bold"), Text(f"  {label}", style="bright_black"), sep="")
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in SECTIONS:
        chosen = getattr(config, name)
        table.add_row(f"  {name}", Text(chosen.name, style="cyan"), _settings(chosen, getattr(components, name)))
    for chosen, observer in zip(config.observers, components.observers, strict=True):
        table.add_row("  observers", Text(chosen.name, style="cyan"), _settings(chosen, observer))
    for line in components.attention_choice.lines() if components.attention_choice else ():
        table.add_row("", "", Text(line, style="bright_black"))
    console.print(table)
    plain = {field.name: field.default for field in attrs.fields(DecodeConfig)}
    run_wide = {name: getattr(config, name) for name in plain if name not in (*SECTIONS, "observers")}
    changed = {name for name in run_wide if run_wide[name] != plain[name]}
    console.print(Padding(_assignments(run_wide, changed), (0, 0, 0, 2)))


def _settings(chosen: ComponentConfig, component: Any) -> Text:
    return _assignments(_options(component, chosen), set(chosen.options))


def _assignments(values: dict[str, Any], given: set[str]) -> Text:
    """Return `name = value`s, those that differ from the defaults standing out."""
    parts = [
        Text(f"{name}={shown(value)}", style="default" if name in given else "bright_black")
        for name, value in values.items()
    ]
    return Text("  ").join(parts)


def _print_run(run: Forecast, config: DecodeConfig, model: str, console: Console) -> None:
    console.print(Text("Run", style="bold"), Text(f"  {model}", style="bright_black"), sep="")
    rows = f"{run.batch} x " if run.batch > 1 else ""
    room = run.canvas - run.prompt - config.gen_length - run.filling
    padding, filling = (
        (f"{room} padding + " if room else ""),
        (f" + {run.filling} to fill the last block" if run.filling else ""),
    )
    console.print(
        f"  canvas {rows}{run.canvas} = {padding}{run.prompt} prompt + {config.gen_length} to generate{filling}"
    )
    if run.attention is not None:
        console.print(f"  {_attention(run.attention)}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bright_black")
    for header, justify in (("steps", "right"), ("kind", "left"), ("window", "left"), ("positions", "right")):
        table.add_column(header, justify=justify)  # type: ignore[arg-type]
    table.add_column("positions that each layer hands on")
    table.add_column("share", justify="right")
    for line in _folded(run.plans):
        keep = keep_text(line.plan.keep) + ("" if line.plan.phase is Phase.ALL else f"  {line.plan.phase.value}")
        table.add_row(str(line.steps), line.kind, line.window, str(line.plan.window), keep, f"{line.share:.1%}")
    console.print(table)
    console.print(
        f"  {counted(run.forwards, 'forward')}, {counted(run.refreshes, 'refresh', 'refreshes')} among them\n"
        f"  [bold]{run.layer_share:.1%}[/] of the positions that vanilla decoding computes"
    )
    if run.adaptive:
        console.print("  The logits decide how many tokens a step commits; one is assumed here.", style="yellow")
    if config.early_stop:
        console.print("  An answer that ends early takes fewer.", style="bright_black")


def _folded(lines: Sequence[PlanCount]) -> list[PlanCount]:
    """Return lines that differ only in how many positions the head computes, or attention reads, as one, where the first is.

    Their share is the mean over their steps.
    """
    found: dict[tuple[str, str, StepPlan], PlanCount] = {}
    for line in lines:
        key = line.window, line.kind, line.plan._replace(decided=0, visible=None)
        before = found.get(key, attrs.evolve(line, steps=0))
        steps = before.steps + line.steps
        share = (before.share * before.steps + line.share * line.steps) / steps
        found[key] = attrs.evolve(line, steps=steps, share=share)
    return list(found.values())


def _attention(attention: BlockCausal) -> str:
    """Return what the attention of a block-causal model sees, as a sentence."""
    where = "the first token" if attention.grid == "start" else "the prompt's end"
    written = {attention.size: "", 1: ", its keys written causally"}.get(
        attention.write_size, f", its keys written in blocks of {attention.write_size}"
    )
    written += ", the prompt as one block" if attention.whole_prompt else ""
    leads = "; the last row written decides a block's first token" if attention.leads else ""
    return f"block-causal: blocks of {attention.size} from {where} on see those before{written}{leads}"


def keep_text(keep: Sequence[int]) -> str:
    """Return keep counts with repeats folded: 64 x2, 32 x2, 16 x4."""
    runs = [(count, len(list(group))) for count, group in groupby(keep)]
    return ", ".join(f"{count} x{times}" for count, times in runs)
