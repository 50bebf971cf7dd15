"""Folders as other tools left them: every layout is read, and every picture that is not says by which rule."""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import since
from trainer.config import DataConfig
from trainer.data import folder_rules, imagefolder, sources
from trainer.errors import ConfigError, DataError


def put(folder: Path, *names: str) -> Path:
    """Files with pictures' names; nothing here opens them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def survey(folder: Path, **values: object) -> sources.Survey:
    return sources.survey(folder, DataConfig(folder=str(folder), **values), "data.folder")


def entries_of(dataset: sources.Survey) -> dict[str, tuple[str, int, float]]:
    return {picture.name: (picture.text, picture.repeats, picture.weight) for picture in dataset.pictures}


# Kohya's folders.


def test_complaint_14_folder_naming_and_repeats(tmp_path: Path) -> None:
    """A kohya folder gives repeats and the caption of those without one; both are said, and can be switched off."""
    put(
        tmp_path,
        "10_mokka cat/a.png",
        "10_mokka cat/b.png",
        "10_mokka cat/deep/c.png",
        "1_x/d.png",
        "plain/e.png",
        "2024_holiday/f.png",
        "0_out/g.png",
    )
    (tmp_path / "10_mokka cat" / "b.txt").write_text("mokka sits")
    dataset = survey(tmp_path)
    assert entries_of(dataset) == {
        "10_mokka cat/a.png": ("mokka cat", 10, 1.0),
        "10_mokka cat/b.png": ("mokka sits", 10, 1.0),
        "10_mokka cat/deep/c.png": ("mokka cat", 10, 1.0),
        "1_x/d.png": ("x", 1, 1.0),
        "plain/e.png": ("", 1, 1.0),
        "2024_holiday/f.png": ("", 1, 1.0),
    }
    off = "(data.kohya_folders=false reads a plain name)."
    assert sorted(dataset.problems) == [
        f"folder 0_out: read as kohya's 0 repeats, its pictures are left out {off}",
        f"folder 10_mokka cat: read as kohya's 10 repeats, and as the caption 'mokka cat' of 2 pictures without one "
        f"{off}",
        f"folder 1_x: read as kohya's 1 repeat, and as the caption 'x' of 1 picture without one {off}",
        "folder 2024_holiday: 2024 is not read as kohya's repeats, of which up to 1000 are allowed.",
    ]
    plain = survey(tmp_path, kohya_folders=False)
    assert len(plain.pictures) == 7 and {picture.repeats for picture in plain.pictures} == {1} and not plain.problems


def test_complaint_14_folder_naming_and_repeats_the_inner_folder_may_be_named(tmp_path: Path) -> None:
    put(tmp_path, "10_mokka cat/a.png")
    dataset = survey(tmp_path / "10_mokka cat")
    assert entries_of(dataset) == {"a.png": ("mokka cat", 1, 1.0)} and "without the repeats" in dataset.problems[0]


# Repeats and weights.


def test_rules_reach_folders_and_those_inside_and_the_last_one_counts(tmp_path: Path) -> None:
    put(tmp_path, "top.png", "close-ups/a.png", "close-ups/old/b.png", "5_k/c.png", "we[i]rd=1/d.png")
    dataset = survey(tmp_path, repeats=("*=2", "close-ups=3", "*old=4"), weights=("we[i]rd=1=0.5", ".=2", "*k=.25"))
    assert {name: row[1:] for name, row in entries_of(dataset).items()} == {
        "top.png": (2, 2.0),
        "close-ups/a.png": (3, 1.0),
        "close-ups/old/b.png": (4, 1.0),
        "5_k/c.png": (2, 0.25),
        "we[i]rd=1/d.png": (2, 0.5),
    }


@pytest.mark.parametrize(
    "line", ["x", "a=0", "a=-1", "a=1e9", "a=1001", "a=1.5", "a=", "=3", "a=nan", "a=inf", "a=٣", "", "a=0x2"]
)
def test_a_line_of_repeats_that_is_none_is_refused_with_what_is_allowed(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        folder_rules.parse_rules((line, "good=2", "also bad"), "data.repeats", True)
    assert [text.split("; ")[0] for text in str(caught.value).splitlines()] == [
        f"data.repeats has {line!r}",
        "data.repeats has 'also bad'",
    ]
    assert "a whole number from 1 to 1000" in str(caught.value)


@pytest.mark.parametrize("line", ["x", "a=0", "a=0.0", "a=-1", "a=1e9", "a=10.1", "a=nan", "a=inf", "a=1,5"])
def test_a_line_of_weights_that_is_none_is_refused_with_what_is_allowed(line: str) -> None:
    with pytest.raises(ConfigError, match=r"data.weights has .*allowed: folder=NUMBER with a number above 0, up to 10"):
        folder_rules.parse_rules((line,), "data.weights", False)


def test_a_rule_that_fits_no_folder_is_refused_with_the_folders_there_are(tmp_path: Path) -> None:
    put(tmp_path, "top.png", "close-ups/a.png")
    with pytest.raises(
        ConfigError, match=r"data.repeats has 'closeups', which fits no folder with pictures; there are: \., close-ups"
    ):
        survey(tmp_path, repeats=("closeups=3",))


@given(st.text("ab*/", max_size=12), st.text("ab", min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_stars_stand_for_anything(pattern: str, text: str) -> None:
    import re

    assert folder_rules.matches(pattern, text) == bool(
        re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text)
    )


def test_a_hostile_pattern_takes_no_time() -> None:
    start = time.thread_time()
    assert not folder_rules.Rule("*a" * 5000 + "b", 1.0).fits("a" * 20_000)
    assert since(start) < 1


# Why a picture is not used.


def test_complaint_15_no_images_discovered_says_which_rule_dropped_each(tmp_path: Path) -> None:
    put(
        tmp_path,
        ".hidden.png",
        ".thumbs/a.png",
        "._mac.png",
        "old.bmp",
        "clip.mp4",
        "Thumbs.db",
        "a.mask.png",
        "held/b.png",
        "masks/c.png",
        ".git/config",
    )
    os.symlink(tmp_path / "held", tmp_path / "linked")
    dataset = survey(tmp_path, heldout=str(tmp_path / "held"), regularisation=str(tmp_path / "masks"))
    assert not dataset.pictures
    assert sorted(dataset.problems) == [
        ".hidden.png is hidden (the name begins with a dot): left out.",
        "a.mask.png: masks, and data.mask is off: not used.",
        "clip.mp4 is no PNG, JPEG, WebP or AVIF: left out.",
        "folder .thumbs is hidden (its name begins with a dot): its pictures are left out.",
        "folder held is data.heldout: its pictures are left out.",
        "folder linked is a link to another folder: its pictures are left out.",
        "folder masks is data.regularisation: its pictures are left out.",
        "old.bmp is no PNG, JPEG, WebP or AVIF: left out.",
    ]


def test_complaint_15_no_images_discovered_in_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    put(tmp_path, "closed/a.png", "b.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert survey(tmp_path).problems == [
            "closed can't be looked into (Permission denied): its pictures are left out."
        ]
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_leads_back_to_itself_ends(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    os.symlink(tmp_path, tmp_path / "again")
    assert [picture.name for picture in survey(tmp_path).pictures] == ["a.png"]


def test_a_relative_folder_is_read_like_an_absolute_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "3_fox/a.png")
    monkeypatch.chdir(tmp_path)
    assert entries_of(survey(Path("."))) == entries_of(survey(tmp_path)) == {"3_fox/a.png": ("fox", 3, 1.0)}


def test_a_mask_without_its_picture_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "a.mask.png", "b.mask.png")
    dataset = survey(tmp_path, mask="file")
    assert [picture.mask for picture in dataset.pictures] == [tmp_path / "a.mask.png"]
    assert dataset.problems == [
        "b.mask.png: masks without a picture of that name (the mask of a.jpg is a.mask.png): not used."
    ]


# Imagefolders.


def test_captions_come_from_metadata_where_there_is_no_caption_file(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "sub/c.png", "sub/d.png", "e.png")
    (tmp_path / "b.txt").write_text("from the file")
    rows = [
        {"file_name": "a.png", "text": "one"},
        {"file_name": "b.png", "text": "two"},
        {"file_name": "./sub/c.png", "caption": ["three", "3"], "n": 1},
    ]
    (tmp_path / "metadata.jsonl").write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "sub" / "metadata.csv").write_text(
        'file_name,prompt\nd.png,"a ""big"" cat,\nsitting"\n', encoding="utf-8"
    )
    dataset = survey(tmp_path)
    assert {name: text for name, (text, _, _) in entries_of(dataset).items()} == {
        "a.png": "one", "b.png": "from the file", "sub/c.png": "three\n3", "sub/d.png": 'a "big" cat,\nsitting',
        "e.png": "",
    }  # fmt: skip
    assert dataset.problems == ["b.png: the caption file beside the picture is read, not the metadata row."]


HOSTILE = {
    '{"file_name": "../secret.png", "text": "x"}': "no plain path",
    '{"file_name": "/etc/passwd", "text": "x"}': "no plain path",
    '{"file_name": "C:a.png", "text": "x"}': "no plain path",
    '{"file_name": "sub\\\\a.png", "text": "x"}': "no plain path",
    '{"file_name": "a.png\\u0000", "text": "x"}': "no plain path",
    '{"file_name": "gone.png", "text": "x"}': "no picture here",
    '{"file_name": "notes.md", "text": "x"}': "no picture here",
    '{"file_name": ["a.png"], "text": "x"}': "the name of a picture",
    '{"file_name": "", "text": "x"}': "the name of a picture",
    '{"text": "x"}': "the name of a picture",
    '{"file_name": "a.png"}': "no caption",
    '{"file_name": "a.png", "text": null}': "no caption",
    '{"file_name": "a.png", "text": 7}': "no text",
    '{"file_name": "a.png", "text": {"a": 1}}': "no text",
    '{"file_name": "a.png", "text": ["a", 1]}': "no text",
    '{"file_name": "good.png", "text": "again"}': "a second time",
    '{"file_name": "a.png", "text": "' + "x" * 70_000 + '"}': "too long",
    '{"file_name": "a.png", "text": "' + "x" * 300_000 + '"}': "longer than 256 KiB",
    '["a.png", "x"]': "not an object",
    "a.png: x": "not JSON",
    "[" * 5_000: "not JSON",
    '{"file_name": "a.png", "text": ' + "9" * 5_000 + "}": "no",
    '{"file_name": "a.png", "text": "\udce9"}': "not UTF-8",
}


@pytest.mark.parametrize(
    "row, problem", HOSTILE.items(), ids=[f"{number}-{problem}" for number, problem in enumerate(HOSTILE.values())]
)
def test_a_bad_row_of_metadata_is_named_and_skipped(tmp_path: Path, row: str, problem: str) -> None:
    put(tmp_path / "set", "good.png", "a.png", "sub/a.png", "notes.md")
    put(tmp_path, "secret.png")
    good = '{"file_name": "good.png", "text": "a thing"}'
    lines = [good, row, '{"file_name": "sub/a.png", "text": "after"}']
    (tmp_path / "set" / "metadata.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    dataset = survey(tmp_path / "set")
    assert {name: text for name, (text, _, _) in entries_of(dataset).items()} == {
        "a.png": "",
        "good.png": "a thing",
        "sub/a.png": "after",
    }
    assert (
        len(dataset.problems) == 1
        and dataset.problems[0].startswith("metadata.jsonl line 2 ")
        and problem in dataset.problems[0]
    )
    assert len(dataset.problems[0]) < 300


@pytest.mark.parametrize(
    "text, problem",
    [
        ("name,text\na.png,x\n", "no column file_name"),
        ("", None),
        ('file_name,text\na.png,"' + "x" * 200_000 + '"\n', "not CSV"),
        ("file_name,text\n../a.png,x\n", "no plain path"),
        ("file_name,text\na.png\n", "no caption"),
        ("file_name,text\na.png,\udce9\n", "not UTF-8"),
        ('file_name,text\ngood.png,a thing\na.png,"never closed', None),
    ],
)
def test_a_bad_row_of_csv_is_named_and_skipped(tmp_path: Path, text: str, problem: str | None) -> None:
    put(tmp_path, "a.png", "good.png")
    (tmp_path / "metadata.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    problems = survey(tmp_path).problems
    assert (problems == []) if problem is None else (len(problems) == 1 and problem in problems[0])


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60), st.sampled_from([row.encode("utf-8", "surrogateescape")[:200] for row in HOSTILE])
        ),
        max_size=6,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_metadata_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, rows: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in imagefolder.NAMES:
        (folder / name).write_bytes(b"\n".join(rows) if name.endswith("l") else b"file_name,text\n" + b"\n".join(rows))
        captions, problems = imagefolder.read(folder / name, {folder / "a.png"})
        assert set(captions) <= {folder / "a.png"} and all(line.startswith(name) for line in problems)


def test_thousands_of_bad_rows_are_told_in_a_few_lines(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text("no row\n" * 5_000)
    problems = survey(tmp_path).problems
    assert len(problems) == 21 and problems[-1] == "metadata.jsonl has 4980 more rows like these: not used."


def test_a_picture_named_by_two_metadata_files_keeps_the_first(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,from csv\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "from jsonl"}\n')
    dataset = survey(tmp_path)
    assert entries_of(dataset)["a.png"][0] == "from csv"
    assert dataset.problems == [
        "metadata.jsonl names a.png, which another metadata file names too: that one is believed."
    ]


def test_a_mask_folder_inside_the_set_is_not_of_it(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "masks/a.png")
    dataset = survey(tmp_path, mask="file", mask_folder=str(tmp_path / "masks"))
    assert [(picture.name, picture.mask) for picture in dataset.pictures] == [("a.png", tmp_path / "masks" / "a.png")]
    with pytest.raises(DataError, match="data.mask_folder"):
        survey(tmp_path, mask="file", mask_folder=str(tmp_path / "a.png"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_metadata_is_read_as_editors_save_it(encoding: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "eine Küche 猫"}\n'.encode(encoding))
    (tmp_path / "metadata.csv").write_bytes('file_name,text\r\nb.png,"une, élève"\r\n'.encode(encoding))
    dataset = survey(tmp_path)
    assert {name: text for name, (text, _, _) in entries_of(dataset).items()} == {
        "a.png": "eine Küche 猫",
        "b.png": "une, élève",
    } and not dataset.problems


@pytest.mark.parametrize("mark, encoding", [(";", "utf-8-sig"), ("\t", "utf-16"), (",", "utf-8")])
def test_metadata_is_read_as_excel_saves_it(mark: str, encoding: str, tmp_path: Path) -> None:
    put(tmp_path, "b.png")
    (tmp_path / "metadata.csv").write_bytes(f'file_name{mark}text\r\nb.png{mark}"une, élève; là"\r\n'.encode(encoding))
    dataset = survey(tmp_path)
    assert [picture.text for picture in dataset.pictures] == ["une, élève; là"] and not dataset.problems


@pytest.mark.parametrize("name", imagefolder.NAMES)
@pytest.mark.parametrize("raw", [b"\xff\xfea", b"\xfe\xff\xd8\x00\x00a", b"\xff\xfe\0\0abc"])
def test_damaged_metadata_is_said_and_costs_no_picture(name: str, raw: bytes, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / name).write_bytes(raw)
    dataset = survey(tmp_path)
    assert (
        len(dataset.pictures) == 1 and len(dataset.problems) == 1 and f"{name} is damaged UTF-" in dataset.problems[0]
    )


@pytest.mark.parametrize(
    "row", ['{"file_name": "a\\ud83d.png", "text": "x"}', '{"a\\ud83d": 1, "file_name": "a.png", "text": "\\ud83d b"}']
)
def test_half_a_character_in_a_row_is_read_or_named(row: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(row)
    dataset = survey(tmp_path)
    assert dataset.pictures[0].text in ("", "? b")
    "\n".join(dataset.problems).encode("utf-8")
