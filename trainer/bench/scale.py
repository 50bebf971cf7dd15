"""A server of mixed batches as a simulation: what measured step costs come to under many tenants' load.

Discrete events in plain Python, the same for the same seed. The load is that of `velatura bench serve`: each tenant has
one request open and asks again once it is answered; a stack has one to three LoRAs of Zipf popularity at random
weights. A server draws up to so many pictures together whatever their stacks, and who comes meanwhile waits for the
next batch; what it would be if they joined at the next step can be asked too. Several servers stand for a cluster: a
router sends each request to one of them. What is left out: the network, a server's death, and pictures of different
sizes, which share no batch.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import zlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

ROUTINGS = ("random", "shortest", "affinity")
JOINING = ("batch", "step")
_MOST_LORAS = 3
_MOST_OVER_MEAN, _OTHERS = 1.25, 4  # of the requests that a server has open, and how many others are asked


@dataclass(frozen=True)
class Costs:
    """Seconds on one server, as `scale_costs.measure` finds them."""

    batch_s: float  # for each batch, beside its steps
    picture_s: float  # for each picture of it: its prompt, its decoding
    step_s: float  # for each step of a batch
    step_picture_s: float  # for each picture in each step
    live_batch_s: float  # to lay a LoRA beside the base, for each different one of a batch
    live_s: float  # for each step of a batch whose LoRAs run beside the base
    live_own_s: float  # for each LoRA of each picture in each step: a picture computes with its own alone
    fold_stack_s: float  # to put the base back as it was before a stack is folded into it, for a picture alone
    fold_s: float  # to fold a LoRA into the base
    load_s: float  # to read a LoRA
    encode_s: float  # to write a picture, beside the drawing of the next batch
    answer_s: float  # the server's own work for a picture: Python, like most of drawing it, so one waits for the other

    def batch(self, stacks: Sequence[int], different: int, steps: int) -> float:
        """Seconds to draw a batch: how many LoRAs each picture's stack has, and how many different ones there are."""
        once = self.batch_s + len(stacks) * (self.picture_s + self.answer_s)
        step = self.step_s + len(stacks) * self.step_picture_s
        own = sum(stacks)
        if len(stacks) == 1:  # all of it is constant
            return once + steps * step + (self.fold_stack_s + own * self.fold_s if own else 0.0)
        if own:
            once, step = once + different * self.live_batch_s, step + self.live_s + own * self.live_own_s
        return once + steps * step


