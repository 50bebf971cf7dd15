"""Caption files: what is read, that edits are whole, and that each can be taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data import caption_files
from trainer.errors import DataError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return tmp_path / "cat.png"


def test_caption_is_read_without_bom_and_blanks(picture: Path) -> None:
    picture.with_suffix(".txt").write_bytes(b"\xef\xbb\xbf  a cat\r\n")
    assert caption_files.read_caption(picture) == "a cat"


def test_txt_comes_before_caption(picture: Path) -> None:
    picture.with_suffix(".caption").write_text("old")
    assert caption_files.read_caption(picture) == "old"
    picture.with_suffix(".txt").write_text("new")
    assert caption_files.read_caption(picture) == "new"


def test_no_caption_is_empty(picture: Path) -> None:
    assert caption_files.read_caption(picture) == ""


@pytest.mark.parametrize("raw, words", [(b"caf\xe9", "not UTF-8"), (b"x" * (65 << 10), "too long")])
def test_bad_caption_is_refused_in_words(picture: Path, raw: bytes, words: str) -> None:
    picture.with_suffix(".txt").write_bytes(raw)
    with pytest.raises(DataError, match=words):
        caption_files.read_caption(picture)


def test_undo_takes_back_edit_after_edit(picture: Path) -> None:
    for text in ("one", "two", "three"):
        caption_files.write_caption(picture, text)
    seen = []
    while (done := caption_files.undo(picture.parent)) is not None:
        seen.append((done.restored, caption_files.read_caption(picture)))
    assert seen == [("two", "two"), ("one", "one"), (None, "")]
    assert not picture.with_suffix(".txt").exists()


def test_undo_gives_the_very_bytes_back(picture: Path) -> None:
    before = b"\xef\xbb\xbfcaf\xe9 \r\n"
    picture.with_suffix(".txt").write_bytes(before)
    caption_files.write_caption(picture, "a cafe")
    caption_files.undo(picture.parent)
    assert picture.with_suffix(".txt").read_bytes() == before


def test_edit_after_undo_is_the_next_to_go(picture: Path) -> None:
    caption_files.write_caption(picture, "one")
    caption_files.write_caption(picture, "two")
    caption_files.undo(picture.parent)
    caption_files.write_caption(picture, "three")
    caption_files.undo(picture.parent)
    assert caption_files.read_caption(picture) == "one"
    caption_files.undo(picture.parent)
    assert caption_files.read_caption(picture) == ""


def test_history_only_grows(picture: Path) -> None:
    history = picture.parent / caption_files.HISTORY
    caption_files.write_caption(picture, "one")
    before = history.read_bytes()
    caption_files.undo(picture.parent)
    assert history.read_bytes().startswith(before) and len(history.read_bytes()) > len(before)


def test_torn_line_loses_only_itself(picture: Path) -> None:
    caption_files.write_caption(picture, "one")
    with (picture.parent / caption_files.HISTORY).open("ab") as file:
        file.write(b'{"edit": 2, "pic')
    caption_files.write_caption(picture, "two")
    assert caption_files.undo(picture.parent) is not None
    assert caption_files.read_caption(picture) == "one"


def test_a_caption_that_no_file_can_hold_is_not_put_back(picture: Path) -> None:
    caption_files.write_caption(picture, "a cat")
    entry = {
        "edit": 9,
        "picture": picture.name,
        "sidecar": f"{picture.stem}.txt",
        "before": "half \ud800",
        "after": "a cat",
    }
    with (picture.parent / caption_files.HISTORY).open("a") as file:
        file.write(json.dumps(entry) + "\n")
    undone = caption_files.undo(picture.parent)
    assert undone is not None and undone.restored is None and caption_files.undo(picture.parent) is None


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/secret.txt", "..", "secret.py"])
def test_history_can_not_point_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    (folder / caption_files.HISTORY).write_text(
        json.dumps({"edit": 1, "picture": "a.png", "sidecar": name, "before": "evil", "after": "x"}) + "\n"
    )
    assert caption_files.undo(folder) is None
    assert secret.read_text() == "mine"


def test_too_long_a_caption_changes_nothing(picture: Path) -> None:
    caption_files.write_caption(picture, "one")
    with pytest.raises(DataError, match="too long"):
        caption_files.write_caption(picture, "x" * (65 << 10))
    assert caption_files.read_caption(picture) == "one"


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=300))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    picture = tmp_path_factory.mktemp("set") / "a.png"
    caption_files.write_caption(picture, text)
    expected = text.replace("\x00", "").strip()
    assert caption_files.read_caption(picture).replace("\ufeff", "").split() == expected.replace("\ufeff", "").split()


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=400))
def test_any_history_is_survived(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("set")
    (folder / caption_files.HISTORY).write_bytes(raw)
    caption_files.write_caption(folder / "a.png", "text")
    assert caption_files.undo(folder) == caption_files.Undone("a.png", None)


def test_text_from_outside_is_not_lost_by_undo(picture: Path) -> None:
    caption_files.write_caption(picture, "one")
    picture.with_suffix(".txt").write_text("from outside")
    with pytest.raises(DataError, match=r"cat\.txt was changed outside"):
        caption_files.undo(picture.parent)
    assert caption_files.read_caption(picture) == "from outside"
    caption_files.write_caption(picture, "two")
    assert caption_files.undo(picture.parent) == caption_files.Undone("cat.png", "from outside")


def test_outside_change_does_not_block_other_pictures_forever(picture: Path) -> None:
    other = picture.with_name("dog.png")
    caption_files.write_caption(other, "dog")
    caption_files.write_caption(picture, "one")
    picture.with_suffix(".txt").write_text("from outside")
    caption_files.write_caption(picture, "two")
    assert [caption_files.undo(picture.parent) for _ in range(3)] == [
        caption_files.Undone("cat.png", "from outside"),
        caption_files.Undone("dog.png", None),
        None,
    ]


def test_edit_that_was_logged_but_never_written_is_passed_over(picture: Path) -> None:
    caption_files.write_caption(picture, "one")
    caption_files.write_caption(picture, "two")
    picture.with_suffix(".txt").write_text("one\n")  # as a crash between log and file leaves it
    caption_files.write_caption(picture, "three")
    assert [caption_files.undo(picture.parent) for _ in range(3)] == [
        caption_files.Undone("cat.png", "one"),
        caption_files.Undone("cat.png", None),
        None,
    ]


SAVED = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
BOMS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff", "utf-32-le": b"\xff\xfe\0\0", "utf-32-be": b"\0\0\xfe\xff"}


@pytest.mark.parametrize("encoding", SAVED)
@pytest.mark.parametrize("text", ["a cat", "eine Küche, 猫 🦊", "кот на окне", "one\r\ntwo"])
def test_a_caption_is_read_as_editors_save_it(picture: Path, encoding: str, text: str) -> None:
    picture.with_suffix(".txt").write_bytes(BOMS.get(encoding, b"") + text.encode(encoding))
    assert caption_files.read_caption(picture) == text


@pytest.mark.parametrize(
    "raw, problem",
    [
        (b"\xff\xfea", "damaged UTF-16"),
        (b"\xff\xfe\x00\xd8", "damaged UTF-16"),
        (b"\xfe\xff\xd8\x00a", "damaged UTF-16"),
        ("Küche".encode("cp1252"), "not UTF-8"),
        ("a\nb\nKüche".encode("cp1252"), "line 3, byte 5: it looks like Windows-1252"),
        ("猫の絵".encode("shift_jis"), "older encoding, such as Shift-JIS"),
        ("Ж".encode("utf-16-le") + b"\xff", "not UTF-8"),
    ],
)
def test_a_caption_in_another_encoding_is_named(picture: Path, raw: bytes, problem: str) -> None:
    picture.with_suffix(".txt").write_bytes(raw)
    with pytest.raises(DataError, match=problem):
        caption_files.read_caption(picture)


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=80), bom=st.sampled_from([b"", *BOMS.values(), b"\xef\xbb\xbf"]))
def test_any_bytes_are_a_caption_that_can_be_written_or_refused(raw: bytes, bom: bytes) -> None:
    try:
        caption_files.decode(bom + raw, "x.txt").encode("utf-8")
    except DataError as error:
        assert "x.txt" in str(error)
