"""Two tasks of numbers from 0 to 99: rearrange a list, solve a word problem in the open."""

from __future__ import annotations

import random

from words import COLORS, CONTAINERS, NAMES, THINGS, enumeration, pronoun


def _join(items: list[str]) -> str:
    return ", ".join(items)


def _given(rng: random.Random, items: list[str]) -> str:
    return enumeration(items) if rng.random() < 0.15 else _join(items)


def lists(rng: random.Random, level: float) -> tuple[str, str]:
    """A list of three to five different numbers (or colours): sort it, reverse it, find an end."""
    size = rng.randint(3, 3 + round(2 * level))
    if rng.random() < 0.1:
        return _reverse(rng, rng.sample(COLORS, size), "colors")
    numbers = rng.sample(range(100), size)
    given = _given(rng, [str(number) for number in numbers])
    kind = rng.random()
    if kind < 0.15:
        return _reverse(rng, [str(number) for number in numbers], "numbers")
    if kind < 0.30:
        ask = rng.choice(["What are", "Give"]) + " the first and the last number of"
        end = "?" if ask.startswith("What") else "."
        text = f"The first number is {numbers[0]} and the last number is {numbers[-1]}."
        return f"{ask} {given}{end}", text
    if kind < 0.55:
        return _extreme(rng, numbers, given)
    return _sorted(rng, numbers, given)


def _reverse(rng: random.Random, items: list[str], kind: str) -> tuple[str, str]:
    ask = rng.choice(
        [
            f"Reverse this list of {kind}:",
            f"Reverse these {kind}:",
            f"Write these {kind} in reverse order:",
        ]
    )
    return f"{ask} {_join(items)}.", f"In reverse order the {kind} are {_join(items[::-1])}."


def _extreme(rng: random.Random, numbers: list[int], given: str) -> tuple[str, str]:
    low, high = f"The smallest number is {min(numbers)}", f"the largest number is {max(numbers)}"
    both = rng.random()
    if both < 0.3:
        return _ask_extreme(rng, ["smallest", "lowest"], given), f"{low}."
    if both < 0.6:
        return _ask_extreme(rng, ["largest", "highest", "biggest"], given), f"T{high[1:]}."
    ask = rng.choice(["Find", "Name"])
    return f"{ask} the smallest and the largest number of {given}.", f"{low} and {high}."


def _ask_extreme(rng: random.Random, words: list[str], given: str) -> str:
    word = rng.choice(words)
    template = rng.choice(
        [
            f"What is the {word} number of {{}}?",
            f"Which is the {word} number of {{}}?",
            f"Which number is the {word}: {{}}?",
            f"Which of {{}} is the {word}?",
            f"Find the {word} of {{}}.",
        ]
    )
    return template.format(given)


def _sorted(rng: random.Random, numbers: list[int], given: str) -> tuple[str, str]:
    ascending = rng.random() < 0.7
    order = "small to large" if ascending else "large to small"
    result = _join([str(number) for number in sorted(numbers, reverse=not ascending)])
    text = f"Sorted from {order} the numbers are {result}."
    if rng.random() < 0.4:
        ask = f"Sort these numbers from {order} and name the smallest and the largest:"
        ends = f"The smallest number is {min(numbers)} and the largest number is {max(numbers)}."
        return f"{ask} {given}.", f"{text} {ends}"
    plain = ["Sort these numbers:", "Sort the list", "Put these numbers in order:", "Sort"]
    exact = [f"Sort these numbers from {order}:", f"Order from {order}:", f"Sort from {order}:"]
    ask = rng.choice(plain + exact if ascending else exact)
    return f"{ask} {given}.", text


def story(rng: random.Random, level: float) -> tuple[str, str]:
    """A word problem of one or two steps, answered with each step written out."""
    kind = rng.random()
    if kind < 0.25:
        return _direct(rng, most=1 + round(2 * level))
    if kind < 0.40:
        return _compare(rng)
    if kind < 0.52:
        return _containers(rng, steps=2 if rng.random() < 0.6 * level else 1)
    return _changes(rng, steps=2 if rng.random() < 0.3 + 0.4 * level else 1)


