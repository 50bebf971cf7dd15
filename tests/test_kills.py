"""The real commands killed with SIGKILL again and again: what is there at the end is what an unbroken one leaves, each
thing once.

Half of a training's kills come while a checkpoint is written, which is seen from outside by its temporary folder. The
plain suite has the small versions; `make test-all` kills a training a hundred times and a batch of 200 rows twenty
times.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import json
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import plain, warm
from trainer import lora_file, presets, runs, session
from trainer.events import Event, Sampled, Step, Validated
from trainer.render import batch_ledger

# Waits until a process is to be killed, or has ended: given its id, whether it is alive, and the lines it has said so
# far.
Moment = Callable[[int, Callable[[], bool], list[str]], None]
TRAINING = {  # what goes from step to step, or draws; five pictures, of which one is left out
    "resolution_px": 32, "batch_size": 2, "learning_rate": 1e-2, "optimizer.ema_decay": 0.9, "data.flip": True,
    "data.crop": "random",
    "data.caption_dropout": 0.2, "captions.shuffle_tags": True, "validation.leave_out": 1, "checkpoint_every_steps": 2,
    "validate_every_steps": 10,
    "preview_every_steps": 20, "preview.steps": 1, "preview.prompts": ["a dot"], "keep_checkpoints": 2,
}  # fmt: skip
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def ends(command: list[str], folder: Path) -> float:
    """Run the command to its end; seconds until it said its first step or picture."""
    warm.run(["--help"], folder, 280)  # what forks is started
    began = time.monotonic()
    with warm.Command(command, folder) as process:
        for line in process.stdout:
            if '"event": "step"' in line or '"event": "rendered"' in line:
                break
        first = time.monotonic() - began
        _, wrong = process.communicate(1000)
    assert process.returncode == 0, wrong
    return first


def killed(command: list[str], folder: Path, moment: Moment) -> tuple[bool, str]:
    """Whether it was killed before it ended by itself, and all it said."""
    process = warm.Command(command, folder)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    moment(process.pid, reader.is_alive, lines)
    with contextlib.suppress(ProcessLookupError):  # it has ended
        process.kill()
    reader.join()
    _, wrong = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), wrong
    return process.returncode != 0, "\n".join([*lines, wrong, ""])


def after(seconds: float, event: str, times: int, more_s: float) -> Moment:
    """So many seconds after its start, or sooner: some more after it has said this event so many times."""

    def wait(pid: int, is_alive: Callable[[], bool], lines: list[str]) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and is_alive():
            if sum(line.startswith(f'{{"event": "{event}"') for line in [*lines]) >= times:
                time.sleep(more_s)
                return
            time.sleep(0.002)

    return wait


def tree(folder: Path) -> list[str]:
    """Every name below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# A training.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "mokka dot, {colour}, round, flat", num=5, wider_px=30)


def in_save(run: runs.Run, saves: int, seconds: float) -> Moment:
    """So many seconds after the process has begun to write a checkpoint for the `saves`-th time."""

    def wait(pid: int, is_alive: Callable[[], bool], lines: list[str]) -> None:
        begun: set[str] = set()
        while len(begun) < saves and is_alive():
            begun |= {path.name for path in run.checkpoints.glob(f".new-*-{pid}")}
            time.sleep(0.0003)
        time.sleep(seconds)

    return wait


def logged_events(run: runs.Run, *kinds: type[Event]) -> list[dict[str, object]]:
    """These events but for how long they took; every step once and in its place."""
    log = run.events()
    steps = [event.step for event in log if isinstance(event, Step)]
    assert steps == list(range(1, len(steps) + 1))
    return [
        {key: value for key, value in vars(event).items() if key != "seconds"}
        for event in log
        if isinstance(event, kinds)
    ]


def files(run: runs.Run) -> dict[str, bytes]:
    """Everything in a run's folder, whatever its name; without the bytes of files that a clock is in."""
    contents = {
        path: path.read_bytes() if path.suffix in (".safetensors", ".png", ".toml") else b""
        for path in run.folder.rglob("*")
        if path.is_file()
    }
    return {
        "its LoRA" if path == run.lora_file else path.relative_to(run.folder).as_posix(): content
        for path, content in contents.items()
    }


def same_run(run: runs.Run, whole: runs.Run) -> None:
    """LoRA, best, checkpoints, previews and losses, and nothing else."""
    contents, wanted = files(run), files(whole)
    assert sorted(contents) == sorted(wanted)
    assert not [name for name in wanted if contents[name] != wanted[name]]
    assert logged_events(run, Step, Validated, Sampled) == logged_events(whole, Step, Validated, Sampled)
    assert run.state() == whole.state() == "finished"


