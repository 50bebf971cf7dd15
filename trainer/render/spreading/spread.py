"""Draws a batch's chunks on Ray's workers: hands them out, takes pictures in, and goes on when workers die.

A chunk goes whole to one worker, so its pictures are those of a batch without Ray. When a worker dies, the chunk that
it was drawing goes to another one; after `_MOST_DEATHS` of them its pictures are tried alone, after all others, and one
that still ends its workers fails, with the reason. Only the chunk that was being drawn is charged with a death, not one
that waited behind it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from trainer import bases, families, printing
from trainer.errors import RunError, UserError
from trainer.render.batch_chunks import Begin, Result, Stop
from trainer.render.batch_ledger import Work
from trainer.render.batch_recipe import base_hash
from trainer.render.spreading import cluster, messages, routing
from trainer.render.spreading.sent_files import SentFiles
from trainer.render.spreading.worker import versions

_MOST_DEATHS = 4  # of workers that drew a chunk, and then of those that drew one of its pictures alone
_MOST_FALSE_STARTS = 5  # workers in a row that died before they said a word
_MOST_FRUITLESS = 12  # workers that died before any has drawn a picture
_START_S = 300.0  # a worker that has said nothing for so long isn't waited for any more
_AHEAD = 2  # chunks that a worker has been given, so that it never waits for the next chunk
_WINDOW = 64  # chunks that are chosen from, and as many again for each 16 workers
_POLL_S = 0.2


@dataclass(frozen=True)
class Options:
    """How a batch is spread."""

    address: str = ""  # HOST:PORT; empty for a cluster of this machine's own
    num_workers: int = 0  # 0 for what is usual
    quantise: str = "none"
    sent_bytes: int = 20 << 30  # most that a worker's machine keeps of what it was sent
    folder: str = ""  # where it keeps that; each machine's usual place if empty


@dataclass(eq=False)
class Task:
    """Pictures that are drawn together, and how that went so far."""

    works: list[Work]
    request: messages.Request
    places: dict[str, Path]  # of its files here, by sha256
    wanted: routing.Wanted
    deaths: int = 0
    is_begun: bool = False
    refusals: dict[Member, str] = field(default_factory=dict)


@dataclass(eq=False)
class Member:
    """A worker."""

    handle: Any
    first_call: Any  # reference to its hello; None once it has answered
    started_s: float
    host: str = "?"
    given: deque[tuple[Any, Task]] = field(default_factory=deque)  # the first is being drawn
    holding: routing.Holding = field(default_factory=routing.Holding)


class Spread:
    """Draws chunks on a Ray cluster, which it joins or starts once there is something to draw."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._hashes: dict[routing.Base, str] = {}
        self._files = SentFiles()
        self._waiting: list[Task] = []
        self._suspects: list[Task] = []  # single pictures of chunks that ended workers; they come last
        self._members: list[Member] = []
        self._num_drawn = self._num_dead = self._false_starts = 0

    def draw(
        self, chunks: Iterator[list[Work]], begin: Begin, stop: Stop
    ) -> Generator[tuple[Work, Result], None, None]:
        """Every picture of every chunk once. Raises: RunError if there is no cluster or no worker starts."""
        first = next(chunks, None)
        if first is None:
            return
        with cluster.joined(self.options.address, self.options.num_workers) as self._layout:
            self._members = [self._started() for _ in range(self._layout.num_workers)]
            window, is_ended = _WINDOW * (1 + self._layout.num_workers // 16), False
            yield from self._packed(first)
            while True:
                # Hand out. Asked to stop, only what is being drawn is waited for.
                if is_stopping := stop():
                    self._drop_waiting()
                elif not is_ended:
                    more = list(islice(chunks, max(0, window - len(self._waiting))))
                    is_ended = len(self._waiting) + len(more) < window
                    for chunk in more:
                        yield from self._packed(chunk)
                if is_ended and not self._waiting and not is_stopping:
                    self._waiting, self._suspects = self._suspects, []
                for member in self._members:
                    yield from self._hand_out(member, begin)
                yield from self._impossible()

                # Take in.
                is_idle = not self._waiting and not any(member.given for member in self._members)
                if is_idle and (is_stopping or is_ended and not self._suspects):
                    return
                yield from self._take_in()

    # Handing out.

    def _started(self) -> Member:
        handle = self._layout.start(self.options.quantise, self.options.sent_bytes, self.options.folder)
        return Member(handle, handle.hello.remote(), time.monotonic())

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._suspects.clear()
        for member in self._members:
            while len(member.given) > 1:
                ray.cancel(member.given.pop()[0])

    def _packed(self, works: list[Work]) -> Iterator[tuple[Work, Result]]:
        """Put a chunk among those that wait; the pictures of it that can't be sent come back at once."""
        parts: dict[str, tuple[messages.Part, ...]] = {}
        places: dict[str, Path] = {}
        stacks, going = [], []
        for work in works:
            try:
                base_sha256 = self._hash((work.stack.base, work.stack.family))
                leaving = messages.outgoing(work.stack, self._files.digest)
            except UserError as error:
                yield work, error
                continue
            parts |= leaving.parts
            places |= leaving.places
            stacks.append(leaving.stack)
            going.append(work)
        if going:
            wanted = routing.Wanted.of(work.stack for work in going)
            self._waiting.append(Task(going, messages.Request(tuple(stacks), parts, base_sha256), places, wanted))

    def _hash(self, base: routing.Base) -> str:
        """The base's hash. Raises: ModelError if it has gone."""
        if base not in self._hashes:
            folder = bases.resolve(base[0], families.registry()[base[1]])
            self._hashes[base] = base_hash(folder, self.options.quantise)
        return self._hashes[base]

    def _hand_out(self, member: Member, begin: Begin) -> Iterator[tuple[Work, Result]]:
        """Give a worker chunks until it has enough; the pictures of one whose files have gone come back."""
        while member.first_call is None and len(member.given) < _AHEAD:
            wanted = [None if member in task.refusals else task.wanted for task in self._waiting]
            place = routing.choose(member.holding, wanted, [other.holding for other in self._members])
            if place is None:
                return
            task = self._waiting.pop(place)
            try:
                contents = {sha256: self._files.content(path, sha256) for sha256, path in task.places.items()}
            except RunError as error:
                yield from ((work, error) for work in task.works)
                continue
            if not task.is_begun:
                begin(task.works)
                task.is_begun = True
            member.holding.take(task.wanted)
            member.given.append((member.handle.draw_sent.remote(task.request, contents), task))

    def _impossible(self) -> Iterator[tuple[Work, Result]]:
        """The pictures that every worker has refused, with what each says."""
        latest = time.monotonic() - _START_S
        if any(member.first_call is not None and member.started_s > latest for member in self._members):
            return
        there = [member for member in self._members if member.first_call is None]
        if not there:
            raise RunError(
                f"no worker has started within {_START_S:.0f} s: each needs {self._layout.num_cpus} processors and "
                f"{self._layout.num_gpus} GPUs that are free on one machine; ask for fewer with --workers."
            )
        for task in list(self._waiting):
            if all(self._refuses(member, task) for member in there):
                self._waiting.remove(task)
                reasons = dict.fromkeys(f"{member.host}: {reason}" for member, reason in task.refusals.items())
                for work in task.works:
                    yield work, RunError(f"no worker can draw it. {printing.some(list(reasons))}")

    def _refuses(self, member: Member, task: Task) -> bool:
        """Whether a worker has refused a task, or would for its base."""
        if member not in task.refusals and task.wanted.base in member.holding.lacking:
            task.refusals[member] = f"base {task.wanted.base[0]!r} isn't there, or is another one."
        return member in task.refusals

    # Taking in.

    def _take_in(self) -> Iterator[tuple[Work, Result]]:
        """What has come within a moment."""
        calls = [member.first_call for member in self._members if member.first_call is not None]
        calls += [call for member in self._members for call, _ in member.given]
        if not calls:
            return
        ready = set(ray.wait(calls, num_returns=len(calls), timeout=0, fetch_local=False)[0])
        ready = ready or set(ray.wait(calls, num_returns=1, timeout=_POLL_S, fetch_local=False)[0])
        for member in list(self._members):
            try:
                if member.first_call in ready:
                    self._greet(member)
                while member.given and member.given[0][0] in ready:
                    answer = ray.get(member.given[0][0])
                    _, task = member.given.popleft()
                    yield from self._results(member, task, answer)
            except RayTaskError:
                raise  # a bug, with the worker's traceback
            except RayError as error:
                yield from self._bury(member, error)

    def _greet(self, member: Member) -> None:
        hello: messages.Hello = ray.get(member.first_call)
        own = versions()
        if other := {name: number for name, number in hello.versions.items() if own.get(name) != number}:
            wanted = ", ".join(f"{name} {own.get(name)}" for name in other)
            raise RunError(
                f"the worker on {hello.host} has {', '.join(map(' '.join, other.items()))}; it must have {wanted}, as "
                f"here, or its pictures would be others."
            )
        member.host, member.first_call, self._false_starts = hello.host, None, 0

    def _results(self, member: Member, task: Task, answer: messages.Answer) -> Iterator[tuple[Work, Result]]:
        if not answer.lacks:
            self._num_drawn += len(task.works)
            for work, result in zip(task.works, answer.results, strict=True):
                yield work, messages.returned(result, work.stack)
            return
        task.refusals[member] = answer.why
        if answer.lacks == "base":
            member.holding.lacking.add(task.wanted.base)
        self._waiting.insert(0, task)

    def _bury(self, member: Member, error: RayError) -> Iterator[tuple[Work, Result]]:
        """Put another worker in a dead worker's place, and its chunks among those that wait.

        Raises: RunError if workers don't even start.
        """
        with suppress(RayError):
            ray.kill(member.handle)  # where it only can't be reached
        if member.first_call is not None:
            self._false_starts += 1
            if self._false_starts >= _MOST_FALSE_STARTS:
                raise RunError(f"Ray's workers die as they start, {self._false_starts} in a row: {_reason(error)}")
        self._num_dead += 1
        if self._num_dead >= _MOST_FRUITLESS and not self._num_drawn:
            raise RunError(f"{self._num_dead} workers died and none has drawn a picture: {_reason(error)}")
        if member.given:
            member.given[0][1].deaths += 1
        for _, task in reversed(member.given):
            if task.deaths < _MOST_DEATHS:
                self._waiting.insert(0, task)
            else:
                yield from self._suspected(task, member, error)
        self._members[self._members.index(member)] = self._started()

    def _suspected(self, task: Task, member: Member, error: RayError) -> Iterator[tuple[Work, Result]]:
        """A chunk that ended several workers: each picture alone, or the picture that did it as failed."""
        if len(task.works) > 1:
            for work, stack in zip(task.works, task.request.stacks, strict=True):
                request = messages.Request((stack,), task.request.parts, task.request.base_sha256)
                alone = Task([work], request, task.places, routing.Wanted.of([work.stack]), is_begun=True)
                self._suspects.append(alone)
            return
        yield (
            task.works[0],
            RunError(
                f"{task.deaths} workers died of this picture, drawn alone; the last was on {member.host}. Memory is "
                f"the usual reason, and a smaller picture or fewer LoRAs may fit. {_reason(error)}"
            ),
        )


def _reason(error: RayError) -> str:
    """What Ray says of a death, on one line and no longer than people read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300]
