"""How a batch is spread: who draws what, what travels, what a worker keeps, and what becomes of a dead worker's chunks.

Ray itself is stood in for here by a few lines in which workers die as often as a test wants; `test_batch_ray.py` has
the real one.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests import batches
from tests.batches import files, jobs, lora, manifest
from trainer import files as trainer_files
from trainer.errors import ConfigError, RunError
from trainer.render import batch, batch_command, picture_metadata
from trainer.render.batch_chunks import WarmEngine
from trainer.render.spreading import messages, ray_access, routing
from trainer.render.spreading.messages import Part
from trainer.render.spreading.worker_files import KeptFiles

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray isn't installed: extra `ray`")
CAT, OWL = ("cat", "sd"), ("owl", "sd")


# Who draws what.


def wanted(base: tuple[str, str], *adapters: str) -> routing.Wanted:
    return routing.Wanted(base, frozenset(adapters))


def test_a_worker_goes_on_with_its_base_and_takes_the_chunk_whose_loras_it_has() -> None:
    here = routing.Holding()
    here.take(wanted(CAT, "a", "b"))
    waiting = [wanted(OWL, "a", "b"), wanted(CAT, "c"), wanted(CAT, "b"), wanted(CAT, "b", "a")]
    assert routing.choose(here, waiting, [here]) == 3
    assert routing.choose(here, waiting[:3], [here]) == 2
    assert routing.choose(here, waiting[:1], [here]) == 0
    here.take(waiting[0])
    assert list(here.adapters) == ["a", "b"] and here.base == OWL, "another base drops the LoRAs of the one before"


def test_workers_without_work_go_where_most_waits_for_each() -> None:
    busy = [routing.Holding(CAT), routing.Holding(CAT)]
    waiting = [wanted(CAT)] * 5 + [wanted(OWL)] * 2
    assert routing.choose(routing.Holding(), waiting, busy) == 5
    assert routing.choose(routing.Holding(), waiting, busy[:1]) == 0


def test_what_a_worker_cannot_draw_is_not_chosen() -> None:
    here = routing.Holding(lacking={CAT})
    assert routing.choose(here, [wanted(CAT), None, wanted(OWL)], [here]) == 2
    assert routing.choose(here, [wanted(CAT), None], [here]) is None


# What travels.


def test_no_path_of_this_machine_travels_and_all_come_back(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "secret").mkdir()
    path, mask = lora(tmp_path / "secret" / "one.safetensors", 0.1), tmp_path / "secret" / "mask.png"
    mask.write_bytes(b"any")
    (work,) = batches.plan_of(jobs(tmp_path / "x.csv", [("lora",), (f"{path}:0.5",)]), tiny).pictures()
    (adapter,) = work.stack.adapters
    asked = work.stack.model_copy(update={"adapters": (adapter.model_copy(update={"region": f"mask {mask}"}),)})
    leaving = messages.outgoing(asked, trainer_files.sha256)
    assert "secret" not in leaving.stack and set(leaving.places.values()) == {path, mask}
    there = messages.arrived(leaving.stack, {key: tmp_path / key for key in leaving.parts})
    assert {there.adapters[0].file, messages.mask_file(there.adapters[0].region)} == {
        str(tmp_path / key) for key in leaving.parts
    }
    drawn = messages.drawn(picture_metadata.Picture(Image.new("RGB", (8, 8), "red"), there, "text"))
    back = messages.returned(drawn, asked)
    assert isinstance(back, picture_metadata.Picture)
    assert back.stack.adapters[0].file == str(path) and back.image.getpixel((7, 7)) == (255, 0, 0)


def test_a_stack_can_name_no_file_of_the_worker(tmp_path: Path, tiny: Path) -> None:
    path = lora(tmp_path / "one.safetensors", 0.1)
    (work,) = batches.plan_of(jobs(tmp_path / "x.csv", [("lora",), (f"{path}:1",)]), tiny).pictures()
    with pytest.raises(RunError, match="was not sent with it"):
        messages.arrived(work.stack.model_dump_json(), {})


# What a worker keeps.


def part(content: bytes, name: str = "x.safetensors") -> tuple[str, tuple[Part, ...]]:
    digest = hashlib.sha256(content).hexdigest()
    return digest[:32], (Part(name, digest),)


def test_a_file_is_fetched_once_checked_and_named_harmlessly(tmp_path: Path) -> None:
    fetched: list[str] = []

    def content_of(sha256: str) -> bytes:
        fetched.append(sha256)
        return b"one"

    for _ in range(2):
        kept = KeptFiles(tmp_path, 100)
        place = kept.place(*part(b"one", "../../../etc/passwd"), content_of)
        assert place.read_bytes() == b"one" and place.parent.parent == kept.own and place.name == "_.._.._etc_passwd"
        kept.let_go(set())
    assert len(fetched) == 1
    with pytest.raises(RunError, match="arrived as something else"):
        KeptFiles(tmp_path, 100).place(*part(b"two"), content_of)
    assert not (tmp_path / part(b"two")[1][0].sha256).exists()
    with pytest.raises(RunError, match="no digest"):
        KeptFiles(tmp_path, 100).place("../x", part(b"one")[1], content_of)


def test_a_file_that_was_spoilt_since_is_fetched_anew(tmp_path: Path) -> None:
    key, parts = part(b"one")
    (tmp_path / parts[0].sha256).write_bytes(b"spoilt")
    assert KeptFiles(tmp_path, 100).place(key, parts, lambda _: b"one").read_bytes() == b"one"


def test_what_was_unused_for_longest_makes_room_and_stays_readable_where_it_is_in_use(tmp_path: Path) -> None:
    kept = KeptFiles(tmp_path, 10)
    contents = [letter * 4 for letter in (b"a", b"b", b"c")]
    places = []
    for content in contents:
        places.append(kept.place(*part(content), lambda _, content=content: content))
        time.sleep(0.02)
    there = [(tmp_path / part(content)[1][0].sha256).exists() for content in contents]
    assert there == [False, True, True] and places[0].read_bytes() == contents[0]


# How Ray may be used.


def test_what_only_ray_reads_is_refused_without_it_and_without_ray_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--address, --workers: read with --engine ray only"):
        batch_command._draws("local", "none", False, batch_command.Spreading("head:6379", 2))
    with pytest.raises(ConfigError, match="allowed: local, ray"):
        batch_command._draws("dask", "none", False, batch_command.Spreading())
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_DISABLE_IMPORT_WARNING"):
        monkeypatch.setenv(name, os.environ.get(name, "token"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'velatura\[ray\]'"):
        batch_command._draws("ray", "none", False, batch_command.Spreading())


def test_an_address_is_refused_unless_it_asks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        ray_access.prepare("ray://head:10001")
    with pytest.raises(ConfigError, match="it must be 'token'"):
        ray_access.prepare("head:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError, match="there is no token"):
        ray_access.prepare("head:6379")


# Workers that die.


class TravellingPainter(batches.Painter):
    """Paints what a recipe says wherever its files lie."""

    def render_all(self, stacks):
        def plain(stack):
            adapters = tuple(one.model_copy(update={"file": "x", "name": "x"}) for one in stack.adapters)
            return stack.model_copy(update={"adapters": adapters})

        company = list(stacks)
        for stack, picture in zip(company, super().render_all(map(plain, company)), strict=True):
            yield picture_metadata.Picture(picture.image, stack, "text")


class Call:
    """A reference: to be answered, answered, or lost with its worker."""

    def __init__(self, work=None, value=None) -> None:
        self.work, self.value, self.error = work, value, None


class FakeWorker:
    """A worker that draws when `FakeRay` says so."""

    def __init__(self, world: FakeRay) -> None:
        self.world, self.calls = world, []
        self.kept = KeptFiles(world.folder, 1 << 20)
        self.warm = WarmEngine(lambda base, family: TravellingPainter())
        self.hello = SimpleNamespace(remote=lambda: self._call(lambda: messages.Hello("here", world.versions)))
        self.draw_sent = SimpleNamespace(remote=lambda *sent: self._call(partial(self._draw, *sent)))
        world.workers.append(self)

    def _call(self, work) -> Call:
        self.calls.append(Call(work))
        return self.calls[-1]

    def _draw(self, request: messages.Request, contents: dict[str, Call]) -> messages.Answer:
        if self.world.lacks(self):
            return messages.Answer(lacks="files", why="the disk is full.")
        places = {
            key: self.kept.place(key, parts, lambda sha256: contents[sha256].value)
            for key, parts in request.parts.items()
        }
        results: list[messages.Drawn | str] = [""] * len(request.stacks)
        for place, result in self.warm.draw([messages.arrived(text, places) for text in request.stacks]):
            results[place] = messages.drawn(result)
        return messages.Answer(tuple(results))


class FakeRay:
    """`wait` lets one worker finish one call, or ends a worker."""

    def __init__(self, folder: Path, deaths: int = 0, poison: str = "") -> None:
        from trainer.render.spreading.worker import versions

        self.folder, self.deaths, self.poison, self.versions = folder, deaths, poison, versions()
        self.workers: list[FakeWorker] = []
        self.chance = random.Random(deaths)
        self.num_dead = 0
        self.ended: Counter[tuple[str, ...]] = Counter()  # workers by what they drew
        self.lacks = lambda worker: False

    @contextmanager
    def joined(self, address: str, num_workers: int) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(num_workers=num_workers, num_cpus=1, num_gpus=0, start=lambda *options: FakeWorker(self))

    def put(self, content: bytes) -> Call:
        return Call(value=content)

    def get(self, call: Call):
        if call.error:
            raise call.error
        return call.value

    def wait(self, calls, num_returns, timeout, fetch_local):
        ready = [call for call in calls if call.value or call.error]
        if not ready and timeout and (busy := [worker for worker in self.workers if worker.calls]):
            worker = self.chance.choice(busy)
            sent = getattr(worker.calls[0].work, "args", ())
            is_poisoned = sent and self.poison and any(self.poison in stack for stack in sent[0].stacks)
            # By chance, but not so often at one chunk that it would be suspected itself.
            key = sent[0].stacks if sent else ()
            is_unlucky = self.num_dead < self.deaths and self.ended[key] < 3 and self.chance.random() < 0.9
            if is_poisoned or sent and is_unlucky:
                self.ended[key] += 1
                self._end(worker)
            else:
                call = worker.calls.pop(0)
                call.value = call.work()
        return ready, []

    def _end(self, worker: FakeWorker) -> None:
        from ray.exceptions import ActorDiedError

        self.num_dead += 1
        self.workers.remove(worker)
        for call in worker.calls:
            call.error = ActorDiedError()

    def kill(self, handle) -> None: ...

    def cancel(self, call) -> None: ...


@pytest.fixture
def spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`spread(world, path, tiny, out)`: the events of a batch on four workers of that world."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray isn't installed: extra `ray`")
    from trainer.render.spreading import sent_files
    from trainer.render.spreading import spread as spreading

    def drawn(world: FakeRay, path: Path, tiny: Path, out: Path, stop=lambda: False) -> list[batch.Event]:
        monkeypatch.setattr(spreading, "ray", world)
        monkeypatch.setattr(sent_files, "ray", world)
        monkeypatch.setattr(spreading.cluster, "joined", world.joined)
        drawing = spreading.Spread(spreading.Options(num_workers=4))
        return list(batch.run_by(drawing, batches.plan_of(path, tiny), out, stop, sheets=False))

    return drawn


def many(folder: Path, num: int) -> Path:
    first, second = lora(folder / "one.safetensors", 0.1), lora(folder / "two.safetensors", -0.2)
    rows = [
        (f"fox {seed}", seed, 2 + seed % 40, f"{first}:{seed / 500};{second}:1" if seed % 3 else "")
        for seed in range(num)
    ]
    return jobs(folder / "x.csv", [("prompt", "seed", "steps", "lora"), *rows])


def test_killed_fifty_times_in_five_hundred_pictures_each_is_there_once_and_the_same(
    tmp_path: Path, tiny: Path, spread
) -> None:
    path = many(tmp_path, 500)
    batches.draw(path, tiny, tmp_path / "local", TravellingPainter())
    world = FakeRay(tmp_path / "sent", deaths=50)
    events = spread(world, path, tiny, tmp_path / "ray")
    assert world.num_dead == 50 and events[-1].made == 500 and events[-1].failed == 0
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert manifest(tmp_path / "ray") == manifest(tmp_path / "local")


def test_a_picture_that_ends_every_worker_fails_alone_and_says_so(tmp_path: Path, tiny: Path, spread) -> None:
    world = FakeRay(tmp_path / "sent", poison="fox 37")
    events = spread(world, many(tmp_path, 120), tiny, tmp_path / "ray")
    (refused,) = [event for event in events if event.kind == "refused"]
    assert events[-1].made == 119 and refused.row == 38 and world.num_dead == 8
    assert "4 workers died of this picture, drawn alone" in refused.message


def test_a_worker_with_a_full_disk_leaves_its_chunks_to_others_and_where_all_are_full_the_rows_say_so(
    tmp_path: Path, tiny: Path, spread
) -> None:
    world = FakeRay(tmp_path / "sent")
    world.lacks = lambda worker: worker is world.workers[0]
    assert spread(world, many(tmp_path, 120), tiny, tmp_path / "one")[-1].made == 120
    world.lacks = lambda worker: True
    events = spread(world, many(tmp_path, 120), tiny, tmp_path / "all")
    assert events[-1].failed == 120
    assert (
        "no worker can draw it. here: the disk is full." in [one for one in events if one.kind == "refused"][0].message
    )


def test_another_version_of_a_library_is_refused(tmp_path: Path, tiny: Path, spread) -> None:
    world = FakeRay(tmp_path / "sent")
    world.versions = world.versions | {"torch": "1.0"}
    with pytest.raises(RunError, match="has torch 1.0; it must have torch"):
        spread(world, many(tmp_path, 3), tiny, tmp_path / "ray")


def test_asked_to_stop_what_is_begun_comes_in_and_a_later_batch_draws_the_rest(
    tmp_path: Path, tiny: Path, spread
) -> None:
    path, asked = many(tmp_path, 120), iter([False] * 12)
    events = spread(FakeRay(tmp_path / "sent"), path, tiny, tmp_path / "ray", lambda: next(asked, True))
    assert events[-1].stopped and 0 < events[-1].made < 120
    events = spread(FakeRay(tmp_path / "sent"), path, tiny, tmp_path / "ray")
    batches.draw(path, tiny, tmp_path / "local", TravellingPainter())
    assert events[-1].there == 120 and files(tmp_path / "ray") == files(tmp_path / "local")


def test_a_disk_without_room_is_the_workers_answer_and_no_end_of_it(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.render import batch_recipe
    from trainer.render.spreading.worker import Worker

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = lora(tmp_path / "one.safetensors", 0.1)
    (work,) = batches.plan_of(jobs(tmp_path / "x.csv", [("lora",), (f"{path}:1",)]), tiny).pictures()
    leaving = messages.outgoing(work.stack, trainer_files.sha256)
    request = messages.Request((leaving.stack,), leaving.parts, batch_recipe.base_hash(tiny))
    worker = Worker("none", 0, 1 << 20, str(tmp_path / "sent"))
    monkeypatch.setattr("trainer.files.write_synced", full)
    answer = worker.draw(request, lambda sha256: path.read_bytes())
    assert answer.lacks == "files" and "No space left on device" in answer.why
    monkeypatch.undo()
    assert isinstance(worker.draw(request, lambda sha256: path.read_bytes()).results[0], messages.Drawn)
    other = messages.Request((leaving.stack,), leaving.parts, "0" * 64)
    assert worker.draw(other, lambda sha256: b"").lacks == "base"
