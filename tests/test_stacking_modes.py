"""Modes of composing do what they say, and leave no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.stacks import apart, choice, pixels, stack
from trainer import lora_file
from trainer.deltas import Delta
from trainer.errors import ConfigError
from trainer.render import modes
from trainer.render.engine import Engine


def rewritten(path: Path, engine: Engine, to: Path) -> Path:
    """The same updates with other numbers in the file, so that its hash is another: each up doubled, its scale
    halved.
    """
    parts = {}
    for name, update in lora_file.read(path, engine.file_keys, engine.shapes).items():
        assert isinstance(update, Delta)
        alpha = torch.tensor(update.scale * update.rank / 2)
        parts[engine.file_keys[name]] = {
            "lora_down.weight": update.down,
            "lora_up.weight": update.up * 2,
            "alpha": alpha,
        }
    lora_file.save(to, parts, {}, torch.float32)
    return to


# Modes.


def test_composite_of_one_update_twice_is_that_update(engine: Engine, trained: Path, tmp_path: Path) -> None:
    twin = rewritten(trained, engine, tmp_path / "twin.safetensors")
    without_text = pixels(engine, stack(choice(trained, text_weight=0.0)))
    both = stack(choice(trained, text_weight=0.0), choice(twin, text_weight=0.0), mode="composite")
    assert apart(without_text, pixels(engine, both)) <= 1
    assert apart(without_text, pixels(engine, both.model_copy(update={"mode": "sum"}))) > 5


def test_switch_takes_turns_as_schedules_would(engine: Engine, trained: Path, trained_style: Path) -> None:
    turns = pixels(engine, stack(choice(trained), choice(trained_style), mode="switch"))
    scheduled = stack(choice(trained, schedule="steps 0:1 0.5:0"), choice(trained_style, schedule="steps 0:0 0.5:1"))
    assert apart(turns, pixels(engine, scheduled)) <= 1
    assert apart(turns, pixels(engine, stack(choice(trained_style), choice(trained), mode="switch"))) > 5


@pytest.mark.parametrize("kind", ["latents", "frames", "tokens"])
def test_loratorio_takes_each_place_from_who_differs_there(kind: str) -> None:
    base = torch.ones({"latents": (2, 4, 4, 4), "frames": (2, 4, 1, 4, 4), "tokens": (2, 4, 4)}[kind])
    left, right = base.clone(), base.clone()
    place = (..., slice(2), slice(None)) if kind == "tokens" else (..., slice(2))
    left[place], right[...] = -1, -1
    right[place] = 1

    def call(factors: list[float]) -> torch.Tensor:
        return {(0.0, 0.0): base, (1.0, 0.0): left, (0.0, 1.0): right}[tuple(factors)]

    prediction = modes.registry()["loratorio"].predict(call, 2, 0, 1, lambda rows: slice(rows // 2))
    torch.testing.assert_close(prediction[1], -base[1])  # with the prompt
    torch.testing.assert_close(
        prediction[0], torch.zeros_like(base[0]), atol=1e-6, rtol=0
    )  # without: half the base's own


def test_k_lora_uses_one_adapter_a_layer_content_early_and_style_late(engine: Engine) -> None:
    mode, torch_rng = modes.registry()["k-lora"], torch.Generator().manual_seed(0)
    base = torch.zeros(6, 5)
    deltas = [
        [
            Delta(torch.randn(2, 5, generator=torch_rng), torch.randn(6, 2, generator=torch_rng) * size, 1.0)
            for size in sizes
        ]
        for sizes in ((1, 9), (2, 2))
    ]
    updates = {
        "a": [(0, 1.0, deltas[0][0]), (1, 1.0, deltas[1][0])],
        "b": [(0, 1.0, deltas[0][1]), (1, 1.0, deltas[1][1])],
        "c": [(1, 1.0, deltas[1][0])],
    }
    scores = mode.prepare(updates, lambda path: base)
    dense = [{name: deltas[n][k].dense(base, torch.float32).abs() for k, name in enumerate("ab")} for n in (0, 1)]
    gamma = sum(float(score.sum()) for score in dense[0].values()) / (
        sum(float(score.sum()) for score in dense[1].values()) + float(dense[1]["a"].sum())
    )
    for name in "ab":
        for n in (0, 1):
            wanted = float(dense[n][name].flatten().sort(descending=True).values[:4].sum()) * (
                gamma if n else 1
            )  # K = 2 x 2
            assert scores[name][n] == pytest.approx(wanted, rel=1e-5)
    assert set(scores) == {"a", "b"}
    factors_seen: list[dict[str, int]] = []
    for step in range(10):
        mode.predict(lambda factors, only: factors_seen.append(only) or base, 2, step, 10, scores)
    for name in "ab":
        chosen = [only[name] for only in factors_seen]
        assert chosen == sorted(chosen)  # content first, then style
    assert any(only["a"] != only["b"] for only in factors_seen)


@pytest.mark.parametrize("name", sorted(name for name, mode in modes.registry().items() if mode.place is None))
def test_a_mode_leaves_no_trace(name: str, engine: Engine, trained: Path, trained_style: Path) -> None:
    before = pixels(engine, stack())
    engine.render(
        stack(choice(trained), choice(trained_style, 0.5, schedule="linear 1 0", region="box 0 0 0.5 0.5"), mode=name)
    )
    assert apart(before, pixels(engine, stack())) == 0
    assert not any("forward" in vars(module) or module._forward_hooks for module in engine.pipe.unet.modules())


def test_a_mode_that_cannot_be_used_is_refused(engine: Engine, trained: Path, trained_style: Path) -> None:
    two = (choice(trained), choice(trained_style))
    for made, says in (
        (stack(*two, mode="average"), "allowed: composite"), (stack(two[0], mode="switch"), "at least 2 LoRAs"),
        (stack(*two, mode="composite", guidance_scale=1.0), "guidance_scale is 1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            engine.render(made)
