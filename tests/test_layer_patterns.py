"""Layers by texts in their paths: what fits, what a run then trains, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests import plain
from trainer import layer_patterns, presets, session
from trainer.errors import ConfigError, UserError

SMALL = {"resolution_px": 32, "max_steps": 1, "batch_size": 1, "preview_every_steps": 0, "adapter.targets": "all"}


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("attn2", True), ("up_blocks.*attn2", True), ("*attn2*to_q*", True), ("attn2.*up_blocks", False),
        ("a*b*c*d", False), ("unet/up_blocks.1.", True), ("to_qq", False),
    ],
)  # fmt: skip
def test_a_star_is_any_text_between_two_others(pattern: str, fits: bool) -> None:
    path = "unet/up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    assert layer_patterns.fits(pattern, path) is fits


def test_a_hostile_pattern_takes_no_time() -> None:
    start = time.perf_counter()
    assert not layer_patterns.fits("*a" * 100 + "b", "a" * 200)
    assert time.perf_counter() - start < 0.1


@pytest.fixture
def modules(tiny: Path, draw_dots: Callable[..., Path], tmp_path: Path) -> Callable[..., set[str]]:
    """The modules in the LoRA of a run with these settings."""
    dots = draw_dots(tmp_path / "dots", "a {colour} dot", num=2)

    def of(**changes: Any) -> set[str]:
        settings = {"base": str(tiny), "data.folder": str(dots), **SMALL} | {
            f"adapter.{k}": v for k, v in changes.items()
        }
        run, stream = session.start(presets.load(plain.CHARACTER, settings), tmp_path / "runs", "x", None)
        assert list(stream)[-1].kind == "finished"
        with safe_open(str(run.lora_file), framework="pt") as file:
            return {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118 - it is no dict

    return of


def test_only_the_layers_that_are_asked_for_are_in_the_file(modules: Callable[..., set[str]]) -> None:
    whole = modules()
    only = modules(only_layers=["up_blocks.*attn2", "mid_block"], without_layers=["to_out"])
    assert only == {
        name for name in whole
        if ("up_blocks" in name and "attn2" in name or "mid_block" in name) and "to_out" not in name
    } != set()  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"only_layers": ["nosuch"]}, "adapter.only_layers has 'nosuch', which fits no layer"),
        ({"without_layers": ["up_blocks", "nosuch"]}, "adapter.without_layers has 'nosuch'"),
        ({"without_layers": ["unet/"]}, "leave no layer of unet"),
    ],
)
def test_a_pattern_that_fits_nothing_or_leaves_nothing_is_refused(
    changes: dict[str, Any], message: str, modules: Callable[..., set[str]]
) -> None:
    with pytest.raises(UserError, match=message):
        modules(**changes)


@pytest.mark.parametrize("line", ["(a+)+$", "", "*", "a b", "a" * 201, "é"])
def test_a_line_that_is_no_text_of_a_path_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match="a line of layers is"):
        presets.load(plain.CHARACTER, {"adapter.only_layers": [line]})
