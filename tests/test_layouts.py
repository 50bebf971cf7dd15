"""What other programs leave among pictures is not trained on; every picture that is not trained is counted and said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.folders import config, picture
from tests.test_uploads import make_zip, png
from trainer import data
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import archives, dataset_check, other_tools_files, scanning, sources, uploads
from trainer.errors import DataError


def scan(folder: Path, **values: object) -> data.Dataset:
    return data.scan(config(folder, trigger="mokka", **values))


def names(dataset: data.Dataset) -> list[str]:
    return [item.path.name for item in dataset.items]


ASIDE = [
    "@eaDir/a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", ".thumbnails/a.png", "Thumbs/a.png", "thumbnails/a.jpg",
    "$RECYCLE.BIN/S-1-5-21/a.png",
    ".Trash-1000/files/a.png",
    ".Trashes/a.png", "__MACOSX/a.png", "__macosx/._a.png", "lost+found/a.png", "#recycle/a.png", "#Recycle/a.png",
    ".AppleDouble/a.png", "._a.png",
    "RECYCLER/a.png",
    "System Volume Information/a.png", "@Recycle/a.png", ".@__thumb/a.png", "@__thumb/a.png", "#snapshot/a.png",
    "found.000/a.png", "_controls/a.depth.jpg",
    "_Controls/a.png", "reg/1_cat/b.png", "Reg/b.png", "regularization_images/b.png", "sample/x_000100.png",
    "samples/x.png", "model/sample/x.png",
    "masks/a.png", "mask/a.png", "control/a.png", "conditioning_images/a.png", "SYNOPHOTO_THUMB_M.jpg",
    "a-masklabel.png", "a-MASKLABEL.png", "a-condlabel.png",
    "a-CondLabel.jpg", "a.mask.png", "a_mask.png", "deep/er/@eaDir/a.png",
]  # fmt: skip


@pytest.mark.parametrize("name", ASIDE)
def test_what_other_programs_keep_is_not_trained_on_though_there_is_a_trigger(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    picture(folder / "a.png", caption=None)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    picture(folder / name, caption=None)
    assert names(scan(folder)) == ["a.png"]
    assert [path.name for path in sources.pictures_below(folder)] == ["a.png"]
    entries = {"a.png": png("red"), name: png("blue")}
    packed, _ = archives.opened(make_zip(tmp_path / "set.zip", entries))
    assert [entry.name for entry in sources.survey(packed, DataConfig(), "data.folder").pictures] == ["a.png"]


@pytest.mark.parametrize(
    "name", [name for name in ASIDE if "/" in name and not name.startswith(("@eaDir/a.png/", "__macosx"))]
)
def test_a_folder_that_is_not_looked_into_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    picture(tmp_path / name, caption=None)
    picture(tmp_path / "z.png")
    (line,) = scan(tmp_path).problems
    assert line.startswith("folder ") and line.endswith("its pictures are left out.")


@pytest.mark.parametrize("name", ["samples", "thumbs", "masks", "control", "depth"])
def test_a_folder_whose_name_may_be_an_artists_own_trains_with_captions(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    picture(tmp_path / name / "b.png", caption="a study")
    assert names(scan(tmp_path)) == ["b.png"]


@pytest.mark.parametrize("name", ["@eaDir", "reg", "masks", "samples", ".thumbnails"])
def test_a_folder_that_is_named_is_read_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    picture(tmp_path / name / "b.png", caption=None)
    assert names(scan(tmp_path / name)) == ["b.png"]


def test_names_that_only_sound_alike_are_pictures(tmp_path: Path) -> None:
    own = [
        "cat_mask.png",
        "unmask.png",
        "the_sample.png",
        "regatta/a.png",
        "thumbsup/b.png",
        "condlabel.png",
        "mymasklabel.png",
    ]
    for name in own:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(tmp_path / name)
    assert sorted(names(scan(tmp_path))) == sorted(name.rpartition("/")[2] for name in own)
    picture(tmp_path / "fox.png")
    picture(tmp_path / "fox_mask.png", caption="a fox with a mask")
    assert "fox_mask.png" in names(scan(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["cat-masklabel.png", "cat.mask.png", "cat_mask.png", "cat-mask.png", "cat-masklabel.jpg", "cat-MaskLabel.PNG"],
)
def test_a_mask_is_that_pictures_mask(name: str, tmp_path: Path) -> None:
    picture(tmp_path / "cat.jpg")
    mask = Image.new("L", (40, 30), 0)
    mask.paste(255, (0, 0, 20, 30))
    mask.save(tmp_path / name)
    dataset = scan(tmp_path, mask="file")
    assert [item.mask for item in dataset.items] == [tmp_path / name] and not dataset.problems
    loaded = data.load_mask(dataset.items[0], (40, 30), 0, False)
    assert float(loaded[0, :, :18].min()) > 0.9 and float(loaded[0, :, 22:].max()) < 0.1
    assert sources.mask_beside(tmp_path / "cat.jpg") == tmp_path / name
    (line,) = scan(tmp_path).problems
    assert name in line and "data.mask is off: not used" in line


def test_a_mask_folder_of_onetrainers_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    picture(tmp_path / "cat.jpg")
    Image.new("L", (40, 30), 255).save(tmp_path / "m" / "cat-masklabel.png")
    assert (
        scan(tmp_path, mask="file", mask_folder=str(tmp_path / "m")).items[0].mask
        == tmp_path / "m" / "cat-masklabel.png"
    )


def test_captions_of_ai_toolkit_are_read_from_json_and_its_trigger_is_put_in(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", caption=None)
    (tmp_path / "a.json").write_text('{"caption": "a long caption of a mill", "caption_short": "mill"}')
    picture(tmp_path / "b.jpg", caption="[trigger] a mill")
    picture(tmp_path / "c.jpg", caption="a bridge")
    (tmp_path / "c.json").write_text('{"caption": "not this one"}')
    dataset = scan(tmp_path)
    assert [item.caption for item in dataset.items] == [
        "mokka, a long caption of a mill",
        "mokka a mill",
        "mokka, a bridge",
    ]
    assert dataset.problems == ["a.jpg: the caption is read from the .json beside the picture."]
    without = data.scan(config(tmp_path))
    assert (
        without.items[1].caption == "[trigger] a mill"
        and "b.jpg: the caption says [trigger], and data.trigger is not set: read as it stands." in without.problems
    )
    assert dataset_check.check(tmp_path, DataConfig(trigger="mokka"), CaptionsConfig(), 32, 8).without_trigger == (
        "a.jpg",
        "c.jpg",
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[1]",
        b'{"caption": 7}',
        b'{"caption": "\\ud83d"}',
        b"{" * 9000,
        b"\xff\xfe",
        b'{"caption": "' + b"x" * 300_000 + b'"}',
    ],
)
def test_other_json_beside_a_picture_is_no_caption(raw: bytes, tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", caption=None)
    (tmp_path / "a.json").write_bytes(raw)
    assert scan(tmp_path).items[0].caption.encode() in (b"mokka", b"mokka, ?")


@pytest.mark.parametrize("suffix", [".jfif", ".JFIF", ".jpeg"])
def test_a_jfif_from_the_web_is_a_picture(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / f"from_web{suffix}", "JPEG")
    (tmp_path / "from_web.txt").write_text("from the web")
    assert scan(tmp_path).items[0].caption == "mokka, from the web"
    report = uploads.add_pictures(tmp_path / "set", [tmp_path / f"from_web{suffix}", tmp_path / "from_web.txt"])
    assert report.added == [f"from_web{suffix.lower()}"] and not report.left_out


# Uploads lose their folders, which said what they were.


def test_side_folders_of_an_uploaded_zip_do_not_come_in_as_pictures(tmp_path: Path) -> None:
    entries = {name: png("blue") for name in ASIDE if "/" in name} | {"a.png": png("red"), "kept/b.png": png("green")}
    report = uploads.add_zip(tmp_path / "set", make_zip(tmp_path / "x.zip", entries))
    assert sorted(report.added) == ["a.png", "b.png"]
    assert any("reg/1_cat/b.png" in line for line in report.left_out) and not any(
        "@eaDir" in line or "__MACOSX" in line for line in report.left_out
    )


# How many of how many.


def uncaptioned(folder: Path) -> Path:
    folder.mkdir()
    for number in range(5):
        picture(folder / f"{number}.png", caption="a thing" if number < 2 else None)
    (folder / "broken.png").write_bytes(b"")
    return folder


def test_how_many_of_how_many_train_is_said_first(tmp_path: Path) -> None:
    folder = uncaptioned(tmp_path / "set")
    dataset = data.scan(config(folder))
    assert dataset.num_left_out == 4 and dataset.message.startswith(
        "2 of 6 pictures can be used. 4 things to know about "
    )
    assert scan(folder).message.startswith("5 of 6 pictures can be used. ")
    report = dataset_check.check(folder, DataConfig(), CaptionsConfig(), 32, 8)
    assert (report.num_trained, report.num_pictures, report.num_found) == (2, 5, 6)
    assert (
        "2 of 6 will train: the others are left out, or have no caption and there is no trigger."
        in dataset_check.describe(report)
    )
    assert "5 of 6 will train:" in dataset_check.describe(
        dataset_check.check(folder, DataConfig(trigger="mokka"), CaptionsConfig(), 32, 8)
    )


def test_a_run_says_how_many_train_before_its_first_step(tmp_path: Path, tiny: Path) -> None:
    from trainer import session
    from trainer.events import Started, Step, Warned

    sized = [f"base={tiny}", "max_steps=1", "preview_every_steps=0", "resolution_px=32", "batch_size=1"]
    run_config = session.preset_config("imprimatura-style", str(uncaptioned(tmp_path / "set")), None, sized)
    _, stream = session.start(run_config, tmp_path / "runs", "x", None)
    seen = list(stream)
    first = next(index for index, event in enumerate(seen) if isinstance(event, Step))
    assert any(isinstance(event, Warned) and "2 of 6 pictures can be used" in event.message for event in seen[:first])
    assert next(event for event in seen if isinstance(event, Started)).num_pictures == 2


def test_a_rehearsal_says_how_many_train(run_velatura: Callable[..., Any], tmp_path: Path, tiny: Path) -> None:
    uncaptioned(tmp_path / "set")
    sized = [
        f"--set={setting}"
        for setting in (f"base={tiny}", "max_steps=1", "preview_every_steps=0", "resolution_px=32", "batch_size=1")
    ]
    done = run_velatura("train", "imprimatura-style", "--data", "set", "--rehearse", "--once", "--out", "runs", *sized)
    assert done.returncode == 0, done.stderr
    assert "2 of 6 pictures can be used. 4 things to know about" in done.stdout + done.stderr


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*ASIDE, "x/a.png", "b.png", "b.txt", "a.png", "a.txt", "b-masklabel.png", "metadata.jsonl", "b.json"]
        ),
        max_size=8,
        unique=True,
    )
)
def test_any_mixture_of_layouts_is_sorted_out(tmp_path_factory: pytest.TempPathFactory, chosen: list[str]) -> None:
    folder = tmp_path_factory.mktemp("mixed")
    for name in chosen:
        if not any(parent.is_file() for parent in (folder / name).parents) and not (folder / name).is_dir():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")
    dataset = sources.survey(folder, DataConfig(), "data.folder")
    assert all(not other_tools_files.aside(part) for picture in dataset.pictures for part in Path(picture.name).parts)
    assert {picture.path for picture in dataset.pictures} == set(sources.pictures_below(folder))
    assert all(os.linesep not in line for line in dataset.problems)


def test_a_walk_is_the_same_for_scan_and_check(tmp_path: Path, draw_dots: Callable[..., Path]) -> None:
    folder = draw_dots(tmp_path / "dots", "a {colour} dot")
    (folder / "samples").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "samples" / "x.png")
    report = dataset_check.check(folder, DataConfig(), CaptionsConfig(), 32, 8)
    dataset = scanning.scan_folder(folder, "data.folder", DataConfig(), CaptionsConfig(), "")
    assert report.num_found == len(dataset.items) == 4 and report.problems == tuple(dataset.problems)


def test_pictures_in_formats_that_are_not_read_count_as_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("b.gif", "c.tiff", "d.bmp"):
        picture(tmp_path / name)
    dataset = scan(tmp_path)
    assert dataset.message.startswith("1 of 4 pictures can be used. ") and len(dataset.problems) == 3
    assert dataset_check.check(tmp_path, DataConfig(), CaptionsConfig(), 32, 8).num_found == 4


def test_an_error_names_five_of_many_pictures(tmp_path: Path) -> None:
    for number in range(9):
        picture(tmp_path / f"{number}.png", caption=None)
    with pytest.raises(DataError) as raised:
        data.scan(config(tmp_path))
    assert str(raised.value).count("has no caption") == 5 and str(raised.value).endswith("  and 4 more.")


def test_every_picture_of_a_dataset_is_opened_by_one_module() -> None:
    folder = Path(sources.__file__).parent
    assert [path.name for path in sorted(folder.glob("*.py")) if "Image.open(" in path.read_text(encoding="utf-8")] == [
        "opening.py"
    ]
