"""A run's saved steps as LoRA files, against the files that the run wrote itself, and as an axis of a grid."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import ImageChops
from safetensors.torch import load_file

from tests import plain
from trainer import checkpoint_files, lora_file, presets, session
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError, RunError
from trainer.render import axes, checkpoints, picture_metadata
from trainer.render.engine import Engine
from trainer.runs import Run


def train(parent: Path, name: str, data: Path, **changes: object) -> Run:
    values = {
        "max_steps": 2, "batch_size": 2, "checkpoint_every_steps": 1, "preview_every_steps": 0,
        "data.folder": str(data),
        "resolution_px": 32, "data.trigger": "mokka", "keep_checkpoints": 5,
    }  # fmt: skip
    config = presets.load(plain.CHARACTER, values | changes)
    run, stream = session.start(config, parent, name, None)
    list(stream)
    return run


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"adapter.init": "pissa"}, {"adapter.method": "dora"}, {"adapter.method": "lokr"},
        {"optimizer.ema_decay": 0.9},
        {"adapter.text_encoder": True, "inversion.token": "mokka"},
    ],
    ids=["lora", "pissa", "dora", "lokr", "mean", "word"],
)  # fmt: skip
def test_the_last_saved_step_is_the_file_that_the_run_wrote(changes, engine: Engine, draw_dots, tmp_path: Path) -> None:
    run = train(tmp_path, "dots", draw_dots(tmp_path / "data", "mokka, a {colour} dot"), **changes)
    first, second, last = checkpoint_files.files(run, "sd", engine.file_keys)
    assert [first.name, second.name, last.name] == [
        "dots-step-000001.safetensors",
        "dots-step-000002.safetensors",
        "dots.safetensors",
    ]
    ours, theirs = load_file(second), load_file(last)
    assert ours.keys() == theirs.keys() and all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert lora_file.inspect(second).sha256 == lora_file.inspect(last).sha256 != lora_file.inspect(first).sha256
    named = {info.sha256: info.name for info in lora_file.library([run.folder]).values()}
    assert sorted(named.values()) == ["dots", "dots-step-000001"]  # the run's own name, though the step's is newer
    assert lora_file.inspect(first).trigger == "mokka" and lora_file.inspect(first).metadata["ss_steps"] == "1"
    written = second.stat().st_mtime_ns
    assert checkpoint_files.files(run, "sd", engine.file_keys)[1].stat().st_mtime_ns == written


def test_a_run_is_an_axis_over_its_checkpoints_and_its_pictures_can_be_made_again(
    engine: Engine, draw_dots, tmp_path: Path
) -> None:
    run = train(
        tmp_path, "dots", draw_dots(tmp_path / "data", "mokka, a {colour} dot"), max_steps=3, keep_checkpoints=2
    )
    stack = StackConfig(
        base="imprimatura",
        prompt="a dot",
        width_px=64,
        height_px=64,
        steps=2,
        adapters=(AdapterChoice(file=str(run.lora_file), weight=0.8, sha256="0" * 64),),
    )
    spelled, axis = checkpoints.spelled_out(engine, stack, [axes.axis(f"checkpoint={run.folder}")])
    assert axis[0].note == "not kept: step 1"
    sheet, pictures = axes.draw(engine, spelled, axis)
    adapters = [picture.stack.adapters[0] for picture in pictures]
    assert [(adapter.name, adapter.weight) for adapter in adapters] == [
        ("dots-step-000002", 0.8),
        ("dots-step-000003", 0.8),
        ("dots", 0.8),
    ] and sheet.width > 3 * 64
    assert pictures[1].image.tobytes() == pictures[2].image.tobytes() != pictures[0].image.tobytes()
    again = picture_metadata.read_stack(
        picture_metadata.save(pictures[0], tmp_path / "again.png"), lora_file.library([run.folder])
    )
    # Alone it is folded, in the grid it was live in a batch.
    assert (
        max(high for _, high in ImageChops.difference(engine.render(again).image, pictures[0].image).getextrema()) <= 1
    )


@pytest.mark.parametrize(
    ("text", "problem"), [("checkpoint=none-such", "no run .none-such."), ("checkpoint=a,b", "allowed: one run")]
)
def test_a_run_that_is_not_there_is_refused_by_name(text: str, problem: str, engine: Engine) -> None:
    with pytest.raises((ConfigError, RunError), match=problem):
        checkpoints.spelled_out(engine, StackConfig(), [axes.axis(text)])


def test_a_run_of_another_family_or_without_a_step_is_refused(engine: Engine, draw_dots, tmp_path: Path) -> None:
    run = train(tmp_path, "dots", draw_dots(tmp_path / "data", "mokka, a {colour} dot"))
    with pytest.raises(ConfigError, match="run dots is for sd; allowed for this base: other"):
        checkpoint_files.files(run, "other", engine.file_keys)
    with pytest.raises(ConfigError, match="has trained unet"):
        checkpoint_files.files(run, "sd", {})
    for path in [run.lora_file, *run.checkpoints.glob("*/manifest.json")]:
        path.unlink()
    with pytest.raises(ConfigError, match="has saved no step yet"):
        checkpoint_files.files(run, "sd", engine.file_keys)