def _direct(rng: random.Random, most: int) -> tuple[str, str]:
    """`What is 12 + 7?`: the tables themselves, one to `most` sums at once."""
    sums = [_sum(rng) for _ in range(rng.randint(1, most))]
    wanted = enumeration([left for left, _ in sums])
    solved = enumeration([f"{left} = {right}" for left, right in sums])
    if len(sums) == 1:
        ask = rng.choice(["What is {}?", "Calculate {}.", "How much is {}?"])
        return ask.format(wanted), f"The result is {solved}."
    ask = rng.choice(["What are {}?", "Calculate {}.", "How much are {}?"])
    return ask.format(wanted), f"The results are {solved}."


def sums(rng: random.Random, level: float) -> tuple[str, str]:
    """A drill of bare sums, two or three at once; what `story` asks a quarter of the time."""
    while True:
        prompt, answer = _direct(rng, most=3)
        if "results" in answer:
            return prompt, answer


def _sum(rng: random.Random) -> tuple[str, int]:
    sign = rng.choice("++--*")
    if sign == "*":
        left, right = rng.randint(2, 5), rng.randint(2, 10)
        return f"{left} * {right}", left * right
    left, right = rng.randint(2, 50), rng.randint(2, 9)
    if sign == "-" and left < right:
        left, right = right, left
    return f"{left} {sign} {right}", left + right if sign == "+" else left - right


def _compare(rng: random.Random) -> tuple[str, str]:
    one, two = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    high, low = sorted((rng.randint(2, 30), rng.randint(2, 9)), reverse=True)
    if rng.random() < 0.5:
        left, right = (high, low) if rng.random() < 0.5 else (low, high)
        facts = f"{one} has {left} {thing} and {two} has {right} {thing}."
        return (
            f"{facts} How many {thing} do they have together?",
            f"Together they have {left} + {right} = {left + right} {thing}.",
        )
    if high == low:
        high += 1
    facts = f"{one} has {high} {thing} and {two} has {low} {thing}."
    return (
        f"{facts} How many more {thing} does {one} have?",
        f"{one} has {high} - {low} = {high - low} more {thing} than {two}.",
    )


def _containers(rng: random.Random, steps: int) -> tuple[str, str]:
    name, thing, box = rng.choice(NAMES), rng.choice(THINGS), rng.choice(CONTAINERS)
    boxes, each = rng.randint(2, 5), rng.randint(2, 10)
    total = boxes * each
    facts = f"{name} has {boxes} {box} with {each} {thing} in each."
    answer = f"In {boxes} {box} there are {boxes} * {each} = {total} {thing}."
    if steps == 1:
        return f"{facts} How many {thing} does {name} have?", answer
    event, sign, change = _event(rng, total)
    he = pronoun(name).capitalize()
    result = total + change if sign == "+" else total - change
    return (
        f"{facts} {he} {event}. How many {thing} does {name} have now?",
        f"{answer} {he} {event}, so now there are {total} {sign} {change} = {result}.",
    )


def _changes(rng: random.Random, steps: int) -> tuple[str, str]:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    he = pronoun(name).capitalize()
    have = rng.randint(5, 30)
    facts = [f"{name} has {have} {thing}."]
    lines = [f"{name} starts with {have} {thing}."]
    for _ in range(steps):
        event, sign, change = _event(rng, have)
        result = have + change if sign == "+" else have - change
        facts.append(f"{he} {event}.")
        lines.append(f"{he} {event}, so {he.lower()} has {have} {sign} {change} = {result}.")
        have = result
    ask = rng.choice([f"How many {thing} does {name} have now?", f"How many {thing} are there now?"])
    return f"{' '.join(facts)} {ask}", " ".join(lines)


def _event(rng: random.Random, have: int) -> tuple[str, str, int]:
    """A change of at most 9 that leaves something: what happens, its sign, its size."""
    grows = rng.random() < 0.5
    if have < 4:
        grows = True
    if grows:
        change = rng.randint(2, 9)
        return rng.choice(["buys", "finds", "gets"]) + f" {change} more", "+", change
    change = rng.randint(2, min(9, have - 1))
    return rng.choice(["gives away", "loses", "sells"]) + f" {change}", "-", change
