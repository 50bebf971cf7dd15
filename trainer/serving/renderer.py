"""What draws the pictures of a server's line: the engine of this process, or replicas elsewhere (`replicas`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trainer import lora_file
from trainer.serving.drawing import Drawing
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.metrics import Metrics
from trainer.serving.reading import Reading
from trainer.serving.settings import ServeSettings

if TYPE_CHECKING:
    from trainer.render.engine import Engine


class Renderer(Protocol):
    """Takes pictures out of a line and tells their orders what becomes of them."""

    @property
    def picture_s(self) -> float:
        """Seconds that a picture takes, as it went so far."""

    @property
    def is_alive(self) -> bool:
        """Whether it draws, or would if there were something."""

    @property
    def adapter_bytes(self) -> int:
        """Memory of the LoRAs that are kept by whoever draws."""

    def start(self) -> None:
        """Begin to take pictures."""

    def end(self) -> None:
        """Take no more, tell those that wait so, and return when nothing is under way."""

    def check(self, path: Path) -> None:
        """Read a LoRA file whole. Raises: AdapterError if no base that is served could use it."""


class OwnEngine:
    """The renderer with a base in this process's memory: threads that read LoRAs ahead, and a thread that draws."""

    def __init__(self, engine: Engine, line: Line, settings: ServeSettings, metrics: Metrics, log: Log) -> None:
        self.engine = engine
        self._reading = Reading(engine.shelf, line, metrics, log)
        self._drawing = Drawing(engine, line, settings, metrics, log)

    @property
    def picture_s(self) -> float:
        return self._drawing.picture_s

    @property
    def is_alive(self) -> bool:
        return self._drawing.is_alive and self._reading.is_alive

    @property
    def adapter_bytes(self) -> int:
        return self.engine.shelf.num_bytes

    def start(self) -> None:
        self._reading.start()
        self._drawing.start()

    def end(self) -> None:
        self._drawing.end()
        self._reading.end()

    def check(self, path: Path) -> None:
        lora_file.read(path, self.engine.file_keys, self.engine.shapes)
