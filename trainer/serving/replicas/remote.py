"""The renderer whose replicas are elsewhere: hands pictures on from the line, and tells their orders what comes back.

Pictures leave the line in its fair order and as late as can be: each base's replicas are given a few batches ahead, and
what they can't hold waits here, where it may still be overtaken, cancelled or given up. A picture whose replica dies is
sent again, to another one; its order is told of steps that it knows once only, and has one answer in any case. One that
was being drawn as its replica died is drawn alone from then on, so that a picture which ends whatever draws it is found
out: it is given up after a few such deaths, and those that only waited beside it are not blamed.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

from trainer import lora_file
from trainer.errors import AdapterError, UserError
from trainer.render.spreading import messages as files_sent
from trainer.serving import giving_up
from trainer.serving.api_error import BROKEN, ApiError
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.metrics import Metrics
from trainer.serving.orders import Begun, Drawn, Stepped, Wanted
from trainer.serving.replicas import messages
from trainer.serving.replicas.carrier import Call, Carrier, Lost
from trainer.serving.replicas.messages import About, LogLine, Told
from trainer.serving.replicas.popularity import Popularity
from trainer.serving.settings import ServeSettings

BATCHES_AHEAD = 2  # that a replica is given, so that it never waits for the next one
MOST_DEATHS = 3  # of replicas that were drawing a picture, the last two of them it alone
MOST_SENDS = 6  # of one picture, whoever it was whose drawing ended its replicas
_POLL_S = 0.25
_AGAIN_S, _MOST_AGAIN_S = 0.5, 1.0  # before a picture is sent again, for each time that it was, and at most
_END_S = 30.0  # for what is under way to be given up
_SMOOTH = 0.05  # share of the newest picture in what one is expected to take


class Remote:
    """Hands on what waits in a line."""

    def __init__(
        self, carrier: Carrier, about: Mapping[str, About], line: Line, settings: ServeSettings, metrics: Metrics,
        log: Log,
    ) -> None:  # fmt: skip
        """`about` tells of each base what a LoRA must fit."""
        self.carrier, self.about, self.line, self.settings = carrier, about, line, settings
        self.metrics, self.log = metrics, log
        self.picture_s = 1.0
        self._kept_bytes: dict[str, int] = {}  # of LoRAs in replicas' memory, by replica, the last to tell last
        # By base, held while a picture is out that was being drawn as a replica died.
        self._suspects: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._under_way: Counter[str] = Counter()  # pictures by base; read and written under `line.changed`
        self._popularity = Popularity()
        self._counted: dict[str, int] = {}  # replicas by base, as the log has it
        self._is_ending = False
        self._loop = asyncio.new_event_loop()
        self._looping = threading.Thread(target=self._loop.run_forever, name="replicas' news", daemon=True)
        self._handing = threading.Thread(target=self._run, name="handing on", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._handing.is_alive() and self._looping.is_alive()

    @property
    def adapter_bytes(self) -> int:
        """Of the replicas that draw now, as each said with its last batch."""
        num_replicas = sum(map(self.carrier.num_replicas, self.settings.bases))
        return sum(list(self._kept_bytes.values())[-num_replicas:]) if num_replicas else 0

    def start(self) -> None:
        self._looping.start()
        self._handing.start()

    def end(self) -> None:
        """Take no more; what is under way is given up, and each order told so."""
        self._is_ending = True
        with self.line.changed:
            self.line.changed.notify_all()
        self._handing.join()
        with self.line.changed:
            self.line.changed.wait_for(lambda: not self._under_way.total(), _END_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._looping.join()
        self._loop.close()

    def check(self, path: Path) -> None:
        """Raises: AdapterError of the first base, if none could use it."""
        errors: list[AdapterError] = []
        for about in self.about.values():
            try:
                lora_file.read(path, about.file_keys, about.shapes)
                return
            except AdapterError as error:
                errors.append(error)
        raise errors[0]

    # Handing on.

    def _run(self) -> None:
        try:
            while picture := self._next():
                asyncio.run_coroutine_threadsafe(self._bring(picture), self._loop)
        except BaseException as error:
            giving_up.say_fault(error, [], self.metrics, self.log)
            raise
        finally:
            giving_up.close(self.line, self._is_ending)

    def _next(self) -> Wanted | None:
        """The first picture in line whose base has room, taken out of it; None at the end."""
        while not self._is_ending:
            giving_up.drop_unwanted(self.line, self.metrics, self._is_ending)
            room = self._room()
            with self.line.changed:
                in_order = self.line.in_order() if any(room.values()) else iter(())
                picture = next((picture for picture in in_order if room[picture.stack.base] > 0), None)
                if picture is not None:
                    self.line.take([picture])
                    self._under_way[picture.stack.base] += 1
                    return picture
                if not self._is_ending:
                    self.line.changed.wait(_POLL_S)
        return None

    def _room(self) -> dict[str, int]:
        """How many pictures more each base's replicas may be given."""
        most = BATCHES_AHEAD * self.settings.batch_pictures
        held = {base: most * self._num_replicas(base) for base in self.settings.bases}
        with self.line.changed:
            return {base: max(0, number - self._under_way[base]) for base, number in held.items()}

    def _num_replicas(self, base: str) -> int:
        """How many draw now; that there are others than before is logged."""
        number = self.carrier.num_replicas(base)
        if self._counted.get(base) != number:
            self._counted[base] = number
            self.metrics.replicas.labels(Path(base).name).set(number)
            self.log.write("replicas", base=Path(base).name, replicas=number)
        return number

    # A picture on its way. All of this runs in the loop.

    async def _bring(self, picture: Wanted) -> None:
        """Have a picture drawn and tell its order, whatever happens."""
        began, together = time.monotonic(), self._under_way[picture.stack.base]
        self.metrics.waited_s.observe(began - picture.came)
        try:
            with giving_up.outlasted([picture], self.metrics, self.log):
                try:
                    if await self._drawn(picture):
                        self.picture_s += _SMOOTH * ((time.monotonic() - began) / max(1, together) - self.picture_s)
                except UserError as error:
                    self.metrics.dropped.labels("lora unreadable").inc()
                    picture.fail(error, "lora_unreadable")
        finally:
            with self.line.changed:
                self._under_way[picture.stack.base] -= 1
                self.line.changed.notify_all()

    async def _drawn(self, picture: Wanted) -> bool:
        """Send a picture until it is answered; whether it was drawn. Raises: UserError for an unreadable file."""
        outgoing = await asyncio.to_thread(files_sent.outgoing, picture.stack, self.carrier.digest)
        key = self._popularity.rarest(_loras(picture, outgoing))
        teller, deaths = _Teller(picture), 0
        for number in range(MOST_SENDS):
            if number:
                await asyncio.sleep(min(_MOST_AGAIN_S, _AGAIN_S * number))
            # One at a time: the answer of a picture may be under way when the next one ends its replica.
            async with self._suspects[picture.stack.base] if deaths else nullcontext():
                if self._is_unwanted(picture):
                    break
                teller.is_begun = False
                sent = messages.sent(picture, outgoing, alone=deaths > 0)
                call = await self.carrier.call(picture.stack.base, key, sent, outgoing.places)
                try:
                    return await self._listened(call, teller)
                except Lost as lost:
                    deaths += teller.is_begun
                    request_id, error = picture.order.request_id, str(lost)[:300]
                    self.log.write("replica lost", request=request_id, sends=number + 1, deaths=deaths, error=error)
            if deaths == MOST_DEATHS or number + 1 == MOST_SENDS:
                self.metrics.dropped.labels("replica lost").inc()
                picture.fail(_lost(deaths))
                return False
        giving_up.give_up(picture, self.metrics, self._is_ending)
        return False

    def _is_unwanted(self, picture: Wanted) -> bool:
        return self._is_ending or picture.order.is_cancelled or picture.order.is_late

    async def _listened(self, call: Call, teller: _Teller) -> bool:
        """Tell an order what its picture's replica says, up to its answer; whether it was drawn. Raises: Lost."""
        picture, news = teller.picture, call.news()
        coming: asyncio.Future[Told] = asyncio.ensure_future(anext(news))
        try:
            while True:
                await asyncio.wait({coming}, timeout=_POLL_S)
                if not coming.done():
                    if self._is_unwanted(picture):
                        giving_up.give_up(picture, self.metrics, self._is_ending)
                        return False
                    continue
                try:
                    told = coming.result()
                except StopAsyncIteration:
                    raise Lost("it stopped without an answer") from None
                if isinstance(told, LogLine):
                    self._write(told)
                elif teller.tell(told):
                    self._count(picture, told)
                    return isinstance(told, Drawn)
                coming = asyncio.ensure_future(anext(news))
        finally:
            call.cancel()
            coming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Lost):
                await coming

    def _count(self, picture: Wanted, told: Told) -> None:
        if isinstance(told, Drawn):
            self.metrics.pictures.labels(picture.order.key_name).inc()
        else:
            self.metrics.dropped.labels("refused").inc()

    def _write(self, line: LogLine) -> None:
        """A line of a replica's log into the one here; batches are counted by it."""
        facts = json.loads(line.text)
        event = facts.pop("event")
        facts.pop("time")
        if event == "batch":
            self.metrics.batch_s.observe(facts["seconds"])
            self.metrics.batch_pictures.observe(facts["pictures"])
            self.metrics.batch_stacks.observe(facts["stacks"])
            self.metrics.joined(facts["join_waits_s"])
            self.metrics.apart.inc(facts["apart"])
            self._kept_bytes.pop(line.replica, None)
            self._kept_bytes[line.replica] = facts["adapter_bytes"]
        self.log.write(event, **facts, replica=line.replica)


