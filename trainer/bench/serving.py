"""`velatura bench serve`: many tenants' stacks from one server, against no mixed batches and a plain diffusers loop.

The load is closed: each tenant has one request open and asks again as soon as it is answered, so a server's rate and
its latency say the same twice. "The base's at the same load" is the same tenants asking the same server for pictures
without LoRAs. All four are measured in turn, round by round, on two cores of one machine. Every picture of the mixed
batches is compared with its own recipe drawn alone.
"""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from trainer.bench import scale_costs, served, serving_load
from trainer.bench.served import Served
from trainer.bench.serving_load import Answer, Asked, Load
from trainer.config import AdapterChoice, StackConfig
from trainer.render import picture_metadata
from trainer.render.engine import Engine
from trainer.serving import keys

TOLERANCE = 1  # of 255, as the suite has it for pictures of a batch
_SERVERS = {"mixed": [], "unmixed": ["--no-mixed-batches"]}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured."""

    tenants: int = 16
    loras: int = 200
    requests: int = 3  # of each tenant in a round
    rounds: int = 2
    steps: int = 25
    plain: int = 12  # pictures of the plain loop in a round


@dataclasses.dataclass(frozen=True)
class Row:
    """One way of serving: rate and latencies over all rounds."""

    name: str
    pictures: int
    pictures_a_minute: float
    p50_s: float
    p95_s: float
    cpu_s: float  # that a picture took, of all cores: other work on the machine changes it least
    mean_batch: float
    failed: int
    joined_next: float = 0.0  # share of the pictures that came while a batch was drawn, and joined the next
    join_wait_s: float = 0.0  # how long these waited for that batch, on the mean


@dataclasses.dataclass(frozen=True)
class Report:
    """The table, and whether every picture is its own."""

    size: Size
    rows: tuple[Row, ...]
    times_plain: float  # mixed against the plain loop, in pictures a minute
    times_unmixed: float
    p95_of_base: float  # mixed over the base's at the same load
    checked: int
    wrong: tuple[str, ...]  # pictures that aren't their recipe's
    largest_difference: int  # of 255
    measured: scale_costs.Measured  # what a batch's parts took in the same minutes, for `bench scale --against`


def run(size: Size, note: Callable[[str], None] = lambda text: None) -> Report:
    """The whole measurement; `note` is told how far it is. Raises: RunError if a server doesn't start."""
    with ExitStack() as stack:
        scratch, own = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="velatura-bench-"))) for _ in range(2)
        )
        # The LoRAs, and a key for each tenant.
        engine = Engine()
        files = _loras(engine, scratch / "loras", size.loras)
        own_keys = [keys.add(scratch / "keys.toml", _key(number)) for number in range(size.tenants)]
        own_keys.append(keys.add(scratch / "keys.toml", keys.Key(name="metrics", metrics=True)))
        note(f"{len(files)} LoRAs made")

        # Both servers stay up: each is measured while the other waits.
        servers = {name: stack.enter_context(served.server(scratch, options)) for name, options in _SERVERS.items()}
        note("servers are up")
        loads: dict[str, list[Load]] = {name: [] for name in ("base", "mixed", "unmixed", "plain")}
        pipe = _plain_pipe(engine)
        measuring = scale_costs.Measuring(engine, own / "loras", servers["mixed"], own_keys[0])
        measuring.round()
        for number in range(size.rounds + 1):
            # The first round isn't counted: LoRAs are read, memory is taken.
            each = size.requests if number else 1
            asked = serving_load.requests(size.tenants, each, list(files), number)
            round_loads = {
                "base": _load(servers["mixed"], own_keys, asked, size, with_loras=False),
                "mixed": _load(servers["mixed"], own_keys, asked, size),
                "unmixed": _load(servers["unmixed"], own_keys, asked, size),
                "plain": _plain(
                    pipe, [one for own in asked for one in own][: size.plain if number else 1], files, size
                ),
            }
            for name, load in round_loads.items():
                note(f"round {number}, {name}: {load.pictures_a_minute:.1f} pictures a minute")
                if number:
                    loads[name].append(load)
            measuring.round()
            note(f"round {number}: a batch's costs measured")

        # Every picture, now that nothing is measured any more.
        note("comparing every picture with its own recipe drawn alone")
        answers = [answer for load in loads["mixed"] for answer in load.answers]
        return _report(size, loads, measuring.measured(), *_compared(engine, answers, files, size.steps))


def _report(
    size: Size, loads: dict[str, list[Load]], measured: scale_costs.Measured, wrong: list[str], largest: int
) -> Report:
    rows = {name: _row(name, measured) for name, measured in loads.items()}
    mixed = rows["mixed"]
    return Report(
        size,
        tuple(rows.values()),
        mixed.pictures_a_minute / rows["plain"].pictures_a_minute,
        mixed.pictures_a_minute / rows["unmixed"].pictures_a_minute,
        mixed.p95_s / rows["base"].p95_s,
        mixed.pictures,
        tuple(wrong),
        largest,
        measured,
    )


def _row(name: str, loads: list[Load]) -> Row:
    answers = [answer for load in loads for answer in load.answers]
    drawn = [answer for answer in answers if answer.status == 200]
    seconds = sorted(answer.seconds for answer in drawn) or [0.0]
    return Row(
        name,
        len(drawn),
        60 * len(drawn) / sum(load.seconds for load in loads),
        statistics.median(seconds),
        seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
        sum(load.cpu_s for load in loads) / max(1, len(drawn)),
        statistics.fmean([answer.batch_pictures for answer in drawn] or [0]),
        len(answers) - len(drawn),
        sum(load.joins.next for load in loads) / max(1, sum(load.joins.next + load.joins.at_once for load in loads)),
        sum(load.joins.waited_s for load in loads) / max(1, sum(load.joins.next for load in loads)),
    )


