"""A file is replaced whole or not at all, and one module does it."""

from __future__ import annotations

import ast
import os
import threading
from pathlib import Path

import parsed
import pytest

from trainer import files, unique_names


@pytest.fixture(params=["a name of its own", "a name that is given"])
def through(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "a name of its own" else tmp_path / "x.tmp"


def test_the_new_file_takes_the_old_ones_place_and_nothing_else_is_left(tmp_path: Path, through: Path | None) -> None:
    path = tmp_path / "x"
    for content in (b"first", b"second"):
        files.write(path, content, through)
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_until_the_body_is_done(tmp_path: Path, through: Path | None) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with files.replacing(path, through) as made:
        made.write_bytes(b"half")
        assert path.read_bytes() == b"old" and made.parent == path.parent
    assert path.read_bytes() == b"half"


def test_a_body_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path, through: Path | None) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path, through) as made:
        made.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, through: Path | None, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "x"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, fault, full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, b"new", through)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(os, "fsync", lambda number: order.append(("fsync", os.fstat(number).st_size)))
    monkeypatch.setattr(os, "replace", lambda made, path: order.append(("replace", Path(made).stat().st_size)))
    files.write(tmp_path / "x", b"1234")
    assert order == [("fsync", 4), ("replace", 4)]


def test_many_writers_at_once_leave_one_of_their_files_whole(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=files.write, args=(tmp_path / "x", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_bytes() in contents and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_leaves_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.replacing(tmp_path / "x") as made:
        made.write_bytes(b"half")
        name = made.name.replace(f"-{os.getpid()}-", "-4194399-")  # no process has such a number
        (tmp_path / name).write_bytes(b"half")
        unique_names.sweep(tmp_path)
        assert made.exists() and not (tmp_path / name).exists()


# One owner.

OWNERS = {
    "trainer.files": "it is the owner",
    "trainer.unique_names": "takes a name that is free, where files replaces",
    "trainer.system": "asks the system to do it, for all",
    "trainer.checkpoint": "a folder of files",
    "trainer.data.archives": "a folder of files",
    "trainer.start_weights": "a folder of files",
    "trainer.data.caption_files": "its log is appended to",
    "trainer.render.batch": "takes a name that is free, for a file that was synced when it was staged",
    "trainer.render.batch_journal": "its journal is appended to, and a staged picture is synced there",
}


def placed(module: ast.Module) -> list[int]:
    """Lines on which a file is renamed into place or synced. `x.replace(y)` with one argument is a path's; a text's has
    two.
    """
    lines = []
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            by_path = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords
            if by_path or parsed.name_of(node.func) in (
                "os.replace",
                "system.replace",
                "os.rename",
                "os.fsync",
                "shutil.move",
            ):
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [("os.replace(a, b)", [1]), ("a.replace(b)", [1]), ("os.fsync(1)", [1]), ("a.replace('x', 'y')", [])],
)
def test_what_puts_a_file_in_place_is_seen(source: str, lines: list[int]) -> None:
    assert placed(ast.parse(source)) == lines


def test_nobody_else_puts_files_in_place() -> None:
    doing = {name for name, path in parsed.sources("trainer", "app").items() if placed(parsed.tree(path))}
    # A damaged database is set aside; a stack's picture follows it to its new name.
    assert doing == {*OWNERS, "app.job_table", "app.item_changes"}
