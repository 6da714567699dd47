"""One task of code: write a small Python function from its description."""

from __future__ import annotations

import random

from words import FUNCTIONS, LABELS

_SIGNS = {"+": "plus", "-": "minus", "*": "times"}
_COMPARISONS = {
    ">": "greater than",
    "<": "less than",
    "==": "equal to",
    "!=": "different from",
}
_ASKS = (
    "Write a Python function {} that {}.",
    "Define a Python function called {} that {}.",
    "Write a function {} in Python that {}.",
    "Please write a Python function named {} that {}.",
    "Can you write a Python function {} that {}?",
)


def code(rng: random.Random, level: float) -> tuple[str, str]:
    """A function of two to six lines: arithmetic, a condition, a comprehension or a loop."""
    name = rng.choice(FUNCTIONS)
    kinds = [_arithmetic, _condition, _comprehension, _loop]
    described, parameter, body = rng.choice(kinds)(rng)
    prompt = rng.choice(_ASKS).format(name, described)
    return prompt, "\n    ".join([f"def {name}({parameter}):", *body])


def _arithmetic(rng: random.Random) -> tuple[str, str, list[str]]:
    parameter = rng.choice(["x", "n", "value"])
    words, formula = parameter, parameter
    for sign in rng.sample(list(_SIGNS), 2) if rng.random() < 0.6 else [rng.choice(list(_SIGNS))]:
        if sign == "*" and formula != parameter:
            break
        number = rng.randint(2, 99)
        words += f" {_SIGNS[sign]} {number}"
        formula += f" {sign} {number}"
    return f"takes {parameter} and returns {words}", parameter, [f"return {formula}"]


def _condition(rng: random.Random) -> tuple[str, str, list[str]]:
    parameter = rng.choice(["x", "n", "value"])
    sign = rng.choice(list(_COMPARISONS))
    limit = rng.randint(0, 99)
    first, second = rng.sample(LABELS, 2)
    test = f"{parameter} is {_COMPARISONS[sign]} {limit}"
    described = f"returns '{first}' if {test} and '{second}' otherwise"
    body = [f"if {parameter} {sign} {limit}:", f"    return '{first}'", f"return '{second}'"]
    return described, parameter, body


def _comprehension(rng: random.Random) -> tuple[str, str, list[str]]:
    parameter = rng.choice(["numbers", "values", "items"])
    sign = rng.choice(list(_COMPARISONS))
    limit = rng.randint(0, 99)
    clause = f"for n in {parameter} if n {sign} {limit}"
    chosen = f"that are {_COMPARISONS[sign]} {limit}"
    if rng.random() < 0.5:
        return f"returns the {parameter} {chosen}", parameter, [f"return [n {clause}]"]
    factor = rng.randint(2, 99)
    described = f"returns the {parameter} {chosen}, each times {factor}"
    return described, parameter, [f"return [n * {factor} {clause}]"]


def _loop(rng: random.Random) -> tuple[str, str, list[str]]:
    parameter = rng.choice(["numbers", "values", "items"])
    sign = rng.choice(list(_COMPARISONS))
    limit = rng.randint(0, 99)
    counts = rng.random() < 0.5
    verb = "counts" if counts else "adds up"
    described = f"{verb} the {parameter} that are {_COMPARISONS[sign]} {limit} with a loop"
    body = [
        "total = 0",
        f"for n in {parameter}:",
        f"    if n {sign} {limit}:",
        f"        total += {1 if counts else 'n'}",
        "return total",
    ]
    return described, parameter, body
