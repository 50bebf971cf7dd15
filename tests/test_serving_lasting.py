"""A server lasts and answers in time, whatever a picture does to its threads, and whenever one is asked for."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving_parts import Served, asked, picture, random_lora, served, serving, wait_until, with_loras
from typer.testing import CliRunner

from trainer import cli
from trainer.bench import serving_load
from trainer.errors import ConfigError
from trainer.render import picture_metadata
from trainer.render.engine import Engine
from trainer.serving import connection, server_state
from trainer.serving.log_lines import Log
from trainer.serving.settings import ServeSettings

# A PNG of 16 x 16, whose gAMA chunk after its pixels is a byte short: Pillow raises struct.error.
TORN_MASK = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQEAAAAABqCHz+AAAAFUlEQVR4nGNkYGfAC5jwS48qGF4KADFyACcAG7gvAAAAA2dBTUHYfR3uv9iWAAAA"
    "AElFTkSuQmCC"
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = Engine()
    folder = with_loras(engine, tmp_path_factory.mktemp("served"), "cat", "fox")
    random_lora(engine, folder / "loras" / "endless.safetensors", 2, size=1e36)
    return folder


@pytest.fixture
def engine() -> Engine:
    return Engine()


class Held:
    """An engine that draws only once it may."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go_on, self.num_begun, self._draw = threading.Event(), 0, engine.draw
        monkeypatch.setattr(engine, "draw", self.draw)

    def draw(self, pictures: Any) -> Any:
        self.num_begun += 1
        assert self.may_go_on.wait(60)
        return self._draw(pictures)


