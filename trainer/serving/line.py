"""The line in which pictures wait: fair over keys, by what their pictures cost.

Each key has a clock that goes on by a picture's pixels times its steps over the key's weight (stride scheduling,
Waldspurger 1995); the key whose clock is furthest behind is next. A key that had nothing to ask for gains nothing by
that: its clock starts at the others'. Pictures are taken one by one, so that ten in a request hold nobody up.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trainer.serving import api_error
from trainer.serving.orders import Wanted


@dataclass
class _Lane:
    """One key's pictures in the order that they came in."""

    weight: float
    clock: float
    pictures: deque[Wanted] = field(default_factory=deque)


class Line:
    """For any thread; `changed` is notified when there is something new."""

    def __init__(self, most: int, shares: bool) -> None:
        """`shares`: no key may fill more than half of it."""
        self.most, self.shares = most, shares
        self.changed = threading.Condition()
        self._lanes: dict[str, _Lane] = {}
        self._is_closed = False
        self._now = 0.0  # the clock of who was served last

    def __len__(self) -> int:
        with self.changed:
            return sum(len(lane.pictures) for lane in self._lanes.values())

    def put(self, pictures: list[Wanted], weight: float, wait_s: Callable[[int], float]) -> None:
        """Let a request's pictures wait; all of them or none. `wait_s` says how long so many take.

        Raises: ApiError 429, 503 once it is closed.
        """
        name = pictures[0].order.key_name
        with self.changed:
            if self._is_closed:
                raise api_error.cannot_draw()

            # Room in the whole line, and this key's share of it.
            waiting = sum(len(lane.pictures) for lane in self._lanes.values())
            lane = self._lanes.setdefault(name, _Lane(weight, self._now))
            most_of_key = self.most // 2 if self.shares else self.most
            if waiting + len(pictures) > self.most or len(lane.pictures) + len(pictures) > most_of_key:
                whose = "the server's" if waiting + len(pictures) > self.most else "this key's"
                raise api_error.too_many(
                    f"{whose} line is full: {waiting} pictures wait; ask again later.", "queue_full", wait_s(waiting)
                )

            # A key that asked for nothing meanwhile gains nothing by it.
            if not lane.pictures:
                lane.clock = max(lane.clock, self._now)
            lane.weight = weight
            lane.pictures.extend(pictures)
            self.changed.notify_all()

    def in_order(self) -> Iterator[Wanted]:
        """The pictures as they would be taken now. To be read under `changed`."""
        # The lanes merged by their clocks, each of which goes on with every picture that is read.
        heap = [
            (lane.clock + lane.pictures[0].cost / lane.weight, name, 0)
            for name, lane in self._lanes.items()
            if lane.pictures
        ]
        heapq.heapify(heap)
        while heap:
            clock, name, number = heapq.heappop(heap)
            lane = self._lanes[name]
            yield lane.pictures[number]
            if number + 1 < len(lane.pictures):
                heapq.heappush(heap, (clock + lane.pictures[number + 1].cost / lane.weight, name, number + 1))

    def take(self, chosen: list[Wanted]) -> None:
        """Take these out of the line, and have their keys' clocks go on."""
        with self.changed:
            for picture in chosen:
                lane = self._lanes[picture.order.key_name]
                lane.pictures.remove(picture)
                lane.clock += picture.cost / lane.weight

            # The present is the clock that is furthest behind of those that wait.
            left = [lane.clock for lane in self._lanes.values() if lane.pictures]
            served = [self._lanes[picture.order.key_name].clock for picture in chosen]
            self._now = max(self._now, min(left or served or [self._now]))
            # Keys that want nothing are forgotten, unless they are ahead of the others.
            self._lanes = {name: lane for name, lane in self._lanes.items() if lane.pictures or lane.clock > self._now}

    def close(self) -> list[Wanted]:
        """Let nothing wait from now on; gives back what waited."""
        with self.changed:
            self._is_closed = True
            # A condition's lock may be taken again by the thread that holds it, as `drop` does.
            return self.drop(lambda picture: True)

    def drop(self, unwanted: Callable[[Wanted], bool]) -> list[Wanted]:
        """Take out and give back what nobody wants any more; it costs nobody anything."""
        with self.changed:
            dropped: list[Wanted] = []
            for lane in self._lanes.values():
                gone = [picture for picture in lane.pictures if unwanted(picture)]
                if gone:
                    lane.pictures = deque(picture for picture in lane.pictures if picture not in gone)
                    dropped += gone
            return dropped
