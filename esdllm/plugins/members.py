"""The members of components: which ones a kind knows, which a component has, and what is wrong with them.

A protocol's members come all or not at all, and one that is nearly the name of a known one is a misprint: it would be
silently another plugin. Everything else that a component defines is its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import Any

import attrs

__all__ = ["Interface", "has", "member_fault", "near"]

_ENDINGS = ("ing", "ies", "es", "ed", "s", "e", "y")
"""of a word's other forms"""
_LONG = 8
"""letters of a name in which two may be wrong; in a shorter one, one"""


@attrs.frozen
class Interface:
    """The protocols of one kind of component."""

    base: type
    """what every component of the kind implements"""
    extensions: tuple[type, ...] = ()
    """what it may implement beside, each whole"""
    apart: frozenset[str] = frozenset()
    """members that may be absent each by itself"""
    options: bool = True
    """whether a component's fields are its user's options, which may have any name"""

    @property
    def protocols(self) -> tuple[type, ...]:
        """All of them, the base first."""
        return self.base, *self.extensions

    @property
    def known(self) -> dict[str, type]:
        """Every member, and the protocol that has it."""
        return {name: protocol for protocol in reversed(self.protocols) for name in members(protocol)}


def members(protocol: type) -> dict[str, Any]:
    """Return a protocol's members by name, inherited ones too: functions, and properties for values."""
    return {
        name: value
        for one in reversed(protocol.__mro__)
        if _is_protocol(one)
        for name, value in vars(one).items()
        if not name.startswith("_")
    }


def has(component: object, name: str) -> bool:
    """Return whether a component has a member; what it only inherits from a protocol's definition does not count."""
    owner = next((one for one in type(component).__mro__ if name in vars(one)), None)
    if owner is not None:
        return not _is_protocol(owner)
    return hasattr(component, name)  # in the object itself, or passed on by what is wrapped around it


def member_fault(component: object, interface: Interface) -> str:
    """Return what is wrong with a component's members, after its name in a sentence; empty if nothing is."""
    faults = (_misprint(component, interface), *_gaps(component, interface), *_wrong_kinds(component, interface))
    return next(filter(None, faults), "")


def near(name: str, known: Iterable[str]) -> str | None:
    """Return which known name another one nearly is: a letter or two off, or another form of the word; None if none."""
    close = [right for right in known if _nearly(_plain(name), _plain(right))]
    return max(close, key=lambda right: SequenceMatcher(None, name, right).ratio(), default=None)


def _is_protocol(one: type) -> bool:
    return bool(vars(one).get("_is_protocol"))


def _own(component: object) -> Iterator[str]:
    """Yield the public names that a component defines, its fields too."""
    found = {name for one in type(component).__mro__[:-1] if not _is_protocol(one) for name in vars(one)}
    given = found | _fields(component) | set(_instance(component))
    yield from sorted(name for name in given if not name.startswith("_"))


def _instance(component: object) -> dict[str, Any]:
    try:
        return vars(component)
    except TypeError:  # it has slots
        return {}


def _fields(component: object) -> frozenset[str]:
    kind = type(component)
    return frozenset(field.name for field in attrs.fields(kind)) if attrs.has(kind) else frozenset()


def _misprint(component: object, interface: Interface) -> str:
    """Return that a member has nearly the name of a known one which the component lacks."""
    known = interface.known
    absent = [name for name in known if not has(component, name)]
    free = _fields(component) if interface.options else frozenset[str]()
    for name in _own(component):
        if name not in known and name not in free and (right := near(name, absent)):
            return (
                f"has a member '{name}', which esdllm does not know and which is nearly '{right}' of "
                f"{known[right].__name__}: name it '{right}' if it is meant, and otherwise name it something else"
            )
    return ""


def _gaps(component: object, interface: Interface) -> Iterator[str]:
    """Yield which members are missing of a protocol that a component has some members of, or names as a base class.

    What it lacks of its kind's least is found when it is called, unless it inherits the protocol's own empty definition.
    """
    base = members(interface.base).keys()
    for protocol in interface.protocols:
        own = [name for name in members(protocol) if name not in interface.apart]
        own = own if protocol is interface.base else [name for name in own if name not in base]
        missing = [name for name in own if not has(component, name)]
        extended = [each for each in interface.protocols if each in protocol.__mro__[1:]]
        inherited = {name for each in extended for name in members(each)}
        given = [name for name in own if name not in missing]
        begun = protocol is not interface.base and any(name not in inherited for name in given)
        if missing and (begun or protocol in type(component).__mro__):
            yield _gap(component, protocol, missing, given)


def _gap(component: object, protocol: type, missing: list[str], given: list[str]) -> str:
    wanted = ", ".join(f"'{name}{_parameters(members(protocol)[name])}'" for name in missing)
    beside = f", and has {', '.join(map(repr, given))}" if given else ""
    misprints = [(name, near(name, missing)) for name in sorted(_fields(component))]
    hint = "".join(f"; its field '{name}' is nearly '{right}'" for name, right in misprints if right)
    return f"lacks {wanted} of {protocol.__name__}{beside}{hint}"


def _parameters(member: Any) -> str:
    """Return a method's parameters as they are written, without the object and without types."""
    if isinstance(member, property):
        return ""
    _, *names = inspect.signature(member).parameters
    return f"({', '.join(names)})"


def _wrong_kinds(component: object, interface: Interface) -> Iterator[str]:
    """Yield which member is a method where a value is needed, none where a method is, or one with other parameters."""
    for protocol in interface.protocols:
        for name, member in members(protocol).items():
            if has(component, name):
                yield (
                    _value_fault(component, name)
                    if isinstance(member, property)
                    else _method_fault(component, name, member)
                )


def _value_fault(component: object, name: str) -> str:
    defined = inspect.getattr_static(component, name, None)
    if inspect.isfunction(defined) or isinstance(defined, (staticmethod, classmethod)):
        return f"has '{name}' as a method where a value is needed; write @property above it"
    return ""


def _method_fault(component: object, name: str, member: Any) -> str:
    method, wanted = getattr(component, name), _parameters(member)
    if not callable(method):
        return f"has '{name}' = {method!r:.80} where a method is needed: {name}{wanted}"
    try:
        signature = inspect.signature(method)
    except (ValueError, TypeError):  # written in C, say
        return ""
    _, *parameters = inspect.signature(member).parameters.values()
    least = [each for each in parameters if each.default is inspect.Parameter.empty]
    if _takes(signature, len(least)) and _takes(
        signature, len(least), [each.name for each in parameters[len(least) :]]
    ):
        return ""
    return f"has '{name}{signature}', which is called as {name}{wanted}; give it these parameters"


def _takes(signature: inspect.Signature, count: int, names: Iterable[str] = ()) -> bool:
    try:
        signature.bind(*range(count), **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def _plain(name: str) -> str:
    return name.replace("_", "").casefold()


def _stem(name: str) -> str:
    ending = next((end for end in _ENDINGS if name.endswith(end)), "")
    return name.removesuffix(ending)


def _nearly(name: str, right: str) -> bool:
    stem = _stem(right)
    return _distance(name, right) <= (2 if len(right) >= _LONG else 1) or (len(stem) > 3 and _stem(name) == stem)


def _distance(a: str, b: str) -> int:
    """Return how many letters to add, drop, change or swap with their neighbour make one word of the other."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            least = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2]):
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]
