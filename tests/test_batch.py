"""A batch draws every picture exactly once, however it is broken off, and refuses what can't be drawn before it draws
anything."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import warm
from tests.batches import Painter, draw, files, jobs, lora, manifest, plan_of
from trainer.errors import RunError
from trainer.render import batch, batch_ledger, batch_manifest

# Exactly once.


class Killed(BaseException):
    """From here on nothing reaches the disk, as if by kill -9."""


class Death:
    """Lets so many file operations happen, then none."""

    def __init__(self, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = left
        for name in ("fsync", "link", "replace"):
            monkeypatch.setattr(os, name, self.guard(getattr(os, name)))
        for name in ("unlink", "mkdir"):
            monkeypatch.setattr(Path, name, self.guard(getattr(Path, name)))

    def guard(self, call):
        def guarded(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return call(*args, **kwargs)

        return guarded


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three sizes of step, LoRAs, a row that stands twice, and names that meet."""
    first, second = lora(tmp_path / "one.safetensors", 0.1), lora(tmp_path / "two.safetensors", -0.2)
    rows = [
        (
            "a fox",
            number,
            2 + number % 3,
            "" if number % 2 else f"{first}:0.5;{second}:1",
            "{prompt}" if number < 3 else "",
        )
        for number in range(1, 8)
    ]
    return jobs(tmp_path / "mixed.csv", [("prompt", "seed", "steps", "lora", "name"), *rows, rows[0]])


def test_killed_before_any_file_operation_and_started_again_every_picture_is_there_once_and_the_same(
    tmp_path: Path, tiny: Path, mixed: Path
) -> None:
    whole = tmp_path / "whole"
    draw(mixed, tiny, whole)
    assert len(files(whole)) == 7
    finished, operations = False, 0
    while not finished:
        out = tmp_path / "killed" / str(operations)
        painter = Painter()
        with pytest.MonkeyPatch.context() as patch:
            Death(operations, patch)
            try:
                draw(mixed, tiny, out, painter)
                finished = True
            except Killed:
                pass
        if (out / ".batch" / "journal.jsonl").exists() and operations % 3 == 0:  # and the last line is torn
            with (out / ".batch" / "journal.jsonl").open("ab") as file:
                file.write(b'{"done": "abc')
        ended = draw(mixed, tiny, out, painter)
        assert files(out) == files(whole), operations
        assert manifest(out) == manifest(whole) and ended.there == 7
        assert sorted(path.name for path in (out / ".batch").iterdir()) == ["journal.jsonl", "lock"]
        operations += 1
    assert operations > 30


def test_killed_many_times_it_still_is(tmp_path: Path, tiny: Path, mixed: Path) -> None:
    draw(mixed, tiny, tmp_path / "whole")
    chance = random.Random(0)
    for kills in range(20):
        out = tmp_path / "killed" / str(kills)
        for _ in range(kills % 5 + 1):
            with pytest.MonkeyPatch.context() as patch:
                Death(chance.randrange(25), patch)
                with contextlib.suppress(Killed):
                    draw(mixed, tiny, out)
        draw(mixed, tiny, out)
        assert files(out) == files(tmp_path / "whole")


