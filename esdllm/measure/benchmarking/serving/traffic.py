"""What is asked of a server, and when: drawn from distributions by a seed, or read from a file. Host integers and floats only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import attrs

from esdllm.errors import InputError, brief
from esdllm.use.jsonl import sound_json_lines

__all__ = ["Lengths", "Load", "Wanted", "drawn", "read_wanted"]

_EXAMPLE = '{"prompt": "What is 12 + 7?", "max_tokens": 64}'
_WORDS = ("sort", "tell", "write", "who", "what", "lives", "near", "old", "town", "river", "seven", "small", "number")


@attrs.frozen
class Wanted:
    """One request."""

    prompt: Any
    """a text, token ids, or the turns of a conversation"""
    max_tokens: int
    """of its answer"""
    seed: int = 0


@attrs.frozen
class Lengths:
    """A distribution of whole numbers."""

    low: int
    high: int
    median: float | None = None
    """of a log-normal distribution, whose values are cut off at the two ends; None for a uniform one, ends included"""
    sigma: float = 0.0
    """of its logarithm, the standard deviation"""

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Return the distribution that a text names: `64`, `16:256` (uniform), `lognormal:MEDIAN:SIGMA:MOST`.

        Raises:
            InputError: it names none.
        """
        name, *rest = text.split(":") if text.startswith("lognormal:") else ["uniform", *text.split(":")]
        try:
            if name == "uniform":
                low, high = (int(rest[0]), int(rest[-1])) if len(rest) <= 2 else (0, 0)
                found = cls(low, high)
            else:
                median, sigma, most = float(rest[0]), float(rest[1]), int(rest[2])
                found = cls(1, most, median, sigma)
                if len(rest) > 3 or not (0 < median < math.inf and 0 <= sigma < math.inf):
                    raise ValueError
        except (ValueError, IndexError):
            found = cls(0, 0)
        if not 1 <= found.low <= found.high:
            raise InputError(
                f"lengths {brief(text)}; write one such as 64, a range such as 16:256, or lognormal:MEDIAN:SIGMA:MOST such as "
                "lognormal:64:0.8:256, all of at least 1"
            )
        return found

    def draw(self, random: Random) -> int:
        """Return one of them."""
        if self.median is None:
            return random.randint(self.low, self.high)
        return min(max(round(random.lognormvariate(math.log(self.median), self.sigma)), self.low), self.high)

    def __str__(self) -> str:
        """Return the text that names it."""
        if self.median is not None:
            return f"lognormal:{self.median:g}:{self.sigma:g}:{self.high}"
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


@attrs.frozen
class Load:
    """When requests come: at a rate, whatever becomes of them (open loop), or each as another ends (closed loop)."""

    rate: float | None = None
    """requests per second, on average; None in a closed loop"""
    burst: int = 1
    """requests that come at one moment; the moments are those of a Poisson process"""
    concurrency: int | None = None
    """requests under way at once; None in an open loop"""

    def __attrs_post_init__(self) -> None:
        if (self.rate is None) is (self.concurrency is None):
            raise InputError("a load is either a rate (open loop) or a concurrency (closed loop); give one of them")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise InputError(f"rate {self.rate:g}; give requests per second, above 0")
        if self.burst < 1 or (self.concurrency is not None and (self.concurrency < 1 or self.burst > 1)):
            raise InputError(
                f"bursts of {self.burst}, concurrency {self.concurrency}; give at least 1, and bursts with a rate only"
            )

    @property
    def name(self) -> str:
        """As tables call it."""
        if self.rate is None:
            return f"concurrency {self.concurrency}"
        return f"rate {self.rate:g}" + (f", bursts of {self.burst}" if self.burst > 1 else "")

    def arrivals(self, count: int, seed: int) -> list[float]:
        """Return the seconds at which that many requests come, ascending, the first at 0; of an open loop."""
        assert self.rate is not None
        random, bursts = Random(f"arrivals {seed}"), math.ceil(count / self.burst)
        gaps = [0.0, *(random.expovariate(self.rate / self.burst) for _ in range(bursts - 1))]
        return [moment for moment in accumulate(gaps) for _ in range(self.burst)][:count]


def drawn(count: int, prompts: Lengths, answers: Lengths, vocab: int | None, seed: int, mask: int = -1) -> list[Wanted]:
    """Return random requests: prompts of random tokens below `vocab` without the mask or, of None, of random words.

    The same seed draws the same requests, whatever the load.
    """
    random = Random(f"requests {seed}")
    found = []
    for number in range(count):
        length, most = prompts.draw(random), answers.draw(random)
        words = [random.choice(_WORDS) for _ in range(length)]
        prompt: Any = " ".join(words)
        if vocab is not None:
            prompt = [token + (token >= mask >= 0) for token in (random.randrange(vocab - (mask >= 0)) for _ in words)]
        found.append(Wanted(prompt, most, seed + number))
    return found


def read_wanted(path: Path, count: int | None, answers: Lengths, seed: int) -> list[Wanted]:
    """Return the requests of a file of JSON lines, `count` of them, from the first again after the last; None for all.

    A line has `prompt` (a text or token ids) or `messages`, and may have `max_tokens` and `seed`; what it does not say is drawn.

    Raises:
        InputError: the file cannot be read, has no request, or a line is wrong; says which.
    """
    random, lines = Random(f"requests {seed}"), list(sound_json_lines(path, "requests", _EXAMPLE))
    if not lines:
        raise InputError(f"{path} has no request; write one per line, such as {_EXAMPLE}")
    return [
        _wanted(where, line, answers.draw(random), seed + number)
        for number, (where, line) in enumerate(islice(cycle(lines), len(lines) if count is None else count))
    ]


def _wanted(where: str, line: dict[str, Any], most: int, seed: int) -> Wanted:
    prompt, max_tokens = line.get("prompt", line.get("messages")), line.get("max_tokens", most)
    if not isinstance(prompt, (str, list)) or not prompt or ("prompt" in line and "messages" in line):
        raise InputError(f"{where}: give either a prompt, a text or token ids, or messages; {_EXAMPLE} would do")
    if "messages" in line and not _are_turns(line["messages"]):
        raise InputError(f"{where}: messages {brief(line['messages'])}; write a list of objects with role and content")
    if "prompt" in line and isinstance(prompt, list) and any(type(token) is not int for token in prompt):
        raise InputError(f"{where}: prompt {brief(prompt)}; give a text, or token ids, which are whole numbers")
    for name, value, least in (("max_tokens", max_tokens, 1), ("seed", line.get("seed", seed), 0)):
        if type(value) is not int or value < least:
            raise InputError(f"{where}: {name} is {brief(value)}; give a whole number from {least}")
    return Wanted(prompt, max_tokens, line.get("seed", seed))


def _are_turns(messages: Sequence[Any]) -> bool:
    return isinstance(messages, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    )
