"""`velatura dataset check`: finds what spoils a folder, and leaves the sample pictures alone."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from tests.timing import since
from trainer import dataset_command
from trainer.config.data import CaptionsConfig, DataConfig
from trainer.data import dataset_check
from trainer.data.picture_file import PictureFile
from trainer.errors import DataError
from trainer.families import registry

ROOT = Path(__file__).parents[1]
SAMPLES = sorted((ROOT / "app" / "examples").rglob("*.png"))


def check(folder: Path, resolution_px: int = 128, **values: object) -> dataset_check.Report:
    return dataset_check.check(
        folder,
        DataConfig(folder=str(folder), **values),
        CaptionsConfig(),
        resolution_px,
        16,
        lambda text: len(text.split()),
        5,
    )


def sample(path: Path, number: int, caption: str | None = None, **save: object) -> Path:
    Image.open(SAMPLES[number]).convert("RGB").save(path, **save)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def sharpness(image: Image.Image) -> float:
    """Measured as training at 128 px would, the size of the samples."""
    grey = image.convert("L")
    grey.thumbnail((128, 128), Image.Resampling.LANCZOS)
    return dataset_check.sharpness(grey)


def test_complaint_27_dataset_quality_everything_is_found(tmp_path: Path) -> None:
    sample(tmp_path / "a.png", 0, "mokka, a cat, sitting")
    sample(tmp_path / "again.png", 0, "mokka, a cat, lying")
    sample(tmp_path / "as jpeg.jpg", 0, "mokka, a cat, lying", quality=60)
    sample(tmp_path / "other.png", 20, "one two three four five six seven")
    Image.open(SAMPLES[30]).convert("RGB").filter(ImageFilter.GaussianBlur(2)).save(tmp_path / "soft.png")
    Image.open(SAMPLES[40]).convert("RGB").resize((40, 50)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"no")
    report = check(tmp_path, trigger="mokka")
    assert report.num_pictures == 6 and any(line.startswith("broken.png is not a picture") for line in report.problems)
    assert report.small == (dataset_check.Small("tiny.png", 40, 50),)
    assert [picture.name for picture in report.blurred] == ["soft.png"]
    assert report.duplicates == (("a.png", "again.png"),)
    assert report.near_duplicates == (("a.png", "again.png", "as jpeg.jpg"),)
    assert report.missing_captions == ("soft.png", "tiny.png")
    assert report.identical_captions == (
        dataset_check.SameCaption("mokka, a cat, lying", ("again.png", "as jpeg.jpg")),
    )
    assert report.without_trigger == ("other.png",)
    assert report.long_captions == (dataset_check.LongCaption("other.png", 7),)
    assert report.buckets == (dataset_check.BucketRow(128, 128, 5, 5, 0.0), dataset_check.BucketRow(48, 48, 1, 1, 0.2))
    assert list(report.tags.items())[:3] == [("a cat", 3), ("mokka", 3), ("lying", 2)]
    text = dataset_check.describe(report)
    for word in (
        "broken.png",
        "40 x 50",
        "soft.png",
        "a.png = again.png",
        "as jpeg.jpg",
        "'mokka'",
        "7 tokens",
        "128 x 128",
        "    3  a cat",
    ):
        assert word in text


@pytest.mark.parametrize("blur, is_blurred", [(0, False), (0.5, False), (2, True), (3, True), (6, True)])
def test_the_samples_are_blurred_exactly_when_they_were_blurred(blur: float, is_blurred: bool) -> None:
    values = [sharpness(Image.open(path).convert("RGB").filter(ImageFilter.GaussianBlur(blur))) for path in SAMPLES]
    assert all((value < dataset_check.BLURRED_BELOW) == is_blurred for value in values), (min(values), max(values))


def test_pale_and_large_pictures_are_not_taken_for_blurred_ones() -> None:
    for path in SAMPLES[::10]:
        image = Image.open(path).convert("RGB")
        pale = image.point(lambda value: 200 + value // 5)
        assert (
            sharpness(pale) > dataset_check.BLURRED_BELOW
            and sharpness(image.resize((1000, 1000), Image.Resampling.BICUBIC)) > dataset_check.BLURRED_BELOW
        )
    assert sharpness(Image.new("L", (200, 200), 77)) == 0 and sharpness(Image.new("L", (256, 1), 77)) == 0


@pytest.mark.parametrize("change", [{"quality": 60}, {"size": (64, 64)}, {"size": (250, 250)}, {"brightness": 1.05}])
def test_a_saved_again_or_scaled_picture_looks_alike(tmp_path: Path, change: dict) -> None:
    for number in (0, 20, 50, 80):
        image = Image.open(SAMPLES[number]).convert("RGB")
        image.save(tmp_path / f"{number}.png")
        if "size" in change:
            image = image.resize(change["size"], Image.Resampling.BICUBIC)
        if "brightness" in change:
            image = image.point(lambda value: min(255, int(value * change["brightness"])))
        image.save(
            tmp_path / f"{number}-again.{'jpg' if 'quality' in change else 'png'}", quality=change.get("quality", 95)
        )
    groups = check(tmp_path).near_duplicates
    assert sum(len(group) == 2 for group in groups) >= 3 and all(
        len({name.split(".")[0].split("-")[0] for name in group}) == 1 for group in groups
    )


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in SAMPLES}), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_the_sample_folders_are_clean(folder: Path) -> None:
    report = check(folder)
    alike = {
        ("frowning-face.png", "upside-down-face.png"),
        ("crying-fox.png", "grinning-fox.png", "smiling-fox-with-heart-eyes.png"),
    }
    assert set(report.near_duplicates) <= alike  # one face in nine moods differs little in grey
    assert not report.problems and not report.blurred and not report.small and not report.duplicates


@pytest.mark.parametrize("make", ["random", "one look"])
def test_five_thousand_pictures_are_compared_in_no_time(make: str) -> None:
    rng = numpy.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 5_000) if make == "random" else rng.integers(0, 7, 5_000)
    files = [PictureFile(Path(f"{number}.png"), f"{number}.png", "") for number in range(5_000)]
    pictures = [
        dataset_check.Measured(file, (64, 64), file.name, 1.0, int(value))
        for file, value in zip(files, hashes, strict=True)
    ]
    start = time.thread_time()
    groups = dataset_check.near_duplicates(pictures)
    assert since(start) < 3
    assert groups == () if make == "random" else [len(group) for group in groups] == [5_000]


def test_an_uncaptioned_folder_is_looked_through_all_the_same(tmp_path: Path) -> None:
    sample(tmp_path / "a.png", 3)
    report = check(tmp_path)
    assert report.missing_captions == ("a.png",) and report.buckets


def test_a_folder_without_a_picture_that_opens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)nothing in .* can be used:.*a\.png is empty"):
        check(tmp_path)


def test_names_and_captions_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    sample(tmp_path / "a\x1b[31m.png", 3)
    (tmp_path / "a\x1b[31m.txt").write_text("red \x1b[2J\nred", encoding="utf-8")
    os.rename(sample(tmp_path / "b.png", 3), os.fsencode(tmp_path) + b"/b\xe9.png")
    report = check(tmp_path, trigger="mokka")
    dataset_check.describe(report).encode("utf-8")
    assert "\x1b" not in dataset_check.describe(report)
    json.dumps(dataclasses.asdict(report)).encode("utf-8")


def test_a_clean_folder_has_nothing_to_mend(tmp_path: Path) -> None:
    sample(tmp_path / "a.png", 3, "a thing")
    report = check(tmp_path)
    assert report.num_findings == 0 and "Nothing to mend." in dataset_check.describe(report)


def test_the_command_prints_text_and_json_and_counts_with_the_tokenizer_of_imprimatura(tmp_path: Path) -> None:
    sample(tmp_path / "a.png", 3, "a very long caption, " * 10)
    done = CliRunner().invoke(dataset_command.app, ["check", str(tmp_path), "--json", "--trigger", "mokka"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert set(report) == {field.name for field in dataclasses.fields(dataset_check.Report)}
    assert report["resolution_px"] == 128 and report["long_captions"][0]["tokens"] > report["window_tokens"] > 10
    done = CliRunner().invoke(dataset_command.app, ["check", str(tmp_path), "--resolution", "256"])
    assert done.exit_code == 0 and "tokens that are read" in done.output and "256 px" in done.output


@pytest.mark.parametrize("family, window", [("auraflow", 255), ("lumina2", None)])
def test_the_window_is_the_familys_where_the_tokenizer_says_none(
    family: str, window: int | None, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    sample(tmp_path / "set" / "a.png", 3, "a" * 400)
    base = registry()[family].tiny(tmp_path / "base")
    config = base / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": int(1e30)}))
    done = CliRunner().invoke(
        dataset_command.app, ["check", str(tmp_path / "set"), "--json", "--base", str(base), "--resolution", "64"]
    )
    report = json.loads(done.stdout)
    assert report["window_tokens"] == window and len(report["long_captions"]) == (window is not None)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["nowhere"], "does not exist"),
        (["app", "--resolution", "100"], "--resolution is 100; allowed for this base: a multiple of 16"),
        (["app", "--base", "app"], "--base is 'app'; allowed: imprimatura"),
    ],
)
def test_the_command_says_what_it_cannot_do(arguments: list[str], problem: str) -> None:
    command = [sys.executable, "-m", "trainer", "dataset", "check", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and problem in done.stderr and "Traceback" not in done.stderr