def test_a_manifest_says_that_all_is_done_only_when_all_is(
    tmp_path: Path, tiny: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is taken for finished by its manifest, and a kill may come before the contact sheets."""

    def kill(*_: object) -> int:
        assert {row["state"] for row in manifest(tmp_path / "out")} == {"done", "todo"}
        raise Killed

    clock = (100**number for number in itertools.count())
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # a manifest after every picture
    monkeypatch.setattr(batch_manifest, "write_sheets", kill)
    with pytest.raises(Killed):
        draw(mixed, tiny, tmp_path / "out", sheets=True)


def test_a_second_time_nothing_is_drawn_or_written(tmp_path: Path, tiny: Path, mixed: Path) -> None:
    draw(mixed, tiny, tmp_path / "out", sheets=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert (tmp_path / "out" / "contact-sheets" / "page-0001.png") in before
    painter = Painter()
    assert draw(mixed, tiny, tmp_path / "out", painter, sheets=True).made == 0 and not painter.drawn
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")} == before


def test_rows_that_want_the_same_are_one_picture_and_a_copy_of_a_lora_is_the_same_lora(
    tmp_path: Path, tiny: Path
) -> None:
    first = lora(tmp_path / "one.safetensors", 0.1)
    (tmp_path / "copy.safetensors").write_bytes(first.read_bytes())
    path = jobs(
        tmp_path / "x.csv", [("seed", "lora"), (1, f"{first}:1"), (1, tmp_path / "copy.safetensors"), (2, ""), (2, "")]
    )
    draw(path, tiny, tmp_path / "out")
    assert len(files(tmp_path / "out")) == 2
    assert [row["file"] for row in manifest(tmp_path / "out")] == [
        sorted(files(tmp_path / "out"))[place] for place in (0, 0, 1, 1)
    ]


def test_what_is_missing_or_spoilt_is_drawn_again_and_nothing_else(tmp_path: Path, tiny: Path, mixed: Path) -> None:
    out, painter = tmp_path / "out", Painter()
    draw(mixed, tiny, out)
    first, second, three = sorted(files(out))[:3]
    (out / first).unlink()
    (out / second).write_bytes(b"something else")
    os.utime(out / three)
    assert draw(mixed, tiny, out, painter).made == len(painter.drawn) == 2
    assert (out / second).read_bytes() == b"something else", "a file that isn't ours stays"
    assert draw(mixed, tiny, out).made == 0


def test_a_foreign_file_is_never_overwritten(tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "x.png").write_bytes(b"mine")
    (out / "manifest.csv").write_text("prompt,seed\nmine,1\n")
    (out / "folder").write_bytes(b"mine too")
    path = jobs(tmp_path / "x.csv", [("seed", "name"), (1, "x"), (2, "x"), (3, "folder/x")])
    ended = draw(path, tiny, out)
    assert (out / "x.png").read_bytes() == b"mine" and (out / "manifest.csv").read_text().startswith(
        "prompt,seed\nmine"
    )
    assert set(files(out)) == {"x.png", "x-2.png", "x-3.png"} and ended.failed == 1
    assert Path(ended.manifest).name == "manifest-2.csv"
    assert draw(path, tiny, out).made == 0 and len(files(out)) == 3


def test_more_rows_later_draw_only_what_is_new_in_full_batches(tmp_path: Path, tiny: Path) -> None:
    painter = Painter()
    for last in (4, 9):
        path = jobs(
            tmp_path / "x.csv", [("prompt", "seed"), *((prompt, seed) for prompt in ("a", "b") for seed in range(last))]
        )
        draw(path, tiny, tmp_path / "out", painter)
    assert len(painter.drawn) == len(set(painter.drawn)) == len(files(tmp_path / "out")) == 18


def test_a_base_that_was_changed_is_drawn_anew_and_a_copy_of_it_is_not(tmp_path: Path, tiny: Path) -> None:
    path = jobs(tmp_path / "x.csv", [("seed",), (1,), (2,)])
    moved = tmp_path / "moved"
    shutil.copytree(tiny, moved)
    assert [draw(path, base, tmp_path / "out").made for base in (tiny, moved)] == [2, 0]
    config = moved / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + " ")
    assert draw(path, moved, tmp_path / "out").made == 2, "how it takes the noise away is part of a base"
    assert draw(path, moved, tmp_path / "out").made == 0 and draw(path, tiny, tmp_path / "out").made == 0


def test_two_batches_do_not_work_in_one_folder(tmp_path: Path, tiny: Path, mixed: Path) -> None:
    first = batch.run(plan_of(mixed, tiny), tmp_path / "out", lambda base, family: Painter())
    next(first)
    with pytest.raises(RunError, match="another batch is at work"):
        draw(mixed, tiny, tmp_path / "out")
    first.close()
    assert draw(mixed, tiny, tmp_path / "out").there == 7


# Groups.


def test_bases_and_adapters_are_together_and_batches_are_full(tmp_path: Path, tiny: Path) -> None:
    loras = [f"{lora(tmp_path / f'{number}.safetensors', number)}:1" for number in range(1, 4)]
    chance = random.Random(1)
    rows = [(seed, steps, lora_file) for seed in range(50) for steps in (2, 3) for lora_file in loras]
    chance.shuffle(rows)
    plan = plan_of(jobs(tmp_path / "x.csv", [("seed", "steps", "lora"), *rows]), tiny, size="128x128")
    chunks = list(plan.chunks([]))
    drawn = [(work.stack.steps, work.stack.adapters[0].name) for chunk in chunks for work in chunk]
    assert [len(chunk) for chunk in chunks] == [50] * 6, "a stack of its own batch from half full on"
    assert len(_changes(drawn)) == 6, "each number of steps and LoRA comes once"
    few = jobs(tmp_path / "few.csv", [("seed", "steps", "lora"), *(row for row in rows if row[0] < 10)])
    assert [len(chunk) for chunk in plan_of(few, tiny, size="128x128").chunks([])] == [30] * 2, "smaller ones share one"
    many = jobs(tmp_path / "many.csv", [("seed",), *((seed,) for seed in range(200))])
    assert [len(chunk) for chunk in plan_of(many, tiny, size="128x128").chunks([])] == [64, 64, 64, 8]


def _changes(items: list[object]) -> list[object]:
    return [item for number, item in enumerate(items) if number == 0 or item != items[number - 1]]


def test_a_base_is_opened_once(tmp_path: Path, tiny: Path, imprimatura_folder: Path) -> None:
    bases = [str(tiny), "imprimatura"]
    path = jobs(tmp_path / "x.csv", [("seed", "base"), *((seed, bases[seed % 2]) for seed in range(20))])
    opened = collections.Counter()

    def open_engine(base: str, family: str) -> Painter:
        opened[base] += 1
        return Painter()

    list(batch.run(plan_of(path, tiny), tmp_path / "out", open_engine, sheets=False))
    assert opened == {base: 1 for base in bases}


# Beside the pictures.


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1", " =1", "＝1", "\n=cmd|' /C calc'!A0"])
def test_no_cell_of_the_manifest_is_a_formula(tmp_path: Path, tiny: Path, text: str) -> None:
    draw(jobs(tmp_path / "x.csv", [("prompt", "negative"), (f"{text}", text)]), tiny, tmp_path / "out")
    row = manifest(tmp_path / "out")[0]
    assert row["prompt"].startswith("'") and row["negative"].startswith("'")
    assert not [cell for cell in row.values() if cell.strip()[:1] in ("=", "+", "-", "@", "＝")]


def test_ten_thousand_rows_stream_and_memory_stays_flat(tmp_path: Path, tiny: Path) -> None:
    """Reading, planning, drawing with the painter and writing the manifest: what Python allocates at most, by
    tracemalloc.
    """

    def peak(num: int) -> int:
        path = jobs(
            tmp_path / f"{num}.csv",
            [("prompt", "seed"), *((f"a fox number {number}, standing in the snow", number) for number in range(num))],
        )
        out = tmp_path / str(num)
        tracemalloc.start()
        try:
            plan = plan_of(path, tiny)
            assert list(plan.groups())[0][1] == num
            for _ in plan.chunks([]):
                pass
            out.mkdir()
            (out / batch_ledger.HIDDEN).mkdir()
            batch_manifest.write_manifest(plan, out / "manifest.csv")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    small, large = peak(2000), peak(10_000)
    assert large < small * 1.3 + (1 << 20), (small, large)


# The real process.


def command(path: Path, tiny: Path, out: Path, *more: str) -> list[str]:
    return ["batch", str(path), "--base", str(tiny), "--size", "32x32", "--out", str(out), "--json", *more]


def until_drawn(process: warm.Command) -> None:
    for line in process.stdout:
        if '"rendered"' in line:
            return


def test_killed_for_real_again_and_again_the_pictures_are_those_of_an_unbroken_batch(
    tmp_path: Path, tiny: Path
) -> None:
    first, second = lora(tmp_path / "one.safetensors", 0.3), lora(tmp_path / "two.safetensors", -0.4)
    rows = [
        (prompt, seed, 4 + seed % 12, f"{first}:{seed / 50};{second}:1" if seed % 3 else "")
        for seed in range(48)
        for prompt in ("a fox", "an owl")
    ]
    path = jobs(tmp_path / "x.csv", [("prompt", "seed", "steps", "lora"), *rows])
    whole = warm.run(command(path, tiny, tmp_path / "whole"), tmp_path, 200)
    assert whole.returncode == 0, whole.stderr
    out, chance, killed = tmp_path / "killed", random.Random(0), 0
    for _ in range(6):
        with warm.Command(command(path, tiny, out), tmp_path) as process:
            until_drawn(process)
            time.sleep(chance.uniform(0, 0.4))
            process.kill()
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
    done = warm.run(command(path, tiny, out), tmp_path, 200)
    assert done.returncode == 0, done.stderr
    assert killed >= 3 and len(files(out)) == 96
    assert files(out) == files(tmp_path / "whole") and manifest(out) == manifest(tmp_path / "whole")
    again = warm.run(command(path, tiny, out), tmp_path, 200)
    assert json.loads(again.stdout.splitlines()[-1])["made"] == 0


def test_ctrl_c_finishes_the_batch_at_hand_writes_the_manifest_and_exits_with_130(tmp_path: Path, tiny: Path) -> None:
    path = jobs(tmp_path / "x.csv", [("seed", "steps"), *((seed, 5 + seed) for seed in range(60))])
    with warm.Command(command(path, tiny, tmp_path / "out"), tmp_path) as process:
        until_drawn(process)
        process.send_signal(signal.SIGINT)
        output, wrong = process.communicate(timeout=60)
    last = json.loads(output.splitlines()[-1])
    assert process.returncode == 130 and last["stopped"] and not wrong.count("Traceback")
    states = collections.Counter(row["state"] for row in manifest(tmp_path / "out"))
    assert (
        states["done"] == len(files(tmp_path / "out")) == last["there"] < 60 and states["todo"] == 60 - states["done"]
    )
