"""Two tasks of names and facts: describe a person from shuffled fields, look facts up."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from words import (
    CITIES,
    INSTRUMENTS,
    JOBS,
    NAMES,
    PETS,
    article,
    enumeration,
    pronoun,
)


def describe(rng: random.Random, level: float) -> tuple[str, str]:
    """A person from three to five shuffled fields, in one to three sentences of a fixed order."""
    fields = {
        "name": rng.choice(NAMES),
        "age": str(rng.randint(18, 89)),
        "job": rng.choice(JOBS),
        "city": rng.choice(CITIES),
        "pet": rng.choice(PETS),
    }
    optional = rng.sample(["age", "job", "city", "pet"], rng.randint(2, 3 + round(level)))
    order = ["name", *optional]
    rng.shuffle(order)
    given = {key: fields[key] for key in order}
    if rng.random() < 0.5:
        details = ", ".join(f"{key} {value}" for key, value in given.items()) + "."
    else:
        details = " ".join(f"{key.capitalize()}: {value}." for key, value in given.items())
    opening = rng.choice(
        [
            "Describe this person.",
            "Describe the person with these details:",
            "Write a short text about this person:",
            "Write a few sentences about this person.",
            "Introduce this person:",
            "Tell me about this person:",
        ]
    )
    return f"{opening} {details}", _biography(given)


def _biography(given: dict[str, str]) -> str:
    """The sentences about a person: age and job, then the city, then the pet."""
    name = given["name"]
    subject = name
    sentences = []
    facts = []
    if "age" in given:
        facts.append(f"is {given['age']} years old")
    if "job" in given:
        facts.append(f"works as {article(given['job'])} {given['job']}")
    if facts:
        sentences.append(f"{subject} {' and '.join(facts)}.")
        subject = pronoun(name).capitalize()
    if "city" in given:
        sentences.append(f"{subject} lives in {given['city']}.")
        subject = pronoun(name).capitalize()
    if "pet" in given:
        sentences.append(f"{subject} has {article(given['pet'])} {given['pet']}.")
    return " ".join(sentences)


class Relation(NamedTuple):
    """One kind of fact: its values, the sentence that states it, the questions that ask for it."""

    values: list[str]
    phrase: Callable[[str], str]
    ask: tuple[str, ...]
    """Forms of the question; the last one also fits into the middle of a sentence."""


RELATIONS = {
    "city": Relation(
        CITIES,
        lambda value: f"lives in {value}",
        ("Where does {} live?", "In which city does {} live?"),
    ),
    "pet": Relation(
        PETS,
        lambda value: f"has {article(value)} {value}",
        ("What pet does {} have?", "Which pet does {} have?"),
    ),
    "job": Relation(
        JOBS,
        lambda value: f"is {article(value)} {value}",
        ("What is the job of {}?", "Which job does {} have?"),
    ),
    "instrument": Relation(
        INSTRUMENTS,
        lambda value: f"plays the {value}",
        ("What does {} play?", "Which instrument does {} play?"),
    ),
}


def lookup(rng: random.Random, level: float) -> tuple[str, str]:
    """Two to four different facts about one person or several; one to three are asked for."""
    size = rng.randint(2, 3 + round(level))
    kinds = rng.sample(list(RELATIONS), size)
    one_person = rng.random() < 0.4
    people = [rng.choice(NAMES)] * size if one_person else rng.sample(NAMES, size)
    facts = [RELATIONS[kind].phrase(rng.choice(RELATIONS[kind].values)) for kind in kinds]
    subjects = list(people)
    if one_person:
        subjects[1:] = [pronoun(people[0]).capitalize()] * (size - 1)
    told = " ".join(f"{who} {fact}." for who, fact in zip(subjects, facts, strict=True))
    order = list(RELATIONS)
    asked = rng.sample(range(size), rng.randint(1, min(3, size)))
    chosen = sorted(asked, key=lambda i: order.index(kinds[i]))
    answered = [facts[i] if one_person else f"{people[i]} {facts[i]}" for i in chosen]
    answer = "I know that " + f"{people[0]} " * one_person + enumeration(answered) + "."
    question = _question(rng, [(kinds[i], people[i]) for i in chosen])
    if len(chosen) == 1 and not one_person and rng.random() < 0.35:
        question = f"Who {facts[chosen[0]]}?"
    opening = rng.choice(["", "", "Here are some facts. ", "Read this: ", "Read these facts: "])
    return f"{opening}{told} {question}", answer


def _question(rng: random.Random, wanted: list[tuple[str, str]]) -> str:
    """One question for all that is wanted: pairs of a kind of fact and a name."""
    if len(wanted) == 1:
        kind, name = wanted[0]
        return rng.choice(RELATIONS[kind].ask).format(name)
    parts = [RELATIONS[kind].ask[-1].format(name).rstrip("?") for kind, name in wanted]
    joined = enumeration([part[0].lower() + part[1:] for part in parts])
    return f"{joined[0].upper()}{joined[1:]}?"
