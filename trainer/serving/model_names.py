"""What `model` may be: a base, `BASE+lora:weight+...`, or a stack that was saved under a name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.config import StackConfig, parse
from trainer.config.parsing import from_toml
from trainer.config.stack import WIDEST_WEIGHT
from trainer.errors import ConfigError, UserError
from trainer.printing import plain, some
from trainer.serving.api_error import ApiError

_MAX_STACK_BYTES = 1 << 20
_MOST_STACKS = 1000


@dataclass(frozen=True)
class Named:
    """What a model's name stands for."""

    name: str
    base: str  # as the server was given it: a name or a folder
    loras: tuple[tuple[str, float], ...] = ()  # name and weight
    saved: StackConfig | None = None


class ModelNames:
    """The names of one server."""

    def __init__(self, bases: tuple[str, ...], stacks: Path) -> None:
        """Raises: ConfigError if two bases would have one name."""
        self.stacks = stacks
        self.bases = {shown(base): base for base in bases}  # by the name that requests know; the first is the usual one
        if len(self.bases) < len(bases):
            raise ConfigError(f"--base is {some(list(bases))}, of which two have one name; allowed: a name each.")

    @property
    def shown(self) -> str:
        """The name of the usual base."""
        return next(iter(self.bases))

    def saved(self) -> dict[str, Path]:
        """The files of saved stacks by name."""
        paths = sorted(path for path in self.stacks.glob("*.toml") if not path.name.startswith(".") and path.is_file())
        return {path.stem: path for path in paths[:_MOST_STACKS]}

    def meant(self, name: str | None) -> Named:
        """What a name stands for; no name is the base. Raises: ApiError 404 naming what there is."""
        if not name:
            name = self.shown
        if name in self.bases:
            return Named(name, self.bases[name])
        saved = self.saved()
        if name in saved:
            stack = self._read(name, saved[name])
            # On one base all saved stacks are drawn; of several, each on its own if that is here.
            base = stack.base if stack.base in self.bases.values() else self.bases[self.shown]
            return Named(name, base, saved=stack)
        # A base with LoRAs behind it.
        for start, base in self.bases.items():
            if name.startswith(f"{start}+"):
                loras = name.removeprefix(f"{start}+").split("+")
                return Named(name, base, tuple(_lora(part, name) for part in loras))
        allowed = some([*self.bases, f"{self.shown}+lora:weight", *saved])
        raise ApiError(
            404,
            f"the model {plain(name, 200)!r} does not exist here; allowed: {allowed}.",
            param="model",
            code="model_not_found",
        )

    def _read(self, name: str, path: Path) -> StackConfig:
        """Raises: ApiError if the file isn't a stack that can be served."""
        try:
            if path.stat().st_size > _MAX_STACK_BYTES:
                raise ApiError(500, f"the saved stack {plain(name, 120)} is too large.", code="stack_damaged")
            return parse(StackConfig, from_toml(path.read_bytes(), path.name), path.name)
        except (UserError, OSError) as error:
            # Where it lies, which the system's errors say, is nobody's business.
            problem = error.strerror if isinstance(error, OSError) else error
            raise ApiError(
                500, f"the saved stack {plain(name, 120)} can't be read: {problem}", code="stack_damaged"
            ) from None


def shown(base: str) -> str:
    """A base's name as requests know it: of a folder the last part, since where it lies is nobody's business."""
    path = Path(base)
    return path.name if path.is_absolute() or len(path.parts) > 1 else base


def _lora(part: str, whole: str) -> tuple[str, float]:
    """Name and weight of `name:weight`, weight 1 if left out. Raises: ApiError."""
    name, colon, weight = part.rpartition(":")
    if not colon:
        name, weight = part, "1"
    # What is no number becomes NaN, which the comparison below refuses.
    try:
        number = float(weight) if len(weight) <= 20 else float("nan")
    except ValueError:
        number = float("nan")
    if not name or not abs(number) <= WIDEST_WEIGHT:
        raise ApiError(
            400,
            f"the model {plain(whole, 200)!r} has {plain(part, 80)!r}; allowed: lora:weight with a weight from "
            f"-{WIDEST_WEIGHT:g} to {WIDEST_WEIGHT:g}.",
            param="model",
            code="invalid_value",
        )
    return name, number
