"""`POST /v1/images/generations`: an order for pictures, and its answer whole or as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from trainer.config import StackConfig
from trainer.serving import gate, image_request
from trainer.serving.api_error import ApiError
from trainer.serving.image_request import ImageRequest
from trainer.serving.keys import Key
from trainer.serving.orders import Begun, Drawn, Failed, News, Order, Stepped, Wanted, late
from trainer.serving.server_state import ServerState

_ALIVE_S = 15.0  # how often a stream without news says that it lives
_COMPLETED, _PARTIAL, _PROGRESS = (
    "image_generation.completed",
    "image_generation.partial_image",
    "image_generation.progress",
)
_MOST_NEWS = 256  # that wait for a slow client; then steps are left out, never a picture


class _Inbox:
    """What is told of an order, from the threads that draw to the loop that answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.news: asyncio.Queue[News] = asyncio.Queue()
        self.begun: set[int] = set()  # numbers of pictures

    def tell(self, news: News) -> None:
        """Called from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._put, news)

    def _put(self, news: News) -> None:
        if isinstance(news, Begun):
            self.begun.add(news.number)
        elif not isinstance(news, Stepped) or self.news.qsize() < _MOST_NEWS:
            self.news.put_nowait(news)


async def generate(state: ServerState, request: Request) -> Response:
    """Pictures. Raises: ApiError."""
    state.refuse_if_closed()
    key = state.key(request)
    # A server that ends waits for what is open, from here on: a body may take a while to come.
    state.num_open += 1
    try:
        answering = await _ordered(state, key, request)
    except BaseException:
        state.num_open -= 1
        raise
    return _Events(answering) if answering.image.stream else await answering.whole(request)


async def _ordered(state: ServerState, key: Key, request: Request) -> _Answering:
    """The order in a request, whose pictures wait in the line from now on. Raises: ApiError."""
    image, stacks = await _prepared(state, key, await body(request))
    state.refuse_if_closed()  # once more: the body took its time
    day = state.quotas.take(key, len(stacks))
    inbox = _Inbox(asyncio.get_running_loop())
    deadline_s = min(state.settings.deadline_s, image.deadline_s or state.settings.deadline_s)
    order = Order(
        request.state.request_id,
        key.name,
        inbox.tell,
        time.monotonic() + deadline_s,
        num_previews=(image.partial_images or 0) if image.stream else 0,
        wants_steps=bool(image.stream and image.progress),
    )
    # Without LoRAs nothing must be read first.
    pictures = [
        Wanted(order, number, stack, reads=None if stack.adapters else ()) for number, stack in enumerate(stacks)
    ]
    # A full line costs no quota.
    try:
        state.line.put(pictures, key.weight, state.wait_s)
    except ApiError:
        state.quotas.give_back(key, len(stacks), day)
        raise
    _log_order(state, order, image, stacks)
    return _Answering(state, key, day, order, image, inbox, stacks)


async def body(request: Request) -> bytes:
    """A request's body. Raises: ApiError 413 for a large body, 408 for a body that takes too long."""
    too_large = ApiError(413, f"the body is larger than {gate.MAX_BODY_BYTES} bytes.", code="body_too_large")
    # Cut to 20 digits: the header may hold a number of any length.
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > gate.MAX_DISCARDED_BYTES:
        raise too_large

    async def read() -> bytes:
        # A client that is answered before it has sent everything mostly doesn't see the answer.
        raw, size = bytearray(), 0
        async for piece in request.stream():
            size += len(piece)
            if size > gate.MAX_DISCARDED_BYTES:
                raise too_large
            if size <= gate.MAX_BODY_BYTES:
                raw += piece
        if size > gate.MAX_BODY_BYTES:
            raise too_large
        return bytes(raw)

    try:
        return await asyncio.wait_for(read(), gate.BODY_S)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body took longer than {gate.BODY_S:g} s.", code="body_too_slow") from None
    except ClientDisconnect:
        raise client_gone() from None


