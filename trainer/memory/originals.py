"""The weights of a base as its files have them: layers are quantised anew from these, never from rounded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from trainer.errors import ModelError


class Files:
    """Weights of a component of a diffusers folder, read one at a time when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[str, Any] | None = None  # by tensor

    def weight(self, path: str) -> Tensor:
        """Of the module at `path`. Raises: ModelError if the files don't name it."""
        if self._opened is None:
            # Of `x.safetensors` and `x.fp16.safetensors` the first counts.
            files = [
                safe_open(str(file), "pt")
                for file in sorted(self.folder.glob("*.safetensors"), key=lambda file: -file.name.count("."))
            ]
            self._opened = {name: opened for opened in files for name in opened.keys()}  # noqa: SIM118 - no dict
        name = f"{path}.weight"
        if name not in self._opened:
            raise ModelError(
                f"{str(self.folder)!r} has no {name!r} in its .safetensors files; it can only be used as it is, not "
                f"quantised anew."
            )
        weight: Tensor = self._opened[name].get_tensor(name)
        return weight