@pytest.fixture
def held(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(engine, monkeypatch)
    yield made
    made.may_go_on.set()


def is_well(running: Served) -> bool:
    return asked(running, "/health")[0] == 200 and picture(running, steps=1, deadline_s=60)[0] == 200


# What a picture does to the threads.


def test_a_damaged_mask_is_refused_and_the_next_picture_drawn(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace) as running:
        lora = {"name": "cat", "region": f"mask data:{TORN_MASK}"}
        status, body, _ = picture(running, size="256x256", loras=[lora])
        assert (status, body["error"]["code"]) == (400, "invalid_value")
        assert "a mask that can't be read" in body["error"]["message"]
        assert is_well(running)


def test_a_stack_with_a_damaged_mask_is_refused_in_a_sentence(workspace: Path, tmp_path: Path) -> None:
    stack = tmp_path / "stack.toml"
    lora = workspace / "loras" / "cat.safetensors"
    adapter = f'file = {json.dumps(str(lora))}\nregion = "mask data:{TORN_MASK}"\n'
    stack.write_text(f'prompt = "x"\nsteps = 1\nwidth_px = 256\nheight_px = 256\n[[adapters]]\n{adapter}')
    done = CliRunner().invoke(cli.app, ["render", "--stack", str(stack), "--out", str(tmp_path / "x.png")])
    assert isinstance(done.exception, ConfigError) and "a mask that can't be read" in str(done.exception)


class Odd(Exception):
    """What no list of exceptions has."""


@pytest.mark.parametrize("where", ["read", "resolved", "draw", "png"])
@pytest.mark.parametrize("error", [struct.error("torn"), Odd("inner workings")])
def test_no_mistake_ends_a_thread(
    engine: Engine, workspace: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    owner: Any = {"read": engine.shelf, "png": picture_metadata}.get(where, engine)
    real, left = getattr(owner, where), 2  # as many as there are threads that read

    def failing(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error
        return real(*args)

    monkeypatch.setattr(owner, where, failing)
    with serving(engine, workspace) as running:
        for _ in range(2):
            status, body, _ = picture(running, loras=[{"name": "cat"}], deadline_s=60)
            assert (status, body["error"]["code"]) == (500, "internal")
        assert is_well(running) and picture(running, loras=[{"name": "cat"}])[0] == 200
        assert [line["error"] for line in running.lines("fault")] == [type(error).__name__] * 2


class Death(BaseException):
    """Ends any thread."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_nothing_draws_any_more_everybody_is_told_so_at_once(
    engine: Engine, workspace: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(pictures: Any) -> Any:
        held.num_begun += 1
        held.may_go_on.wait(60)
        raise Death

    monkeypatch.setattr(engine, "draw", dying)
    with serving(engine, workspace) as running, ThreadPoolExecutor(2) as pool:
        drawing = pool.submit(picture, running, steps=2)
        wait_until(lambda: held.num_begun)
        waiting = pool.submit(picture, running, steps=3)
        wait_until(lambda: len(running.state.line) == 1)
        held.may_go_on.set()
        status, body, _ = drawing.result(20)
        assert (status, body["error"]["code"]) == (500, "internal")
        for status, body, _ in (waiting.result(20), picture(running, steps=1)):
            assert (status, body["error"]["code"]) == (503, "cannot_draw")
        assert asked(running, "/health")[0] == asked(running, "/ready")[0] == 503
        assert running.lines("fault")[0]["error"] == "Death"


def test_numbers_without_bounds_are_found_where_memory_has_a_batch_drawn_in_parts(
    engine: Engine, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, sizes = engine._drawing, []
    real = drawing.draw

    def short(pictures: list[Any]) -> Any:
        sizes.append(len(pictures))
        if len(pictures) > 2:
            raise MemoryError
        return real(pictures)

    monkeypatch.setattr(drawing, "draw", short)
    with serving(engine, workspace, window_s=2.0, batch_pictures=4) as running, ThreadPoolExecutor(4) as pool:
        loras = [[], [], [{"name": "fox"}], [{"name": "endless"}]]
        answers = list(pool.map(lambda own: picture(running, loras=own)[0], loras))
    assert sizes[0] == 4 and answers == [200, 200, 200, 400]


# When a request comes, and how long it waits.


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_is_answered_while_others_are_drawn(
    engine: Engine, workspace: Path, held: Held, stream: bool
) -> None:
    with serving(engine, workspace) as running, ThreadPoolExecutor(1) as pool:
        first = pool.submit(picture, running, steps=2)
        wait_until(lambda: held.num_begun)
        began = time.monotonic()
        status, body, _ = picture(running, steps=1, deadline_s=0.5, stream=stream)
        assert time.monotonic() - began < 20, "while the first is still being drawn"
        assert (
            (b"deadline_exceeded" in body) if stream else (status, body["error"]["code"]) == (504, "deadline_exceeded")
        )
        wait_until(lambda: running.state.num_open == 1)
        held.may_go_on.set()
        assert first.result()[0] == 200
        wait_until(lambda: not running.state.line)
        text = asked(running, "/metrics")[1].decode()
        assert 'velatura_pictures_not_drawn_total{reason="deadline"} 1.0' in text


def test_a_body_that_is_on_its_way_at_the_end_is_refused_in_words(engine: Engine, workspace: Path) -> None:
    body = json.dumps({"prompt": "a fox", "steps": 1}).encode()
    with serving(engine, workspace) as running, socket.create_connection(("127.0.0.1", running.port)) as late:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        late.sendall(head.encode() + body[:5])
        wait_until(lambda: running.state.num_open == 1)
        running.drain()
        wait_until(lambda: running.lines("draining"))
        time.sleep(0.3)
        assert running.thread.is_alive() and running.state.renderer.is_alive, "it waits for who is half way in"
        late.sendall(body[5:])
        late.settimeout(20)
        answer = b""
        while piece := late.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 503") and b'"code":"draining"' in answer
        running.thread.join(20)
        assert not running.thread.is_alive()


def test_a_connection_without_a_request_is_closed(
    engine: Engine, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.4)
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(engine, workspace) as running:
        for first in (b"", b"GET /hea", whole, whole + b"GET /hea"):
            with socket.create_connection(("127.0.0.1", running.port)) as silent:
                silent.settimeout(20)
                silent.sendall(first)
                while silent.recv(65536):
                    continue
        assert picture(running, steps=3)[0] == 200, "one that is answered may take longer"


def test_lines_of_the_log_and_of_readiness_say_nothing_of_others(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace) as running:
        assert picture(running, steps=1, user="someone@example.org", safety_identifier="id-77")[0] == 200
        assert asked(running, "/ready")[1] == {"status": "ready"}
        assert "someone@" not in running.log.getvalue() and "id-77" not in running.log.getvalue()


def test_a_stack_that_cannot_be_read_does_not_say_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "dusk.toml").write_text("steps = 3\n")

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    log = io.StringIO()
    settings = ServeSettings(base="imprimatura", workspace=tmp_path, port=0)
    with served(server_state.make(settings, Engine(), Log(stream=log)), log) as running:
        monkeypatch.setattr(Path, "read_bytes", refused)
        status, body, _ = picture(running, model="dusk")
    assert status == 500 and "Permission denied" in body["error"]["message"]
    assert str(tmp_path) not in json.dumps(body)


# Who comes while a batch is drawn.


def test_pictures_that_join_the_next_batch_are_counted_with_their_wait(
    engine: Engine, workspace: Path, held: Held
) -> None:
    with serving(engine, workspace) as running, ThreadPoolExecutor(3) as pool:
        first = pool.submit(picture, running, seed=1)
        wait_until(lambda: held.num_begun == 1)
        later = [pool.submit(picture, running, seed=seed) for seed in (2, 3)]
        wait_until(lambda: len(running.state.line) == 2)
        began = time.monotonic()
        time.sleep(0.5)
        held.may_go_on.set()
        answers = [call.result() for call in (first, *later)]
        most = time.monotonic() - began + 30  # a busy machine may take long to let them in
        load = serving_load.joins(running.port, "none")
        waits = [line["join_waits_s"] for line in running.lines("batch")]
    assert [status for status, _, _ in answers] == [200] * 3
    assert [answer["data"][0]["batch_pictures"] for _, answer, _ in answers] == [1, 2, 2]
    assert (load.at_once, load.next) == (1, 2) and 2 * 0.5 < load.waited_s < 2 * most
    assert waits[0] == [0.0] and sum(waits[1]) == pytest.approx(load.waited_s)