def client_gone() -> ApiError:
    """What nobody reads: the client went away. 499 is nginx's number for it."""
    return ApiError(499, "the client went away.", code="client_gone")


async def _prepared(state: ServerState, key: Key, raw: bytes) -> tuple[ImageRequest, list[StackConfig]]:
    """The request and its stacks; LoRAs that aren't known are looked for once more. Raises: ApiError."""
    image = image_request.read(raw)

    def make() -> list[StackConfig]:
        try:
            return state.maker.stacks(image, state.views.view(key.owner))
        except ApiError as error:
            if error.code != "lora_not_found":
                raise
        # It may lie in the folder since the last look.
        state.views.look()
        return state.maker.stacks(image, state.views.view(key.owner))

    return image, await asyncio.to_thread(make)


def _log_order(state: ServerState, order: Order, image: ImageRequest, stacks: list[StackConfig]) -> None:
    """A line for an order that was taken; what its user wrote, and who that is, only where prompts are wanted."""
    first = stacks[0]
    facts: dict[str, str | int | None] = {
        "request": order.request_id,
        "key": order.key_name,
        "pictures": len(stacks),
        "steps": first.steps,
        "size": f"{first.width_px}x{first.height_px}",
        "loras": len(first.adapters),
    }
    if state.log.prompts:
        user = image.safety_identifier or image.user
        facts |= {"prompt": first.prompt, "negative_prompt": first.negative_prompt, "user": user}
    state.log.write("order", **facts)


