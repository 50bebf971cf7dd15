"""Two processes train the adapter that one trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import plain
from trainer import distributed, presets, session
from trainer.families import registry

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    folder = tmp_path_factory.mktemp("two")
    tiny = registry()["sd"].tiny(folder / "tiny")
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 6, "batch_size": 3, "accumulation": 2,
        "checkpoint_every_steps": 3, "preview_every_steps": 3,
        "preview.steps": 2, "preview.prompts": ["a cat"], "learning_rate": 1e-2,
        "data.folder": str(examples / "grey-cat" / "train"), "data.flip": True,
        "optimizer.ema_decay": 0.9, "validation.leave_out": 2, "validate_every_steps": 3, "device": "cpu",
    }  # fmt: skip
    path = folder / "settings.toml"
    presets.save(session.absolute(presets.load(plain.CHARACTER, values)), path)
    return path


def train(settings_file: Path, out: Path, processes: int, *more: str) -> subprocess.CompletedProcess[str]:
    start = (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        if processes > 1
        else [sys.executable]
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*start, "-m", "trainer", "train", str(settings_file), "--name", "x", "--out", str(out), *more]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def alone(settings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("one")
    done = train(settings_file, out, 1)
    assert done.returncode == 0, done.stderr
    return load_file(out / "x" / "x.safetensors")


def close(tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal up to the order of additions; by tensor, since Adam divides by gradients that are nearly zero in places."""
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert float((tensors[name] - tensor).norm() / tensor.norm()) < 1e-3, name


def test_two_processes_train_the_same_adapter_as_one_and_write_one_run(
    settings_file: Path, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    done = train(settings_file, tmp_path, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished in") == 1, "only the first process speaks"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["x"]
    close(load_file(tmp_path / "x" / "x.safetensors"), alone)
    assert (tmp_path / "x" / "best.safetensors").is_file()


def test_a_checkpoint_of_two_processes_goes_on_in_one(
    settings_file: Path, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    done = train(settings_file, tmp_path, 2)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "x"
    for later in ("checkpoints/step-000006", "x.safetensors"):  # as if it had been killed after step 3
        path = run / later
        subprocess.run(["rm", "-r", str(path)], check=True)
    (run / "events.jsonl").write_text(
        "".join(line for line in (run / "events.jsonl").read_text().splitlines(True) if '"finished"' not in line)
    )
    done = train(settings_file, tmp_path, 1, "--resume")
    assert done.returncode == 0, done.stderr
    assert "from step 3" in done.stdout
    close(load_file(run / "x.safetensors"), alone)


def test_a_base_sharded_over_two_processes_trains_the_same_adapter(
    settings_file: Path, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    sharded = tmp_path / "sharded.toml"
    presets.save(presets.load(str(settings_file), {"memory.shard": True}), sharded)
    done = train(sharded, tmp_path / "out", 2)
    assert done.returncode == 0, done.stderr
    close(load_file(tmp_path / "out" / "x" / "x.safetensors"), alone)
    assert (tmp_path / "out" / "x" / "best.safetensors").is_file() and len(
        list((tmp_path / "out" / "x" / "samples").glob("*.png"))
    ) == 3


def test_two_processes_scale_a_float16_bases_loss_alike_though_one_has_no_rows(
    settings_file: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "half.toml"
    presets.save(
        presets.load(
            str(settings_file), {"dtype": "float16", "batch_size": 1, "accumulation": 1, "preview.prompts": []}
        ),
        settings,
    )
    made = []
    for processes in (1, 2):
        done = train(settings, tmp_path / str(processes), processes)
        assert done.returncode == 0, done.stderr
        run = tmp_path / str(processes) / "x"
        made.append(
            (
                load_file(run / "x.safetensors"),
                json.loads((run / "checkpoints" / "step-000006" / "state.json").read_text())["loss_scale"],
            )
        )
    close(made[1][0], made[0][0])
    assert made[0][1] == made[1][1] and made[0][1]["_growth_tracker"] == 6


def test_accelerate_launch_starts_two_processes_on_cpus_too(
    settings_file: Path, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "told.py").write_text(
        "import os, runpy\nprint('one of', os.environ['WORLD_SIZE'])\nrunpy.run_module('trainer', "
        "run_name='__main__')\n"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--module",
        "told",
    ]
    arguments = ["train", str(settings_file), "--name", "x", "--out", str(tmp_path)]
    done = subprocess.run([*launch, *arguments], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("one of 2") == 2
        and done.stdout.count("finished in") == 1
        and "started one" not in done.stdout
    )
    close(load_file(tmp_path / "x" / "x.safetensors"), alone)


def test_rows_are_dealt_out_and_a_share_may_be_empty() -> None:
    assert [distributed.World(rank, 3).rows(7) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert distributed.World(2, 3).rows(1) == []


def test_accelerate_launch_that_starts_one_process_is_told_of(settings_file: Path, tmp_path: Path) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing; we do."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--module",
        "trainer",
        "train",
        str(settings_file),
    ]
    done = subprocess.run([*launch, "--out", str(tmp_path)], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert (
        "asked for 2 processes and started one" in done.stdout
        and "--multi_gpu" in done.stdout
        and "torchrun" in done.stdout
    )
