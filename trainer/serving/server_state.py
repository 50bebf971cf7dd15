"""What all routes share: the settings, who may ask, the line, and the threads behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from trainer.render.engine import Engine
from trainer.serving import api_error, gate
from trainer.serving.api_error import NO_KEY, ApiError
from trainer.serving.keys import Key, KeyRing
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.lora_views import LoraViews
from trainer.serving.metrics import Metrics
from trainer.serving.model_names import ModelNames
from trainer.serving.quotas import Quotas
from trainer.serving.renderer import OwnEngine, Renderer
from trainer.serving.results import Results
from trainer.serving.settings import ServeSettings
from trainer.serving.stack_of_request import StackMaker

_SAVE_S = 5.0


@dataclass(eq=False)
class ServerState:
    """One server's parts."""

    settings: ServeSettings
    ring: KeyRing
    quotas: Quotas
    views: LoraViews
    names: ModelNames
    maker: StackMaker
    line: Line
    renderer: Renderer
    results: Results
    metrics: Metrics
    log: Log
    is_draining: bool = False
    uploading: dict[str, asyncio.Lock] = field(default_factory=dict)  # by key: one upload at a time
    num_open: int = 0  # requests for pictures, and uploads, that aren't answered yet

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return not self.is_draining and self.renderer.is_alive

    def refuse_if_closed(self) -> None:
        """Raises: ApiError 503 if nothing new is taken, or nothing is drawn any more."""
        if self.is_draining:
            raise api_error.draining()
        if not self.renderer.is_alive:
            raise api_error.cannot_draw()

    def key(self, request: Request) -> Key:
        """Whose request it is, counted. Raises: ApiError 401, 403, 429, 503."""
        if gate.is_of_another_site(request.headers, request.method):
            raise ApiError(403, "a page of another site may not ask here.", api_error.FORBIDDEN, code="cross_origin")
        key = self.ring.of(request.headers.get("authorization", ""))
        if key is None:
            raise ApiError(
                401,
                "the API key is missing or not known; send it as 'Authorization: Bearer KEY'.",
                NO_KEY,
                code="invalid_api_key",
            )
        request.state.key_name = key.name
        self.quotas.ask(key)
        return key

    def wait_s(self, num_pictures: int) -> float:
        """How long so many pictures take, as it went so far."""
        return min(3600.0, max(1.0, num_pictures * self.renderer.picture_s))

    async def save_now_and_then(self) -> None:
        """Write the day's counts every few seconds, for as long as the server runs."""
        while True:
            await asyncio.sleep(_SAVE_S)
            await asyncio.to_thread(self.save)

    def save(self) -> None:
        """Write the day's counts; a disk that is full is told of, and harms nobody."""
        try:
            self.quotas.save()
        except OSError as error:
            self.log.write("counts not written", error=error.strerror or str(error))


def make(settings: ServeSettings, engine: Engine, log: Log, loras: tuple[Path, ...] = ()) -> ServerState:
    """A server's parts with an engine of its own, its threads not started yet. `loras` are more folders of LoRAs.

    Raises: ConfigError, AdapterError for pinned LoRAs that aren't here.
    """
    state = make_with(settings, lambda line, metrics: OwnEngine(engine, line, settings, metrics, log), log, loras)
    for path in pinned_files(settings, state.views):
        engine.shelf.pin(path)
    return state


def pinned_files(settings: ServeSettings, views: LoraViews) -> list[Path]:
    """Where the LoRAs lie that always stay in memory. Raises: AdapterError for those that aren't here."""
    return [views.view("").named(name, "--pin").path for name in settings.pinned]


def lora_views(settings: ServeSettings, loras: tuple[Path, ...]) -> LoraViews:
    """What each key may name, not looked for yet; `loras` are more folders of LoRAs."""
    return LoraViews((settings.workspace, *loras), settings.uploads_folder)


def make_with(
    settings: ServeSettings, renderer_of: Callable[[Line, Metrics], Renderer], log: Log, loras: tuple[Path, ...] = ()
) -> ServerState:
    """A server's parts with any renderer, which is made for the server's line. Raises: ConfigError."""
    ring, metrics = KeyRing(settings.keys), Metrics()
    views = lora_views(settings, loras)
    views.look([key.owner for key in ring.all])
    names = ModelNames(settings.bases, settings.stacks_folder)
    line = Line(settings.queue_pictures, shares=settings.keys is not None)
    return ServerState(
        settings, ring, Quotas(settings.folder / "pictures_today.json"), views, names, StackMaker(settings, names),
        line, renderer_of(line, metrics), Results(settings.results_bytes, settings.results_s), metrics, log,
    )  # fmt: skip
