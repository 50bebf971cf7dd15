"""The command as a person types it, each call a process of its own."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests import plain


@pytest.fixture
def cats(examples: Path) -> Path:
    return examples / "grey-cat" / "train"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "adapter.rnak=8"], ["adapter.rnak", "8", "adapter.rank"]),
        (["--set", "max_steps=-1"], ["max_steps", "-1", "1"]),
        (["--set", "base=no/such"], ["base", "no/such", "--download"]),
        (["--set", "device=cuda:7"], ["device", "cuda:7", "cpu"]),
        (["--set", "nonsense"], ["nonsense", "key=value"]),
        (["--data", "nowhere"], ["data.folder", "nowhere", "does not exist"]),
        (["--heldout", "nowhere"], ["data.heldout", "nowhere"]),
        (["--name", "///"], ["name", "///"]),
        (["--out", __file__], ["--out", "no run folder can be made"]),
        (["--set", "resolution_px=136"], ["resolution_px is 136", "multiple of 16"]),
    ],
)
def test_what_a_user_can_mend_exits_with_2_names_it_and_makes_nothing(
    run_velatura, tmp_path: Path, cats: Path, arguments: list[str], words: list[str]
) -> None:
    data = [] if "--data" in arguments else ["--data", str(cats)]
    result = run_velatura("train", "imprimatura-style", *data, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    for part in words:
        assert part in result.stderr
    assert not list(tmp_path.rglob("config.toml"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["train", "imprimatura-stile", "--data", "x"], "Did you mean imprimatura-style"),
        (["train", "--data", "x"], "no preset was named"),
        (["train", "--resume"], "no unfinished run"),
        (["train", "--resume", "--name", "x"], "no run called 'x'"),
        (["train", "--resume", "--set", "seed=1"], "leave out --set"),
        (["train", "--nonsense"], "--nonsense"),
        (["render", "--size", "12by12"], "--size is '12by12'"),
        (["render", "--size", "13x16"], "width_px is 13"),
        (["render", "--steps", "0"], "steps is 0"),
        (["render", "--lora", "nowhere.safetensors:1"], "nowhere.safetensors"),
        (["render", "--lora", "nowhere.safetensors"], "no such file"),
        (["render", "--lora", "a.safetensors:1-2"], "weight is '1-2'"),
        (["render", "--base", "nowhere"], "nowhere"),
        (["render", "--from", "nowhere.png"], "nowhere.png"),
        (["render", "--from", "x.png", "--seed", "3"], "leave out --seed"),
        (["render", "--size", "136x136"], "width_px is 136"),
        (["render", "--lora", "a.safetensors:0,50"], "weight is 50"),
        (["render", "--base", "x" * 300], "not a hub id"),
        (["inspect", "nowhere.safetensors"], "nowhere.safetensors"),
        (["presets", "nothing"], "nothing"),
    ],
)
def test_other_mistakes_exit_with_2_and_are_named(run_velatura, arguments: list[str], problem: str) -> None:
    result = run_velatura(*arguments, NO_COLOR="1", COLUMNS="200")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert problem in result.stderr


def test_help_loads_no_torch_and_names_every_command(run_velatura) -> None:
    result = run_velatura("--help", COLUMNS="200")
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("app", "demo", "train", "render", "inspect", "presets", "doctor"))


def test_presets_are_listed_and_shown(run_velatura) -> None:
    assert set(json.loads(run_velatura("presets", "--json").stdout)) >= {"imprimatura-style", "imprimatura-character"}
    assert json.loads(run_velatura("presets", "imprimatura-style", "--json").stdout)["adapter"]["method"] == "lora"


def test_a_run_with_bad_files_says_so_and_what_comes_out_renders_and_renders_again(
    run_velatura, tmp_path: Path, cats: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for path in cats.glob("*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.png").write_bytes(b"")
    (folder / "alone.txt").write_text("nobody")
    small = [text for pair in ("max_steps=3", "batch_size=2", "preview_every_steps=0") for text in ("--set", pair)]
    trained = run_velatura("train", plain.CHARACTER, "--data", folder, "--name", "My cat!", *small)
    assert trained.returncode == 0, trained.stderr
    assert (
        "empty.png is empty (0 bytes): left out" in trained.stdout
        and "alone.txt is a caption without a picture" in trained.stdout
    )
    lora = tmp_path / "outputs" / "runs" / "My-cat" / "My-cat.safetensors"
    assert json.loads(run_velatura("inspect", lora, "--json").stdout)["num_modules"] == 56

    # A second run of that name never overwrites; going on with a finished one says so.
    again = run_velatura("train", plain.CHARACTER, "--data", folder, "--name", "My cat!", *small)
    assert "My-cat-2" in again.stdout
    assert "is finished" in run_velatura("train", "--resume", "--name", "My cat!").stdout
    other = run_velatura(
        "train", plain.CHARACTER, "--data", folder, "--name", "My cat!", "--resume", *small, "--set", "seed=4"
    )
    assert other.returncode == 2 and "seed was 0, now 4" in other.stderr

    # Render, render from the picture, and a grid.
    made = run_velatura(
        "render",
        "--lora",
        f"{lora}:0.5",
        "--prompt",
        "mokka, a cat",
        "--steps",
        "2",
        "--seed",
        "3",
        "--size",
        "64x128",
        "--out",
        "a.png",
    )
    assert made.returncode == 0, made.stderr
    assert Image.open(tmp_path / "a.png").size == (64, 128)
    assert run_velatura("render", "--from", "a.png", "--out", "b.png").returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (
        run_velatura("render", "--lora", f"{lora}:0,1", "--prompt", "x", "--steps", "1", "--out", "grid.png").returncode
        == 0
    )
    assert Image.open(tmp_path / "grid.png").width > 256


def test_a_picture_that_says_too_little_is_shown_and_not_rendered_from(run_velatura, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a fox\nSteps: 20")
    Image.new("RGB", (16, 16)).save(tmp_path / "other.png", pnginfo=info)
    assert "a fox" in run_velatura("inspect", "other.png").stdout
    result = run_velatura("render", "--from", "other.png")
    assert result.returncode == 2 and "no Velatura recipe" in result.stderr
