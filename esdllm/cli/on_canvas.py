"""`esdllm choose`, `esdllm match` and `esdllm edit`."""

from __future__ import annotations

import attrs

from esdllm.cli.choice import Choice
from esdllm.cli.loading import load_asked
from esdllm.cli.options.on_canvas import ChooseOptions, EditOptions, MatchOptions, OnCanvasOptions
from esdllm.cli.prompts import read_prompt
from esdllm.cli.shared import print_answer, print_json, stderr
from esdllm.plugins.catalogue import Catalogue
from esdllm.use.answers import Answer
from esdllm.use.pipeline import Pipeline

__all__ = ["Choose", "Edit", "Match"]


@attrs.frozen(kw_only=True)
class Choose(ChooseOptions):
    """Weighs the options, and prints them."""

    def run(self) -> None:
        """Print each option and its probability, the likeliest first."""
        found = _pipeline(self).choose(read_prompt(self.prompt), self.options, samples=self.samples)
        if self.as_json:
            print_json(attrs.asdict(found), indent=None)
        else:
            print_answer(str(found))


@attrs.frozen(kw_only=True)
class Match(MatchOptions):
    """Decodes an answer that matches, and prints it."""

    def run(self) -> None:
        """Print the answer."""
        pipe = _pipeline(self)
        _print(pipe.match(read_prompt(self.prompt), pattern=self.pattern, schema=self.schema), self.as_json)


@attrs.frozen(kw_only=True)
class Edit(EditOptions):
    """Edits the text, and prints it."""

    def run(self) -> None:
        """Print the text."""
        pipe, text = _pipeline(self), read_prompt(self.text)
        _print(pipe.edit(text, self.instruction, span=self.span, count=self.count, below=self.below), self.as_json)


def _pipeline(asked: OnCanvasOptions) -> Pipeline:
    catalogue = Catalogue.load()
    decode = Choice.of(asked).config(catalogue)  # a wrong setting is found before weights are read
    return Pipeline.of(load_asked(asked, catalogue)[1], decode, catalogue)


def _print(answer: Answer, as_json: bool) -> None:
    if as_json:
        print_json(attrs.asdict(answer), indent=None)
    else:
        print_answer(answer.text)
    stderr().print(answer.facts(), style="dim", soft_wrap=True)