@dataclass(frozen=True)
class Load:
    """What is asked, and of how many servers."""

    tenants: int = 16
    loras: int = 200  # 0: pictures without any
    requests: int = 20  # of each tenant
    steps: int = 25
    servers: int = 1
    routing: str = "affinity"
    batch_pictures: int = 16
    window_s: float = 0.01  # that a batch waits for others
    joining: str = "batch"  # who comes while a batch is drawn joins the next `batch`, or this one at its next `step`
    memory_loras: int = 200  # that a server keeps in memory
    in_memory: bool = False  # whether the most popular of these are there from the start
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of it; latencies in seconds."""

    pictures: int
    pictures_a_minute: float
    p50_s: float
    p95_s: float
    mean_batch: float
    mean_loras: float  # of a batch
    reads: float  # LoRAs read from disk for each picture
    busy: float  # share of the time that servers drew
    work_s: float  # that a picture took of its server: drawing, reading, writing


@dataclass(eq=False)
class _Asked:
    tenant: int
    came_s: float
    loras: tuple[int, ...]
    ready_s: float = 0.0  # when its LoRAs are in memory
    steps_left: int = 0  # of a picture that is drawn, where pictures join at steps


@dataclass(eq=False)
class _Server:
    memory: OrderedDict[int, None] = field(default_factory=OrderedDict)
    line: deque[_Asked] = field(default_factory=deque)
    is_drawing: bool = False
    reads_until_s: float = 0.0
    encodes_until_s: float = 0.0
    busy_s: float = 0.0


def simulate(load: Load, costs: Costs) -> Outcome:
    """The load on servers of these costs, from the first request to the last answer."""
    return (_StepJoining if load.joining == "step" else _Simulation)(load, costs).run()


class _Simulation:
    def __init__(self, load: Load, costs: Costs) -> None:
        self.load, self.costs = load, costs
        self.chances = [random.Random(f"{load.seed} {tenant}") for tenant in range(load.tenants)]
        self.router = random.Random(load.seed)
        self.popularity = list(itertools.accumulate(1.0 / (rank + 1) for rank in range(load.loras)))  # summed up
        there = range(min(load.loras, load.memory_loras) if load.in_memory else 0)
        self.servers = [_Server(OrderedDict.fromkeys(reversed(there))) for _ in range(load.servers)]
        self.events: list[tuple[float, int, str, int]] = []  # time, turn, what, and whose number
        self.turn = self.num_reads = 0
        self.left = [load.requests] * load.tenants
        self.drawn: dict[int, list[_Asked]] = {}  # what each server draws now
        self.latencies: list[float] = []
        self.batches: list[tuple[int, int]] = []  # pictures and LoRAs

    def run(self) -> Outcome:
        for tenant in range(self.load.tenants):
            self._after(0.0, "ask", tenant)
        now = 0.0
        while self.events:
            now, _, what, number = heapq.heappop(self.events)
            if what == "ask":
                self._ask(now, number)
            elif what == "look":
                self._look(now, number)
            else:
                self._done(now, number)
        self.latencies.sort()
        pictures, busy_s = len(self.latencies), sum(server.busy_s for server in self.servers)
        return Outcome(
            pictures,
            60 * pictures / now,
            statistics.median(self.latencies),
            self.latencies[min(pictures - 1, int(0.95 * pictures))],
            statistics.fmean(size for size, _ in self.batches for _ in range(size)),
            statistics.fmean(loras for _, loras in self.batches),
            self.num_reads / pictures,
            busy_s / (now * self.load.servers),
            (busy_s + self.num_reads * self.costs.load_s) / pictures + self.costs.encode_s,
        )

    def _after(self, time_s: float, what: str, number: int) -> None:
        self.turn += 1
        heapq.heappush(self.events, (time_s, self.turn, what, number))

    # A request.

    def _ask(self, now: float, tenant: int) -> None:
        """A tenant's next request comes to a server, which begins to read what it lacks."""
        if not self.left[tenant]:
            return
        self.left[tenant] -= 1
        asked = _Asked(tenant, now, self._stack(self.chances[tenant]))
        place = self._route(asked.loras)
        server = self.servers[place]
        asked.ready_s = now
        for lora in asked.loras:
            if lora not in server.memory:
                server.reads_until_s = max(now, server.reads_until_s) + self.costs.load_s
                self.num_reads += 1
            server.memory[lora] = None
            server.memory.move_to_end(lora)
            asked.ready_s = max(asked.ready_s, server.reads_until_s)
        while len(server.memory) > max(self.load.memory_loras, _MOST_LORAS):
            server.memory.popitem(last=False)
        server.line.append(asked)
        self._after(asked.ready_s, "look", place)

    def _stack(self, chance: random.Random) -> tuple[int, ...]:
        """One to three different LoRAs, by their popularity."""
        if not self.popularity:
            return ()
        wanted = min(self.load.loras, chance.randint(1, _MOST_LORAS))
        chosen: dict[int, None] = {}
        while len(chosen) < wanted:
            chosen[chance.choices(range(self.load.loras), cum_weights=self.popularity)[0]] = None
        return tuple(chosen)

    def _route(self, loras: tuple[int, ...]) -> int:
        """The server that a request goes to.

        affinity: the one of two to which its rarest LoRA always belongs that has less to do; where even that one has
        much more than the mean (consistent hashing with bounded loads, arXiv 1608.01350), the best of some others.
        """
        everyone = range(self.load.servers)
        if self.load.routing == "random" or not loras:
            return self.router.choice(everyone)
        if self.load.routing == "shortest":
            return min(everyone, key=self._open)
        digest = zlib.crc32(str(max(loras)).encode())
        best = min((digest % self.load.servers, (digest >> 16) % self.load.servers), key=self._open)
        if self._open(best) <= _MOST_OVER_MEAN * self.load.tenants / self.load.servers:
            return best
        return min((best, *self.router.choices(everyone, k=_OTHERS)), key=self._open)

    def _open(self, place: int) -> int:
        """Requests that a server was given and hasn't drawn."""
        return len(self.servers[place].line) + len(self.drawn.get(place, ()))

    # A batch.

    def _look(self, now: float, place: int) -> None:
        """Draw what waits, unless it still waits for others."""
        server = self.servers[place]
        ready = [asked for asked in server.line if asked.ready_s <= now][: self.load.batch_pictures]
        if server.is_drawing or not ready:
            return
        until_s = min(asked.came_s for asked in ready) + self.load.window_s
        if len(ready) < self.load.batch_pictures and until_s > now + 1e-9:
            self._after(until_s, "look", place)
            return
        ready, loras, seconds = self._drawn_first(ready)
        for asked in ready:
            server.line.remove(asked)
        server.is_drawing, self.drawn[place] = True, ready
        server.busy_s += seconds
        self.batches.append((len(ready), loras))
        self._after(now + seconds, "done", place)

    def _drawn_first(self, ready: list[_Asked]) -> tuple[list[_Asked], int, float]:
        """Those of a batch that are drawn now, with their different LoRAs and seconds; one, where apart is faster."""
        different = len({lora for asked in ready for lora in asked.loras})
        together_s = self._seconds(ready, different)
        if together_s <= sum(self._seconds([asked], len(asked.loras)) for asked in ready):
            return ready, different, together_s
        return ready[:1], len(ready[0].loras), self._seconds(ready[:1], len(ready[0].loras))

    def _seconds(self, pictures: list[_Asked], different: int) -> float:
        return self.costs.batch([len(asked.loras) for asked in pictures], different, self.load.steps)

    def _done(self, now: float, place: int) -> None:
        """Hand a batch's pictures out one by one, and draw the next one meanwhile."""
        server = self.servers[place]
        server.is_drawing = False
        self._hand_out(now, server, self.drawn.pop(place))
        self._after(now, "look", place)

    def _hand_out(self, now: float, server: _Server, pictures: list[_Asked]) -> None:
        """Write pictures one by one and answer; each tenant asks again then."""
        for asked in pictures:
            server.encodes_until_s = max(now, server.encodes_until_s) + self.costs.encode_s
            self.latencies.append(server.encodes_until_s - asked.came_s)
            self._after(server.encodes_until_s, "ask", asked.tenant)


