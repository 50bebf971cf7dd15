"""A name is a picture's problem, never its folder's: too long, of several lines, no text at all, blank at its end."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.folders import config, picture
from tests.test_uploads import png
from trainer import data
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import caption_files, dataset_check, sources, uploads
from trainer.errors import DataError

HARD = [
    b"x" * 244 + b".png", b"x" * 247 + b".png", b"x" * 251 + b".png", b"y" * 250 + b".jpg", b"two\nlines.png",
    b"bell\x07.png", b"tab\there.png", b"lat\xe9in.png", b"\xed\xa0\x80.png",
    b"blank .png", b"dots...png", b" first.png", b"a\x1b[31m.png", "\u202egnp.png".encode(), "e\u0301.png".encode(),
    b"100%.png", b"{a|b}.png", b"<b>.png", b"-rf.png", b"*.png",
]  # fmt: skip


def put(folder: Path, name: bytes) -> Path:
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    path.write_bytes(png())
    return path


@pytest.mark.parametrize("name", HARD, ids=[str(name[:12]) + str(len(name)) for name in HARD])
def test_a_hard_name_never_costs_the_folder(name: bytes, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    picture(tmp_path / "set" / "good.png")
    put(tmp_path / "set", name)
    for values in ({}, {"trigger": "mokka"}, {"trigger": "mokka", "mask": "file"}):
        dataset = data.scan(config(tmp_path / "set", **values))
        assert "good.png" in [item.path.name for item in dataset.items] and len(dataset.items) == 1 + (
            "trigger" in values
        )
        assert all(line.isprintable() for line in dataset.problems) and all(
            item.name.isprintable() for item in dataset.items
        )
        dataset.message.encode("utf-8")
        assert len(dataset.digest) == 64
    assert len(sources.pictures_below(tmp_path / "set")) == 2
    report = dataset_check.check(tmp_path / "set", DataConfig(trigger="mokka"), CaptionsConfig(), 32, 8)
    assert report.num_trained == 2
    dataset_check.describe(report).encode("utf-8")
    json.dumps(dataclasses.asdict(report)).encode("utf-8")


def test_a_long_name_can_have_a_caption_where_there_is_room_for_one_and_else_says_why_not(tmp_path: Path) -> None:
    for length in (244, 247, 251):
        path = put(tmp_path, b"x" * length + b".png")
        caption_files.write_caption(path, "one")
        assert caption_files.read_caption(path) == "one"
        caption_files.undo(tmp_path)
    with pytest.raises(DataError, match="too long for a caption beside it: shorten it"):
        caption_files.write_caption(tmp_path / ("x" * 253), "one")


def test_a_link_that_leads_nowhere_and_a_path_that_is_too_long_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "lost.png")
    os.symlink(tmp_path / "round.png", tmp_path / "round.png")
    os.mkfifo(tmp_path / "pipe.png")
    dataset = data.scan(config(tmp_path))
    assert [item.path.name for item in dataset.items] == ["good.png"]
    assert dataset.problems[0] == "lost.png is a link that leads nowhere: left out."
    assert [line.split()[0] for line in dataset.problems] == ["lost.png", "pipe.png", "round.png"]


def test_a_tree_deeper_than_a_path_may_be_costs_only_its_end(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("deep.png").write_bytes(png())
    finally:
        os.chdir(here)
    dataset = data.scan(config(tmp_path, trigger="mokka"))
    assert [item.path.name for item in dataset.items] == ["good.png"] and any(
        "too long" in line for line in dataset.problems
    )


def test_a_run_of_hard_names_trains_reports_and_shows_what_it_saw(
    tmp_path: Path, tiny: Path, draw_dots: Callable[..., Path]
) -> None:
    from trainer import session, step_inputs

    folder = draw_dots(tmp_path / "dots", "a {colour} dot", num=2)
    for name in HARD[::2]:
        path = put(folder, name)
        Image.new("RGB", (40, 40), "red").save(path, "PNG")
    sized = [
        f"base={tiny}",
        "max_steps=2",
        "preview_every_steps=1",
        "preview.steps=1",
        "resolution_px=32",
        "batch_size=4",
        "data.trigger=mokka",
    ]
    run, stream = session.start(
        session.preset_config("imprimatura-style", str(folder), None, sized), tmp_path / "runs", None, None
    )
    events = list(stream)
    assert events[-1].kind == "finished" and run.lora_file.is_file()
    assert (run.folder / "report.html").read_text(encoding="utf-8").count("<tr><td class") == 2 + len(HARD[::2])
    step_inputs.describe(step_inputs.at(run, 1, tmp_path / "saw")).encode("utf-8")


# Edits where nothing can be written.


def test_an_edit_in_a_folder_that_may_only_be_read_is_refused_in_words() -> None:
    """/proc takes no new file of anybody's."""
    with pytest.raises(DataError, match=r"the captions in proc can't be changed \(.*\); .*Nothing was lost"):
        caption_files.write_caption(Path("/proc/a.png"), "a thing")
    with pytest.raises(DataError, match="can't be changed"):
        caption_files.undo(Path("/proc"))


