"""A grid over a training's checkpoints: each cell is that step's LoRA, by its hash, and nothing is left of the files it was drawn from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import train_small
from trainer import checkpoint, lora_file, runs
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render import axes, checkpoints, command, image


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> runs.Run:
    settings = ["max_steps=4", "checkpoint_every_steps=1", "keep_checkpoints=2"]
    file = train_small(tmp_path_factory.mktemp("runs"), examples, "steps", settings)
    return runs.Run(file.parent if file.is_file() else file)


def test_each_cell_is_a_steps_lora_and_the_title_names_what_was_not_kept(run: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with checkpoints.spelled_out(StackConfig(), [axes.axis(f"checkpoint={run.folder}")]) as (stack, spelled):
        files = [Path(value) for value in spelled[0].values]
        assert [path.stem for path in files] == ["steps-step-000003", "steps-step-000004", "steps-last-step-000004"]
        assert spelled[0].label(str(files[0]), stack) == "steps-step-000003" and spelled[0].note == "not kept: step 1, 2"
        hashes = [lora_file.inspect(path).sha256 for path in files]
        assert hashes[1] == hashes[2] == lora_file.inspect(run.lora_file).sha256 != hashes[0]
        # Against the tensors of the checkpoint, as PEFT calls them.
        saved = next(checkpoint.every(run.checkpoints))
        assert saved.step == 3
        ups = sorted(float(value.float().norm()) for key, value in load_file(files[0]).items() if key.endswith("lora_up.weight"))
        kept = sorted(float(value.norm()) for key, value in saved.tensors["adapter"].items() if "lora_B" in key)
        torch.testing.assert_close(torch.tensor(ups), torch.tensor(kept), rtol=1e-2, atol=1e-6)
    assert not list(tmp_path.glob("velatura-*"))


def test_the_grid_is_drawn_with_the_runs_own_adapter_and_pictures_point_to_no_file(run: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stack = StackConfig(steps=2, prompt="a fox", adapters=(AdapterChoice(file=str(run.lora_file), weight=0.8),))
    sheet = command.run(stack, [axes.axis(f"checkpoint={run.folder}")], tmp_path / "grid.png", download=False)
    pictures = sorted(sheet.with_suffix("").glob("*.png"))
    assert len(pictures) == 3 and not list(tmp_path.glob("velatura-*"))
    recipes = [image.read(path).recipe["adapters"] for path in pictures]
    assert [(len(one), one[0]["name"], one[0]["weight"]) for one in recipes] == [
        (1, "steps-step-000003", 0.8), (1, "steps-step-000004", 0.8), (1, "steps-last-step-000004", 0.8),
    ]  # fmt: skip
    assert all(len(one[0]["sha256"]) == 64 and str(tmp_path) not in path.read_bytes().decode("latin-1") for one, path in zip(recipes, pictures, strict=True))
    with Image.open(pictures[1]) as last, Image.open(pictures[2]) as same:
        assert last.tobytes() == same.tobytes()


@pytest.mark.parametrize(("text", "said"), [("checkpoint=none-such", "there is no such run"), ("checkpoint=a,b", "allowed: one run")])
def test_a_run_that_is_not_there_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said), checkpoints.spelled_out(StackConfig(), [axes.axis(text)]):
        pass