class _Answering:
    """Waits for an order's pictures and answers with them, until its deadline.

    The day's quota pays for what was given, previews too, and where the client left, for what was being drawn.
    """

    def __init__(
        self, state: ServerState, key: Key, day: str, order: Order, image: ImageRequest, inbox: _Inbox,
        stacks: list[StackConfig],
    ) -> None:  # fmt: skip
        """`day` is whose quota was taken from."""
        self.state, self.key, self.day, self.order, self.image, self.inbox = state, key, day, order, image, inbox
        self.first_stack, self.num_pictures = stacks[0], len(stacks)
        self.given: set[int] = set()  # numbers of pictures of which the client has something
        self.has_left = True  # until it is answered
        self._is_open = True

    def end(self) -> None:
        """Whatever isn't drawn yet needn't be."""
        if not self._is_open:
            return
        self._is_open = False
        self.order.cancel()
        # What draws finds that nobody wants these pictures.
        with self.state.line.changed:
            self.state.line.changed.notify_all()
        paid = self.given | self.inbox.begun if self.has_left else self.given
        self.state.quotas.give_back(self.key, self.num_pictures - len(paid), self.day)
        self.state.num_open -= 1

    async def whole(self, request: Request) -> Response:
        """All pictures in one answer. Raises: ApiError."""
        gone = asyncio.ensure_future(_gone(request))
        drawn: dict[int, Drawn] = {}
        try:
            while len(drawn) < self.num_pictures:
                news = await self._next(gone)
                if isinstance(news, Failed):
                    self.has_left = False
                    raise news.error
                if isinstance(news, Drawn):
                    drawn[news.number] = news
            self.given, self.has_left = set(drawn), False
        finally:
            gone.cancel()
            self.end()
        return JSONResponse(self._answer([drawn[number] for number in sorted(drawn)], request))

    async def _next(self, gone: asyncio.Future[None]) -> News:
        """The next news; that it is too late once the deadline is over. Raises: ApiError if the client goes first."""
        if not self.inbox.news.empty():
            return self.inbox.news.get_nowait()
        getting = asyncio.ensure_future(self.inbox.news.get())
        try:
            both: set[asyncio.Future[Any]] = {getting, gone}
            await asyncio.wait(both, timeout=self._left_s, return_when=asyncio.FIRST_COMPLETED)
            # News counts even if the client went in the same moment.
            if getting.done():
                return getting.result()
            if gone.done():
                raise client_gone()
            return Failed(0, late())
        finally:
            # Left behind, it would take the next news.
            getting.cancel()

    @property
    def _left_s(self) -> float:
        """Until the deadline. It is watched here too: what draws may be busy with others, or dead."""
        return max(0.0, self.order.deadline - time.monotonic())

    def _answer(self, drawn: list[Drawn], request: Request) -> dict[str, Any]:
        data = []
        for picture in drawn:
            facts = {"revised_prompt": picture.stack.prompt, "seed": picture.stack.seed}
            if self.image.response_format == "url":
                facts["url"] = self._url(picture, request)
            else:
                facts["b64_json"] = base64.b64encode(picture.png).decode()
            data.append(facts | {"batch_pictures": picture.num_together})
        return {"created": int(time.time()), "data": data, **_facts(drawn[0].stack)}

    def _url(self, picture: Drawn, request: Request) -> str:
        """Where the picture can be fetched, by whoever knows the address."""
        token = self.state.results.put(picture.png, self.key.name)
        self.state.metrics.result_bytes.set(self.state.results.num_bytes)
        start = self.state.settings.public_url.rstrip("/") or str(request.base_url).rstrip("/")
        return f"{start}/v1/pictures/{token}.png"

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: previews, steps if asked for, each picture, or an error."""
        num_previews = num_drawn = 0
        try:
            while num_drawn < self.num_pictures:
                news = await self._streamed()
                if news is None:
                    # A comment of server-sent events, which clients skip.
                    yield ": waiting\n\n"
                elif isinstance(news, Failed):
                    self.has_left = False
                    yield _event("error", news.error.body)
                    return
                elif isinstance(news, Drawn):
                    num_drawn += 1
                    self.given.add(news.number)
                    yield _event(_COMPLETED, self._completed(news))
                elif isinstance(news, Stepped):
                    if self.order.wants_steps:
                        yield _event(_PROGRESS, {"index": news.number, "step": news.step, "num_steps": news.num_steps})
                    if news.preview is not None:
                        self.given.add(news.number)
                        yield _event(_PARTIAL, self._partial(news, num_previews))
                        num_previews += 1
            self.has_left = False
        finally:
            self.end()

    async def _streamed(self) -> News | None:
        """The next news of a stream; None if there is none for a while."""
        if not self.inbox.news.empty():
            return self.inbox.news.get_nowait()
        try:
            return await asyncio.wait_for(self.inbox.news.get(), min(_ALIVE_S, self._left_s))
        except asyncio.TimeoutError:
            return Failed(0, late()) if self.order.is_late else None

    def _completed(self, news: Drawn) -> dict[str, Any]:
        tokens = {"image_tokens": 0, "text_tokens": 0}
        return {
            "b64_json": base64.b64encode(news.png).decode(),
            "created_at": int(time.time()),
            "index": news.number,
            "seed": news.stack.seed,
            "quality": "auto",
            # The client's types want them; nothing here is counted in tokens.
            "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": tokens},
            **_facts(news.stack),
        }

    def _partial(self, news: Stepped, number: int) -> dict[str, Any]:
        return {
            "b64_json": base64.b64encode(news.preview or b"").decode(),
            "created_at": int(time.time()),
            "partial_image_index": number,
            "index": news.number,
            "quality": "auto",
            **_facts(self.first_stack),
        }


class _Events(StreamingResponse):
    """Server-sent events, which end their order also where the client left before the first of them."""

    def __init__(self, answering: _Answering) -> None:
        self.answering = answering
        super().__init__(answering.events(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answering.end()


def _facts(stack: StackConfig) -> dict[str, Any]:
    return {"size": f"{stack.width_px}x{stack.height_px}", "output_format": "png", "background": "opaque"}


def _event(kind: str, values: dict[str, Any]) -> str:
    """One server-sent event, which says its kind twice as OpenAI's do."""
    typed = values if kind == "error" else {"type": kind, **values}
    return f"event: {kind}\ndata: {json.dumps(typed)}\n\n"


async def _gone(request: Request) -> None:
    """Ends when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
