"""A batch's chunks, the pictures that are drawn together, drawn by one warm engine in their order.

Every way of drawing a batch ends here, on this machine or on another, so that one chunk has the same pictures wherever
it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Protocol

from trainer.config import StackConfig
from trainer.errors import RunError, UserError
from trainer.memory import mechanics
from trainer.render import picture_metadata
from trainer.render.batch_ledger import Work

Result = picture_metadata.Picture | UserError  # a picture, or why there is none
Begin = Callable[[list[Work]], None]  # is told of a chunk before it is drawn
Stop = Callable[[], bool]


class Renders(Protocol):
    """The part of an `engine.Engine` that a batch uses."""

    def resolve(self, stack: StackConfig) -> StackConfig: ...
    def render(self, stack: StackConfig) -> picture_metadata.Picture: ...
    def render_all(self, stacks: Iterable[StackConfig]) -> Iterator[picture_metadata.Picture]: ...


OpenEngine = Callable[[str, str], Renders]  # of a base and its family


class Draws(Protocol):
    """What draws a batch's chunks; it writes nothing into the batch's folder."""

    def draw(
        self, chunks: Iterator[list[Work]], begin: Begin, stop: Stop
    ) -> Generator[tuple[Work, Result], None, None]:
        """Every picture of every chunk once, as they come; once `stop` says so, no further chunk is begun."""
        ...


class InOrder:
    """Draws chunk after chunk in this process."""

    def __init__(self, open_engine: OpenEngine) -> None:
        self.warm = WarmEngine(open_engine)

    def draw(
        self, chunks: Iterator[list[Work]], begin: Begin, stop: Stop
    ) -> Generator[tuple[Work, Result], None, None]:
        """A chunk that was begun is drawn to its end, since its pictures come together."""
        for chunk in chunks:
            if stop():
                return
            begin(chunk)
            for place, result in self.warm.draw([work.stack for work in chunk]):
                yield chunk[place], result


class WarmEngine:
    """The base that was drawn with last, kept open until another is wanted."""

    def __init__(self, open_engine: OpenEngine) -> None:
        self.open_engine = open_engine
        self._opened: tuple[tuple[str, str], Renders | UserError] | None = None

    def draw(self, stacks: list[StackConfig]) -> Iterator[tuple[int, Result]]:
        """The pictures of a chunk by their places, or why there is none.

        One that is refused doesn't take the others with it.
        """
        # Which of them can be drawn at all.
        engine = self._engine(stacks[0])
        valid = []
        for place, stack in enumerate(stacks):
            if isinstance(engine, UserError):
                yield place, engine
                continue
            try:
                engine.resolve(stack)
                valid.append(place)
            except UserError as error:
                yield place, error
        if isinstance(engine, UserError):
            return

        # Together.
        pictures, num_drawn = engine.render_all(stacks[place] for place in valid), 0
        try:
            for picture in pictures:
                num_drawn += 1
                yield valid[num_drawn - 1], picture
        except (UserError, RuntimeError, MemoryError) as error:
            if not isinstance(error, UserError) and not mechanics.is_shortage(error):
                raise

        # Where that failed, each alone, so that only what itself is refused or too large fails. After the `except`,
        # whose error holds the tensors of a step.
        for place in valid[num_drawn:]:
            yield place, _alone(engine, stacks[place])

    def _engine(self, stack: StackConfig) -> Renders | UserError:
        """The base, loaded once while its pictures are drawn; the base before is let go first."""
        key = (stack.base, stack.family)
        if self._opened is None or self._opened[0] != key:
            self._opened = None
            try:
                self._opened = (key, self.open_engine(*key))
            except UserError as error:
                self._opened = (key, error)
        return self._opened[1]


def _alone(engine: Renders, stack: StackConfig) -> Result:
    """One picture, or why there is none."""
    try:
        return engine.render(stack)
    except UserError as error:
        return error
    except (RuntimeError, MemoryError) as error:
        if not mechanics.is_shortage(error):
            raise
        lines = str(error).strip().splitlines() or ["MemoryError"]
        return RunError(
            f"memory ran out for this picture of {stack.width_px}x{stack.height_px} px with {len(stack.adapters)} "
            f"LoRAs, drawn alone; a smaller one may fit. {lines[0][:200]}"
        )