class _Teller:
    """Tells an order of one picture: nothing twice, however often the picture is sent."""

    def __init__(self, picture: Wanted) -> None:
        self.picture = picture
        self.is_begun = False  # to be drawn, where it was sent last
        self._told = -1  # step

    def tell(self, told: Begun | Drawn | Stepped | messages.Refusal) -> bool:
        """Whether that was the picture's answer."""
        if isinstance(told, Stepped):
            if told.step <= self._told:
                return False
            self._told = told.step
        news = messages.returned(told, self.picture.stack)
        self.is_begun |= isinstance(news, Begun)
        if isinstance(news, Begun | Stepped):
            self.picture.order.tell(news)
            return False
        self.picture.answer(news)
        return True


def _loras(picture: Wanted, outgoing: files_sent.Outgoing) -> list[str]:
    """The sha256 of a picture's LoRA files, each once."""
    files = {adapter.file for adapter in picture.stack.adapters}
    return sorted(sha256 for sha256, path in outgoing.places.items() if str(path) in files)


def _lost(deaths: int) -> ApiError:
    """Why a picture isn't given whose replicas all died."""
    if deaths == MOST_DEATHS:
        why = f"what drew the picture died {deaths} times; a smaller picture or fewer LoRAs may fit its memory."
    else:
        why = f"where the picture was sent died {MOST_SENDS} times; ask again later."
    return ApiError(503, why, BROKEN, code="replica_lost")
