"""A real server on loopback for tests, on a thread of this process, and LoRAs for it."""

from __future__ import annotations

import io
import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import lora_file
from trainer.render.engine import Engine
from trainer.serving import keys, server, server_state
from trainer.serving.log_lines import Log
from trainer.serving.server_state import ServerState
from trainer.serving.settings import ServeSettings

openai = pytest.importorskip("openai")  # its newest needs Python 3.11
STEPS = 1


@dataclass
class Served:
    """A server that runs."""

    server: server.Server
    state: ServerState
    port: int
    log: io.StringIO
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one kind."""
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    def drain(self) -> None:
        """What SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)


@contextmanager
def serving(engine: Engine, workspace: Path, **settings: Any) -> Iterator[Served]:
    """A server on a free port; its engine is nobody else's meanwhile."""
    made = ServeSettings(base="imprimatura", workspace=workspace, port=0, **settings)
    server.check(made)
    log = io.StringIO()
    with served(server_state.make(made, engine, Log(made.log_prompts, log)), log) as running:
        yield running


@contextmanager
def served(state: ServerState, log: io.StringIO) -> Iterator[Served]:
    """A server of these parts on its port."""
    running = server.Server(state)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(running, state, port, log, thread)
    finally:
        running.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(claim: Any, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.01)


def made_keys(file: Path, *names: str, **limits: Any) -> list[str]:
    """New keys in a file."""
    return [keys.add(file, keys.Key(name=name, **limits)) for name in names]


def random_lora(engine: Engine, path: Path, seed: int, size: float = 0.05, rank: int = 4) -> Path:
    """A LoRA file on the middle block's attention, in kohya's names."""
    rng, parts = torch.Generator().manual_seed(seed), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, (out, into, *_) in engine.shapes.items():
        if name.startswith("unet.") and name.endswith(("to_q", "to_k", "to_v")):
            down, up = torch.randn(rank, into, generator=rng), torch.randn(out, rank, generator=rng) * size
            parts[engine.file_keys[name]] = {
                "lora_down.weight": down / into**0.5,
                "lora_up.weight": up,
                "alpha": torch.tensor(float(rank)),
            }
    lora_file.save(path, parts, {}, torch.float32)
    return path


def with_loras(engine: Engine, folder: Path, *names: str) -> Path:
    """The folder as a workspace with a random LoRA of each name."""
    for number, name in enumerate(names):
        random_lora(engine, folder / "loras" / f"{name}.safetensors", number)
    return folder


def asked(
    served: Served, path: str, values: Any = None, method: str | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers of a plain request; bytes are sent as they are."""
    raw = values if isinstance(values, bytes | None) else json.dumps(values).encode()
    request = urllib.request.Request(f"{served.url}{path}", data=raw, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            status, body, got = response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        status, body, got = error.code, error.read(), dict(error.headers)
    lower = {name.lower(): value for name, value in got.items()}
    return status, json.loads(body) if "json" in lower.get("content-type", "") else body, lower


def picture(served: Served, key: str = "", **values: Any) -> tuple[int, Any, dict[str, str]]:
    """One small picture asked for."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return asked(served, "/v1/images/generations", {"prompt": "a fox", "steps": STEPS, **values}, **headers)
