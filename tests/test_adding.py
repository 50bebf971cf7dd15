"""docs/adding.md: each example with a file's name works as it stands."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import gradio as gr
import numpy
import pytest

from app import tabs, ui
from trainer import contracts, presets
from trainer.config import AdapterChoice, StackConfig
from trainer.render import modes
from trainer.render.engine import Engine
from trainer.render.modes.contract import Mode

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
EXAMPLES = {name: text for name, text in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", PAGE, re.DOTALL)}


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Path]:
    """The examples as files, by the names that the page gives them."""
    paths = {}
    for name, text in EXAMPLES.items():
        path = tmp_path / "examples" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        paths[name] = path
    return paths


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_each_example_would_be_a_new_file() -> None:
    assert len(EXAMPLES) == 5
    for name in EXAMPLES:
        assert (ROOT / name).parent.is_dir() and not (ROOT / name).exists(), name


def test_the_preset_is_one(written: dict[str, Path], tmp_path: Path) -> None:
    config = presets.load(str(written["presets/train/sd-portrait.toml"]), {"data.folder": str(tmp_path)})
    assert (config.family, config.max_steps, config.adapter.method) == ("sd", 60, "lora")


def test_the_mode_draws_what_two_schedules_draw(
    written: dict[str, Path], trained: Path, trained_style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = contracts.read(Mode, imported(written["trainer/render/modes/alternate.py"]))
    known = {**modes.registry(), made.name: made}
    monkeypatch.setattr(modes, "registry", lambda: known)
    pair = (AdapterChoice(file=str(trained)), AdapterChoice(file=str(trained_style)))
    request = StackConfig(
        base="imprimatura", prompt="a cat", steps=2, guidance_scale=3.0, adapters=pair, mode="alternate"
    )
    schedules = ("steps 0:1 0.5:0", "steps 0:0 0.5:1")
    scheduled = tuple(
        adapter.model_copy(update={"schedule": schedule, "text_weight": 0.0})
        for adapter, schedule in zip(pair, schedules, strict=True)
    )
    plain = tuple(adapter.model_copy(update={"text_weight": 0.0}) for adapter in pair)
    engine = Engine(device="cpu", dtype="float32")
    first = engine.render(request.model_copy(update={"adapters": plain})).image
    other = engine.render(request.model_copy(update={"adapters": scheduled, "mode": "sum"})).image
    base = engine.render(request.model_copy(update={"adapters": (), "mode": "sum"})).image
    assert numpy.array_equal(first, other) and not numpy.array_equal(first, base)


def test_the_tab_is_on_the_page(written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [*tabs.registry(), imported(written["app/tabs/count.py"])]
    monkeypatch.setattr(tabs, "registry", lambda: known)
    monkeypatch.setattr(ui, "registry", lambda: known, raising=False)
    page = ui.build(tmp_path / "workspace")
    labels = [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert "Count" in labels and labels.index("Count") == len(known) - 1
    (button,) = [block for block in page.blocks.values() if isinstance(block, gr.Button) and block.value == "Count"]
    (handler,) = [fn for fn in page.fns.values() if any(target[0] == button._id for target in fn.targets)]
    assert handler.fn() == "0 LoRAs are here."


@pytest.mark.timeout(600)
def test_the_method_and_the_family_need_no_edit_elsewhere(tmp_path: Path) -> None:
    """A copy of the program with the two files more: its own commands train the one on the other, and draw with it."""
    tree = tmp_path / "tree"
    for folder in ("trainer", "presets"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("trainer/methods/miss.py", "trainer/families/pixart_alpha.py"):
        (tree / name).write_text(EXAMPLES[name], encoding="utf-8")

    def velatura(*arguments: object) -> str:
        command = [sys.executable, "-m", "trainer", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout

    base, lora = tmp_path / "base", tmp_path / "runs" / "red-fox" / "red-fox.safetensors"
    velatura("models", "tiny", "pixart_alpha", base)
    preset = tmp_path / "pixart_alpha-try.toml"
    preset.write_text(
        f"version = 1\nfamily = 'pixart_alpha'\nbase = '{base}'\nresolution_px = 64\nmax_steps = 2\n"
        "[adapter]\nmethod = 'miss'\n",
        encoding="utf-8",
    )
    velatura("train", preset, "--data", ROOT / "app" / "examples" / "red-fox", "--out", tmp_path / "runs")
    output = velatura("inspect", lora)
    assert "method  miss\n" in output and "(pixart_alpha)" in output, output
    pictures = [tmp_path / f"{name}.png" for name in ("with", "without")]
    drawn = ("--prompt", "a fox", "--set", "width_px=64", "--set", "height_px=64", "--set", "steps=2")
    for picture, weight in zip(pictures, (1, 0), strict=True):
        velatura("render", "--base", base, "--lora", f"{lora}:{weight}", *drawn, "--out", picture)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
