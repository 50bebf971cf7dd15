"""The server's routes as a FastAPI app."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trainer.serving import api_error, catalogue_api, images_api, loras_api, metrics
from trainer.serving.api_error import ApiError
from trainer.serving.gate import Gate
from trainer.serving.server_state import ServerState
from trainer.serving.settings import EVERYWHERE, LOOPBACK, ServeSettings

_Answer = Callable[[ServerState, Request], Awaitable[Response]]


def app(state: ServerState) -> FastAPI:
    """The app of one server; its threads are started and ended by whoever serves it."""
    made = FastAPI(
        title="Velatura",
        docs_url=None,  # its page would be loaded from another host
        redoc_url=None,
        openapi_url=None,
        middleware=[
            # In this order: a request that is refused for its host is logged too.
            Middleware(Gate, metrics=state.metrics, log=state.log),
            Middleware(TrustedHostMiddleware, allowed_hosts=_hosts(state.settings), www_redirect=False),
        ],
    )
    made.add_exception_handler(ApiError, _refused)
    made.add_exception_handler(HTTPException, _no_route)
    made.add_exception_handler(Exception, _fault(state))
    routes: list[tuple[str, str, _Answer]] = [
        ("POST", "/v1/images/generations", images_api.generate),
        ("GET", "/v1/models", catalogue_api.models),
        ("GET", "/v1/models/{name:path}", catalogue_api.model),
        ("GET", "/v1/pictures/{token}.png", catalogue_api.picture),
        ("GET", "/v1/loras", loras_api.loras),
        ("POST", "/v1/loras", loras_api.upload),
        ("DELETE", "/v1/loras/{sha256}", loras_api.remove),
        ("GET", "/metrics", _metrics),
        ("GET", "/health", _health),
        ("GET", "/ready", _ready),
    ]
    for method, path, answer in routes:
        made.add_route(path, _bound(answer, state, path), methods=[method])
    return made


def _bound(answer: _Answer, state: ServerState, path: str) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        request.state.route = path  # as the log and the metrics have it: an address may hold a token
        return await answer(state, request)

    return route


def _hosts(settings: ServeSettings) -> list[str]:
    """The names by which the server may be asked."""
    if settings.host in EVERYWHERE and not settings.hosts:
        return ["*"]
    own = () if settings.host in EVERYWHERE else (settings.host,)
    return list(dict.fromkeys([*own, *LOOPBACK, *settings.hosts]))


async def _health(state: ServerState, request: Request) -> Response:
    """200 while the server can draw; 503 once its threads have died."""
    is_alive = state.renderer.is_alive
    return JSONResponse({"status": "ok" if is_alive else "broken"}, 200 if is_alive else 503)


async def _ready(state: ServerState, request: Request) -> Response:
    """200 while new requests are taken."""
    state.refuse_if_closed()
    return JSONResponse({"status": "ready"})  # how many wait is for /metrics: anybody may ask here


async def _metrics(state: ServerState, request: Request) -> Response:
    """For keys that may read it, since all keys stand there. Raises: ApiError."""
    if not state.key(request).metrics:
        raise ApiError(403, "this key may not read the metrics.", api_error.FORBIDDEN, code="forbidden")
    state.metrics.queue.set(len(state.line))
    state.metrics.is_ready.set(int(state.is_ready))
    state.metrics.adapter_bytes.set(state.renderer.adapter_bytes)
    return Response(await asyncio.to_thread(state.metrics.text), media_type=metrics.MEDIA_TYPE)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    """Starlette's own refusals in OpenAI's form."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = {404: "there is nothing at this address.", 405: "this method is not known at this address."}
    refusal = ApiError(status, said.get(status, "the request can't be read."), code=f"http_{status}")
    return JSONResponse(refusal.body, status)


def _fault(state: ServerState) -> Callable[[Request, Exception], Awaitable[Response]]:
    """What answers for our own mistakes."""

    async def answer(request: Request, error: Exception) -> Response:
        request_id = str(getattr(request.state, "request_id", ""))
        trace = "".join(traceback.format_exception(error))[-4000:]
        state.log.write("fault", request=request_id, error=type(error).__name__, trace=trace)
        return JSONResponse(api_error.broken(request_id).body, 500)

    return answer
