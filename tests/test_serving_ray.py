"""`velatura serve --ray` from a cold start: the real command, its replicas in processes of Ray Serve's."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from trainer.config import AdapterChoice, StackConfig
from trainer.render import picture_metadata
from trainer.render.engine import Engine
from trainer.serving import keys

serving_parts = pytest.importorskip("serving_parts")  # the openai client
# On a busy machine a replica takes minutes to import torch: Ray gives it the least of the processor (niceness 15).
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("grpc_reflection") is None, reason="no Ray Serve: extra `ray`"),
    pytest.mark.timeout(2400),
    pytest.mark.slow,
]
ROOT = Path(__file__).parents[1]
START_S = 900.0  # on a busy machine; a few seconds on a quiet one
KILLS = int(os.environ.get("VELATURA_SERVE_KILLS", "2"))  # of replicas under load; 50 takes an hour on two busy cores
TINY = {"size": "32x32", "steps": 3}


@dataclass
class Running:
    """The command while it runs."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def asked(self, values: dict[str, Any], key: str = "none") -> tuple[int, Any]:
        """Status and body of a request for pictures."""
        raw = json.dumps({"prompt": "a fox", **values}).encode()
        request = urllib.request.Request(f"{self.url}/v1/images/generations", data=raw)
        request.add_header("authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=1800) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def client(self, key: str = "none") -> Any:
        return serving_parts.openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=1800)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines of one kind."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def replicas(self) -> list[psutil.Process]:
        """The live replicas that are this machine's."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if any("ServeReplica:velatura-" + str(self.process.pid) in part for part in process.info["cmdline"] or ()):
                found.append(process)
        return found


@contextmanager
def serving(folder: Path, *options: str, **env: str) -> Iterator[Running]:
    """`velatura serve --ray` on a free port until the body ends; then it drains."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    log = folder / "log.txt"
    own = {"PYTHONPATH": path, "VELATURA_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "serve", "--ray", "--port", str(port), *options],
            cwd=folder, env={**os.environ, **own, **env}, stdout=stream, stderr=stream,
        )  # fmt: skip
    running = Running(process, f"http://127.0.0.1:{port}", log)
    try:
        until(lambda: process.poll() is not None or bool(running.lines("serving")), START_S)
        assert process.poll() is None, log.read_text()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(120)
        finally:
            process.kill()


def until(claim: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.1)


def png(answer: Any) -> bytes:
    return base64.b64decode(answer["data"][0]["b64_json"])


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def tiny_engine(tiny: Path) -> Engine:
    return Engine(str(tiny), "sd")


def loras(engine: Engine, folder: Path, num: int) -> list[str]:
    """Names of LoRAs that a workspace has from now on."""
    names = [f"lora{number}" for number in range(num)]
    for number, name in enumerate(names):
        serving_parts.random_lora(engine, folder / "outputs" / "loras" / f"{name}.safetensors", number)
    return names


def rendered(engine: Engine, folder: Path, stack: StackConfig, lora: str = "", weight: float = 1.0) -> bytes:
    """What `velatura render` writes."""
    if lora:
        file = folder / "outputs" / "loras" / f"{lora}.safetensors"
        stack = stack.model_copy(update={"adapters": (AdapterChoice(file=str(file), weight=weight),)})
    return picture_metadata.save(engine.render(stack), folder / f"{secrets.token_hex(4)}.png").read_bytes()


def of_tiny(tiny: Path, seed: int, **more: Any) -> StackConfig:
    return StackConfig(
        base=str(tiny), family="sd", prompt="a fox", seed=seed, width_px=32, height_px=32, **{"steps": 3, **more}
    )


def test_two_bases_with_keys_serve_the_bytes_of_render(tmp_path: Path, engine: Engine, tiny: Path) -> None:
    (lora,) = loras(engine, tmp_path, 1)
    key = keys.add(tmp_path / "keys.toml", keys.Key(name="ann"))
    with serving(tmp_path, "--base", "imprimatura", "--base", str(tiny), "--keys", "keys.toml") as running:
        assert running.asked({}, key="vel-wrong")[0] == 401
        client = running.client(key)
        assert [model.id for model in client.models.list()][:2] == ["imprimatura", tiny.name]
        answer = client.images.generate(
            prompt="a fox", model=f"imprimatura+{lora}:0.5", response_format="b64_json",
            extra_body={"seed": 3, "steps": 2},
        )  # fmt: skip
        of_imprimatura = base64.b64decode(answer.data[0].b64_json)
        status, second = running.asked({"model": tiny.name, "seed": 4, **TINY}, key)
        events = client.images.generate(
            prompt="a fox", stream=True, partial_images=1, extra_body={"seed": 3, "steps": 2, "progress": True}
        )
        kinds = [event.type.removeprefix("image_generation.") for event in events]
        wrong = running.asked({"model": f"{tiny.name}+{lora}", **TINY}, key)
        replicas = running.replicas()
    assert of_imprimatura == rendered(engine, tmp_path, StackConfig(prompt="a fox", seed=3, steps=2), lora, 0.5)
    assert status == 200
    assert png(second) == rendered(Engine(str(tiny), "sd"), tmp_path, of_tiny(tiny, 4))
    assert sorted(kinds) == ["completed", "partial_image", "progress"] or kinds[-1] == "completed"
    assert wrong[0] == 400 and str(tmp_path) not in json.dumps(wrong[1]), "no path is told"
    assert len(replicas) == 2
    assert running.process.returncode == 0 and running.lines("ended")
    assert not any(replica.is_running() for replica in replicas)


