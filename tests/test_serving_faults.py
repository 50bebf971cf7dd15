"""What goes wrong while a server runs harms nobody else: bad adapters, clients that leave, full disks, the end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from serving_parts import Served, asked, made_keys, picture, random_lora, serving, wait_until, with_loras

from trainer import system
from trainer.errors import ConfigError
from trainer.render.engine import Engine
from trainer.serving import server
from trainer.serving.settings import ServeSettings

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def workspace(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = with_loras(engine, tmp_path_factory.mktemp("served"), "good")
    random_lora(engine, folder / "loras" / "endless.safetensors", 2, size=1e36)
    return folder


@pytest.fixture(scope="module")
def served(engine: Engine, workspace: Path) -> Iterator[Served]:
    with serving(engine, workspace, window_s=0.15) as running:
        yield running


def pictures(served: Served, *asked_for: dict[str, Any]) -> list[tuple[int, Any]]:
    """Several at once."""
    gate = threading.Barrier(len(asked_for))

    def ask(values: dict[str, Any]) -> tuple[int, Any]:
        gate.wait()
        status, body, _ = picture(served, **values)
        return status, body

    with ThreadPoolExecutor(len(asked_for)) as pool:
        return list(pool.map(ask, asked_for))


def metric(served: Served, line: str) -> float:
    text = asked(served, "/metrics")[1].decode()
    return next((float(found.rsplit(" ", 1)[1]) for found in text.splitlines() if found.startswith(line)), 0.0)


# Adapters.


def test_numbers_without_bounds_are_told_of_and_harm_no_other_picture_of_their_batch(served: Served) -> None:
    good = {"seed": 4, "loras": [{"name": "good"}]}
    alone = picture(served, **good)[1]["data"][0]["b64_json"]
    answers = pictures(served, good, {"seed": 5, "loras": [{"name": "endless"}]}, {"seed": 6})
    assert [status for status, _ in answers] == [200, 400, 200]
    assert answers[1][1]["error"]["code"] == "not_finite"
    assert answers[0][1]["data"][0]["batch_pictures"] >= 2
    # And nothing stays behind.
    assert picture(served, **good)[1]["data"][0]["b64_json"] == alone


@pytest.mark.parametrize("kind", ["nan", "damaged", "gone", "another base's"])
def test_a_file_that_went_bad_is_refused_by_name_and_without_its_place(
    served: Served, engine: Engine, workspace: Path, kind: str
) -> None:
    name = f"bad-{kind.split()[0].replace(chr(39), '')}"
    path = random_lora(engine, workspace / "loras" / f"{name}.safetensors", 50)
    tensors = load_file(path)
    assert picture(served, steps=1, loras=[{"name": name}])[0] == 200
    first = next(key for key in tensors if "lora_up" in key)
    if kind == "nan":
        save_file(tensors | {first: tensors[first] * float("nan")}, path)
    elif kind == "damaged":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "another base's":
        save_file(
            {key: value[:, :7].contiguous() if "lora_down" in key else value for key, value in tensors.items()}, path
        )
    else:
        path.unlink()
    answers = pictures(served, {"steps": 1, "loras": [{"name": name}]}, {"steps": 1, "loras": [{"name": "good"}]})
    assert [status for status, _ in answers] == [400, 200]
    message = answers[0][1]["error"]["message"]
    assert answers[0][1]["error"]["code"] == "lora_unreadable"
    assert name in message and str(workspace) not in message


def test_a_mistake_of_ours_is_answered_and_logged_and_the_next_picture_is_drawn(
    engine: Engine, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.draw

    def broken(resolved: Any) -> Any:
        if any(one.stack.prompt == "break" for one in resolved):
            raise KeyError("inner workings")
        return real(resolved)

    monkeypatch.setattr(engine, "draw", broken)
    with serving(engine, workspace, window_s=0.15) as running:
        answers = pictures(running, {"prompt": "break", "steps": 1}, {"steps": 1}, {"steps": 1})
        assert [status for status, _ in answers] == [500, 200, 200]
        assert "inner workings" not in json.dumps(answers[0][1])
        assert answers[0][1]["error"]["message"].split()[-1].rstrip(".") in running.log.getvalue()
        assert any("inner workings" in line["trace"] for line in running.lines("fault"))


# Clients.


def begun(served: Served, values: dict[str, Any]) -> socket.socket:
    """A request that was sent, and whose answer nobody reads yet."""
    body = json.dumps({"prompt": "a fox", **values}).encode()
    connection = socket.create_connection(("127.0.0.1", served.port))
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_batch_that_nobody_waits_for_ends(served: Served) -> None:
    before = metric(served, 'velatura_pictures_not_drawn_total{reason="client gone"}')
    connection = begun(served, {"steps": 150})
    wait_until(lambda: len(served.lines("order")) and len(served.state.line) == 0)
    time.sleep(0.3)
    connection.close()
    began = time.monotonic()
    assert picture(served, steps=1)[0] == 200
    assert time.monotonic() - began < 10
    assert metric(served, 'velatura_pictures_not_drawn_total{reason="client gone"}') == before + 1


def test_who_leaves_the_line_is_dropped_from_it(served: Served) -> None:
    first = begun(served, {"steps": 60, "size": "128x128"})
    time.sleep(0.4)
    waiting = [begun(served, {"steps": 149 - number}) for number in range(3)]
    wait_until(lambda: len(served.state.line) == 3)
    for connection in waiting:
        connection.close()
    wait_until(lambda: len(served.state.line) == 0 or not served.state.num_open)
    first.close()
    assert picture(served, steps=1)[0] == 200


def test_one_client_that_leaves_costs_the_others_of_its_batch_nothing(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        staying = pool.submit(picture, served, steps=8, seed=1)
        leaving = begun(served, {"steps": 8, "seed": 2})
        time.sleep(0.4)
        leaving.close()
        assert staying.result()[0] == 200


def test_a_stream_that_nobody_reads_holds_up_no_other(served: Served) -> None:
    connection = begun(served, {"steps": 3, "stream": True, "n": 4, "partial_images": 3, "progress": True})
    assert picture(served, steps=1)[0] == 200
    connection.close()


def test_half_a_request_holds_up_no_other(served: Served) -> None:
    connection = socket.create_connection(("127.0.0.1", served.port))
    connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
    assert picture(served, steps=1)[0] == 200
    connection.close()


def test_a_picture_that_comes_too_late_is_given_up(served: Served) -> None:
    first = begun(served, {"steps": 40})
    time.sleep(0.3)
    status, body, _ = picture(served, steps=3, deadline_s=0.2)
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
    first.close()


def test_a_full_line_says_when_to_come_again(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace, queue_pictures=2) as running:
        first = begun(running, {"steps": 100})
        wait_until(lambda: running.lines("order"))
        wait_until(lambda: len(running.state.line) == 0)
        waiting = [begun(running, {"steps": 99}) for _ in range(2)]
        wait_until(lambda: len(running.state.line) == 2)
        status, body, headers = picture(running, steps=1)
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
        for connection in (first, *waiting):
            connection.close()


@pytest.mark.slow
def test_a_thousand_requests_are_all_answered(engine: Engine, workspace: Path) -> None:
    count = 1000
    system.allow_open_files()
    with serving(engine, workspace, batch_pictures=64) as running, ThreadPoolExecutor(count) as pool:
        loras = [[], [{"name": "good"}]]
        values = [{"steps": 1, "size": "32x32", "seed": number, "loras": loras[number % 2]} for number in range(count)]
        answers = list(pool.map(lambda one: picture(running, **one), values))
        assert [status for status, _, _ in answers] == [200] * count
        assert [body["data"][0]["seed"] for _, body, _ in answers] == list(range(count))
        assert asked(running, "/health")[0] == 200


# Disks.


def test_a_full_disk_refuses_an_upload_and_keeps_on_drawing(engine: Engine, workspace: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    raw = random_lora(engine, tmp_path / "x.safetensors", 9).read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with serving(engine, workspace, uploads=True) as running:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            status, body, _ = asked(running, "/v1/loras?name=x", raw)
            running.state.quotas._pictures["x" * 2000] = 1
            running.state.save()
            assert picture(running, steps=1)[0] == 200
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert (status, body["error"]["code"]) == (507, "no_room")
        assert running.lines("counts not written")
        assert not list(running.state.settings.uploads_folder.rglob("*.safetensors"))
        assert asked(running, "/v1/loras?name=x", raw)[0] == 201


# The end.


def test_a_server_that_ends_finishes_what_it_has_and_takes_nothing_new(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace) as running, ThreadPoolExecutor(2) as pool:
        drawing = pool.submit(picture, running, steps=12)
        wait_until(lambda: running.lines("order") and len(running.state.line) == 0)
        waiting = pool.submit(picture, running, steps=2)
        wait_until(lambda: len(running.lines("order")) == 2)
        running.drain()
        status, body, headers = picture(running, steps=1)
        assert (status, body["error"]["code"]) == (503, "draining") and headers["retry-after"]
        assert asked(running, "/ready")[0] == 503
        assert asked(running, "/health")[0] == 200
        assert drawing.result()[0] == 200 and waiting.result()[0] == 200
        running.thread.join(20)
        assert not running.thread.is_alive()


def test_what_takes_too_long_at_the_end_is_told_so(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace, drain_s=0.1) as running, ThreadPoolExecutor(2) as pool:
        drawing = pool.submit(picture, running, steps=150)
        wait_until(lambda: running.lines("order") and len(running.state.line) == 0)
        waiting = pool.submit(picture, running, steps=120)
        wait_until(lambda: len(running.state.line) == 1)
        running.drain()
        for answer in (drawing, waiting):
            status, body, _ = answer.result()
            assert (status, body["error"]["code"]) == (503, "draining")
        running.thread.join(20)
        assert not running.thread.is_alive()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
def test_the_command_serves_and_ends_on_sigterm(workspace: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "trainer", "serve", "--workspace", str(workspace), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    assert process.stderr is not None
    while "serving" not in (line := process.stderr.readline()):
        assert line or process.poll() is None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    wait_until(lambda: _accepts(port))
    connection.request("POST", "/v1/images/generations", json.dumps({"prompt": "a fox", "steps": 20}))
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert connection.getresponse().status == 200
    assert process.wait(30) == 0
    assert json.loads(process.stderr.read().splitlines()[-1])["event"] == "ended"


def test_a_port_that_is_taken_is_told_of_before_anything_is_loaded(served: Served, workspace: Path) -> None:
    with pytest.raises(ConfigError, match="can't be listened on"):
        server.serve(ServeSettings(base="no base of this name", workspace=workspace, port=served.port))


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_key_that_asks_for_much_does_not_hold_up_another(engine: Engine, workspace: Path) -> None:
    file = workspace / "fair.toml"
    greedy, modest = made_keys(file, "greedy", "modest")
    with serving(engine, workspace, keys=file, batch_pictures=2) as running, ThreadPoolExecutor(9) as pool:
        many = [pool.submit(picture, running, greedy, steps=8, n=4) for _ in range(8)]
        wait_until(lambda: len(running.state.line) >= 20)
        began = time.monotonic()
        assert picture(running, modest, steps=8)[0] == 200
        own_s = time.monotonic() - began
        assert [answer.result()[0] for answer in many] == [200] * 8
        assert own_s < (time.monotonic() - began) / 3
