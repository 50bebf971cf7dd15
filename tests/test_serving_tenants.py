"""What each tenant of a server has for itself: uploads, however folders are offered, and what its day pays."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving_parts import Served, asked, made_keys, picture, random_lora, served, serving, wait_until

from trainer.render.engine import Engine
from trainer.serving import keys, server_state
from trainer.serving.log_lines import Log
from trainer.serving.quotas import Quotas
from trainer.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@contextmanager
def offering(engine: Engine, workspace: Path, keys_file: Path, *loras: Path) -> Iterator[Served]:
    """A server with uploads that offers more folders."""
    log = io.StringIO()
    settings = ServeSettings(base="imprimatura", workspace=workspace, port=0, keys=keys_file, uploads=True)
    with served(server_state.make(settings, engine, Log(stream=log), loras), log) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def names(running: Served, key: str) -> list[str]:
    return [lora["name"] for lora in asked(running, "/v1/loras", **bearer(key))[1]["data"]]


# Uploads.


@pytest.mark.parametrize("way", ["absolute", "above", "dots", "symlink", "the uploads", "a link to one"])
def test_an_upload_is_nobody_elses_by_whatever_way_its_folder_is_offered(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace, more = Path("outputs"), tmp_path / "more"
    more.mkdir()
    shared = random_lora(engine, more / "shared.safetensors", 1)
    raw = random_lora(engine, tmp_path / "x" / "secret.safetensors", 2).read_bytes()
    ann, ben = made_keys(tmp_path / "keys.toml", "ann", "ben", upload_bytes=3_000_000)
    (tmp_path / "link").symlink_to(tmp_path / "outputs", target_is_directory=True)
    offered = {
        "absolute": tmp_path / "outputs", "above": tmp_path / "outputs" / "..", "dots": Path("more/../outputs"),
        "symlink": tmp_path / "link", "the uploads": workspace / "serve" / "uploads",
    }  # fmt: skip
    (tmp_path / "x" / "secret.safetensors").unlink()
    with offering(engine, workspace, tmp_path / "keys.toml", more, offered.get(way, more)) as running:
        assert asked(running, "/v1/loras?name=secret", raw, **bearer(ann))[0] == 201
        (upload,) = (workspace / "serve" / "uploads").rglob("*.safetensors")
        if way == "a link to one":
            os.symlink(upload.resolve(), more / "found.safetensors")
        running.state.views.look([key.owner for key in running.state.ring.all])
        assert sorted(names(running, ann)) == ["secret", "shared"] and names(running, ben) == ["shared"]
        assert picture(running, ann, steps=1, loras=[{"name": "secret"}])[0] == 200
        assert picture(running, ben, steps=1, loras=[{"name": "secret"}])[0] == 404
    assert shared.exists()


def test_a_key_of_a_name_that_was_anothers_has_not_its_uploads(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    old, _ = made_keys(file, "ann", "ben", upload_bytes=3_000_000)
    raw = random_lora(engine, tmp_path / "x" / "secret.safetensors", 2).read_bytes()
    with offering(engine, tmp_path / "outputs", file) as running:
        assert asked(running, "/v1/loras?name=secret", raw, **bearer(old))[0] == 201
        keys.remove(file, "ann")
        (new,) = made_keys(file, "ann", upload_bytes=3_000_000)
        assert names(running, new) == [] and asked(running, "/v1/loras", **bearer(old))[0] == 401
        assert picture(running, new, steps=1, loras=[{"name": "secret"}])[0] == 404
    with offering(engine, tmp_path / "outputs", file) as running:
        assert names(running, new) == []


# What a day pays.


def pictures_today(running: Served, name: str) -> int:
    return running.state.quotas._pictures[name]


def streamed(running: Served, key: str, until: bytes, **values: Any) -> None:
    """Ask for a stream and leave once something stands in it."""
    body = json.dumps({"prompt": "a fox", "stream": True, **values}).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.settimeout(60)
        connection.sendall(head.encode() + body)
        got = b""
        while until not in got:
            assert (piece := connection.recv(1 << 16)), "the stream ended before"
            got += piece


def test_who_leaves_with_the_previews_pays_the_picture(engine: Engine, tmp_path: Path) -> None:
    (key,) = made_keys(tmp_path / "keys.toml", "ann", pictures_per_day=1)
    with serving(engine, tmp_path, keys=tmp_path / "keys.toml") as running:
        streamed(running, key, b"partial_image_index", steps=100, partial_images=3)
        wait_until(lambda: not running.state.num_open)
        status, body, _ = picture(running, key, steps=1)
        assert (status, body["error"]["code"]) == (429, "insufficient_quota")


def test_who_leaves_the_line_pays_nothing_and_of_what_is_drawn_what_has_begun(engine: Engine, tmp_path: Path) -> None:
    (key,) = made_keys(tmp_path / "keys.toml", "ann")
    with serving(engine, tmp_path, keys=tmp_path / "keys.toml", batch_pictures=1) as running:
        streamed(running, key, b"image_generation.progress", steps=100, n=4, progress=True)
        wait_until(lambda: not running.state.num_open)
        assert pictures_today(running, "ann") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_fails_is_not_paid_nor_what_nobody_was_given_for_it(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    real = engine.draw

    def failing(pictures: Any) -> Any:
        if any(one.stack.seed == 7 for one in pictures):
            time.sleep(0.5)  # so that the one before it was given out
            raise KeyError
        return real(pictures)

    monkeypatch.setattr(engine, "draw", failing)
    (key,) = made_keys(tmp_path / "keys.toml", "ann")
    with serving(engine, tmp_path, keys=tmp_path / "keys.toml", batch_pictures=1) as running:
        status, body, _ = picture(running, key, seed=6, n=2, stream=stream)
        assert status == (200 if stream else 500) and b"internal" in (body if stream else json.dumps(body).encode())
        wait_until(lambda: not running.state.num_open)
        given = body.count(b"event: image_generation.completed") if stream else 0
        assert pictures_today(running, "ann") == given <= 1, "a stream may have given the first"
        assert base64.b64decode(picture(running, key, seed=8)[1]["data"][0]["b64_json"])
        assert pictures_today(running, "ann") == given + 1


def test_what_is_given_back_after_midnight_is_not_the_new_days(tmp_path: Path) -> None:
    now, key = [1_700_000_000.0], keys.Key(name="ann", pictures_per_day=5)
    quotas = Quotas(tmp_path / "x.json", lambda: now[0])
    day = quotas.take(key, 4)
    now[0] += 86_400
    quotas.take(key, 3)
    quotas.give_back(key, 4, day)
    quotas.save()
    assert json.loads((tmp_path / "x.json").read_text())["pictures"] == {"ann": 3}
