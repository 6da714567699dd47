"""Traces as one page: style, script and data in one file, nothing fetched from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from esdllm.errors import InputError
from esdllm.measure.tracing.pack import packed
from esdllm.measure.tracing.trace import Trace

__all__ = ["page"]

_SCRIPTS = ("trace.js", "charts.js", "story.js", "panel.js", "view.js")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(traces: Sequence[Trace]) -> str:
    """Return an HTML document that shows one trace, or two side by side with one slider.

    Raises:
        InputError: there is none or more than two, or a run made no step.
    """
    if not 1 <= len(traces) <= 2:
        raise InputError(f"{len(traces)} traces on a page; give one, or two to compare")
    if any(not trace.steps for trace in traces):
        raise InputError("a run without a step; give a prompt that leaves something to decode")
    data = json.dumps([packed(trace) for trace in traces], ensure_ascii=False, separators=(",", ":"))
    parts = {
        "TITLE": escape(f"Trace of {traces[0].model}: {' and '.join(trace.name for trace in traces)}"),
        "POLICY": _POLICY,
        "STYLE": _read("page.css"),
        "SCRIPT": "\n".join(_read(name) for name in _SCRIPTS),
        "DATA": data.replace("<", "\\u003c"),  # no text of the data can end the element that holds it
    }
    html = _read("page.html")
    head, *rest = html.split("{{")
    return head + "".join(parts[name] + text for name, text in (part.split("}}", 1) for part in rest))


def _read(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")
