"""What travels between a server and its replicas: a picture that is wanted, and news of it.

LoRAs and masks travel by the sha256 of their content, as in a batch (`trainer.render.spreading.messages`). What a
replica says of a picture is what a drawing thread here says of it, but for refusals, which are exceptions here.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.config import AdapterChoice, StackConfig
from trainer.render.spreading.messages import Outgoing, Part, outgoing
from trainer.serving.api_error import ApiError
from trainer.serving.orders import Begun, Drawn, Failed, News, Stepped, Wanted
from trainer.serving.settings import ServeSettings


@dataclass(frozen=True)
class Plan:
    """What a replica is, the same for all of one base."""

    settings: ServeSettings  # only its limits on batches and memory mean anything on another machine
    base_sha256: str  # `batch_recipe.base_hash` of the base where the server is
    versions: dict[str, str]  # `spreading.worker.versions` there
    threads: int  # of torch in each; 0 for its own choice
    sent_bytes: int  # most that a replica's machine keeps of what it was sent
    pinned: frozenset[str] = frozenset()  # LoRAs that stay in memory once they are, by their keys in `Sent.parts`


@dataclass(frozen=True)
class About:
    """What a base is, for a server that hasn't it in memory: what a LoRA file must fit."""

    file_keys: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sent:
    """A picture to be drawn. A file stands in the stack by its key in `parts`."""

    stack: str  # JSON
    parts: dict[str, tuple[Part, ...]]
    request_id: str
    key_name: str
    number: int
    left_s: float  # until its deadline: clocks of machines differ
    num_previews: int
    wants_steps: bool
    alone: bool  # whether it is drawn with no other: a replica died that drew it


@dataclass(frozen=True)
class Refusal:
    """Why a picture can't be had: the parts of an `ApiError`."""

    number: int
    status: int
    message: str
    kind: str
    param: str | None
    code: str | None
    retry_after_s: float | None

    @classmethod
    def of(cls, failed: Failed) -> Refusal:
        """As it travels."""
        error = failed.error
        return cls(failed.number, error.status, error.message, error.kind, error.param, error.code, error.retry_after_s)

    @property
    def failed(self) -> Failed:
        """As an order is told it."""
        error = ApiError(self.status, self.message, self.kind, self.param, self.code, self.retry_after_s)
        return Failed(self.number, error)


@dataclass(frozen=True)
class LogLine:
    """A line of a replica's log, in JSON."""

    text: str
    replica: str  # its machine and process


Told = Begun | Drawn | Stepped | Refusal | LogLine


def sent(picture: Wanted, going: Outgoing, alone: bool = False) -> Sent:
    """A picture as it travels now, to be drawn with no other if `alone`."""
    order = picture.order
    return Sent(
        stack=going.stack,
        parts=going.parts,
        request_id=order.request_id,
        key_name=order.key_name,
        number=picture.number,
        left_s=order.deadline - time.monotonic(),
        num_previews=order.num_previews,
        wants_steps=order.wants_steps,
        alone=alone,
    )


def keys_of(loras: list[Path]) -> frozenset[str]:
    """What some LoRA files are called in `Sent.parts`. Raises: AdapterError for a file that can't be read."""
    choices = tuple(AdapterChoice(file=str(path)) for path in loras)
    return frozenset(outgoing(StackConfig(adapters=choices), files.sha256).parts)


def told(news: News) -> Begun | Drawn | Stepped | Refusal:
    """News as they travel."""
    return Refusal.of(news) if isinstance(news, Failed) else news


def returned(told: Begun | Drawn | Stepped | Refusal, asked: StackConfig) -> News:
    """News as the order here is told them: with the LoRAs' files where they lie here."""
    if isinstance(told, Refusal):
        return told.failed
    if isinstance(told, Begun | Stepped):
        return told
    adapters = tuple(
        there.model_copy(update={"file": here.file, "region": here.region})
        for there, here in zip(told.stack.adapters, asked.adapters, strict=True)
    )
    return dataclasses.replace(told, stack=told.stack.model_copy(update={"adapters": adapters}))