def test_a_rare_lora_goes_to_one_replica(tmp_path: Path, tiny: Path, tiny_engine: Engine) -> None:
    names = loras(tiny_engine, tmp_path, 6)
    with serving(tmp_path, "--base", str(tiny), "--replicas", "2") as running:
        for _ in range(3):
            for name in names:
                assert running.asked({"loras": [{"name": name}], **TINY})[0] == 200
        served = [line["replica"] for line in running.lines("batch")]
    by_lora = [set(served[number :: len(names)]) for number in range(len(names))]
    assert all(len(replicas) == 1 for replicas in by_lora) and len(set(served)) == 2


@pytest.mark.timeout(7200)
def test_killed_replicas_under_load_leave_each_request_one_right_answer(
    tmp_path: Path, tiny: Path, tiny_engine: Engine
) -> None:
    names, chance = loras(tiny_engine, tmp_path, 4), random.Random(0)
    options = ("--base", str(tiny), "--replicas", "2", "--batch", "4", "--deadline-s", "1800")
    with serving(tmp_path, *options) as running:

        def kill() -> None:
            """As often as is wanted, each time once pictures were drawn since."""
            for _ in range(KILLS):
                num_drawn = len(running.lines("batch"))
                until(lambda least=num_drawn: len(running.lines("batch")) > least, 300)
                time.sleep(chance.uniform(0, 1))
                until(lambda: bool(running.replicas()), 300)
                chance.choice(running.replicas()).kill()

        answers = asked_until(running, names, kill, 16)
        until(lambda: len(running.lines("request")) >= len(answers), 10)
        statuses = [line["status"] for line in running.lines("request")]
        assert running.lines("replica lost"), "pictures were lost with the replica"
    assert sorted(answers) == list(range(len(answers))) and len(statuses) == len(answers)
    # Only who is killed with what draws it again and again isn't given its picture, and is told so.
    lost = [seed for seed, (status, _) in answers.items() if status != 200]
    assert all(answers[seed][1]["error"]["code"] == "replica_lost" for seed in lost) and len(lost) <= KILLS // 3
    drawn = sorted(set(answers) - set(lost))
    assert len(drawn) == statuses.count(200)
    print(f"{KILLS} kills, {len(drawn)} pictures, {len(lost)} told that they were lost")
    _check_some(tmp_path, tiny, tiny_engine, answers, names, drawn[:: max(1, len(drawn) // 20)])


def asked_until(
    running: Running, names: list[str], done: Callable[[], None], num_tenants: int
) -> dict[int, tuple[int, Any]]:
    """The answers to pictures of 40 steps by their seed, asked for by so many at a time until `done` returns."""
    answers: dict[int, tuple[int, Any]] = {}
    seeds, is_enough = itertools.count(), threading.Event()

    def ask() -> None:
        while not is_enough.is_set():
            seed = next(seeds)
            answers[seed] = running.asked({"seed": seed, "loras": [{"name": names[seed % 4]}], **TINY, "steps": 40})

    with ThreadPoolExecutor(num_tenants) as pool:
        asking = [pool.submit(ask) for _ in range(num_tenants)]
        try:
            done()
        finally:
            is_enough.set()
        for call in asking:
            call.result()
    return answers


def test_under_load_a_second_replica_comes_and_it_goes_again(tmp_path: Path, tiny: Path, tiny_engine: Engine) -> None:
    names = loras(tiny_engine, tmp_path, 4)
    options = ("--base", str(tiny), "--replicas", "1:2", "--shrink-s", "5", "--batch", "2", "--pin", names[0])
    with serving(tmp_path, *options) as running:

        def until_both_draw() -> None:
            until(lambda: len({line["replica"] for line in running.lines("batch")}) == 2, 400)

        answers = asked_until(running, names, until_both_draw, 12)
        until(lambda: [line["replicas"] for line in running.lines("replicas")][-1] == 1, 120)
        until(lambda: len(running.replicas()) == 1, 60)
        after = running.asked({"seed": 1, "loras": [{"name": names[1]}], **TINY, "steps": 40})
        grown = [line["replicas"] for line in running.lines("replicas")]
    assert grown == [1, 2, 1]
    assert sorted(answers) == list(range(len(answers))) and {status for status, _ in answers.values()} == {200}
    _check_some(tmp_path, tiny, tiny_engine, answers, names, range(0, len(answers), max(1, len(answers) // 8)))
    assert after[0] == 200 and png(after[1]) == rendered(tiny_engine, tmp_path, of_tiny(tiny, 1, steps=40), names[1])


def test_a_picture_that_ends_three_replicas_is_refused_and_others_are_drawn(
    tmp_path: Path, tiny: Path, tiny_engine: Engine
) -> None:
    names = loras(tiny_engine, tmp_path, 4)
    options = ("--base", str(tiny), "--batch", "4", "--deadline-s", "1800")  # a busy machine starts replicas in minutes
    with serving(tmp_path, *options) as running, ThreadPoolExecutor(8) as pool:

        def kill_at_each_start() -> str:
            """What the one that kills is told at last: at each step of it that is new, what draws it is killed."""
            try:
                for event in running.client().images.generate(
                    prompt="a fox", size="32x32", stream=True, extra_body={"steps": 150, "seed": 99, "progress": True}
                ):
                    if event.type == "image_generation.progress":
                        for replica in running.replicas():
                            replica.kill()
            except serving_parts.openai.APIError as error:
                return str(error.code)
            return "drawn"

        killing = pool.submit(kill_at_each_start)
        until(lambda: len(running.lines("order")) == 1, 60)
        asking = [
            pool.submit(running.asked, {"seed": seed, "loras": [{"name": names[seed % 4]}], **TINY, "steps": 20})
            for seed in range(6)
        ]
        assert killing.result() == "replica_lost"
        answers = {seed: call.result() for seed, call in enumerate(asking)}
        deaths = [line["deaths"] for line in running.lines("replica lost")]
    assert max(deaths) == 3 and [status for status, _ in answers.values()] == [200] * 6
    for seed in answers:
        _check_some(tmp_path, tiny, tiny_engine, answers, names, [seed], steps=20)


def _check_some(
    folder: Path, tiny: Path, engine: Engine, answers: dict[int, tuple[int, Any]], names: list[str],
    seeds: Iterable[int], steps: int = 40,
) -> None:  # fmt: skip
    """These answers have the pictures of their own recipes, but for what drawing them together rounds."""
    for seed in seeds:
        assert answers[seed][1]["data"][0]["seed"] == seed
        adapters = (_choice(folder, names[seed % 4]),)
        alone = engine.render(of_tiny(tiny, seed, steps=steps).model_copy(update={"adapters": adapters}))
        drawn = folder / "drawn.png"
        drawn.write_bytes(png(answers[seed][1]))
        assert _apart(alone.image, drawn) <= 1


def _choice(folder: Path, name: str) -> AdapterChoice:
    return AdapterChoice(file=str(folder / "outputs" / "loras" / f"{name}.safetensors"))


def _apart(image: Any, file: Path) -> int:
    """The largest difference of two pictures, of 255."""
    from PIL import Image, ImageChops

    with Image.open(file) as other:
        return max(high for _, high in ImageChops.difference(image.convert("RGB"), other.convert("RGB")).getextrema())


def test_at_sigterm_what_was_asked_for_is_answered(tmp_path: Path, tiny: Path) -> None:
    with serving(tmp_path, "--base", str(tiny), "--batch", "2") as running, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(running.asked, {"seed": seed, **TINY, "steps": 60}) for seed in range(8)]
        until(lambda: len(running.lines("order")) == 8, 60)
        running.process.send_signal(signal.SIGTERM)
        until(lambda: bool(running.lines("draining")), 10)
        assert [call.result()[0] for call in asking] == [200] * 8
        running.process.wait(60)
    assert running.process.returncode == 0


def test_a_base_that_no_replica_can_have_is_refused(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "serve", "--ray", "--base", "no-such-base", "--port", "0"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 2 and "no-such-base" in done.stderr and "Traceback" not in done.stderr


def test_a_cluster_of_two_nodes_serves_while_one_goes_away(tmp_path: Path, tiny: Path, tiny_engine: Engine) -> None:
    from test_batch_ray import cluster

    token = secrets.token_hex(32)
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    names = loras(tiny_engine, tmp_path, 4)
    with cluster("token", token) as (address, nodes):
        options = ("--base", str(tiny), "--replicas", "2", "--address", address, "--batch", "2")
        with serving(tmp_path, *options, **env) as running, ThreadPoolExecutor(8) as pool:
            asking = [
                pool.submit(running.asked, {"seed": seed, "loras": [{"name": names[seed % 4]}], **TINY, "steps": 40})
                for seed in range(24)
            ]
            until(lambda: sum(call.done() for call in asking) >= 4, 120)
            assert nodes.stdin
            nodes.stdin.write("end the second\n")
            nodes.stdin.flush()
            answers = [call.result() for call in asking]
    assert [status for status, _ in answers] == [200] * 24
    assert [answer["data"][0]["seed"] for _, answer in answers] == list(range(24))
