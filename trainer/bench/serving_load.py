"""The load of `velatura bench serve`: tenants with LoRAs of Zipf popularity, each asking again once it is answered.

Every request is drawn from (seed, tenant, number), so that each server gets the same ones.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer import lora_file
from trainer.render.engine import Engine

_RANK = 16
# The layouts that the two presets of Imprimatura train: everything, and everything but what is drawn (`block_rates`).
_LAYOUTS = (r"unet\.", r"unet\.up_blocks\.")
_PROMPTS = ("a fox", "a red apple", "a smiling cat face", "a penguin", "a house with a red roof", "a blue car")
_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Asked:
    """One request of a tenant: its prompt, seed, and LoRAs by name with their weights."""

    tenant: int
    number: int
    prompt: str
    seed: int
    loras: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Answer:
    """What came of a request."""

    asked: Asked
    status: int
    seconds: float
    png: bytes = b""
    batch_pictures: int = 0
    error: str = ""


@dataclass(frozen=True)
class Joins:
    """How pictures came into batches, as the server's metrics count it."""

    at_once: int = 0  # no batch was being drawn as they came
    next: int = 0  # a batch was being drawn, and they joined the next
    waited_s: float = 0.0  # for the batch that was being drawn, all of these together

    def since(self, before: Joins) -> Joins:
        """What was counted since."""
        return Joins(self.at_once - before.at_once, self.next - before.next, self.waited_s - before.waited_s)


@dataclass(frozen=True)
class Load:
    """All requests of one round and how long they took together."""

    answers: tuple[Answer, ...]
    seconds: float
    cpu_s: float = 0.0  # of the process that drew
    joins: Joins = Joins()

    @property
    def pictures_a_minute(self) -> float:
        return 60 * sum(answer.status == 200 for answer in self.answers) / self.seconds


def random_lora(engine: Engine, path: Path, seed: int) -> Path:
    """A small random LoRA of rank 16 in one of the layouts that Imprimatura's presets train, in kohya's names."""
    rng, parts = torch.Generator().manual_seed(seed), {}
    layout = re.compile(_LAYOUTS[seed % len(_LAYOUTS)])
    target = re.compile(engine.family.targets["all"])
    for name, (out, into, *kernel) in engine.shapes.items():
        if not layout.match(name) or not target.fullmatch(name.removeprefix(f"{engine.component}.")):
            continue
        fan_in = into * (kernel[0] * kernel[1] if kernel else 1)
        down = torch.randn(_RANK, into, *kernel, generator=rng) / fan_in**0.5
        up = torch.randn(out, _RANK, *[1] * len(kernel), generator=rng) * 0.01
        parts[engine.file_keys[name]] = {
            "lora_down.weight": down,
            "lora_up.weight": up,
            "alpha": torch.tensor(float(_RANK)),
        }
    lora_file.save(path, parts, {}, torch.float16)
    return path


def requests(tenants: int, each: int, loras: Sequence[str], seed: int) -> list[list[Asked]]:
    """Each tenant's requests: stacks of one to three LoRAs at random weights, popular by Zipf's law."""
    popularity = torch.tensor([1.0 / (rank + 1) for rank in range(len(loras))])
    made = []
    for tenant in range(tenants):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + tenant)
        own = []
        for number in range(each):
            count = min(len(loras), 1 + int(torch.randint(3, (), generator=rng)))
            chosen = torch.multinomial(popularity, count, generator=rng).tolist()
            weights = (0.2 + torch.rand(count, generator=rng)).tolist()
            stack = tuple((loras[lora], round(weight, 3)) for lora, weight in zip(chosen, weights, strict=True))
            prompt = _PROMPTS[int(torch.randint(len(_PROMPTS), (), generator=rng))]
            picture_seed = int(torch.randint(2**31, (), generator=rng))
            own.append(Asked(tenant, number, prompt, picture_seed, stack))
        made.append(own)
    return made


def joins(port: int, key: str) -> Joins:
    """What a server's metrics say now, for a key that may read them."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        lines = [line.rpartition(" ") for line in response.read().decode().splitlines()]
    counts = {name: float(value) for name, _, value in lines if name.startswith("velatura_join")}
    at_once, joined_next = (counts.get(f'velatura_joins_total{{batch="{name}"}}', 0) for name in ("at once", "next"))
    return Joins(int(at_once), int(joined_next), counts.get("velatura_join_wait_seconds_sum", 0.0))


def run(port: int, keys: Sequence[str], asked: list[list[Asked]], steps: int, with_loras: bool = True) -> Load:
    """Every tenant asks for one picture after the other, all at once."""
    answers: list[Answer] = []
    lock = threading.Lock()

    def tenant(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
        for one in asked[number]:
            answer = _ask(connection, keys[number], one, steps, with_loras)
            with lock:
                answers.append(answer)
        connection.close()

    threads = [threading.Thread(target=tenant, args=(number,)) for number in range(len(asked))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(tuple(answers), time.perf_counter() - began)


def _ask(connection: http.client.HTTPConnection, key: str, one: Asked, steps: int, with_loras: bool) -> Answer:
    """One request and its answer; a connection that breaks is an answer too."""
    values: dict[str, Any] = {"prompt": one.prompt, "seed": one.seed, "steps": steps}
    if with_loras:
        values["loras"] = [{"name": name, "weight": weight} for name, weight in one.loras]
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    began = time.perf_counter()
    try:
        connection.request("POST", "/v1/images/generations", json.dumps(values), headers)
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        return Answer(one, 0, time.perf_counter() - began, error=str(error))
    seconds = time.perf_counter() - began
    if response.status != 200:
        return Answer(one, response.status, seconds, error=str(body)[:300])
    picture = body["data"][0]
    return Answer(one, 200, seconds, base64.b64decode(picture["b64_json"]), picture["batch_pictures"])
