"""`esdllm infill`."""

from __future__ import annotations

from contextlib import ExitStack

import attrs

from esdllm.cli.choice import Choice
from esdllm.cli.loading import load_asked
from esdllm.cli.options.infill import InfillOptions
from esdllm.cli.prompts import read_prompt
from esdllm.cli.shared import counted, print_answer, print_json, stderr
from esdllm.cli.watch import ProgressBar
from esdllm.plugins.catalogue import Catalogue
from esdllm.use.answers import Infilled
from esdllm.use.blanks import parse_template
from esdllm.use.pipeline import Pipeline


@attrs.frozen(kw_only=True)
class Infill(InfillOptions):
    """Fills in the blanks, and prints the text."""

    def run(self) -> None:
        """Read the template, fill it in, and print the text."""
        template = read_prompt(self.template)
        parse_template(template)  # a wrong blank is found before weights are read
        choice = Choice.of(self, seed=self.seed)
        catalogue, console = Catalogue.load(), stderr()
        decode = choice.config(catalogue)
        _, model = load_asked(self, catalogue)
        with ExitStack() as stack:
            observers = [stack.enter_context(ProgressBar(console))] if console.is_terminal else []
            answer = Pipeline.of(model, decode, catalogue).infill(template, observers=observers)
        if self.as_json:
            print_json(_as_dict(answer), indent=None)
        else:
            print_answer(answer.text)
        if empty := sum(not fill.strip() for fill in answer.fills):
            blanks = f"{counted(empty, 'blank')} got ends of the text, which are no text"
            console.print(f"{blanks}; other lengths may do, or a base model", style="dim", soft_wrap=True)
        console.print(f"{answer.facts()}, {choice.label()}", style="dim", soft_wrap=True)


def _as_dict(answer: Infilled) -> dict[str, object]:
    found = attrs.asdict(answer, filter=lambda field, _: field.name != "complete")
    return {**found, "tokens_per_forward": answer.tokens_per_forward}
