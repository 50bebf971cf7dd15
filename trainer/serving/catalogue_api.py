"""`GET /v1/models`, `GET /v1/models/NAME` and `GET /v1/pictures/TOKEN.png`."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from trainer.errors import AdapterError
from trainer.serving import model_names
from trainer.serving.api_error import ApiError
from trainer.serving.server_state import ServerState

_MOST_MODELS = 10_000


async def models(state: ServerState, request: Request) -> Response:
    """The bases, saved stacks, and each base with each LoRA that the key sees. Raises: ApiError."""
    key = state.key(request)
    await asyncio.to_thread(state.views.look)
    roots = {base: base for base in state.names.bases}
    roots |= dict.fromkeys(state.names.saved(), state.names.shown)
    loras = sorted(info.name for info in state.views.view(key.owner).all.values())
    for base in state.names.bases:
        roots |= {f"{base}+{lora}": base for lora in loras}
    listed = [_model(name, root) for name, root in islice(roots.items(), _MOST_MODELS)]
    return JSONResponse({"object": "list", "data": listed})


async def model(state: ServerState, request: Request) -> Response:
    """One model that a request may name. Raises: ApiError 404."""
    key = state.key(request)
    name: str = request.path_params["name"]
    if any(sign < " " or sign in "/\\" for sign in name):
        raise ApiError(404, "that model does not exist here.", param="model", code="model_not_found")
    named, view = state.names.meant(name), state.views.view(key.owner)
    try:
        for lora, _ in named.loras:
            view.named(lora, "the model")
    except AdapterError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from None
    return JSONResponse(_model(named.name, model_names.shown(named.base)))


async def picture(state: ServerState, request: Request) -> Response:
    """A picture that was asked for as a url; its name is as good as a key. Raises: ApiError 404."""
    png = state.results.get(request.path_params["token"])
    if png is None:
        raise ApiError(404, "there is no such picture, or not any more.", code="not_found")
    headers = {"cache-control": "private, no-store", "content-disposition": "inline"}
    return Response(png, media_type="image/png", headers=headers)


def _model(name: str, base: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "velatura", "root": base}
