"""`/v1/loras`: the LoRAs that a key sees, and where uploads are on, its own brought and removed.

What is uploaded goes through the gate that the page's uploads go through: read whole by `lora_file.inspect`, which
refuses pickles, damage and NaN, and put under a name of our making. Here it must fit the base too. It is written beside
its place and gets its name last, so that a full disk or a broken upload leaves nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from trainer import lora_file, unique_names
from trainer.data.uploads import safe_stem
from trainer.errors import AdapterError
from trainer.lora_file import LoraInfo
from trainer.serving import api_error, images_api
from trainer.serving.api_error import ApiError
from trainer.serving.keys import Key
from trainer.serving.server_state import ServerState

_PIECE_S = 60.0  # for the next piece of an upload
_MAX_NAME_CHARS = 200
_MOST_FILES = 1000  # of one key


async def loras(state: ServerState, request: Request) -> Response:
    """What the key may name. Raises: ApiError."""
    key = state.key(request)
    await asyncio.to_thread(state.views.look, [key.owner])
    view = state.views.view(key.owner)
    listed = [_facts(info, info.sha256 in view.own) for info in view.all.values()]
    return JSONResponse({"object": "list", "data": sorted(listed, key=lambda facts: str(facts["name"]))})


async def upload(state: ServerState, request: Request) -> Response:
    """A LoRA of the key's own, from the request's body. Raises: ApiError."""
    _refuse_if_off(state)
    key = state.key(request)
    name = request.query_params.get("name", "")
    # A name, never a path.
    if not name or len(name) > _MAX_NAME_CHARS or any(sign < " " or sign in "/\\" for sign in name):
        raise ApiError(
            400,
            f"name is {name[:80]!r}; allowed: ?name= and up to {_MAX_NAME_CHARS} printable letters, no slashes.",
            param="name",
            code="invalid_value",
        )
    state.num_open += 1  # a server that ends waits for it
    try:
        # One at a time, so that two together don't take twice the room.
        async with state.uploading.setdefault(key.name, asyncio.Lock()):
            info = await _kept(state, key, request, name)
    finally:
        state.num_open -= 1
    state.metrics.uploads.labels(key.name).inc()
    state.log.write("upload", request=request.state.request_id, key=key.name, sha256=info.sha256, bytes=info.size_bytes)
    return JSONResponse(_facts(info, True), 201)


async def _kept(state: ServerState, key: Key, request: Request, name: str) -> LoraInfo:
    """The LoRA in a request's body, which is the key's from now on. Raises: ApiError."""
    folder = state.views.folder(key.owner)
    try:
        room = await asyncio.to_thread(_room, state, key, folder)
        with unique_names.temporary(folder, ".upload.safetensors") as unfinished:
            await _received(request, unfinished, room)
            info = await asyncio.to_thread(_checked, state, unfinished)
            # Known by its content, whatever it is called.
            known = state.views.view(key.owner).own.get(info.sha256)
            if known is not None:
                raise ApiError(409, f"this LoRA is here already, as {known.name}.", code="already_there")
            names = unique_names.numbered(folder, safe_stem(f"{name.removesuffix('.safetensors')}.x"), ".safetensors")
            unique_names.put(unfinished, names)
    except OSError as error:
        raise ApiError(
            507,
            f"the LoRA can't be kept: {error.strerror or error}; ask again later.",
            api_error.BROKEN,
            code="no_room",
        ) from None

    # The next request sees it.
    await asyncio.to_thread(state.views.look, [key.owner])
    return state.views.view(key.owner).own[info.sha256]


async def remove(state: ServerState, request: Request) -> Response:
    """Have a LoRA that the key uploaded be gone. Raises: ApiError 404."""
    _refuse_if_off(state)
    key = state.key(request)
    await asyncio.to_thread(state.views.look, [key.owner])
    info = state.views.view(key.owner).own.get(request.path_params["sha256"])
    if info is None:
        raise ApiError(404, "this key uploaded no LoRA of that sha256.", code="not_found")
    await asyncio.to_thread(info.path.unlink, True)
    await asyncio.to_thread(state.views.look, [key.owner])
    return JSONResponse({"id": info.sha256, "object": "lora", "deleted": True})


def _refuse_if_off(state: ServerState) -> None:
    if state.is_draining:
        raise api_error.draining()
    if not state.settings.uploads:
        raise ApiError(
            403, "uploads are off; start the server with --uploads.", api_error.FORBIDDEN, code="uploads_off"
        )


def _room(state: ServerState, key: Key, folder: Path) -> int:
    """How many bytes the key may still upload. Raises: ApiError if none."""
    files = list(folder.glob("*.safetensors"))
    if len(files) >= _MOST_FILES:
        raise ApiError(413, f"this key has {len(files)} LoRAs; allowed: {_MOST_FILES}.", code="quota_exceeded")
    used = sum(path.stat().st_size for path in files)
    room = min(key.upload_bytes - used, state.settings.upload_bytes)
    if room <= 0:
        raise ApiError(
            413,
            f"this key's LoRAs take {used} bytes; allowed: {key.upload_bytes}. Remove some first.",
            code="quota_exceeded",
        )
    return room


async def _received(request: Request, path: Path, room: int) -> None:
    """Write the request's body to a file of its own. Raises: ApiError, OSError."""
    too_large = ApiError(413, f"the LoRA is larger than the {room} bytes that are left.", code="quota_exceeded")
    # A stated length is judged unread; without it, what comes is counted below.
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > room:
        raise too_large
    pieces, size = request.stream().__aiter__(), 0
    with path.open("wb") as file:
        while True:
            # The limit is each piece's: a large file may take long, but may not stand still.
            try:
                piece = await asyncio.wait_for(pieces.__anext__(), _PIECE_S)
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                raise ApiError(408, "the upload stood still for too long.", code="body_too_slow") from None
            except ClientDisconnect:
                raise images_api.client_gone() from None
            size += len(piece)
            if size > room:
                raise too_large
            file.write(piece)


def _checked(state: ServerState, path: Path) -> LoraInfo:
    """What is known of an uploaded file. Raises: ApiError if it is no LoRA that fits a base that is served."""
    try:
        info = lora_file.inspect(path)
        state.renderer.check(path)
    except AdapterError as error:
        # Where files lie here is nobody's business.
        problem = str(error).replace(str(path), "the file").replace(path.name, "the file")
        raise ApiError(400, problem, code="lora_refused") from None
    return info


def _facts(info: LoraInfo, is_own: bool) -> dict[str, Any]:
    """What is said of a LoRA: nothing of where it lies."""
    return {
        "id": info.sha256,
        "object": "lora",
        "name": info.name,
        "sha256": info.sha256,
        "method": info.method,
        "rank": info.rank,
        "family": info.family,
        "trigger": info.trigger,
        "bytes": info.size_bytes,
        "own": is_own,
    }
