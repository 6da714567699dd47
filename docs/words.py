"""Marks short inline code, which a narrow screen must not break at a hyphen; extra.css says so. A hook of mkdocs."""

from __future__ import annotations

import re
from typing import Any

_SHORT = re.compile(r"<code>([^<>]{1,20})</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Return a page with the class `word` on its short inline code."""
    return _SHORT.sub(r'<code class="word">\1</code>', html)
