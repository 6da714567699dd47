# ruff: noqa: SIM905 (word lists are easier to read as text)
"""The words of the problems: small closed lists, so that every one of them is a single token."""

from __future__ import annotations

WOMEN = "Ada Anna Clara Emma Eva Greta Iris Julia Lena Mia Nora Ruth Sara Tina Vera Zoe".split()
MEN = "Ben Carl Dan Erik Finn Hugo Ivan Jack Leo Max Noah Otto Paul Sam Tom Victor".split()
NAMES = tuple(name for pair in zip(WOMEN, MEN, strict=True) for name in pair)

CITIES = (
    "Athens Berlin Boston Cairo Delhi Dublin Geneva Hamburg Lima Lisbon London Madrid Milan "
    "Oslo Paris Prague Rome Seoul Sydney Tokyo Toronto Vienna Warsaw Zurich"
).split()
JOBS = (
    "actor artist baker carpenter chemist cook dentist doctor driver engineer farmer gardener "
    "judge lawyer nurse painter pilot plumber singer tailor teacher writer"
).split()
PETS = "canary cat dog goldfish hamster horse owl parrot pony rabbit snake turtle".split()
INSTRUMENTS = "cello drums flute guitar harp organ piano trumpet tuba violin".split()
COLORS = "black blue brown gray green orange pink purple red white yellow".split()
THINGS = (
    "apples balls books cards coins cookies eggs flowers lemons marbles oranges pears pencils "
    "plums shells stamps stickers stones".split()
)
CONTAINERS = "bags baskets boxes drawers jars shelves".split()

FUNCTIONS = (
    "adjust apply build change check collect compute convert count evaluate find fix "
    "handle label mark measure pick process reduce run scale score select shift solve test "
    "transform update"
).split()
LABELS = ("big small high low hot cold new old good bad fast slow long short rich poor open closed yes no").split()


def pronoun(name: str) -> str:
    """`she` or `he`: each name belongs to one list only, so the answer has one right form."""
    return "she" if name in WOMEN else "he"


def article(noun: str) -> str:
    """`an` before a vowel, `a` otherwise."""
    return "an" if noun[0] in "aeiou" else "a"


def enumeration(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`: the parts joined as in an English sentence."""
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + " and " + parts[-1]
