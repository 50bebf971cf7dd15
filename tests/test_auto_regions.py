"""Automatic regions: attention is read as it is, each word's place is found, each adapter acts there alone, and no
trace is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.deltas import Delta
from trainer.errors import ConfigError
from trainer.render import attention_maps, grid, live, modes, trigger_tokens
from trainer.render.engine import Engine
from trainer.render.masks import Masks

STEPS = 5
PROMPT = "couple with heart, man, man, noto style"
MODE = modes.registry()["regions"]
Make = Callable[..., AdapterChoice]


@pytest.fixture(scope="module")
def make(engine: Engine, trained: Path, trained_style: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make("heart", source=0, weight=1.0)`: a small LoRA that was really trained, twice as strong, with other trigger
    words in its header.
    """
    folder = tmp_path_factory.mktemp("triggers")

    def made(trigger: str, source: int = 0, **values: Any) -> AdapterChoice:
        path = folder / f"{source}-{len(list(folder.iterdir()))}.safetensors"
        parts: dict[str, dict[str, Tensor]] = {}
        for name, update in lora_file.read((trained, trained_style)[source], engine.file_keys, engine.shapes).items():
            assert isinstance(update, Delta)
            alpha = torch.tensor(update.scale * update.rank)
            parts[engine.file_keys[name]] = {
                "lora_down.weight": update.down,
                "lora_up.weight": update.up * 2,
                "alpha": alpha,
            }
        lora_file.save(path, parts, {"modelspec.trigger_phrase": trigger} if trigger else {}, torch.float32)
        return AdapterChoice(file=str(path), **({"name": trigger.replace(" ", "-") or "nameless"} | values))

    return made


@pytest.fixture(scope="module")
def two(make: Make) -> tuple[AdapterChoice, AdapterChoice]:
    return make("heart", 0), make("man", 1)


def stack(adapters: tuple[AdapterChoice, ...], **values: Any) -> StackConfig:
    return StackConfig(adapters=adapters, **({"prompt": PROMPT, "steps": STEPS, "mode": "regions"} | values))


