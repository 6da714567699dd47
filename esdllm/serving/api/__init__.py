"""OpenAI's API over a session: routes, fields, streams, errors, keys, limits, metrics. Needs the extra `serve`."""

from __future__ import annotations

from esdllm.serving.api.app import create_app
from esdllm.serving.api.service import RequestLimits, Service

__all__ = ["RequestLimits", "Service", "create_app"]
