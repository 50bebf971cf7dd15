"""What runs live beside the base is what folding would give; schedules, blocks and regions do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from tests.stacks import apart, choice, pixels, stack
from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.data import scanning
from trainer.deltas import Delta
from trainer.errors import ConfigError
from trainer.render import live, pipeline_call, regions
from trainer.render.engine import Engine
from trainer.render.masks import Masks, Places

# One layer.


@pytest.mark.parametrize("kind", ["linear", "conv 3x3", "conv 1x1", "conv stride 2"])
def test_a_live_layer_is_the_dense_sum_for_each_image(kind: str) -> None:
    torch.manual_seed(0)
    module: nn.Module
    if kind == "linear":
        module, x = nn.Linear(12, 20), torch.randn(6, 7, 12)
    else:
        side, stride = (1 if "1x1" in kind else 3), (2 if "stride" in kind else 1)
        module, x = nn.Conv2d(12, 20, side, padding=side // 2, stride=stride), torch.randn(6, 12, 8, 8)
    kernel = tuple(module.weight.shape[2:])
    updates = [Delta(torch.randn(rank, 12, *kernel), torch.randn(20, rank, *[1] * len(kernel)), 0.5) for rank in (1, 4)]
    weights = torch.tensor(
        [[0.3, -1.2, 0.0], [2.0, 0.0, 0.0]]
    )  # adapters by images; guidance doubles the three to six rows
    moment = live.Moment(weights, weights, Masks([None, None]))
    with torch.no_grad():
        plain = module(x)
        adapters = live.LiveAdapters(
            lambda path: module,
            {"unet.x": module.weight},
            {"unet.x": [(0, 1.0, updates[0]), (1, 0.5, updates[1])]},
            moment.masks,
        )
        with adapters.attached(moment):
            output = module(x)
        base = module.weight.double()
        for row in range(6):
            dense = base + sum(
                float(weights[n, row % 3]) * factor * updates[n].dense(base, torch.float64)
                for n, factor in ((0, 1.0), (1, 0.5))
            )
            again = (
                nn.Linear(12, 20)
                if kind == "linear"
                else nn.Conv2d(12, 20, module.kernel_size, padding=module.padding, stride=module.stride)
            )
            again = again.double()
            again.weight.copy_(dense)
            again.bias.copy_(module.bias)
            torch.testing.assert_close(output[row].double(), again(x[row : row + 1].double())[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(output[2], plain[2]) and torch.equal(module(x), plain)


# Pictures.


def test_a_mixed_batch_is_its_pictures_one_by_one(engine: Engine, trained: Path, trained_style: Path) -> None:
    stacks = [
        stack(choice(trained, 0.4), choice(trained_style, 1.2), seed=1), stack(choice(trained, -0.7), seed=2),
        stack(seed=3),
        stack(choice(trained_style, 2.0, text_weight=0.0), seed=4, prompt="a cat"),
        stack(choice(trained, 0.4, blocks=("MID=0",)), seed=5),
    ]  # fmt: skip
    together = list(engine.render_all(stacks))
    assert [picture.stack.seed for picture in together] == [1, 2, 3, 4, 5]
    for asked_stack, picture in zip(stacks, together, strict=True):
        assert apart(engine.render(asked_stack).image, picture.image) <= 1
    assert apart(together[0].image, together[1].image) > 20


def test_pictures_that_cannot_be_one_batch_are_not(engine: Engine, trained: Path) -> None:
    stacks = [
        stack(),
        stack(steps=2),
        stack(width_px=64),
        stack(guidance_scale=1.0),
        stack(prompt="a (fox:1.4)"),
        stack(sampler="euler"),
        stack(),
    ]
    pictures = list(engine.render_all(stacks))
    assert all(
        apart(engine.render(asked_stack).image, picture.image) <= 1
        for asked_stack, picture in zip(stacks, pictures, strict=True)
    )
    assert apart(pictures[0].image, pictures[4].image) > 5 and apart(pictures[0].image, pictures[5].image) > 0


def test_a_batch_too_large_for_memory_is_drawn_in_halves(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], pipeline_call.draw_batch

    def small(pipe: Any, family: Any, stacks: list[StackConfig], step_done: Any, look: Any) -> Any:
        sizes.append(len(stacks))
        if len(stacks) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(pipe, family, stacks, step_done, look)

    monkeypatch.setattr(pipeline_call, "draw_batch", small)
    assert [
        picture.stack.seed for picture in engine.render_all(stack(seed=number, steps=1) for number in range(5))
    ] == [0, 1, 2, 3, 4]
    assert sizes == [5, 2, 3, 1, 2]


def test_a_schedule_that_never_changes_is_the_weight(engine: Engine, trained: Path) -> None:
    half = pixels(engine, stack(choice(trained, 0.5, text_weight=1.0)))
    assert apart(half, pixels(engine, stack(choice(trained, 1.0, schedule="linear 0.5 0.5")))) == 0
    assert apart(half, pixels(engine, stack(choice(trained, 1.0, schedule="points 0:0.5 0.5:0.500001")))) <= 1  # live


def test_a_schedule_acts_when_it_says(engine: Engine, trained: Path) -> None:
    none = pixels(engine, stack(choice(trained, 0.0, text_weight=1.0)))
    early = pixels(engine, stack(choice(trained, schedule="steps 0:1 0.3:0")))
    late = pixels(engine, stack(choice(trained, schedule="steps 0:0 0.3:1")))
    whole = pixels(engine, stack(choice(trained)))
    assert min(apart(early, none), apart(late, none), apart(early, late), apart(early, whole)) > 5
    assert apart(none, pixels(engine, stack(choice(trained, schedule="steps 0:0 0.999:0")))) == 0


def test_blocks_take_their_factor_and_all_at_zero_is_absent(engine: Engine, trained: Path) -> None:
    base = pixels(engine, stack())
    assert apart(base, pixels(engine, stack(choice(trained, text_weight=0.0, blocks=("IN=0", "MID=0", "OUT=0"))))) == 0
    out = pixels(engine, stack(choice(trained, text_weight=0.0, blocks=("IN=0", "MID=0"))))
    assert apart(base, out) > 5
    assert apart(out, pixels(engine, stack(choice(trained, text_weight=0.0, blocks=("down=0", "mid_block=0"))))) == 0
    with pytest.raises(ConfigError, match=r"'IN9=1', which fits no layer; there are .*IN0.*MID.*OUT0"):
        engine.resolve(stack(choice(trained, blocks=("IN9=1",))))


def test_off_is_absent_and_a_weight_beyond_two_asks(engine: Engine, trained: Path) -> None:
    assert apart(pixels(engine, stack()), pixels(engine, stack(choice(trained, enabled=False)))) == 0
    with pytest.raises(ValueError, match=r"adapters.0.weight is 2.5; allowed: -2 to 2, or up to 20 with wide_weights"):
        stack(choice(trained, 2.5))
    assert stack(choice(trained, 2.5), wide_weights=True).adapters[0].weight == 2.5


def test_a_region_everywhere_is_none_and_half_acts_there(engine: Engine, trained_style: Path) -> None:
    base = pixels(engine, stack(prompt="a cat"))
    whole = pixels(engine, stack(choice(trained_style, text_weight=0.0), prompt="a cat"))
    assert (
        apart(
            whole, pixels(engine, stack(choice(trained_style, text_weight=0.0, region="box 0 0 1 1"), prompt="a cat"))
        )
        <= 1
    )
    shares = []
    for box in ("box 0 0 0.5 1", "box 0.5 0 1 1"):
        change = numpy.abs(
            pixels(engine, stack(choice(trained_style, text_weight=0.0, region=box), prompt="a cat")) - base
        ).mean((0, 2))
        shares.append(change[:64].sum() / change.sum())
    assert shares[0] > 0.5 > shares[1]  # the model itself mixes places, so not all of it stays


def test_outside_its_region_cross_attention_is_the_bases(engine: Engine, trained: Path) -> None:
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    updates = {
        name: [(0, 1.0, update)]
        for name, update in lora_file.read(trained, engine.file_keys, engine.shapes).items()
        if name.startswith(path)
    }
    attention = engine.opened.module(path)
    width, text = engine.shapes[f"{path}.to_q"][1], engine.shapes[f"{path}.to_k"][1]
    x, conditioning = (
        torch.randn(2, 16, width),
        torch.randn(2, 9, text),
    )  # 16 tokens: the middle of 16 x 16 latents, 4 x 4
    weights, half = torch.tensor([[1.5]]), torch.zeros(16, 16)
    half[:, :8] = 1
    outputs = []
    with torch.no_grad():
        base = attention(x, conditioning)
        for mask in (None, half):
            moment = live.Moment(weights, weights, Masks([mask], Places.of(engine.family)))
            with live.LiveAdapters(engine.opened.module, engine.weights, updates, moment.masks).attached(moment):
                outputs.append(attention(x, conditioning))
        assert torch.equal(attention(x, conditioning), base)
    whole, placed = outputs
    inside = half[::4, ::4].flatten().bool()
    assert len(updates) == 4 and float((whole - base).norm() / base.norm()) > 1e-3
    torch.testing.assert_close(placed[:, ~inside], base[:, ~inside], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(placed[:, inside], whole[:, inside], rtol=1e-5, atol=1e-6)


def test_a_mask_is_a_region_that_travels(engine: Engine, trained_style: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "mask.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    asked_stack = stack(choice(trained_style, region=f"mask {tmp_path / 'mask.png'}"))
    resolved = engine.resolve(asked_stack)
    assert resolved.adapters[0].region.startswith("mask data:") and engine.resolve(resolved) == resolved
    assert apart(pixels(engine, resolved), pixels(engine, stack(choice(trained_style, region="box 0 0 0.5 1")))) <= 1


def test_transparency_is_outside_a_region_as_it_is_outside_a_training_mask(tmp_path: Path) -> None:
    """Half of it is drawn white, the rest transparent and white beneath, as painting programs leave it."""
    drawn = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    drawn.paste((255, 255, 255, 255), (0, 0, 32, 64))
    drawn.save(tmp_path / "mask.png")
    wanted = [[1.0] * 4 + [0.0] * 4] * 8
    adapter = AdapterChoice(region=f"mask {tmp_path / 'mask.png'}")
    region = regions.mask(adapter.model_copy(update={"region": regions.resolved(adapter, (8, 8))}), (8, 8))
    assert region is not None and region.tolist() == wanted
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    item = scanning.Item(tmp_path / "a.png", ("x",), "", 64, 64, mask=tmp_path / "mask.png")
    trained = torch.nn.functional.avg_pool2d(scanning.load_mask(item, (64, 64), 0, False)[None], 8)[0, 0]
    torch.testing.assert_close(trained, torch.tensor(wanted), rtol=0, atol=0.02)
