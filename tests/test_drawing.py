"""What drawing keeps for the next picture: it saves work and never shows in a picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy
import pytest

import trainer
from tests.stacks import choice, pixels, stack
from trainer.config import StackConfig
from trainer.render import batch_drawing, batching
from trainer.render.engine import Engine
from trainer.render.live import LiveAdapters
from trainer.render.resolving import Resolved


def test_live_adapters_are_made_once_while_only_weights_move(
    engine: Engine, trained: Path, trained_style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_made = 0

    class Counted(LiveAdapters):
        def __init__(self, *args: object) -> None:
            nonlocal num_made
            num_made += 1
            super().__init__(*args)  # type: ignore[arg-type]

    def scheduled(path: Path, weight: float, **values: object) -> StackConfig:
        return stack(choice(path, weight, schedule="linear 1 0", **values), steps=2)

    monkeypatch.setattr(batch_drawing, "LiveAdapters", Counted)
    first = pixels(engine, scheduled(trained, 1.0))
    assert not numpy.array_equal(first, pixels(engine, scheduled(trained, 0.5))) and num_made == 1
    for other in (scheduled(trained_style, 1.0), scheduled(trained, 1.0, region="box 0 0 0.5 1")):
        pixels(engine, other)
    assert numpy.array_equal(first, pixels(engine, scheduled(trained, 1.0))) and num_made == 4


def test_a_stack_that_is_on_already_needs_no_adapter(
    engine: Engine, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = stack(choice(trained, 0.5), steps=1)
    first = pixels(engine, on)
    for asked in ("get", "shares", "updates"):
        monkeypatch.setattr(engine.shelf, asked, lambda *_: pytest.fail("an adapter was asked for"))
    assert numpy.array_equal(first, pixels(engine, on))


# What a picture of a stack that was drawn with other weights passes, in this order; on a GPU `on_device` too.
MODULES = (
    "render/engine", "render/resolving", "lora_file/locating", "render/batch_drawing", "render/adapter_cache",
    "render/folding", "render/pipeline_call", "families/sd", "pipelines",
)  # fmt: skip


def modules_passed(call: Callable[[], object]) -> tuple[str, ...]:
    """Our modules whose functions run for this call, each once; `lazy`, which is only torch's import, is left out."""
    root, passed = Path(trainer.__file__).parent, dict[str, None]()

    def entered(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(root):
            passed[path.relative_to(root).with_suffix("").as_posix()] = None

    before = sys.getprofile()
    sys.setprofile(entered)
    try:
        call()
    finally:
        sys.setprofile(before)
    return tuple(name for name in passed if name != "lazy")


def test_a_picture_with_other_weights_passes_nine_modules(engine: Engine, trained: Path, trained_style: Path) -> None:
    first, other = (stack(choice(trained, w), choice(trained_style, -w), steps=1) for w in (0.3, 0.5))
    engine.render(first)
    assert modules_passed(lambda: engine.render(other)) == MODULES


def test_a_batch_has_as_many_pictures_as_the_size_they_are_drawn_in_allows(engine: Engine) -> None:
    picture = Resolved(StackConfig(width_px=512, height_px=512), (64, 64), {})
    assert [len(group) for group in batching.groups([picture] * 6, engine.opened)] == [4, 2]
