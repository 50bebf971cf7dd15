"""A run that was stopped goes on to the very bytes of one that wasn't: for every optimizer and method, mean and
accumulation included.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import plain, warm
from trainer import methods, presets, runs, session
from trainer.events import Finished, Step

RICH = {  # everything that carries something from step to step, or draws
    "accumulation": 2, "optimizer.ema_decay": 0.9, "data.flip": True, "data.crop": "random",
    "data.caption_dropout": 0.2, "captions.shuffle_tags": True,
    "validation.leave_out": 1, "validate_every_steps": 2, "objective.noise_offset": 0.05,
    "objective.input_perturbation": 0.1,
}  # fmt: skip
ADAPTERS = {
    "lora": {"adapter.dropout": 0.2},
    "dora": {},
    "loha": {},
    "lokr": {},
    "oft": {"adapter.targets": "attention"},
}
CASES = {
    "adamw": {},
    "adamw8bit": {"optimizer.name": "adamw8bit"},
    "adafactor": {"optimizer.name": "adafactor"},
    "lion": {"optimizer.name": "lion", "learning_rate": 1e-3},
    "prodigy": {"optimizer.name": "prodigy", "learning_rate": 1.0},
    "schedule-free": {"optimizer.name": "schedule-free", "optimizer.ema_decay": 0.0, "optimizer.warmup_steps": 2},
    "other": {"optimizer.name": "other", "optimizer.other": "CAME"},
    "loraplus": {
        "optimizer.loraplus_ratio": 4.0,
        "optimizer.block_rates": ["mid_block=0.5"],
        "optimizer.schedule": "restarts",
    },
    "pissa": {"adapter.init": "pissa"},
    "olora": {"adapter.init": "olora"},
    "eva": {"adapter.init": "eva"},
    "word": {"inversion.token": "mokka", "adapter.text_encoder": True},
    **{name: ADAPTERS.get(name, {}) | {"adapter.method": name} for name in methods.registry()},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "mokka dot, {colour}, round, flat", num=5, wider_px=30)


def config(tiny: Path, pictures: Path, case: str, **settings: object):
    values: dict[str, object] = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 7, "batch_size": 2, "checkpoint_every_steps": 2,
        "preview_every_steps": 3, "preview.steps": 2,
        "preview.prompts": ["a dot"], "learning_rate": 1e-2, "data.folder": str(pictures),
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | RICH | CASES[case] | settings)


def to_the_end(parent: Path, settings, name: str) -> runs.Run:
    run, stream = session.start(settings, parent, name, runs.find_resumable(parent, name))
    assert isinstance(list(stream)[-1], Finished)
    return run


def logged_steps(run: runs.Run) -> list[tuple[int, float, float]]:
    return [(event.step, event.loss, event.grad_norm) for event in run.events() if isinstance(event, Step)]


@pytest.mark.parametrize("case", CASES)
def test_broken_off_anywhere_and_resumed_is_unbroken(case: str, tmp_path: Path, tiny: Path, pictures: Path) -> None:
    settings = config(tiny, pictures, case)
    whole = to_the_end(tmp_path, settings, "whole")
    draw = random.Random(case)
    for step in sorted(draw.sample(range(1, 7), 2)):
        run, stream = session.start(settings, tmp_path, "broken", runs.find_resumable(tmp_path, "broken"))
        for event in stream:
            if isinstance(event, Step) and event.step == step:
                break
        stream.close()
    broken = to_the_end(tmp_path, settings, "broken")
    assert broken.lora_file.read_bytes() == whole.lora_file.read_bytes()
    assert (broken.folder / "best.safetensors").read_bytes() == (whole.folder / "best.safetensors").read_bytes()
    assert logged_steps(broken) == logged_steps(whole)


def killed_again_and_again(tmp_path: Path, settings, kills: int, seed: int) -> None:
    """Kill the real process at random moments, then let it finish; compare with an unbroken run."""
    path = tmp_path / "settings.toml"
    presets.save(session.absolute(settings), path)
    whole = to_the_end(tmp_path / "whole", presets.load(str(path), {}), "x")
    draw = random.Random(seed)
    command = ["train", str(path), "--name", "x", "--out", str(tmp_path / "killed"), "--resume", "--json"]
    killed = 0
    for _ in range(kills):
        process = warm.Command(command, tmp_path)
        for line in process.stdout:
            if '"event": "step"' in line:
                break
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    finished = warm.run(command, tmp_path, 200)
    assert finished.returncode == 0, finished.stderr
    assert killed >= kills // 2
    run = runs.Run(tmp_path / "killed" / "x")
    assert run.lora_file.read_bytes() == whole.lora_file.read_bytes()
    assert logged_steps(run) == logged_steps(whole)


def test_ten_kills_of_the_real_process_change_nothing(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    settings = config(
        tiny,
        pictures,
        "adamw",
        max_steps=120,
        checkpoint_every_steps=5,
        preview_every_steps=40,
        validate_every_steps=30,
    )
    killed_again_and_again(tmp_path, settings, kills=10, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_fuzzed_kills_change_nothing_for_any_optimizer_or_method(
    case: str, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    settings = config(
        tiny, pictures, case, max_steps=60, checkpoint_every_steps=3, preview_every_steps=20, validate_every_steps=15
    )
    killed_again_and_again(tmp_path, settings, kills=6, seed=1)
