"""A run whose checkpoints, disk or base fail: the one before is used, what is left is said truly, and nothing empty
stays behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import plain
from trainer import checkpoint, events, lora_file, presets, runs, session, unique_names
from trainer.errors import ModelError, RunError
from trainer.events import Failed, Finished, Saved, Started, Step, Warned

SHAPES = [b"[]", b"null", b"1", b'"x"', b"true", b"[" * 100_000, b"\xff\xfe", b""]
TABLES = [
    b"{}",
    b'{"schema": 2}',
    b'{"schema": [2]}',
    b'{"schema": 2, "step": "4", "sha256": {"state.json": "x"}}',
    b'{"schema": 2, "step": 4, "sha256": []}',
    b'{"schema": 2, "step": 4, "sha256": null}',
    b'{"schema": 2, "step": 4, "sha256": {}}',
    b'{"schema": 2, "step": true, "sha256": {"state.json": 1}}',
    b'{"schema": 2, "step": 4, "sha256": {"state.json": [1]}}',
    b'{"schema": 2, "step": 4, "sha256": {"state.json": "x", "": "y", "a\\u0000b": "z"}}',
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "a {colour} dot")


def config(base: Path, pictures: Path, **settings: object):  # type: ignore[no-untyped-def]
    values = {
        "base": str(base), "resolution_px": 32, "max_steps": 4, "batch_size": 2, "checkpoint_every_steps": 2,
        "preview_every_steps": 0, "learning_rate": 1e-2,
        "data.folder": str(pictures), "preview.prompts": [],
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | settings)


def two_checkpoints(folder: Path, file: str, raw: bytes) -> Path:
    """A folder of checkpoints of steps 2 and 4, the newest with this file changed; what hashes can tell, they pass."""
    for step in (2, 4):
        newest = checkpoint.save(folder, step, {"adapter": {"a": torch.ones(2)}}, {"n": step}, keep=3)
    (newest / file).write_bytes(raw)
    if file == "state.json":
        manifest = json.loads((newest / "manifest.json").read_bytes())
        manifest["sha256"][file] = hashlib.sha256(raw).hexdigest()
        (newest / "manifest.json").write_text(json.dumps(manifest))
    return folder


DAMAGED = [("manifest.json", raw) for raw in SHAPES + TABLES] + [("state.json", raw) for raw in SHAPES]


@pytest.mark.parametrize(("file", "raw"), DAMAGED, ids=[f"{file}-{raw[:40]!r}" for file, raw in DAMAGED])
def test_a_newest_checkpoint_of_any_shape_is_passed_over_for_the_one_before(
    tmp_path: Path, file: str, raw: bytes
) -> None:
    folder = two_checkpoints(tmp_path / "checkpoints", file, raw)
    latest, problems = checkpoint.load_latest(folder)
    assert latest is not None and latest.step == 2
    assert len(problems) == 1 and problems[0].startswith("checkpoint step-000004 is damaged") and len(problems[0]) < 300
    assert [saved.step for saved in checkpoint.every(folder)] == [2]


@pytest.mark.parametrize("raw", TABLES, ids=repr)
def test_a_state_is_any_table_that_its_hash_is_of(tmp_path: Path, raw: bytes) -> None:
    latest, problems = checkpoint.load_latest(two_checkpoints(tmp_path / "checkpoints", "state.json", raw))
    assert latest is not None and latest.step == 4 and latest.state == json.loads(raw) and not problems


def test_an_error_names_at_most_five_of_many_damaged_checkpoints(tmp_path: Path) -> None:
    for step in range(1, 9):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "manifest.json").write_text("[]")
    with pytest.raises(RunError, match="step-000008 and 3 more are damaged") as caught:
        checkpoint.load_latest(tmp_path)
    assert str(caught.value).count("step-") == 5


def _full_from(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    real, count = checkpoint.write_synced, 0

    def write(path: Path, content: bytes) -> None:
        nonlocal count
        count += path.name == "state.json"
        if count >= first:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(checkpoint, "write_synced", write)


@pytest.mark.parametrize("first, left", [(1, "there is none before it"), (2, "that of step 2 stays")])
def test_a_full_disk_at_the_last_save_says_what_there_is_and_how_to_go_on(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, first: int, left: str
) -> None:
    _full_from(monkeypatch, first)
    run, stream = session.start(config(tiny, pictures), tmp_path, "mine", None)
    events = list(stream)
    (warned,) = [event.message for event in events if isinstance(event, Warned) and "step 4" in event.message]
    assert left in warned and "velatura train --resume --name mine" in warned and isinstance(events[-1], Finished)


def test_a_full_disk_when_stopping_or_exporting_is_an_error_in_words_that_names_the_way_back(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(lora_file, "save", full)
        run, stream = session.start(config(tiny, pictures), tmp_path, "mine", None)
        with pytest.raises(
            RunError, match=r"No space left on device\); the checkpoint of step 4 stays.*--resume --name mine"
        ):
            list(stream)
    assert isinstance(run.events()[-1], Failed)
    again, stream = session.start(config(tiny, pictures), tmp_path, "mine", run)
    assert isinstance(list(stream)[-1], Finished) and again.lora_file.is_file()

    _full_from(monkeypatch, 1)
    run, stream = session.start(config(tiny, pictures), tmp_path, "other", None)
    with pytest.raises(RunError, match=r"there is no checkpoint yet.*--resume --name other"):
        for event in stream:
            if isinstance(event, Step):
                signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def broken(tmp_path: Path, tiny: Path) -> Path:
    """A base that is found and can't be loaded."""
    folder = shutil.copytree(tiny, tmp_path / "broken")
    for path in (folder / "unet").glob("*.safetensors"):
        path.write_bytes(b"no weights")
    return folder


