"""What a pipeline returns: answers that print well in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import overload

import attrs

from esdllm.views import Message

__all__ = ["Answer", "Answers", "Infilled"]

_BOX = "white-space: pre-wrap; border-left: 3px solid #4caf50; padding: 0.3em 0.8em; margin: 0.3em 0"
_FACTS = "color: gray; font-size: 85%"


@attrs.frozen(repr=False)
class Answer:
    """One answer. `print` shows the text and what it took; a notebook shows the same as HTML."""

    prompt: str | None
    """the prompt's text, of a conversation its last turn; None where token ids were given"""
    text: str
    """the answer; of one that was stopped what is decided, with … where something is missing; empty without a tokenizer"""
    tokens: tuple[int, ...]
    """the answer's tokens, its end not included"""
    forwards: int
    """forward passes of the model, of the whole batch that the answer was decoded in"""
    seconds: float
    """wall-clock time of the steps, of the whole batch likewise"""
    complete: bool = True
    """whether the run went to its end; False if it was stopped"""

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of this answer per forward pass."""
        return len(self.tokens) / max(1, self.forwards)

    @property
    def message(self) -> Message:
        """The answer as a turn of a conversation, to go on with."""
        return {"role": "assistant", "content": self.text}

    def facts(self) -> str:
        """Return what the answer took, in a line."""
        found = (
            _counted(len(self.tokens), "token"),
            _counted(self.forwards, "forward"),
            f"{self.tokens_per_forward:.2f} tokens per forward",
            f"{self.seconds:.2f} s",
        )
        return ", ".join((*found, *(() if self.complete else ("stopped",))))

    def __str__(self) -> str:
        return f"{self.text}\n({self.facts()})"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r}, {self.facts()})"

    def _repr_html_(self) -> str:
        return f'<div style="{_BOX}">{self._body()}</div><div style="{_FACTS}">{escape(self.facts())}</div>'

    def _body(self) -> str:
        return escape(self.text)


@attrs.frozen(repr=False)
class Infilled(Answer):
    """A text whose blanks were filled in."""

    fills: tuple[str, ...] = ()
    """what came into each blank, from the left, without a space that stands before or after the blank already"""
    pieces: tuple[str, ...] = ()
    """what stands around the blanks, one more than `fills`"""
    lengths: tuple[int, ...] = ()
    """tokens of each blank; where that was left open, as the model weighed it"""

    def _body(self) -> str:
        filled = (f'<mark style="background: #c8e6c9">{escape(fill)}</mark>' for fill in self.fills)
        return "".join(part for pair in zip(map(escape, self.pieces), (*filled, ""), strict=True) for part in pair)


@attrs.frozen(repr=False)
class Answers(Sequence[Answer]):
    """Several answers, in the order of their prompts, and what they took together."""

    answers: tuple[Answer, ...]
    """one per prompt"""
    forwards: int
    """forward passes of all batches together"""
    seconds: float
    """wall-clock time of all batches' steps"""

    @property
    def text(self) -> list[str]:
        """The answers' texts."""
        return [answer.text for answer in self.answers]

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of all answers per forward pass, which serves a whole batch."""
        return sum(len(answer.tokens) for answer in self.answers) / max(1, self.forwards)

    def facts(self) -> str:
        """Return what the answers took, in a line."""
        tokens = _counted(sum(len(answer.tokens) for answer in self.answers), "token")
        head = f"{_counted(len(self.answers), 'answer')}, {tokens} in {_counted(self.forwards, 'forward')}"
        return f"{head}, {self.tokens_per_forward:.2f} tokens per forward, {self.seconds:.2f} s"

    @overload
    def __getitem__(self, index: int) -> Answer: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Answer]: ...

    def __getitem__(self, index: int | slice) -> Answer | Sequence[Answer]:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)

    def __str__(self) -> str:
        lines = [f"{number}. {answer.text}" for number, answer in enumerate(self.answers, 1)]
        return "\n".join((*lines, f"({self.facts()})"))

    def __repr__(self) -> str:
        return f"Answers({self.facts()})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align: left">{escape(answer.prompt or "")}</td>'
            f'<td style="text-align: left; white-space: pre-wrap">{answer._body()}</td><td>{len(answer.tokens)}</td></tr>'
            for answer in self.answers
        )
        head = "<tr><th>prompt</th><th>answer</th><th>tokens</th></tr>"
        return f'<table>{head}{rows}</table><div style="{_FACTS}">{escape(self.facts())}</div>'


def _counted(number: int, one: str) -> str:
    return f"{number} {one if number == 1 else one + 's'}"
