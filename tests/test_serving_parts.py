"""The parts of a server each for itself: the fair line, each picture's own ranks, kept results, what is read ahead."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from serving_parts import random_lora, wait_until
from torch import nn

from trainer.config import StackConfig
from trainer.errors import AdapterError
from trainer.render.engine import Engine
from trainer.render.own_ranks import OwnRanks
from trainer.serving.api_error import ApiError
from trainer.serving.batch_size import Room
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.lora_views import LoraViews
from trainer.serving.metrics import Metrics
from trainer.serving.orders import Order, Wanted
from trainer.serving.reading import Reading
from trainer.serving.results import Results
from trainer.serving.watching import preview_steps


def wanted(key: str, number: int = 0, steps: int = 10, **values: Any) -> Wanted:
    order = Order("x", key, lambda news: None, time.monotonic() + 60, **values)
    return Wanted(order, number, StackConfig(steps=steps), reads=())


def taken(line: Line, count: int) -> list[str]:
    """Whose pictures are taken one by one."""
    keys = []
    for _ in range(count):
        with line.changed:
            first = next(line.in_order())
        line.take([first])
        keys.append(first.order.key_name)
    return keys


# The line.


def test_keys_take_turns_by_cost_and_not_by_requests() -> None:
    line = Line(1000, shares=False)
    line.put([wanted("large", number, steps=40) for number in range(20)], 1.0, float)
    line.put([wanted("small", number, steps=10) for number in range(40)], 1.0, float)
    counted = Counter(taken(line, 25))
    assert 4 <= counted["large"] <= 6


def test_a_heavier_key_has_more_of_it() -> None:
    line = Line(1000, shares=False)
    for name, weight in (("one", 1.0), ("three", 3.0)):
        line.put([wanted(name, number) for number in range(40)], weight, float)
    counted = Counter(taken(line, 40))
    assert counted["three"] == 30


def test_who_was_away_gains_nothing_and_loses_nothing() -> None:
    line = Line(1000, shares=False)
    line.put([wanted("busy", number) for number in range(100)], 1.0, float)
    taken(line, 50)
    line.put([wanted("new", number) for number in range(50)], 1.0, float)
    counted = Counter(taken(line, 20))
    assert counted["new"] in (9, 10, 11)


def test_one_key_has_its_pictures_in_their_order() -> None:
    line = Line(1000, shares=False)
    pictures = [wanted("a", number) for number in range(5)]
    line.put(pictures, 1.0, float)
    with line.changed:
        assert list(line.in_order()) == pictures


def test_a_full_line_takes_all_of_a_request_or_none() -> None:
    line = Line(4, shares=True)
    with pytest.raises(ApiError) as refused:
        line.put([wanted("a", number) for number in range(3)], 1.0, float)
    assert "this key's" in refused.value.message and refused.value.status == 429
    assert len(line) == 0
    line.put([wanted("a"), wanted("a", 1)], 1.0, float)
    line.put([wanted("b"), wanted("b", 1)], 1.0, float)
    with pytest.raises(ApiError, match="the server's"):
        line.put([wanted("c")], 1.0, lambda waiting: 7.0 * waiting)


def test_what_nobody_wants_is_dropped() -> None:
    line = Line(10, shares=False)
    pictures = [wanted("a", number) for number in range(3)]
    line.put(pictures, 1.0, float)
    pictures[1].order.cancel()
    assert line.drop(lambda picture: picture.order.is_cancelled) == [pictures[1]]
    assert len(line) == 2


def test_previews_are_spread_over_the_steps() -> None:
    assert preview_steps(wanted("a", steps=8, num_previews=3)) == [2, 4, 6]
    assert preview_steps(wanted("a", steps=1, num_previews=3)) == []
    assert preview_steps(wanted("a", steps=20)) == []


# Each picture's own ranks.


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_own_ranks_are_the_sum_over_all_of_them(kernel: int) -> None:
    rng = torch.Generator().manual_seed(kernel)
    module: nn.Module = nn.Conv2d(6, 5, kernel, stride=1, padding=kernel // 2) if kernel else nn.Linear(6, 5)
    shape = (6, kernel, kernel) if kernel else (6,)
    down = torch.randn(7, *shape, generator=rng)
    up = torch.randn(5, 7, *[1] * (2 if kernel else 0), generator=rng)
    scales = torch.randn(4, 7, generator=rng) * (torch.rand(4, 7, generator=rng) > 0.5)
    scales[2] = 0
    x = torch.randn(4, 6, 8, 8, generator=rng) if kernel else torch.randn(4, 9, 6, generator=rng)
    with torch.no_grad():
        output = module(x)
        gathered = OwnRanks(down, up).gathered(scales)
        if kernel:
            inner = nn.functional.conv2d(x, down, padding=kernel // 2) * scales[:, :, None, None]
            expected = output + nn.functional.conv2d(inner, up)
        else:
            expected = output + nn.functional.linear(nn.functional.linear(x, down) * scales[:, None], up)
        for part in gathered:
            output = part.add(module, x, output)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert OwnRanks(down, up).gathered(torch.zeros(4, 7)) == []


def test_a_picture_never_meets_anothers_numbers() -> None:
    down, up = torch.ones(2, 3), torch.ones(4, 2)
    down[1] = float("inf")
    x, module = torch.ones(2, 1, 3), nn.Linear(3, 4)
    with torch.no_grad():
        (gathered,) = OwnRanks(down, up).gathered(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        result = gathered.add(module, x, module(x))
    assert bool(result[0].isfinite().all()) and not bool(result[1].isfinite().any())


# Files and results.


def test_the_oldest_results_go_first_and_all_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(10, 60)
    tokens = [results.put(b"12345", "ann") for _ in range(3)]
    assert [results.get(token) for token in tokens] == [None, b"12345", b"12345"]
    assert len(set(tokens)) == 3 and min(map(len, tokens)) >= 43
    late = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: late)
    assert results.get(tokens[2]) is None and results.num_bytes == 0


def test_one_keys_results_do_not_push_out_anothers() -> None:
    results = Results(10, 60)
    ben = results.put(b"123", "ben")
    ann = [results.put(b"1234", "ann") for _ in range(4)]
    assert [results.get(token) for token in ann] == [None, None, None, b"1234"] and results.get(ben) == b"123"
    large = results.put(b"1" * 12, "cyd")
    assert results.get(large) is not None, "what nobody could fetch yet stays, however large"
    assert results.num_bytes == 12 and results.get(ben) is None


class _Memory:
    """A GPU of 1000 bytes, of which each picture of a batch takes some."""

    def __init__(self, bytes_each: int) -> None:
        self.bytes_each, self.num_pictures = bytes_each, 0

    def free_bytes(self) -> int:
        return 1000

    @contextmanager
    def taken(self) -> Iterator[list[int]]:
        found: list[int] = []
        yield found
        found.append(self.bytes_each * self.num_pictures)


def drawn_at_once(room: Room, memory: _Memory | None, stack: StackConfig, times: int) -> list[int]:
    """How many pictures each of so many full batches has."""
    counts = []
    for _ in range(times):
        counts.append(room.most(stack))
        if memory:
            memory.num_pictures = counts[-1]
        with room.drawing(stack, counts[-1]):
            pass
    return counts


def test_batches_grow_to_what_a_gpus_memory_holds() -> None:
    large, small = StackConfig(width_px=1024, height_px=1024), StackConfig(width_px=512, height_px=512)
    memory = _Memory(60)
    room = Room(memory)
    assert drawn_at_once(room, memory, large, 6) == [1, 2, 4, 8, 11, 11], "0.7 of the memory, 60 bytes each"
    assert room.most(small) == 4, "another size is another matter"
    room.ran_out(large, 11)
    assert drawn_at_once(room, memory, large, 2) == [5, 5]
    heavy = _Memory(900)
    assert drawn_at_once(Room(heavy), heavy, large, 2) == [1, 1]
    assert drawn_at_once(Room(None), None, large, 3) == [1, 1, 1], "without a GPU nothing is measured"


def test_a_slow_file_is_read_beside_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    path, line = random_lora(engine, tmp_path / "slow.safetensors", 1), Line(10, shares=False)
    may_go_on, real = threading.Event(), engine.shelf.read

    def slow(file: Path) -> Any:
        may_go_on.wait(20)
        return real(file)

    monkeypatch.setattr(engine.shelf, "read", slow)
    reading = Reading(engine.shelf, line, Metrics(), Log(stream=io.StringIO()))
    reading.start()
    picture = wanted("a")
    picture.reads = None
    picture.stack = StackConfig.model_validate({"adapters": [{"file": str(path)}]})
    line.put([picture], 1.0, float)
    wait_until(lambda: picture.is_being_read)
    assert engine.render(StackConfig(steps=1)).image.size == (128, 128)
    assert picture.reads is None
    may_go_on.set()
    wait_until(lambda: picture.reads is not None)
    reading.end()
    assert not engine.shelf.has(path)


def test_a_pinned_adapter_stays_whatever_else_is_read(tmp_path: Path) -> None:
    engine = Engine(kept_bytes=1)
    files = [random_lora(engine, tmp_path / f"{number}.safetensors", number) for number in range(3)]
    engine.shelf.pin(files[0])
    for file in files:
        engine.shelf.get(file)
    assert [engine.shelf.has(file) for file in files] == [True, False, True]


def test_a_view_finds_own_before_shared_and_nobody_elses(tmp_path: Path) -> None:
    engine = Engine()
    random_lora(engine, tmp_path / "loras" / "cat.safetensors", 1)
    views = LoraViews([tmp_path], tmp_path / "serve" / "uploads")
    random_lora(engine, views.folder("ann") / "cat.safetensors", 2)
    random_lora(engine, views.folder("ann") / "own.safetensors", 3)
    views.look(["ann", "ben"])
    ann, ben = views.view("ann"), views.view("ben")
    assert ann.named("cat", "x").sha256 != ben.named("cat", "x").sha256
    assert ben.all == ben.shared and len(ben.all) == 1
    with pytest.raises(AdapterError, match="isn't here"):
        ben.named("own", "x")
    with pytest.raises(AdapterError):
        ben.hashed(ann.named("own", "x").sha256, "x")
    assert set(ann.for_tags(["cat"])) == set(ann.own)


def test_a_shared_lora_keeps_its_name_for_who_uploaded_its_content_under_another(tmp_path: Path) -> None:
    engine = Engine()
    views = LoraViews([tmp_path], tmp_path / "serve" / "uploads")
    for path in (tmp_path / "loras" / "cat.safetensors", views.folder("ann") / "mine.safetensors"):
        random_lora(engine, path, 1)
    views.look(["ann"])
    ann = views.view("ann")
    assert ann.named("cat", "x").sha256 == ann.named("mine", "x").sha256
    assert [info.name for info in ann.for_tags(["cat"]).values()] == ["cat"]
    assert [info.name for info in ann.for_tags(["mine"]).values()] == ["mine"]