def _key(number: int) -> keys.Key:
    return keys.Key(name=f"tenant-{number}", requests_per_minute=100_000)


def _loras(engine: Engine, folder: Path, count: int) -> dict[str, Path]:
    """The files of random LoRAs by name."""
    folder.mkdir()
    files = {f"lora-{number}": folder / f"lora-{number}.safetensors" for number in range(count)}
    for number, path in enumerate(files.values()):
        serving_load.random_lora(engine, path, number)
    return files


def _load(server: Served, own_keys: list[str], asked: list[list[Asked]], size: Size, with_loras: bool = True) -> Load:
    """One round against a server, with the time that its process took of all cores; the last key reads metrics."""
    before, joins = server.cpu_s(), serving_load.joins(server.port, own_keys[-1])
    load = serving_load.run(server.port, own_keys, asked, size.steps, with_loras)
    since = serving_load.joins(server.port, own_keys[-1]).since(joins)
    return dataclasses.replace(load, cpu_s=server.cpu_s() - before, joins=since)


# The plain loop.


def _plain_pipe(engine: Engine) -> Any:
    pipe = engine.family.load(engine.folder, str(engine.pipe.device), engine.pipe.dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _plain(pipe: Any, asked: list[Asked], files: dict[str, Path], size: Size) -> Load:
    """diffusers as its documentation shows it: LoRAs loaded, set, drawn with and taken away for each request."""
    answers, began, before = [], time.perf_counter(), served.cpu_s()
    for one in asked:
        start = time.perf_counter()
        for name, _ in one.loras:
            file = files[name]
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
        pipe.set_adapters([name for name, _ in one.loras], [weight for _, weight in one.loras])
        image = pipe(
            one.prompt,
            negative_prompt="",
            num_inference_steps=size.steps,
            guidance_scale=3.0,
            guidance_rescale=0.7,
            generator=torch.Generator().manual_seed(one.seed),
            width=128,
            height=128,
        ).images[0]
        pipe.unload_lora_weights()
        written = io.BytesIO()
        image.save(written, "PNG")
        answers.append(Answer(one, 200, time.perf_counter() - start, written.getvalue(), 1))
    return Load(tuple(answers), time.perf_counter() - began, served.cpu_s() - before)


# Whether each picture is its own.


def _compared(engine: Engine, answers: list[Answer], files: dict[str, Path], steps: int) -> tuple[list[str], int]:
    """What is wrong with any picture, and the largest difference from its recipe drawn alone."""
    wrong, largest = [], 0
    for answer in answers:
        one = answer.asked
        name = f"tenant {one.tenant}, request {one.number}"
        if answer.status != 200:
            wrong.append(f"{name}: {answer.status} {answer.error}")
            continue
        adapters = tuple(AdapterChoice(file=str(files[lora]), weight=weight) for lora, weight in one.loras)
        alone = engine.render(StackConfig(prompt=one.prompt, seed=one.seed, steps=steps, adapters=adapters))
        # The recipe as JSON has it, since it travelled in a file.
        carried = picture_metadata.read(io.BytesIO(answer.png)).recipe
        if carried != json.loads(json.dumps(picture_metadata.travelling(alone.stack))):
            wrong.append(f"{name}: its recipe is another's")
        with Image.open(io.BytesIO(answer.png)) as served:
            difference = numpy.abs(numpy.asarray(served, int) - numpy.asarray(alone.image, int)).max()
        largest = max(largest, int(difference))
        if difference > TOLERANCE:
            wrong.append(f"{name}: differs by {difference} of 255 from its recipe drawn alone")

    # Each request once.
    keys_of = [(answer.asked.tenant, answer.asked.number, answer.asked.seed) for answer in answers]
    if len(set(keys_of)) != len(keys_of):
        wrong.append("a request was answered twice")
    return wrong, largest


def to_json(report: Report) -> str:
    """The report as JSON."""
    return json.dumps(dataclasses.asdict(report), indent=2)


def describe(report: Report) -> str:
    """The table for people, with what it comes to."""
    head = (
        f"{'served':<10}{'pictures':>10}{'a minute':>10}{'p50 s':>9}{'p95 s':>9}{'cpu s':>8}{'a batch':>9}{'failed':>8}"
        f"{'joined next':>13}{'after s':>9}"
    )
    lines = [
        f"{row.name:<10}{row.pictures:>10}{row.pictures_a_minute:>10.1f}{row.p50_s:>9.2f}{row.p95_s:>9.2f}"
        f"{row.cpu_s:>8.2f}{row.mean_batch:>9.1f}{row.failed:>8}"
        f"{row.joined_next:>13.0%}{row.join_wait_s:>9.2f}"
        for row in report.rows
    ]
    size = report.size
    lines += [
        f"{size.tenants} tenants, {size.loras} LoRAs, {size.steps} steps: {report.times_plain:.2f} times the plain "
        f"diffusers loop, {report.times_unmixed:.2f} times without mixed batches, p95 {report.p95_of_base:.2f} times "
        f"the base's at the same load",
        f"{report.checked} pictures compared with their recipes drawn alone: {len(report.wrong)} wrong, largest "
        f"difference {report.largest_difference} of 255",
        *report.wrong[:10],
    ]
    return "\n".join([head, *lines])