def pixels(engine: Engine, made: StackConfig) -> numpy.ndarray:
    return numpy.asarray(engine.render(made).image, dtype=int)


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The masks of each batch drawn from now on, as the mode gives them."""
    masks, real = [], MODE.place

    def place(seen: Tensor, size: tuple[int, int]) -> Tensor:
        masks.append(real(seen, size))
        return masks[-1]

    monkeypatch.setitem(modes.registry(), "regions", replace(MODE, place=place))
    return masks


# Words in the prompt.


@pytest.mark.parametrize(
    ("prompt", "trigger", "tokens"),
    [
        ("mokka, a cat", "mokka", ["mo", "k", "k", "a</w>"]), ("a  MOKKA", "mokka", ["mo", "k", "k", "a</w>"]),
        ("mokkas", "mokka", []),
        ("a blue cat and blue", "blue cat", ["blue</w>", "cat</w>"]),
        ("cat and (cat:1.3), [cat]", "cat", ["cat</w>"] * 3),
        ("a cat, a dog", "dog,cat,bird", ["cat</w>", "dog</w>"]),
        ("a (blue:1.2) cat", "blue cat", ["blue</w>", "cat</w>"]),
        ("a cat BREAK a dog", "dog", ["dog</w>"]), (f"{'a ' * 40}cat", "cat", ["cat</w>"]),
        (f"(a:1.1) {'a ' * 40}cat", "cat", ["cat</w>"]),
    ],
)  # fmt: skip
def test_trigger_words_are_found_among_the_tokens_that_are_encoded(
    engine: Engine, prompt: str, trigger: str, tokens: list[str]
) -> None:
    """Against the ids that the text encoder is really given."""
    hidden: list[Tensor] = []
    handle = engine.pipe.text_encoder.register_forward_pre_hook(
        lambda module, inputs, named: hidden.append(inputs[0]), with_kwargs=True
    )
    try:
        engine.render(StackConfig(prompt=prompt, steps=1))
    finally:
        handle.remove()
    ids = hidden[0].flatten().tolist()
    positions = trigger_tokens.positions(engine.pipe, StackConfig(prompt=prompt), trigger)
    assert engine.pipe.tokenizer.convert_ids_to_tokens([ids[place] for place in sorted(positions)]) == tokens


def test_stacks_it_cannot_place_are_refused_by_name(
    engine: Engine, make: Make, two: tuple[AdapterChoice, AdapterChoice]
) -> None:
    heart, man = two
    for adapters, changes, says in (
        ((heart,), {}, "at least 2 LoRAs that are on; found: 1"),
        ((heart, man.model_copy(update={"weight": 0.0})), {}, "at least 2 LoRAs"),
        ((heart, make("", 1)), {}, "nameless has no trigger word in its header"),
        ((heart, man.model_copy(update={"region": "box 0 0 1 1"})), {}, "man has the region 'box 0 0 1 1'"),
        ((heart, make("zirko", 1)), {}, r"no trigger word of zirko \(zirko\)"),
        ((heart, make("Heart", 1)), {}, "Heart .* in common with heart"),
        ((heart, make("with heart", 1)), {}, "with-heart .* in common with heart"),
        ((heart, man), {"steps": 1}, "steps is 1; allowed with it: at least 2"),
        ((heart, man), {"prompt": f"heart {'a ' * 40}"}, "the prompt has no trigger word of man"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            engine.render(stack(adapters, **changes))
    inserted = engine.resolve(stack((heart, make("zirko", 1).model_copy(update={"trigger": True}))))
    assert inserted.prompt == f"zirko, {PROMPT}" and engine.resolve(inserted) == inserted


# Attention.


def test_attention_is_what_diffusers_computes_in_the_layer(engine: Engine) -> None:
    attention = attention_maps.layers(engine.pipe.unet, engine.family)[-1]
    hidden, text = torch.randn(2, 64, attention.to_q.in_features), torch.randn(2, 32, attention.to_k.in_features)
    query, key = (
        attention.head_to_batch_dim(projected) for projected in (attention.to_q(hidden), attention.to_k(text))
    )
    wanted = attention.get_attention_scores(query, key).unflatten(0, (2, attention.heads)).mean(1)
    torch.testing.assert_close(attention_maps.of_cross_attention(attention, hidden, text), wanted)


def test_each_word_is_found_where_the_picture_attends_to_it(
    engine: Engine, two: tuple[AdapterChoice, AdapterChoice], masks: list[Tensor]
) -> None:
    """Weights set by hand: queries tell left from right by the sign of one channel, keys the words by their embeddings'
    own directions.
    """
    resolved = [
        engine.resolve(stack(two, prompt=prompt, seed=seed))
        for seed, prompt in enumerate((PROMPT, "man, noto style, heart"))
    ]
    layers = attention_maps.layers(engine.pipe.unet, engine.family)
    sided = torch.tensor([1.0] * 4 + [-1.0] * 4).repeat(8)  # of 8 x 8 tokens: left, right

    def of_place(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        side = sided if output.shape[1] == 64 else sided.reshape(8, 8)[::2, ::2].flatten()
        return side[None, :, None].expand_as(output).to(output)

    def of_words(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        signs = torch.zeros(len(output), output.shape[1])
        for row, made in enumerate(resolved):
            for trigger, sign in (("heart", 1.0), ("man", -1.0)):
                signs[len(output) // 2 + row, sorted(trigger_tokens.positions(engine.pipe, made, trigger))] = sign
        return signs[..., None].expand_as(output).to(output)

    handles = [
        hook
        for layer in layers
        for hook in (layer.to_q.register_forward_hook(of_place), layer.to_k.register_forward_hook(of_words))
    ]
    try:
        list(engine.render_all(resolved))
    finally:
        for handle in handles:
            handle.remove()
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    assert masks[0].shape == (2, 2, 8, 8)
    for image in range(2):
        torch.testing.assert_close(masks[0][:, image], torch.stack([left, 1 - left]))


def test_masks_leave_no_cell_to_two_and_no_cell_alone() -> None:
    seen = torch.rand(3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    mask = MODE.place(seen, (12, 10))
    assert mask.shape == (3, 2, 12, 10) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask.sum(0), torch.ones(2, 12, 10))
    once = MODE.place(seen[:, 1:], (12, 10))
    assert torch.equal(mask[:, 1:], once)  # one picture's masks don't depend on the other's
    assert torch.equal(
        MODE.place(seen * torch.tensor([1.0, 5.0, 0.1])[:, None, None, None], (12, 10)), mask
    )  # nor on how much a word is attended to in all


def test_what_the_edge_draws_is_left_out() -> None:
    seen = torch.ones(2, 1, 8, 8)
    seen[0, 0, 1:4, 2:6] = 2.0
    seen[1, 0, 4:7, 2:6] = 2.0
    wanted = MODE.place(seen, (8, 8))
    seen[0, 0, 7, :3] = 30.0
    mask = MODE.place(seen, (8, 8))
    assert mask[1, 0, 4:7, 2:6].all() and torch.equal(mask[:, 0, 1:7, 1:7], wanted[:, 0, 1:7, 1:7])


def test_a_heart_above_two_people_is_found(
    engine: Engine, two: tuple[AdapterChoice, AdapterChoice], masks: list[Tensor]
) -> None:
    stacks = [stack(two, seed=seed, steps=10) for seed in (1, 2, 3)]
    list(engine.render_all(stacks))
    heart = masks[0][0]  # (3, 8, 8)
    assert float(heart[:, :3, 3:5].mean()) == 1  # where it lies
    assert float(heart[:, 5:].mean()) < 0.3  # faces and shoulders


# Masks of each image.


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_each_image_of_a_batch_has_its_own_mask(kind: str) -> None:
    torch.manual_seed(0)
    is_linear = kind == "linear"
    module = torch.nn.Linear(6, 5) if is_linear else torch.nn.Conv2d(6, 5, 3, padding=1)
    x = torch.randn(4, 16, 6) if is_linear else torch.randn(4, 6, 4, 4)  # two images, both halves of guidance
    tail = () if is_linear else (1, 1)
    update = Delta(torch.randn(2, *module.weight.shape[1:]), torch.randn(5, 2, *tail), 1.0)
    placed = (torch.rand(2, 4, 4) > 0.5).float()
    moment = live.Moment(torch.ones(1, 2), torch.ones(1, 2), Masks([torch.ones(4, 4)]))
    updates: live.Updates = {"unet.x": [(0, 1.0, update)]}
    adapters = live.LiveAdapters(lambda path: module, {"unet.x": module.weight}, updates, moment.masks)
    with torch.no_grad():
        base = module(x)
        with adapters.attached(moment):
            whole = module(x)
            adapters.enter(replace(moment, masks=Masks([placed])))
            output = module(x)
    spread = placed.repeat(2, 1, 1)
    spread = spread.flatten(1)[..., None] if is_linear else spread[:, None]
    torch.testing.assert_close(output, base + (whole - base) * spread, rtol=1e-4, atol=1e-5)


def test_a_batch_is_its_pictures_one_by_one(
    engine: Engine, two: tuple[AdapterChoice, AdapterChoice], masks: list[Tensor]
) -> None:
    stacks = [
        stack(two, seed=1),
        stack(two, seed=2, prompt="kiss, man, heart, woman"),
        stack(two, seed=3, prompt="a heart and a man"),
    ]
    together = [numpy.asarray(picture.image, dtype=int) for picture in engine.render_all(stacks)]
    assert len(masks) == 1
    for number, (made, whole) in enumerate(zip(stacks, together, strict=True)):
        assert numpy.abs(pixels(engine, made) - whole).max() <= 1
        assert torch.equal(masks[-1][:, 0], masks[0][:, number])
    assert not torch.equal(masks[0][:, 0], masks[0][:, 2])


# Pictures.


def test_it_is_the_regions_it_found_with_the_first_steps_left_to_the_base(
    engine: Engine, two: tuple[AdapterChoice, AdapterChoice], masks: list[Tensor], tmp_path: Path
) -> None:
    from PIL import Image

    drawn = pixels(engine, stack(two))
    fixed = []
    for number, adapter in enumerate(two):
        path = tmp_path / f"{number}.png"
        Image.fromarray((masks[0][number, 0].numpy() * 255).astype("uint8")).resize((64, 64), 0).save(path)
        fixed.append(adapter.model_copy(update={"region": f"mask {path}", "schedule": "steps 0:0 0.2:1"}))
    assert numpy.abs(drawn - pixels(engine, stack(tuple(fixed), mode="sum"))).max() <= 1
    assert (
        min(numpy.abs(drawn - pixels(engine, other)).max() for other in (stack(two, mode="sum"), stack((), mode="sum")))
        > 5
    )


def test_the_same_stack_gives_the_same_bytes_and_leaves_no_trace(
    engine: Engine, two: tuple[AdapterChoice, AdapterChoice], make: Make
) -> None:
    engine.restore()
    weights = {path: weight.clone() for path, weight in engine.weights.items()}
    absent = make("man", 0, weight=0.0)
    first, again, beside = (engine.render(stack(adapters)).image.tobytes() for adapters in (two, two, (*two, absent)))
    assert first == again == beside
    engine.restore()
    assert all(torch.equal(weights[path], weight) for path, weight in engine.weights.items())
    for module in engine.pipe.unet.modules():
        assert not ("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)


def test_nothing_stays_when_drawing_breaks_off(
    engine: Engine, two: tuple[AdapterChoice, AdapterChoice], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(seen: Tensor, size: tuple[int, int]) -> Tensor:
        raise ValueError("broken off")

    with monkeypatch.context() as patch:
        patch.setitem(modes.registry(), "regions", replace(MODE, place=broken))
        with pytest.raises(ValueError, match="broken off"):
            engine.render(stack(two))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in engine.pipe.unet.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": 1.0},
        {"width_px": 192, "height_px": 128},
        {"prompt": "(heart:1.3), man"},
        {"sampler": "euler"},
    ],
)
def test_guidance_size_weights_of_words_and_sampler_do_not_matter_to_it(
    engine: Engine, two: tuple[AdapterChoice, AdapterChoice], masks: list[Tensor], changes: dict[str, Any]
) -> None:
    picture = engine.render(stack(two, **changes))
    assert picture.image.size == (picture.stack.width_px, picture.stack.height_px)
    assert masks[0].shape[2:] == engine.latents(picture.stack) and 0 < float(masks[0][0].mean()) < 1


def test_sheet_and_strip_show_it_where_it_can_be_drawn(
    engine: Engine, two: tuple[AdapterChoice, AdapterChoice], trained: Path, trained_style: Path
) -> None:
    _, seconds = grid.of_modes(engine, stack(two, mode="sum", steps=2))
    assert "regions" in seconds
    wordless = tuple(AdapterChoice(file=str(path)) for path in (trained, trained_style))
    assert "regions" not in grid.of_modes(engine, stack(wordless, mode="sum", steps=2))[1]
    strip = grid.attribution(engine, stack(two, steps=2))
    assert strip.width > 4 * 128
