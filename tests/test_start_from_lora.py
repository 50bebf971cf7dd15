"""Runs that go on from a LoRA file, and the commands that extend, branch and go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.branches import RICH, drawn, losses, same, settings_of, step_0, stopped, trained, weights_of
from trainer import families, methods, presets, runs, session, start_weights
from trainer.config import TrainConfig
from trainer.errors import ConfigError, UserError
from trainer.events import Stopped


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "mokka dot, {colour}, round", num=5, wider_px=30)


@pytest.fixture(scope="module")
def settings(tiny: Path, pictures: Path) -> Callable[..., TrainConfig]:
    return settings_of(tiny, pictures)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, settings: Callable[..., TrainConfig]) -> runs.Run:
    """Nine steps with a cosine schedule and a running mean, a checkpoint every third."""
    return trained(tmp_path_factory.mktemp("old"), settings(**RICH))


# From a LoRA.

ADAPTERS = {
    "lora": {"adapter.targets": "all"},
    "dora": {},
    "loha": {},
    "lokr": {},
    "oft": {"adapter.targets": "attention"},
}


@pytest.mark.parametrize("method", sorted(methods.registry()))
def test_step_0_draws_what_the_lora_draws(method: str, tmp_path: Path, settings) -> None:
    first = trained(tmp_path, settings(**{"adapter.method": method, "learning_rate": 5e-2}, **ADAPTERS[method]))
    asked = start_weights.changes(str(first.lora_file), first.config().family)
    wanted = settings(**asked, preview_every_steps=9)
    new = trained(tmp_path, wanted, "new")
    difference = abs(step_0(new) - drawn(first.lora_file, wanted))
    assert difference.mean() < 0.5 and difference.max() <= 4  # beside the base or folded into it: other roundings
    assert abs(step_0(new) - step_0(first)).mean() > 2  # it does something
    assert not same(weights_of(new), weights_of(first))


@pytest.mark.parametrize("method", sorted(methods.registry()))
def test_a_lora_that_is_ours_gives_the_very_numbers(method: str, tmp_path: Path, settings) -> None:
    first = trained(tmp_path, settings(**{"adapter.method": method, **ADAPTERS[method]}, preview_every_steps=0))
    asked = start_weights.changes(str(first.lora_file), first.config().family)
    still = settings(**asked, max_steps=1, learning_rate=1e-30, preview_every_steps=0)
    before, after = weights_of(first), weights_of(trained(tmp_path, still, "new"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, rtol=0, atol=1e-20)


def test_another_tools_lora_of_mixed_ranks_and_few_layers(tmp_path: Path, settings) -> None:
    """PEFT's names, no alpha, ranks 2 and 4, and only some of the layers: rank and targets come from the file."""
    first = trained(tmp_path, settings(**{"adapter.rank": 4, "adapter.alpha": 4}))
    pipe = families.registry()["sd"].load(Path(first.config().base), "cpu", torch.float32)
    keys = families.registry()["sd"].file_keys(pipe)
    paths = [path for path in keys if path.endswith(("attn1.to_q", "attn2.to_v"))]
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for number, path in enumerate(paths):
        out, into = pipe.unet.get_submodule(path.removeprefix("unet.")).weight.shape
        rank = 2 if number % 2 else 4
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, into, generator=generator) * 0.3
        tensors[f"{path}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.3
    file = tmp_path / "theirs.safetensors"
    save_file(tensors, file)
    asked = start_weights.changes(str(file), "sd")
    assert asked["adapter.rank"] == 4 and asked["adapter.targets"] == "attention"
    wanted = settings(**asked, preview_every_steps=9)
    new = trained(tmp_path, wanted, "new")
    assert abs(step_0(new) - drawn(file, wanted)).max() <= 1
    assert abs(step_0(new) - step_0(first)).max() > 1
    assert len(weights_of(new)) > len(tensors)  # layers that the file leaves alone are trained too


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter.rank": 2}, "adapter.rank is 2; allowed: 16 or more"),
        ({"adapter.method": "dora"}, "adapter.method is 'dora'; allowed: 'lora'"),
        ({"adapter.targets": "attention"}, "adapter.targets is 'attention'.*allowed: 'all'"),
        ({"adapter.init": "pissa", "adapter.targets": "linear"}, "adapter.init is 'pissa'"),
        ({"start.optimizer": True}, "has no optimizer"),
    ],
)
def test_what_does_not_fit_the_lora_is_refused(
    changes: dict, words: str, lora_of_all: runs.Run, tmp_path: Path, settings
) -> None:
    wanted = settings(**({"start.source": str(lora_of_all.lora_file), "adapter.targets": "all"} | changes))
    with pytest.raises(ConfigError, match=words):
        session.start(wanted, tmp_path / "runs", "new", None)
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def lora_of_all(tmp_path_factory: pytest.TempPathFactory, settings) -> runs.Run:
    return trained(tmp_path_factory.mktemp("all"), settings(**{"adapter.targets": "all"}))


