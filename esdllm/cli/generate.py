"""`esdllm generate`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import attrs
from rich.console import Console

from esdllm.checkpoints.loading import Model
from esdllm.cli.batch import answer_file
from esdllm.cli.choice import Choice
from esdllm.cli.loading import load, make_ready
from esdllm.cli.options.generate import GenerateOptions
from esdllm.cli.prompts import read_prompt
from esdllm.cli.shared import counted, default_model, print_answer, print_json, stderr
from esdllm.cli.watch import ProgressBar, View, Watch
from esdllm.config import DecodeConfig
from esdllm.errors import InputError, UnavailableError, installing
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine
from esdllm.runtime.records import Generation
from esdllm.use.batching import BatchRun, Setup
from esdllm.use.frames import so_far, spelled

if TYPE_CHECKING:
    from esdllm.serving.ray import RayWorkers


@attrs.frozen(kw_only=True)
class Generate(GenerateOptions):
    """Decodes, and prints the answer or writes a file's."""

    def run(self) -> None:
        """Print the answer, or write a file's."""
        choice = Choice.of(self, seed=self.seed)
        catalogue = Catalogue.load()
        decode = choice.config(catalogue)
        if self.source is not None or self.output is not None or self.ray is not None:
            self._answer_file(decode, catalogue)
        else:
            self._answer(choice, decode, catalogue)

    def _answer_file(self, decode: DecodeConfig, catalogue: Catalogue) -> None:
        if self.source is None or self.output is None:
            given = {"--input": self.source, "--output": self.output, "--ray": self.ray}
            named = " and ".join(name for name, value in given.items() if value is not None)
            raise InputError(f"{named} alone; give both --input FILE and --output FILE")
        if self.prompt is not None or self.watch:
            raise InputError(f"--input and {'--watch' if self.prompt is None else 'a prompt'}: give one")
        name = self._named(catalogue)
        if self.ray is None:
            make_ready(name, self, catalogue)
        setup = Setup(
            *(name, decode.to_dict(), self.device, self.dtype, self.quantize),
            family=self.family,
            compute=self.compute,
        )
        elsewhere = None if self.ray is None else _on_ray()(setup, self.batch, self.ray, self.jobs)
        run = BatchRun(self.source, self.output, setup, self.batch, self.jobs or 1, self.chat, elsewhere)
        answer_file(run, catalogue, self.restart, self.as_json)

    def _answer(self, choice: Choice, decode: DecodeConfig, catalogue: Catalogue) -> None:
        if self.prompt is None:
            raise InputError(
                'there is no PROMPT; give one in quotes, such as "Sort 3 1 2.", or a file of them with --input'
            )
        model = load(self._named(catalogue), self, catalogue)
        engine = Engine.build(model, decode, catalogue)
        result = self._watched(engine, read_prompt(self.prompt), choice)
        if self.as_json:
            print_json(_as_dict(result, choice.base(), decode), indent=None)
        else:
            print_answer((result.text or [""])[0])
        stderr().print(_summary(result, choice), style="dim", soft_wrap=True)

    def _named(self, catalogue: Catalogue) -> str:
        """Return the model's name, with a word on standard error where nobody gave it."""
        if self.device == "meta":
            raise UnavailableError("the device 'meta' computes no values; use cpu or cuda")
        if self.model is not None:
            return self.model
        name = default_model(catalogue)
        note = f"model {name} (shipped, tiny); a real one: -m GSAI-ML/LLaDA-8B-Instruct"
        stderr().print(note, style="dim", soft_wrap=True)
        return name

    def _watched(self, engine: Engine, text: str, choice: Choice) -> Generation:
        """Return the generation, shown while it is made; its time holds no showing."""
        console = stderr()
        if self.watch and not console.is_terminal:
            console.print("standard error is no terminal: nothing to watch on", style="dim", soft_wrap=True)
        with ExitStack() as stack:
            view = _view(self.watch, engine, choice, console)
            observers = [stack.enter_context(view)] if console.is_terminal else []
            try:
                result = engine.generate(text, chat=self.chat, observers=observers)
            except KeyboardInterrupt:
                view.close()
                self._tell_so_far(view, engine.model)
                raise
        return attrs.evolve(result, seconds=result.seconds - view.seconds)

    def _tell_so_far(self, view: View, model: Model) -> None:
        """Print what was decided when Ctrl-C ended the run, with … for what is missing."""
        if view.frame is None or not model.codec:
            return
        if not self.as_json:
            print_answer(spelled(model.codec, so_far(view.frame, model.stop_ids), "…", each=False))
        told = f"interrupted: {view.frame.decided} of {counted(len(view.frame.tokens), 'token')} decided"
        stderr().print(f"{told} in {counted(view.forwards, 'forward')}", style="dim", soft_wrap=True)


def _on_ray() -> type[RayWorkers]:
    """Return what decodes on a cluster.

    Raises:
        UnavailableError: Ray is not installed.
    """
    try:
        from esdllm.serving.ray import RayWorkers
    except ImportError as error:
        raise UnavailableError(f"--ray needs ray: {installing('ray')}") from error
    return RayWorkers


def _view(watch: bool, engine: Engine, choice: Choice, console: Console) -> View:
    model, most = engine.model, engine.config.gen_length
    if watch and model.codec:
        return Watch(console, model.codec, f"{model.spec.family}, {choice.label()}", most=most)
    return ProgressBar(console, most)


def _summary(result: Generation, choice: Choice) -> str:
    speed = result.tokens_per_second
    return (
        f"{counted(result.answer_tokens, 'token')} in {counted(result.forwards, 'forward')}, "
        f"{result.tokens_per_forward:.2f} tokens per forward, "
        f"{speed:.{0 if speed >= 10 else 2}f} tokens/s, {choice.label()}"
        + (f", compute {result.compute}" if result.compute else "")
    )


def _as_dict(result: Generation, preset: str | None, config: DecodeConfig) -> dict[str, Any]:
    return {
        "text": result.text[0] if result.text else None,
        "tokens": result.tokens[0].tolist(),
        "answer": result.answers[0],
        "forwards": result.forwards,
        "tokens_per_forward": result.tokens_per_forward,
        "canvas_tokens_per_forward": result.canvas_tokens_per_forward,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
        "layer_share": result.layer_share,
        "compute": result.compute,
        "preset": preset,
        "config": config.to_dict(),
    }