def test_a_base_that_fails_leaves_no_run_folder(tmp_path: Path, broken: Path, tiny: Path, pictures: Path) -> None:
    run, stream = session.start(config(broken, pictures), tmp_path / "runs", "mine", None)
    with pytest.raises(ModelError):
        list(stream)
    assert not run.folder.exists() and runs.every(tmp_path / "runs") == []
    good, stream = session.start(config(tiny, pictures), tmp_path / "runs", "mine", None)
    assert good.name == "mine" and isinstance(list(stream)[-1], Finished)


def test_a_run_that_had_begun_is_kept_when_its_base_fails_later(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    run, stream = session.start(config(base, pictures), tmp_path / "runs", "mine", None)
    for event in stream:
        if isinstance(event, Saved):
            break
    stream.close()
    before = {path.name for path in (base / "unet").iterdir()}
    for path in (base / "unet").glob("*.safetensors"):
        path.write_bytes(b"no weights")
    with pytest.raises((ModelError, RunError)):
        list(session.start(config(base, pictures), tmp_path / "runs", "mine", run)[1])
    assert before and run.folder.is_dir() and checkpoint.load_latest(run.checkpoints)[0] is not None


def test_a_run_that_another_process_holds_is_not_taken_away(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run, stream = session.start(config(tiny, pictures), tmp_path, "mine", None)
    with run.lock().acquire(timeout=0), pytest.raises(RunError, match="another process"):
        list(stream)
    assert run.folder.is_dir()
    assert not any(isinstance(event, Started) for event in run.events())


class Killed(BaseException):
    """What follows is not done, as if by kill -9."""


def test_what_a_kill_left_beside_the_last_checkpoint_goes_when_the_run_goes_on(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny, pictures, keep_checkpoints=1)
    run, stream = session.start(settings, tmp_path, "mine", None)

    def kill(parent: Path, step: int, keep: int) -> None:
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "tidy", kill)
        list(stream)
    (run.checkpoints / ".new-step-000004-1").mkdir()
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == [
        ".new-step-000004-1",
        "step-000002",
        "step-000004",
    ]
    assert isinstance(list(session.start(settings, tmp_path, "mine", run)[1])[-1], Finished)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000004"]


def test_a_run_killed_before_its_report_is_written_is_not_finished(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(run: runs.Run, *_: object) -> None:
        assert not any(isinstance(event, Finished) for event in run.events())
        raise Killed

    run, stream = session.start(config(tiny, pictures), tmp_path, "mine", None)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(session.report, "write", kill)
        list(stream)
    assert run.state() == "unfinished"
    list(session.start(config(tiny, pictures), tmp_path, "mine", run)[1])
    assert run.state() == "finished" and "Not finished" not in run.report_file.read_text()


def test_a_run_folder_that_was_never_finished_goes_when_the_next_is_made(
    tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"{unique_names.unfinished().replace(str(os.getpid()), str(ended.pid))}x"
    left.mkdir()
    (left / "config.toml").touch()
    runs.create(tmp_path, "mine", config(tiny, pictures))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_torn_last_line_does_not_swallow_what_a_refused_run_says(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(events.to_line(Warned("one")) + '{"event": "step", "st')
    log = events.Log(path)
    log.write(Warned("two"))
    log.write(Warned("three"))
    assert [event.message for event in events.read(path) if isinstance(event, Warned)] == ["one", "two", "three"]