class _StepJoining(_Simulation):
    """Servers that take who waits at each step, and give out who is done: no pipeline of diffusers can."""

    def _look(self, now: float, place: int) -> None:
        """Begin to draw, if nothing is drawn; else the next step will look."""
        if not self.servers[place].is_drawing:
            self._step(now, place)

    def _done(self, now: float, place: int) -> None:
        """A step is over."""
        drawn, server = self.drawn[place], self.servers[place]
        done = [asked for asked in drawn if asked.steps_left == 0]
        self.drawn[place] = [asked for asked in drawn if asked.steps_left]
        self._hand_out(now, server, done)
        self._step(now, place)

    def _step(self, now: float, place: int) -> None:
        """Take who waits, and draw a step of all."""
        server, drawn = self.servers[place], self.drawn.setdefault(place, [])
        room = self.load.batch_pictures - len(drawn)
        fresh = [asked for asked in server.line if asked.ready_s <= now][:room]
        server.is_drawing = bool(fresh or drawn)
        if not server.is_drawing:
            return
        for asked in fresh:
            server.line.remove(asked)
            asked.steps_left = self.load.steps
        before = {lora for asked in drawn for lora in asked.loras}
        drawn += fresh
        together = {lora for asked in drawn for lora in asked.loras}
        sizes = [len(asked.loras) for asked in drawn]
        seconds = self.costs.batch(sizes, len(together), 1) - self.costs.batch(sizes, len(together), 0)
        if fresh:  # their prompts, their decoding later, and what is laid beside the base anew
            seconds += self.costs.batch_s + len(fresh) * (self.costs.picture_s + self.costs.answer_s)
            seconds += len(together - before) * self.costs.live_batch_s
        for asked in drawn:
            asked.steps_left -= 1
        server.busy_s += seconds
        self.batches.append((len(drawn), len(together)))
        self._after(now + seconds, "done", place)
