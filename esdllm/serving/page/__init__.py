"""The page at `/`: a chat that shows the canvas while it is denoised. One file, which asks its own server alone."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

__all__ = ["headers", "html"]


@cache
def html() -> bytes:
    """Return the page, in UTF-8."""
    return (files(__package__) / "index.html").read_bytes()


@cache
def headers() -> dict[str, str]:
    """Return the headers to send the page with.

    Their Content-Security-Policy admits the page's own style and script, by their hashes, and requests to its own server,
    and nothing else: no other script runs, and no text can become HTML (Trusted Types).
    """
    policy = {
        "default-src": "'none'",
        "script-src": _hashes("script"),
        "style-src": _hashes("style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _hashes(element: str) -> str:
    """Return the sources that admit what stands in the page's elements of a name."""
    found = re.findall(rb"<%b>(.*?)</%b>" % ((element.encode(),) * 2), html(), re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text).digest()).decode()}'" for text in found)