def test_a_lora_of_another_family_is_refused(trained_style: Path, settings) -> None:
    with pytest.raises(UserError, match="is for"):
        start_weights.refuse(settings(**{"start.source": str(trained_style), "family": "sdxl"}))


# The command.


def test_the_command_extends_branches_and_goes_on(tmp_path: Path, settings, run_velatura) -> None:
    presets.save(settings(), tmp_path / "settings.toml")
    out = tmp_path / "runs"
    first = run_velatura("train", "settings.toml", "--name", "fox", "--out", out)
    assert first.returncode == 0, first.stderr
    more = run_velatura("train", "--extend", "3", "--name", "fox", "--out", out)
    assert more.returncode == 0, more.stderr
    assert "extended at step 9 from 9 to 12 steps" in more.stdout + more.stderr
    assert runs.Run(out / "fox").config().max_steps == 12
    again = run_velatura("train", "--resume", "--name", "fox", "--out", out)
    assert again.returncode == 0 and "finished" in again.stdout

    branched = run_velatura(
        "train", "--from", out / "fox" / "checkpoints" / "step-000012", "--set", "start.optimizer=true", "--set",
        "max_steps=14", "--name", "branch", "--out", out,
    )  # fmt: skip
    assert branched.returncode == 0, branched.stderr
    assert [step[0] for step in losses(runs.Run(out / "branch"))] == [13, 14]
    lora = out / "fox" / "fox.safetensors"
    data = settings().data.folder
    onward = run_velatura(
        "train", "--from", lora, "--data", data, "--set", f"base={settings().base}", "--name", "on", "--out", out
    )
    assert onward.returncode == 0, onward.stderr
    assert runs.Run(out / "on").config().start.source == str(lora)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--extend", "5"], "--name"),
        (["--extend", "5", "--name", "none"], "is none"),
        (["--extend", "5", "--name", "fox", "--set", "learning_rate=1"], "leave out"),
        (["--from", "nothing"], "allowed: a LoRA file"),
    ],
)
def test_the_command_says_what_it_cannot(arguments: list[str], words: str, run_velatura) -> None:
    refused = run_velatura("train", *arguments)
    assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr


def test_a_stop_of_a_branch_before_its_first_checkpoint_goes_on(old: runs.Run, tmp_path: Path) -> None:
    wanted = session.absolute(
        presets.load(
            str(old.config_file),
            {"start.source": str(old.checkpoints / "step-000006"), "start.optimizer": True, "max_steps": 20,
             "checkpoint_every_steps": 8},
        )
    )  # fmt: skip
    stopped(tmp_path, wanted, 7, "b")
    assert not any(isinstance(event, Stopped) for event in runs.Run(tmp_path / "b").events())
    whole = trained(tmp_path, wanted, "whole")
    assert losses(trained(tmp_path, wanted, "b")) == losses(whole)
