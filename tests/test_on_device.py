"""Adapters that are kept where the base computes: on a CPU, with a copy that stands for what a GPU would be given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from serving_parts import random_lora

from trainer import last_used
from trainer.config import AdapterChoice, StackConfig
from trainer.render.engine import Engine
from trainer.render.packing import Pack


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def files(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    return [random_lora(engine, folder / f"{number}.safetensors", number) for number in range(3)]


@pytest.fixture
def moved(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The engine takes its device for another than the shelf's memory; what it brings there, by where it came from."""
    brought: list[int] = []

    def to(pack: Pack, device: torch.device) -> Pack:
        brought.append(pack.up.data_ptr())
        return Pack(pack.paths, pack.up.clone(), pack.down.clone(), pack.scales)

    monkeypatch.setattr(Pack, "to", to)
    monkeypatch.setattr(engine.on_device, "is_apart", True)
    monkeypatch.setattr(engine.on_device, "_kept", last_used.kept(1 << 30, engine.on_device._kept.getsizeof))
    monkeypatch.setattr(engine.on_device, "_pinned", {})
    return brought


def stacks(*chosen: Path) -> list[StackConfig]:
    """Two pictures at weights of their own, so that the LoRAs run beside the base."""
    return [
        StackConfig(
            prompt="a fox", steps=1, seed=seed,
            adapters=tuple(AdapterChoice(file=str(file), weight=0.3 + seed / 4) for file in chosen),
        )
        for seed in (0, 1)
    ]  # fmt: skip


def drawn(engine: Engine, *chosen: Path) -> list[bytes]:
    return [picture.image.tobytes() for picture in engine.render_all(stacks(*chosen))]


def test_what_runs_beside_the_base_is_brought_once_and_draws_the_same(
    engine: Engine, files: list[Path], request: pytest.FixtureRequest
) -> None:
    here = drawn(engine, *files[:2])
    drawn(engine, files[2])  # so that nothing of the first batch is left
    moved = request.getfixturevalue("moved")
    assert drawn(engine, *files[:2]) == here
    first = len(moved)
    assert first and len(set(moved)) == first
    drawn(engine, files[2])
    second = len(moved)
    assert second > first and drawn(engine, *files[:2]) == here
    assert len(moved) == second, "those two are there still"
    engine.render(StackConfig(prompt="a fox", steps=1, adapters=(AdapterChoice(file=str(files[0])),)))
    assert len(moved) == second, "what is folded is the same copy"


def test_what_was_unused_for_longest_goes_and_a_pinned_one_stays(
    engine: Engine, files: list[Path], moved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = drawn(engine, files[0])
    size = engine.on_device.num_bytes
    assert size > 0
    kept = engine.on_device._kept
    monkeypatch.setattr(engine.on_device, "_kept", last_used.kept(size, kept.getsizeof))
    engine.shelf.pin(files[0])
    moved.clear()
    for file in (files[0], files[1], files[2], files[1], files[0]):
        drawn(engine, file)
    each = len(moved) // 4
    assert len(moved) == 4 * each and len(set(moved)) == 3 * each, "the second was brought twice, the pinned one once"
    assert engine.on_device.num_bytes == 2 * size
    assert drawn(engine, files[0]) == one
