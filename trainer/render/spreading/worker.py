"""A worker: one process that keeps an engine warm and draws the chunks it is sent.

It opens no path that it was sent: LoRAs and masks come by content (`worker_files`), and a base of that name must lie on
this machine and have the very hash of the one that the batch was planned with.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

import trainer
from trainer import bases, families, model_registry, system
from trainer.config import StackConfig
from trainer.errors import RunError, UserError
from trainer.render.batch_chunks import WarmEngine
from trainer.render.batch_recipe import base_hash
from trainer.render.engine import Engine
from trainer.render.spreading import messages
from trainer.render.spreading.worker_files import KeptFiles

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG}
_ALIKE = ("torch", "diffusers", "transformers")  # libraries whose version a picture's bytes depend on


def versions() -> dict[str, str]:
    """The versions that all workers of a batch must have alike; a build's own suffix, as +cu130, doesn't count."""
    return {"velatura": trainer.__version__} | {name: version(name).partition("+")[0] for name in _ALIKE}


def usual_folder() -> Path:
    """Where workers of this machine keep what they were sent."""
    return model_registry.home() / "sent"


class Worker:
    """What is done in a worker's process; not for two threads at once."""

    def __init__(self, quantise: str, threads: int, limit_bytes: int, folder: str = "") -> None:
        """`threads` is how many of the processor's cores one picture uses, 0 for torch's own choice."""
        if threads:
            torch.set_num_threads(threads)
        bases.quiet_libraries()
        self.quantise, self.limit_bytes = quantise, limit_bytes
        self.folder = Path(folder) if folder else usual_folder()
        self.warm = WarmEngine(partial(Engine, quantise=quantise))
        self._files: KeptFiles | None = None
        self._bases: dict[tuple[str, str], str] = {}  # hashes by name and family

    def hello(self) -> messages.Hello:
        """Who this is."""
        return messages.Hello(system.host(), versions())

    def draw(self, request: messages.Request, content_of: Callable[[str], bytes]) -> messages.Answer:
        """A chunk's pictures, or why this worker can't draw it."""
        # The base, before anything is fetched for it.
        stack = StackConfig.model_validate_json(request.stacks[0])
        try:
            self._check_base(stack.base, stack.family, request.base_sha256)
        except UserError as error:
            return messages.Answer(lacks="base", why=str(error))

        # The files; a LoRA that is no LoRA is its picture's problem, a full disk is this worker's.
        try:
            places = self._places(request, content_of)
        except UserError as error:
            return messages.Answer(lacks="files", why=str(error))
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            return messages.Answer(lacks="files", why=f"{self.folder} can't take the LoRAs: {error.strerror}.")

        # Each picture by its place in the request, in whatever order they are drawn.
        stacks = [messages.arrived(text, places) for text in request.stacks]
        results: list[messages.Drawn | str] = [""] * len(stacks)
        for place, result in self.warm.draw(stacks):
            results[place] = messages.drawn(result)
        return messages.Answer(tuple(results))

    def _check_base(self, base: str, family: str, wanted: str) -> None:
        """Raises: ModelError if it isn't here, RunError if it is another."""
        if (base, family) not in self._bases:
            folder = bases.resolve(base, families.registry()[family])
            self._bases[base, family] = base_hash(folder, self.quantise)
        if self._bases[base, family] != wanted:
            raise RunError(
                f"base {base[:200]!r} is another one here (hash {self._bases[base, family][:12]}) than where the batch "
                f"was planned ({wanted[:12]}); copy that folder here."
            )

    def _places(self, request: messages.Request, content_of: Callable[[str], bytes]) -> dict[str, Path]:
        if not request.parts:
            return {}
        if self._files is None:
            self._files = KeptFiles(self.folder, self.limit_bytes)
        self._files.let_go(set(request.parts))
        return {key: self._files.place(key, parts, content_of) for key, parts in request.parts.items()}