@pytest.mark.parametrize(
    "code, problem",
    [
        (errno.ENOSPC, "make room on the disk"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "may only be read"),
        (errno.EIO, "look at the disk"),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_or_closed_disk_is_said_and_loses_nothing(
    code: int, problem: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    caption_files.write_caption(path, "one")
    before = sorted(os.listdir(tmp_path))

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, where, fail)
        for act in (lambda: caption_files.write_caption(path, "two"), lambda: caption_files.undo(tmp_path)):
            with pytest.raises(DataError, match=problem):
                act()
    assert caption_files.read_caption(path) == "one" and sorted(os.listdir(tmp_path)) == before
    caption_files.write_caption(path, "three")
    assert caption_files.undo(tmp_path) == caption_files.Undone("a.png", "one")


def test_another_writer_is_waited_for_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_files, "_WAIT_S", 0.1)
    with (
        FileLock(str(tmp_path / ".caption-history.lock")),
        pytest.raises(DataError, match="another program is writing captions"),
    ):
        caption_files.write_caption(tmp_path / "a.png", "one")


@pytest.mark.parametrize("code, problem", [(errno.ENOSPC, "make room"), (errno.EROFS, "may only be read")])
def test_uploads_to_a_full_or_closed_disk_are_said(
    code: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "set").mkdir()

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match=problem):
        uploads.add_pictures(tmp_path / "set", [tmp_path / "a.png"])
    assert os.listdir(tmp_path / "set") == []


def test_half_a_character_from_a_browser_is_kept_out_of_a_caption(tmp_path: Path) -> None:
    caption_files.write_caption(tmp_path / "a.png", "a \ud83d cat")
    assert caption_files.read_caption(tmp_path / "a.png") == "a ? cat"


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=255).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b"..")))
def test_any_name_a_disk_takes_is_read_or_said(tmp_path_factory: pytest.TempPathFactory, name: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    picture(folder / "good.png")
    put(folder, name[: 255 - 4] + b".png")
    dataset = data.scan(config(folder, trigger="mokka"))
    dataset.message.encode("utf-8")
    assert "good.png" in [item.path.name for item in dataset.items]
    assert len(dataset.items) + len(dataset.problems) >= 2 or name.startswith(b"._") or b"ehthumbs" in name.lower()


@pytest.mark.parametrize(
    "error, problem",
    [(OSError(errno.ENOSPC, "No space left"), "No space left.*make room"), (OSError("odd"), "the disk refuses")],
)
def test_a_new_dataset_on_a_full_disk_is_refused_in_words(error: OSError, problem: str) -> None:
    refused = pytest.raises(DataError, match=f"the dataset can't be written .*{problem}")
    with refused, caption_files.writable("the dataset"):
        raise error
