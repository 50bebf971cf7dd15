"""What every family must show where diffusers or a habit of pipelines would trip it: masks, checkpointing, dropped
captions, its own sampler.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from tests import plain
from trainer import attaching, bases, families, loop, presets, session
from trainer.config import StackConfig
from trainer.data import scan
from trainer.errors import ConfigError, ModelError
from trainer.families.contract import Family
from trainer.render import a1111_text
from trainer.render.engine import Engine
from trainer.training_model import TrainingModel

SIZE_PX = 64


@pytest.fixture(scope="module", params=sorted(families.registry()))
def family(request: pytest.FixtureRequest) -> Family:
    return families.registry()[request.param]


@pytest.fixture(scope="module")
def engine(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(str(family.tiny(tmp_path_factory.mktemp(family.name))), family.name, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def studio(
    family: Family, engine: Engine, draw_dots: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> TrainingModel:
    settings = presets.load(plain.STYLE, {
        "family": family.name, "base": engine.base,
        "data.folder": str(draw_dots(tmp_path_factory.mktemp("dots"), "a {colour} dot", num=2)), "batch_size": 2,
        "resolution_px": SIZE_PX, "adapter.targets": "all", "adapter.text_encoder": False, "dtype": "float32",
        "preview.guidance_rescale": 0.0,
    })  # fmt: skip
    made = TrainingModel.open(settings)
    made.prepare(tmp_path_factory.mktemp("cache"), scan(settings), None)
    attaching.attach(made, None)
    return made


def stack(engine: Engine, **values: Any) -> StackConfig:
    given = {"prompt": "a cat", "steps": 2, "width_px": SIZE_PX, "height_px": SIZE_PX}
    return StackConfig(family=engine.family.name, base=engine.base, **given | values)


def test_a_dropped_caption_is_what_guidance_calls_no_prompt(
    family: Family, studio: TrainingModel, engine: Engine
) -> None:
    if family.guidance == "distilled":
        pytest.skip("its guidance draws without a second pass")
    seen: list[torch.Tensor] = []
    wanted = studio.encoded.conditioning("")["encoder_hidden_states"].squeeze(0)

    def look(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        for argument in [*given, *named.values()]:
            rows = argument if isinstance(argument, list) or (torch.is_tensor(argument) and argument.ndim > 1) else []
            seen.extend(
                row
                for row in rows
                if torch.is_tensor(row) and row.shape == wanted.shape and torch.allclose(row, wanted, atol=1e-5)
            )

    handle = getattr(engine.pipe, engine.component).register_forward_pre_hook(look, with_kwargs=True)
    engine.render(stack(engine, negative_prompt="", steps=1))
    handle.remove()
    assert len(seen) == 1


def test_gradient_checkpointing_changes_neither_the_loss_nor_a_gradient(studio: TrainingModel) -> None:
    gradients = []
    for change in ("disable", "enable"):
        getattr(studio.denoiser, f"{change}_gradient_checkpointing")()
        for parameter in studio.trained.values():
            parameter.grad = None
        losses = loop.learn(studio, 0).losses
        gradients.append(
            (losses, {name: parameter.grad for name, parameter in studio.trained.items() if parameter.grad is not None})
        )
    studio.denoiser.disable_gradient_checkpointing()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    assert gradients[0][1]


def test_what_pads_a_short_caption_is_not_heeded(family: Family, engine: Engine) -> None:
    pipe, embeddings = engine.pipe, family.encode_text(engine.pipe, ["a dot", "a dot in the sky"], 1)
    size = 16 * pipe.vae_scale_factor
    for embedding in embeddings:
        embedding["frame"] = torch.tensor([size, size, 0, 0, size, size])
    batch = family.prepare_batch(embeddings)
    if "mask" not in batch or batch["mask"].all():  # unpadded, or of zeros that the denoiser knows
        pytest.skip("nothing pads a short caption")
    other = batch | {
        "encoder_hidden_states": torch.where(batch["mask"].bool()[..., None], batch["encoder_hidden_states"], 7.0)
    }
    channels = family.encode_image(pipe, torch.zeros(1, 3, 64, 64)).shape[1]
    noised, timesteps = (
        torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([300, 700]),
    )
    with torch.no_grad():
        pair = [
            family.denoise(getattr(pipe, engine.component), noised, timesteps, conditioning)
            for conditioning in (batch, other)
        ]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


def test_a_pictures_infotext_is_laid_on_a_stack_that_draws_it_again(family: Family, engine: Engine) -> None:
    asked_stack = stack(engine, seed=7, **({} if family.guidance == "distilled" else {"guidance_scale": 3.0}))
    picture = engine.render(asked_stack)
    blank = StackConfig(family=family.name, base=engine.base)
    back, _ = a1111_text.apply_infotext(blank, a1111_text.parse_infotext(picture.infotext), {})
    assert numpy.array_equal(numpy.asarray(picture.image), numpy.asarray(engine.render(back).image))


def test_what_is_for_linear_layers_is_refused_where_convolutions_are_meant(family: Family, engine: Engine) -> None:
    layers = getattr(engine.pipe, engine.component).named_modules()
    convolutions = [path for path, module in layers if isinstance(module, torch.nn.Conv2d)]
    given = {"family": family.name, "base": engine.base, "resolution_px": SIZE_PX, "preview.guidance_rescale": 0.0}
    for setting, pattern in family.targets.items():
        if setting == "all":
            continue
        is_refused = any(re.fullmatch(pattern, path) for path in convolutions)
        for start in (
            {"adapter": {"method": "oft", "targets": setting}},
            {"adapter.init": "pissa", "adapter.targets": setting},
        ):
            with pytest.raises(ConfigError, match="takes in convolutions of") if is_refused else nullcontext():
                presets.load(plain.STYLE, given | start)


def test_a_picture_may_be_long_where_positions_have_no_end(family: Family, engine: Engine) -> None:
    if bases.longest_px(engine.folder) is not None:
        pytest.skip("its positions have an end")
    # HiDream limits the area of pictures that aren't square: tests/test_families_flow.py.
    width = 96 if family.name == "hidream" else 256
    assert engine.render(stack(engine, steps=1, width_px=width, height_px=64)).image.size == (width, 64)


def test_a_picture_with_more_tokens_than_there_are_positions_is_refused(
    family: Family, engine: Engine, tmp_path: Path
) -> None:
    longest = bases.longest_px(engine.folder)
    if longest is None:
        pytest.skip("its positions have no end")
    assert engine.render(stack(engine, steps=1, width_px=longest, height_px=64)).image.size == (longest, 64)
    beyond = longest + bases.multiple_px(engine.folder)
    with pytest.raises(ModelError, match=f"width_px is {beyond}; allowed for this base: a multiple of .* to {longest}"):
        engine.render(stack(engine, width_px=beyond))
    Image.new("RGB", (longest * 2, longest // 2)).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("a wall", encoding="utf-8")
    given = {
        "family": family.name,
        "base": engine.base,
        "preview.guidance_rescale": 0.0,
        "data.folder": str(tmp_path),
        "data.buckets": True,
    }
    settings = presets.load(
        plain.STYLE, given | {"resolution_px": longest, "data.max_upscale": 8.0, "preview_every_steps": 0}
    )
    with pytest.raises(
        ConfigError, match=rf"wide.png would be trained at .* px, but this base has positions for {longest} px a side"
    ):
        session.start(settings, tmp_path / "runs", "x", None)
