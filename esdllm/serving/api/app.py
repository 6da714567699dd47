"""The ASGI application: routes, what stands before them, and what becomes of errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from esdllm.errors import EsdllmError, brief
from esdllm.serving import page
from esdllm.serving.api.answering import Endpoint
from esdllm.serving.api.calls import chat_call, completion_call, infill_call
from esdllm.serving.api.canvas import CANVAS_CALLS, CanvasEndpoint
from esdllm.serving.api.errors import ApiError, json_response, of_error
from esdllm.serving.api.keys import Guarded
from esdllm.serving.api.logs import Logged, now
from esdllm.serving.api.service import Service

__all__ = ["create_app"]

_log = logging.getLogger("esdllm.serving")
_WATCH = 1.0  # seconds between two looks at whether a step is stuck


def create_app(service: Service) -> Starlette:
    """Return the application that serves OpenAI's API; it runs under uvicorn, Ray Serve, or whatever else runs ASGI."""
    decoding = {
        "/v1/chat/completions": chat_call,
        "/v1/completions": completion_call,
        "/v1/fim/completions": infill_call,
    }
    told = _Told(service)
    routes = [
        *(Route(path, Endpoint(service, read), methods=["POST"]) for path, read in decoding.items()),
        *(
            Route(path, CanvasEndpoint(service, of_canvas), methods=["POST"])
            for path, of_canvas in CANVAS_CALLS.items()
        ),
        Route("/", told.page),
        Route("/v1/models", told.models),
        Route("/v1/models/{name:path}", told.model),
        Route("/health", told.ready),
        Route("/health/live", told.live),
        Route("/health/ready", told.ready),
        Route("/metrics", told.metrics),
    ]
    cors = Middleware(CORSMiddleware, allow_origins=service.origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    handlers: Any = {
        ApiError: _of_ours,
        EsdllmError: _of_ours,
        HTTPException: _of_http,
        Exception: _of_ours,
    }
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Logged, service=service),
            *([cors] if service.origins else []),
            Middleware(Guarded, service=service),
        ],
        exception_handlers=handlers,
        lifespan=lambda _: _watching(service),
    )
    app.router.redirect_slashes = False  # an address is right or wrong, and a POST is sent once
    return app


class _Told:
    """The routes that tell of the server."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def page(self, _: Request) -> Response:
        """Return the page that talks with the model."""
        return Response(page.html(), headers=page.headers())

    async def models(self, _: Request) -> Response:
        """List the model."""
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Tell of one model."""
        name = request.path_params["name"]
        if name != self._service.model:
            message = f"there is no model {brief(name)}; this server has {self._service.model}"
            raise ApiError(404, message, "model_not_found", "model")
        return json_response(self._model())

    def _model(self) -> dict[str, Any]:
        about = {"id": self._service.model, "object": "model", "created": self._service.created, "owned_by": "esdllm"}
        return {**about, "max_model_len": self._service.session.length}

    async def live(self, _: Request) -> Response:
        """Say that the process answers."""
        return json_response({"status": "live"})

    async def ready(self, _: Request) -> Response:
        """Say whether requests are taken."""
        condition = self._service.condition()
        return json_response({"status": condition}, 200 if condition == "ready" else 503)

    async def metrics(self, request: Request) -> Response:
        """Return what Prometheus reads."""
        written, content_type = self._service.metrics.written(request.headers.get("accept", ""))
        return Response(written, headers={"content-type": content_type})


async def _of_ours(request: Request, error: Exception) -> Response:
    return of_error(error).logged(request.scope).response()


async def _of_http(request: Request, error: HTTPException) -> Response:
    """Answer a wrong path or method."""
    path = brief(request.url.path)
    messages = {404: f"there is nothing at {path}", 405: f"{request.method} is not for {path}"}
    message, code = messages.get(error.status_code, error.detail), {404: "not_found", 405: "method_not_allowed"}
    told = ApiError(error.status_code, message, code.get(error.status_code), headers=error.headers)
    return told.logged(request.scope).response()


@asynccontextmanager
async def _watching(service: Service) -> AsyncIterator[None]:
    """Log, while the application runs, when a step is stuck and when it goes on."""
    watching = asyncio.ensure_future(_watch(service))
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _watch(service: Service) -> None:
    before = False
    while True:
        seconds = service.session.state().stuck_for
        stuck = seconds > service.limits.stuck_seconds
        if stuck is not before:
            service.log({"time": now(), "event": "stuck" if stuck else "going on", "seconds": round(seconds, 3)})
        before = stuck
        await asyncio.sleep(min(_WATCH, service.limits.stuck_seconds / 2))
