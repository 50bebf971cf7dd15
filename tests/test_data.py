"""Folders as artists have them: what is wrong with a file is said, and never stops the others."""

from pathlib import Path

import pytest
from PIL import Image

from tests.folders import config, picture
from trainer import data
from trainer.errors import ConfigError, DataError


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Two good pictures among everything that goes wrong."""
    picture(tmp_path / "good.png")
    picture(tmp_path / "fine.webp")
    cut = picture(tmp_path / "cut.jpg", (300, 300), quality=95)
    cut.write_bytes(cut.read_bytes()[:1000])
    (tmp_path / "words.png").write_text("I am no picture")
    (tmp_path / "words.txt").write_text("a caption")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "empty.txt").write_text("a caption")
    picture(tmp_path / "silent.png", caption=None)
    (tmp_path / "alone.txt").write_text("a caption of nothing")
    return tmp_path


def test_one_message_names_every_bad_file_and_says_what_was_done(messy: Path) -> None:
    dataset = data.scan(config(messy))
    assert [item.path.name for item in dataset.items] == ["fine.webp", "good.png"]
    for name, problem in {
        "cut.jpg": "cut short",
        "words.png": "not a picture",
        "empty.png": "0 bytes",
        "silent.png": "no caption",
        "alone.txt": "without a picture",
    }.items():
        line = next(line for line in dataset.message.splitlines() if line.strip().startswith(name))
        assert problem in line and ("left out" in line or "not used" in line)
    assert len(dataset.problems) == 5


def test_a_picture_without_caption_takes_the_trigger(messy: Path) -> None:
    dataset = data.scan(config(messy, trigger="mokka"))
    assert {item.path.name: item.caption for item in dataset.items}["silent.png"] == "mokka"
    assert {item.path.name: item.caption for item in dataset.items}["good.png"] == "mokka, a thing"


@pytest.mark.parametrize("make", [lambda folder: folder / "nowhere", lambda folder: picture(folder / "a.png")])
def test_a_folder_that_is_none_is_refused_by_its_field(tmp_path: Path, make) -> None:
    with pytest.raises(DataError, match="data.folder is .*must be a folder"):
        data.scan(config(make(tmp_path)))


def test_a_folder_without_a_usable_picture_is_refused_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)nothing can be used.*x\.png is empty"):
        data.scan(config(tmp_path))


def test_the_digest_changes_with_all_that_changes_training(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "reg").mkdir()
    picture(tmp_path / "reg" / "r.png", caption="a cat")
    plain = picture(tmp_path / "set" / "a.png")
    Image.new("L", (40, 30), 255).save(tmp_path / "set" / "a.mask.png")
    settings: list[dict[str, object]] = [
        {}, {"repeats": ("*=2",)}, {"weights": ("*=0.5",)}, {"mask": "file"}, {"trigger": "mokka"},
        {"regularisation": str(tmp_path / "reg")},
        {"regularisation": str(tmp_path / "reg"), "regularisation_weight": 0.5},
    ]  # fmt: skip
    digests = {data.scan(config(plain.parent, **values)).digest for values in settings}
    assert len(digests) == len(settings)
    Image.new("L", (40, 30), 200).save(tmp_path / "set" / "a.mask.png")
    assert data.scan(config(plain.parent, mask="file")).digest not in digests


def test_the_digest_changes_with_picture_and_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    first = data.scan(config(tmp_path)).digest
    (tmp_path / "a.txt").write_text("another thing")
    second = data.scan(config(tmp_path)).digest
    picture(tmp_path / "a.png", (41, 30), caption=None)
    assert len({first, second, data.scan(config(tmp_path)).digest}) == 3


def test_a_file_that_is_no_picture_of_ours_is_named_and_its_caption_is_not_blamed(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    picture(tmp_path / "old.bmp")
    problems = data.scan(config(tmp_path)).problems
    assert problems == ["old.bmp is no PNG, JPEG, WebP or AVIF: left out."]


def test_a_name_that_is_no_text_has_a_digest(tmp_path: Path) -> None:
    import os

    picture(tmp_path / "a.png")
    os.rename(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/b\xe9.png")
    os.rename(os.fsencode(tmp_path / "a.txt"), os.fsencode(tmp_path) + b"/b\xe9.txt")
    assert len(data.scan(config(tmp_path)).digest) == 64


# Captions.


def captions_of(dataset: data.Dataset) -> dict[str, tuple[str, ...]]:
    return {item.path.name: item.captions for item in dataset.items}


def test_complaint_13_captions_not_read_a_caption_file_ending_in_caption_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption=None)
    (tmp_path / "a.caption").write_text("a thing")
    assert data.scan(config(tmp_path)).items[0].caption == "a thing"


@pytest.mark.parametrize(
    "name, problem",
    [
        ("a.TXT", "ends in .txt, in small letters"),
        ("a.png.txt", "a caption is called a.txt"),
        ("b.txt", "is a caption without a picture"),
    ],
)
def test_complaint_13_captions_not_read_a_misnamed_caption_is_named(tmp_path: Path, name: str, problem: str) -> None:
    picture(tmp_path / "a.png", caption=None)
    (tmp_path / name).write_text("a thing")
    problems = data.scan(config(tmp_path, trigger="mokka")).problems
    assert any(line.startswith(name) and problem in line for line in problems), problems


def test_complaint_13_captions_not_read_of_two_caption_files_the_unread_one_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("another thing")
    assert data.scan(config(tmp_path)).problems == ["a.png: the .txt is read, not the .caption beside it."]


def test_prefix_suffix_and_trigger_are_put_around_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a party")
    picture(tmp_path / "b.png", caption="ART of a fox")
    dataset = data.scan(config(tmp_path, {"prefix": "a drawing,", "suffix": ", on paper"}, trigger="art"))
    assert captions_of(dataset) == {
        "a.png": ("art, a drawing, a party, on paper",),
        "b.png": ("a drawing, ART of a fox, on paper",),
    }
    assert data.scan(config(tmp_path, {"prefix": "my art:"}, trigger="art")).items[0].caption == "my art: a party"


def test_lines_are_one_text_or_several_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a thing\n\n mokka here \na thing\n")
    assert data.scan(config(tmp_path)).items[0].captions == ("a thing\n\n mokka here \na thing",)
    assert data.scan(config(tmp_path, {"lines": "choose"}, trigger="mokka")).items[0].captions == (
        "mokka, a thing",
        "mokka here",
    )


def test_regularisation_pictures_come_last_without_trigger_and_with_their_weight(tmp_path: Path) -> None:
    own, others = tmp_path / "own", tmp_path / "own" / "cats"
    others.mkdir(parents=True)
    picture(own / "z.png", caption="mokka sits")
    picture(others / "a.png", caption="a cat sits")
    picture(others / "b.png", caption=None)
    dataset = data.scan(config(own, trigger="mokka", regularisation=str(others), regularisation_weight=0.5))
    assert [(item.path.name, item.caption, item.regular, item.weight) for item in dataset.items] == [
        ("z.png", "mokka sits", False, 1.0),
        ("a.png", "a cat sits", True, 0.5),
    ]
    assert any("folder cats is data.regularisation" in line for line in dataset.problems)
    assert any(line.startswith("data.regularisation: b.png has no caption") for line in dataset.problems)


def test_heldout_pictures_inside_the_training_folder_are_not_trained_on(tmp_path: Path) -> None:
    inside = tmp_path / "3_held"
    inside.mkdir()
    picture(tmp_path / "a.png")
    picture(inside / "b.png", caption="a {red|red} thing\na second")
    settings = config(
        tmp_path, {"wildcards": True, "lines": "choose", "shuffle_tags": True}, heldout=str(inside), repeats=("*=2",)
    )
    assert [item.path.name for item in data.scan(settings).items] == ["a.png"]
    heldout = data.scan_heldout(settings)
    assert heldout is not None and [(item.captions, item.repeats) for item in heldout.items] == [(("a red thing",), 1)]
    assert data.scan_heldout(config(tmp_path)) is None


def test_rules_that_cannot_be_read_stop_the_scan(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="data.repeats has 'x'"):
        data.scan(config(tmp_path, repeats=("x",)))
