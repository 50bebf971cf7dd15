"""What a base draws with where nobody says: its own size, steps and guidance, through every door that draws."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import single_files
from PIL import Image
from single_files import add

from trainer import base_defaults, bases, families
from trainer.config import StackConfig
from trainer.families.contract import Family
from trainer.render import batch_ledger, jobs_file
from trainer.render.engine import Engine
from trainer.render.picture_metadata import read

_HALVED = {"sd", "sdxl"}  # their pipelines' 50 steps are twice what is usual


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, imprimatura_folder: Path) -> Path:
    """Imprimatura in a folder of another name."""
    return Path(shutil.copytree(imprimatura_folder, tmp_path_factory.mktemp("elsewhere") / "toned-ground"))


def recipe(path: Path) -> dict[str, object]:
    recipe = read(path).recipe
    assert recipe is not None
    return {key: recipe[key] for key in ("width_px", "height_px", "steps", "guidance_scale", "guidance_rescale")}


def test_a_copy_of_the_base_draws_what_the_base_draws(run_velatura: Callable, copy: Path, tmp_path: Path) -> None:
    for base, name in ((copy, "copy.png"), ("imprimatura", "own.png")):
        done = run_velatura("render", "--base", base, "--prompt", "a red apple", "--out", name)
        assert done.returncode == 0, done.stderr
        assert "128 x 128 px, 25 steps, guidance 3 rescaled by 0.7" in done.stderr
    assert recipe(tmp_path / "copy.png") == recipe(tmp_path / "own.png") == {
        "width_px": 128, "height_px": 128, "steps": 25, "guidance_scale": 3.0, "guidance_rescale": 0.7,
    }  # fmt: skip
    assert Image.open(tmp_path / "copy.png").tobytes() == Image.open(tmp_path / "own.png").tobytes()


def test_what_is_asked_for_is_not_the_bases_to_say(run_velatura: Callable, copy: Path, tmp_path: Path) -> None:
    done = run_velatura(
        "render",
        "--base",
        copy,
        "--steps",
        "2",
        "--size",
        "64x96",
        "--guidance",
        "1.5",
        "--set",
        "guidance_rescale=0",
        "--out",
        "x.png",
    )
    assert done.returncode == 0 and "usually drawn" not in done.stderr
    assert recipe(tmp_path / "x.png") == {
        "width_px": 64,
        "height_px": 96,
        "steps": 2,
        "guidance_scale": 1.5,
        "guidance_rescale": 0.0,
    }


def test_a_stack_file_a_jobs_file_and_the_engine_leave_to_the_base_what_they_do_not_say(
    run_velatura: Callable, copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "stack.toml").write_text(f'base = "{copy}"\nsteps = 2\n')
    assert run_velatura("render", "--stack", "stack.toml", "--out", "a.png").returncode == 0
    (tmp_path / "preset.toml").write_text("steps = 2\n")
    assert run_velatura("render", "--stack", "preset.toml", "--set", f"base={copy}", "--out", "b.png").returncode == 0
    wanted = {"width_px": 128, "height_px": 128, "steps": 2, "guidance_scale": 3.0, "guidance_rescale": 0.7}
    assert recipe(tmp_path / "a.png") == recipe(tmp_path / "b.png") == wanted
    (tmp_path / "jobs.csv").write_text(f"prompt,base,size\na fox,{copy},\na fox,imprimatura,64x64\n")
    (tmp_path / "jobs.toml").write_text(f'prompts = ["a fox"]\nbase = "{copy}"\nheight_px = 64\n')
    stacks = [
        work.stack
        for name in ("jobs.csv", "jobs.toml")
        for work in batch_ledger.make(jobs_file.read(tmp_path / name, jobs_file.Defaults())).pictures()
    ]
    assert [(stack.width_px, stack.height_px, stack.steps, stack.guidance_scale) for stack in stacks] == [
        (128, 128, 25, 3.0),
        (64, 64, 25, 3.0),
        (128, 64, 25, 3.0),
    ]
    engine = Engine(str(copy), device="cpu", dtype="float32")
    assert engine.resolve(StackConfig(base=str(copy))).width_px == 128


@pytest.mark.parametrize("family", families.registry().values(), ids=lambda family: family.name)
def test_every_family_draws_at_its_denoisers_size_with_its_pipelines_guidance(family: Family, tmp_path: Path) -> None:
    folder = family.tiny(tmp_path / "tiny")
    config = json.loads((folder / next(iter(family.components)) / "config.json").read_text())
    multiple, defaults = bases.multiple_px(folder), base_defaults.of(str(folder), family)
    own = config.get("sample_size")
    assert (defaults.width_px, defaults.height_px) == (
        (own * multiple // family.patch,) * 2 if own else (family.default_px,) * 2
    )
    bases.check_pixels(folder, {"width_px": defaults.width_px, "height_px": defaults.height_px})
    call = inspect.signature(getattr(diffusers, family.pipeline).__call__).parameters
    guidance = (
        call["guidance_scale"].default if call["guidance_scale"].default is not None else call["true_cfg_scale"].default
    )
    steps = call["num_inference_steps"].default
    assert defaults.guidance_scale == guidance and defaults.steps == (steps // 2 if family.name in _HALVED else steps)


def test_a_base_that_is_not_square_a_larger_one_and_one_without_a_size(tiny: Path, tmp_path: Path) -> None:
    family = families.registry()["sd"]
    folder = Path(shutil.copytree(tiny, tmp_path / "base"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    multiple = bases.multiple_px(folder)
    cases = [
        ([12, 20], (20 * multiple, 12 * multiple)),
        (96, (96 * multiple,) * 2),
        (None, (512, 512)),
        ("x", (512, 512)),
        (1, (512, 512)),
        (-8, (512, 512)),
    ]
    for sample_size, wanted in cases:
        (folder / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": sample_size}))
        assert base_defaults.size_px(folder, family) == wanted, sample_size
    assert base_defaults.of(str(tmp_path / "nowhere"), family) == base_defaults.Usual(512, 512, *family.usual)


def test_distilled_bases_say_that_few_steps_without_guidance_do(tmp_path: Path) -> None:
    for name, file, change in (
        ("flux", "transformer/config.json", {"guidance_embeds": False}),
        ("flux2", "model_index.json", {"is_distilled": True}),
    ):
        family = families.registry()[name]
        folder = family.tiny(tmp_path / name)
        assert base_defaults.of(str(folder), family).steps == family.usual[0]
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
        defaults = base_defaults.of(str(folder), family)
        assert (defaults.steps, defaults.guidance_scale) == (4, 1.0)


def test_a_file_that_is_not_laid_out_yet_says_its_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    family = families.registry()["sd"]
    folder = family.tiny(tmp_path / "tiny")
    file = single_files.sd_file(folder, tmp_path / "artist.safetensors")
    add(str(file), "--like", str(folder))
    defaults = base_defaults.of("artist", family)
    assert (defaults.width_px, defaults.height_px) == base_defaults.size_px(folder, family) and not list(
        (tmp_path / "home").glob("models/*")
    )