def kill_a_training(tmp_path: Path, tiny: Path, pictures: Path, max_steps: int, kills: int, seed: int) -> None:
    path = tmp_path / "settings.toml"
    config = presets.load(
        plain.CHARACTER, TRAINING | {"base": str(tiny), "data.folder": str(pictures), "max_steps": max_steps}
    )
    presets.save(session.absolute(config), path)

    def command(parent: str) -> list[str]:
        return ["train", str(path), "--name", "x", "--out", str(tmp_path / parent), "--resume", "--json"]

    first_s = ends(command("whole"), tmp_path)
    whole, run, draw = runs.Run(tmp_path / "whole" / "x"), runs.Run(tmp_path / "killed" / "x"), random.Random(seed)
    counted: collections.Counter[str] = collections.Counter()
    log = ""
    for number in range(kills):
        if number % 2:
            moment = in_save(run, draw.choice([1, 1, 2]), draw.choice([0, draw.uniform(0, 0.02)]))
        else:
            moment = after(draw.uniform(0, 1.2 * first_s), "step", draw.randint(1, 4), draw.uniform(0, 0.05))
        was_killed, more = killed(command("killed"), tmp_path, moment)
        counted["killed"] += was_killed
        counted["in a save"] += (
            number % 2 and was_killed and any(run.checkpoints.glob(".new-*"))
        )  # an earlier one's are gone by then
        counted["before it had begun"] += not run.events_file.exists()
        logged_events(run, Step)
        log += more
    num_steps = len(logged_events(run, Step))
    print(f"\n{dict(counted)}; to the first step {first_s:.1f} s; {num_steps} steps before the last start")
    ends(command("killed"), tmp_path)
    assert counted["killed"] == kills and counted["in a save"] >= kills // 4, counted
    assert "Traceback" not in log and "damaged" not in log and "error: " not in log
    same_run(run, whole)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")  # the cache too


def test_a_training_killed_at_random_and_while_it_saves_is_an_unbroken_one(
    tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    kill_a_training(tmp_path, tiny, pictures, max_steps=40, kills=6, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_killed_a_hundred_times_is_an_unbroken_one(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    kill_a_training(tmp_path, tiny, pictures, max_steps=300, kills=100, seed=1)


# A batch.


def rows_of(tmp_path: Path, num: int) -> Path:
    """Rows of four sizes, five numbers of steps and three stacks: twenty batches and more."""
    for name, value in (("one", 0.3), ("two", -0.4)):
        parts = {"lora_down.weight": torch.full((1, 32), value), "lora_up.weight": torch.ones(32, 1)}
        lora_file.save(tmp_path / f"{name}.safetensors", {LAYER: parts}, {}, torch.float32)
    stacks = [
        "",
        f"{tmp_path / 'one.safetensors'}:0.5",
        f"{tmp_path / 'one.safetensors'}:1;{tmp_path / 'two.safetensors'}:0.7",
    ]
    path = tmp_path / "jobs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("prompt", "seed", "steps", "size", "lora"))
        writer.writerows(
            (f"fox {seed % 7}", seed, 1 + seed % 5, f"{32 + 8 * (seed % 4)}x32", stacks[seed % 3])
            for seed in range(num)
        )
    return path


def same_batch(out: Path, whole: Path, num: int) -> None:
    """Pictures, sheets and manifest byte for byte, every row and every picture once, and nothing else."""
    assert tree(out) == tree(whole)
    for name in tree(whole):
        if name.endswith((".png", "manifest.csv")):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert {path.name for path in (out / batch_ledger.HIDDEN).iterdir()} == {"journal.jsonl", "lock", "sheets.json"}
    with (out / "manifest.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [str(number) for number in range(1, num + 1)] and {
        row["state"] for row in rows
    } == {"done"}
    assert len({row["file"] for row in rows}) == len(list(out.glob("*.png"))) == num
    done = collections.Counter(record["done"] for record in batch_ledger.read_journal(out) if "done" in record)
    assert len(done) == num and set(done.values()) == {1}


def torn(out: Path) -> list[str]:
    """The digests of the batch at hand that are not done."""
    records = [*batch_ledger.read_journal(out)]
    begun = [record["begun"] for record in records if "begun" in record]
    done = {record.get("done") for record in records}
    return [digest for digest in (begun[-1] if begun else []) if digest not in done]


def done(log: str) -> list[int]:
    """How many pictures there were each time that one more was."""
    return [
        json.loads(line)["done"]
        for line in log.splitlines()
        if line.startswith('{"event": "rendered"') and line.endswith("}")
    ]


def kill_a_batch(tmp_path: Path, tiny: Path, num: int, kills: int, seed: int) -> None:
    path, draw = rows_of(tmp_path, num), random.Random(seed)

    def command(out: str) -> list[str]:
        return ["batch", str(path), "--base", str(tiny), "--out", str(tmp_path / out), "--json"]

    first_s = ends(command("whole"), tmp_path)
    counted: collections.Counter[str] = collections.Counter()
    log = ""
    while counted["killed"] < kills:
        seconds = draw.uniform(0, 1.2 * first_s) if counted["killed"] % 2 else 100.0
        moment = after(seconds, "rendered", draw.randint(1, 12), draw.uniform(0, 0.1))
        was_killed, more = killed(command("killed"), tmp_path, moment)
        counted["killed"] += was_killed
        counted["ended first"] += not was_killed
        counted["while drawing"] += was_killed and '"rendered"' in more
        counted["in a torn batch"] += was_killed and bool(torn(tmp_path / "killed"))
        log += more
    print(f"\n{dict(counted)}; to the first picture {first_s:.1f} s; {len(done(log))} pictures before the last start")
    ends(command("killed"), tmp_path)
    assert counted["ended first"] <= 2 and done(log) == sorted(set(done(log)))  # none was drawn and kept twice
    assert "Traceback" not in log and "error: " not in log
    same_batch(tmp_path / "killed", tmp_path / "whole", num)


def test_a_batch_killed_at_random_is_an_unbroken_one(tmp_path: Path, tiny: Path) -> None:
    kill_a_batch(tmp_path, tiny, num=40, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_batch_of_200_rows_killed_twenty_times_is_an_unbroken_one(tmp_path: Path, tiny: Path) -> None:
    kill_a_batch(tmp_path, tiny, num=200, kills=20, seed=1)
