"""What is seen of a picture before it is done: the pipeline's latents, decoded in every family, and nothing changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stacks import apart
from trainer import families
from trainer.config import AdapterChoice, StackConfig
from trainer.render import step_pictures
from trainer.render.engine import Engine

STEPS = 3


@pytest.fixture(scope="module", params=sorted(families.registry()))
def any_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = families.registry()[request.param].tiny(tmp_path_factory.mktemp(request.param))
    return Engine(str(folder), request.param, device="cpu", dtype="float32")


def wide(engine: Engine) -> StackConfig:
    """A small stack that isn't square."""
    side = engine.family.multiple_px * max(1, 48 // engine.family.multiple_px)
    return StackConfig(
        prompt="a cat", steps=STEPS, width_px=2 * side, height_px=side, base=engine.base, family=engine.family.name
    )


def test_the_latents_after_the_last_step_are_the_picture_itself(any_engine: Engine) -> None:
    """The truth is diffusers' own way from its latents to its picture."""
    last: list[Tensor] = []
    stack = wide(any_engine)

    def look(step: int, latents: Tensor, stacks: Any) -> None:
        last[:] = [latents[0].clone()]

    with any_engine.watched(_pass, look):
        picture = any_engine.render(stack).image
    decoded = step_pictures.decode(any_engine.pipe, last[0], any_engine.latents(stack))
    assert decoded is not None and decoded.size == picture.size == (stack.width_px, stack.height_px)
    assert apart(decoded, picture) <= 1


def test_looking_after_each_step_changes_no_byte_and_no_random_number(any_engine: Engine) -> None:
    stack, seen = wide(any_engine), []
    alone = any_engine.render(stack).image.tobytes()

    def look(step: int, latents: Tensor, stacks: Any) -> None:
        before, state = latents.clone(), torch.get_rng_state()
        for image in (
            step_pictures.decode(any_engine.pipe, latents[0], any_engine.latents(stack)),
            step_pictures.decode_small(any_engine.pipe, latents[0], any_engine.latents(stack), 48),
        ):
            assert image is not None
            seen.append(image)
        assert torch.equal(latents, before) and torch.equal(torch.get_rng_state(), state)

    with any_engine.watched(_pass, look):
        watched = any_engine.render(stack).image.tobytes()
    assert watched == alone == any_engine.render(stack).image.tobytes()
    assert len(seen) == 2 * STEPS and seen[0].tobytes() != seen[-2].tobytes()
    assert max(seen[1].size) <= 48 < max(seen[0].size)


@pytest.mark.parametrize(
    ("side", "shown"), [(64, 64), (128, 128), (256, 256), (320, 256), (512, 256), (768, 384)]
)  # fmt: skip
def test_a_large_picture_is_seen_at_half_its_size_and_a_small_one_as_it_is(
    engine: Engine, side: int, shown: int
) -> None:
    size = (side // engine.pipe.vae_scale_factor,) * 2
    latents = torch.randn(engine.pipe.vae.config.latent_channels, *size, generator=torch.Generator().manual_seed(1))
    image = step_pictures.decode_small(engine.pipe, latents, size, 512)
    assert image is not None and image.size == (shown, shown)


def test_latents_of_another_kind_and_numbers_that_are_none_give_no_picture(engine: Engine) -> None:
    channels, pipe = engine.pipe.vae.config.latent_channels, engine.pipe
    assert step_pictures.decode(pipe, torch.zeros(channels + 1, 8, 8), (8, 8)) is None
    assert step_pictures.decode(pipe, torch.zeros(16, channels), (8, 8)) is None
    assert step_pictures.decode(pipe, torch.full((channels, 8, 8), torch.nan), (8, 8)) is None
    assert step_pictures.decode(object(), torch.zeros(channels, 8, 8), (8, 8)) is None


def test_a_live_lora_is_where_it_was_after_a_look(engine: Engine, trained: Path) -> None:
    adapter = AdapterChoice(file=str(trained), weight=0.9, schedule="linear 1 0")
    stack = StackConfig(prompt="a fox", steps=4, width_px=64, height_px=64, guidance_scale=3.0, adapters=(adapter,))
    alone = engine.render(stack).image.tobytes()

    def look(step: int, latents: Tensor, stacks: Any) -> None:
        assert step_pictures.decode(engine.pipe, latents[0], engine.latents(stack)) is not None

    with engine.watched(_pass, look):
        assert engine.render(stack).image.tobytes() == alone


def _pass(step: int, num_steps: int, num_together: int) -> None: ...
