"""What runs live beside the base is what folding would give; schedules, blocks, regions and modes do what they say, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.data import scanning
from trainer.deltas import Delta
from trainer.errors import AdapterError, ConfigError, UserError
from trainer.render import draw, live, modes, regions, strength
from trainer.render.engine import Engine

STEPS = 4


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("imprimatura", device="cpu", dtype="float32")


def choice(path: Path, weight: float = 1.0, **values: object) -> AdapterChoice:
    return AdapterChoice(file=str(path), weight=weight, **values)


def stack(*adapters: AdapterChoice, **values: object) -> StackConfig:
    return StackConfig(adapters=adapters, **({"prompt": "a fox, noto style", "steps": STEPS} | values))


def pixels(engine: Engine, made: StackConfig) -> numpy.ndarray:
    return numpy.asarray(engine.render(made).image, dtype=int)


def apart(left: object, right: object) -> int:
    """The largest difference of two pictures, of 255."""
    return int(numpy.abs(numpy.asarray(left, dtype=int) - numpy.asarray(right, dtype=int)).max())


def rewritten(path: Path, engine: Engine, to: Path) -> Path:
    """The same updates with other numbers in the file, so that its hash is another: each up doubled, its scale halved."""
    parts = {}
    for name, update in lora_file.read(path, engine.file_keys, engine.shapes).items():
        assert isinstance(update, Delta)
        alpha = torch.tensor(update.scale * update.rank / 2)
        parts[engine.file_keys[name]] = {"lora_down.weight": update.down, "lora_up.weight": update.up * 2, "alpha": alpha}
    lora_file.save(to, parts, {}, torch.float32)
    return to


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
    weights = torch.tensor([[0.3, -1.2, 0.0], [2.0, 0.0, 0.0]])  # adapters by images; guidance doubles the three to six rows
    moment = live.Moment(weights, weights, [None, None])
    with torch.no_grad():
        plain = module(x)
        with live.beside(lambda path: module, {"unet.x": module.weight}, {"unet.x": [(0, 1.0, updates[0]), (1, 0.5, updates[1])]}, moment):
            found = module(x)
        base = module.weight.double()
        for row in range(6):
            dense = base + sum(float(weights[n, row % 3]) * factor * updates[n].dense(base, torch.float64) for n, factor in ((0, 1.0), (1, 0.5)))
            again = nn.Linear(12, 20) if kind == "linear" else nn.Conv2d(12, 20, module.kernel_size, padding=module.padding, stride=module.stride)
            again = again.double()
            again.weight.copy_(dense)
            again.bias.copy_(module.bias)
            torch.testing.assert_close(found[row].double(), again(x[row : row + 1].double())[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(found[2], plain[2]) and torch.equal(module(x), plain)


# Pictures.


def test_a_mixed_batch_is_its_pictures_one_by_one(engine: Engine, trained: Path, trained_style: Path) -> None:
    asked = [
        stack(choice(trained, 0.4), choice(trained_style, 1.2), seed=1), stack(choice(trained, -0.7), seed=2), stack(seed=3),
        stack(choice(trained_style, 2.0, text_weight=0.0), seed=4, prompt="a cat"), stack(choice(trained, 0.4, blocks=("MID=0",)), seed=5),
    ]  # fmt: skip
    together = list(engine.render_all(asked))
    assert [picture.stack.seed for picture in together] == [1, 2, 3, 4, 5]
    for one, picture in zip(asked, together, strict=True):
        assert apart(engine.render(one).image, picture.image) <= 1
    assert apart(together[0].image, together[1].image) > 20


def test_pictures_that_cannot_be_one_batch_are_not(engine: Engine, trained: Path) -> None:
    asked = [stack(), stack(steps=2), stack(width_px=64), stack(guidance_scale=1.0), stack(prompt="a (fox:1.4)"), stack(sampler="euler"), stack()]
    found = list(engine.render_all(asked))
    assert all(apart(engine.render(one).image, picture.image) <= 1 for one, picture in zip(asked, found, strict=True))
    assert apart(found[0].image, found[4].image) > 5 and apart(found[0].image, found[5].image) > 0


def test_a_batch_too_large_for_memory_is_drawn_in_halves(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], draw.draw_batch

    def small(pipe: Any, stacks: list[StackConfig], step_done: Any) -> Any:
        sizes.append(len(stacks))
        if len(stacks) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(pipe, stacks, step_done)

    monkeypatch.setattr(draw, "draw_batch", small)
    assert [picture.stack.seed for picture in engine.render_all(stack(seed=number, steps=1) for number in range(5))] == [0, 1, 2, 3, 4]
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
    assert apart(whole, pixels(engine, stack(choice(trained_style, text_weight=0.0, region="box 0 0 1 1"), prompt="a cat"))) <= 1
    shares = []
    for box in ("box 0 0 0.5 1", "box 0.5 0 1 1"):
        change = numpy.abs(pixels(engine, stack(choice(trained_style, text_weight=0.0, region=box), prompt="a cat")) - base).mean((0, 2))
        shares.append(change[:64].sum() / change.sum())
    assert shares[0] > 0.5 > shares[1]  # the model itself mixes places, so not all of it stays


def test_outside_its_region_cross_attention_is_the_bases(engine: Engine, trained: Path) -> None:
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
    updates = {name: [(0, 1.0, update)] for name, update in lora_file.read(trained, engine.file_keys, engine.shapes).items() if name.startswith(path)}
    attention = engine._module(path)
    width, text = engine.shapes[f"{path}.to_q"][1], engine.shapes[f"{path}.to_k"][1]
    x, said = torch.randn(2, 16, width), torch.randn(2, 9, text)  # 16 tokens: the middle of 16 x 16 latents, 4 x 4
    weights, half = torch.tensor([[1.5]]), torch.zeros(16, 16)
    half[:, :8] = 1
    outputs = []
    with torch.no_grad():
        base = attention(x, said)
        for mask in (None, half):
            with live.beside(engine._module, engine.weights, updates, live.Moment(weights, weights, [mask], live.Places.of(engine.family))):
                outputs.append(attention(x, said))
        assert torch.equal(attention(x, said), base)
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
    asked = stack(choice(trained_style, region=f"mask {tmp_path / 'mask.png'}"))
    resolved = engine.resolve(asked)
    assert resolved.adapters[0].region.startswith("mask data:") and engine.resolve(resolved) == resolved
    assert apart(pixels(engine, resolved), pixels(engine, stack(choice(trained_style, region="box 0 0 0.5 1")))) <= 1


def test_transparency_is_outside_a_region_as_it_is_outside_a_training_mask(tmp_path: Path) -> None:
    """Half of it is drawn white, the rest transparent and white beneath, as painting programs leave it."""
    drawn = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    drawn.paste((255, 255, 255, 255), (0, 0, 32, 64))
    drawn.save(tmp_path / "mask.png")
    wanted = [[1.0] * 4 + [0.0] * 4] * 8
    one = AdapterChoice(region=f"mask {tmp_path / 'mask.png'}")
    region = regions.mask(one.model_copy(update={"region": regions.resolved(one, (8, 8))}), (8, 8))
    assert region is not None and region.tolist() == wanted
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    item = scanning.Item(tmp_path / "a.png", ("x",), "", 64, 64, mask=tmp_path / "mask.png")
    trained = torch.nn.functional.avg_pool2d(scanning.load_mask(item, (64, 64), 0, False)[None], 8)[0, 0]
    torch.testing.assert_close(trained, torch.tensor(wanted), rtol=0, atol=0.02)


# Modes.


def test_composite_of_one_update_twice_is_that_update(engine: Engine, trained: Path, tmp_path: Path) -> None:
    twin = rewritten(trained, engine, tmp_path / "twin.safetensors")
    one = pixels(engine, stack(choice(trained, text_weight=0.0)))
    both = stack(choice(trained, text_weight=0.0), choice(twin, text_weight=0.0), mode="composite")
    assert apart(one, pixels(engine, both)) <= 1
    assert apart(one, pixels(engine, both.model_copy(update={"mode": "sum"}))) > 5


def test_switch_takes_turns_as_schedules_would(engine: Engine, trained: Path, trained_style: Path) -> None:
    turns = pixels(engine, stack(choice(trained), choice(trained_style), mode="switch"))
    said = stack(choice(trained, schedule="steps 0:1 0.5:0"), choice(trained_style, schedule="steps 0:0 0.5:1"))
    assert apart(turns, pixels(engine, said)) <= 1
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

    found = modes.registry()["loratorio"].predict(call, 2, 0, 1, lambda rows: slice(rows // 2))
    torch.testing.assert_close(found[1], -base[1])  # with the prompt
    torch.testing.assert_close(found[0], torch.zeros_like(base[0]), atol=1e-6, rtol=0)  # without: half the base's own


def test_k_lora_uses_one_adapter_a_layer_content_early_and_style_late(engine: Engine) -> None:
    mode, torch_rng = modes.registry()["k-lora"], torch.Generator().manual_seed(0)
    base = torch.zeros(6, 5)
    deltas = [
        [Delta(torch.randn(2, 5, generator=torch_rng), torch.randn(6, 2, generator=torch_rng) * size, 1.0) for size in sizes] for sizes in ((1, 9), (2, 2))
    ]
    updates = {"a": [(0, 1.0, deltas[0][0]), (1, 1.0, deltas[1][0])], "b": [(0, 1.0, deltas[0][1]), (1, 1.0, deltas[1][1])], "c": [(1, 1.0, deltas[1][0])]}
    scores = mode.prepare(updates, lambda path: base)
    dense = [{name: deltas[n][k].dense(base, torch.float32).abs() for k, name in enumerate("ab")} for n in (0, 1)]
    gamma = sum(float(one.sum()) for one in dense[0].values()) / (sum(float(one.sum()) for one in dense[1].values()) + float(dense[1]["a"].sum()))
    for name in "ab":
        for n in (0, 1):
            wanted = float(dense[n][name].flatten().sort(descending=True).values[:4].sum()) * (gamma if n else 1)  # K = 2 x 2
            assert scores[name][n] == pytest.approx(wanted, rel=1e-5)
    assert set(scores) == {"a", "b"}
    said: list[dict[str, int]] = []
    for step in range(10):
        mode.predict(lambda factors, only: said.append(only) or base, 2, step, 10, scores)
    for name in "ab":
        chosen = [only[name] for only in said]
        assert chosen == sorted(chosen)  # content first, then style
    assert any(only["a"] != only["b"] for only in said)


@pytest.mark.parametrize("name", sorted(name for name, mode in modes.registry().items() if mode.place is None))
def test_a_mode_leaves_no_trace(name: str, engine: Engine, trained: Path, trained_style: Path) -> None:
    before = pixels(engine, stack())
    engine.render(stack(choice(trained), choice(trained_style, 0.5, schedule="linear 1 0", region="box 0 0 0.5 0.5"), mode=name))
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


# Names, hashes, prompts.


@pytest.fixture(scope="module")
def with_library(trained: Path, trained_style: Path) -> Engine:
    return Engine("imprimatura", device="cpu", dtype="float32", library=lambda: lora_file.library([trained.parent, trained_style.parent]))


def test_a_lora_is_found_by_its_hash_or_by_its_name_in_the_prompt(with_library: Engine, trained: Path) -> None:
    sha256 = lora_file.inspect(trained).sha256
    wanted = pixels(with_library, stack(choice(trained, 0.8)))
    assert apart(wanted, pixels(with_library, stack(AdapterChoice(sha256=sha256, weight=0.8)))) == 0
    tagged = stack(prompt=f"a fox, noto style <lora:{trained.stem}:0.8>")
    assert apart(wanted, pixels(with_library, tagged)) == 0
    assert with_library.resolve(tagged).prompt == "a fox, noto style"


def test_what_is_not_here_is_refused_by_name(with_library: Engine) -> None:
    with pytest.raises(AdapterError, match=r"LoRA mokka with hash 00000000"):
        with_library.render(stack(AdapterChoice(name="mokka", sha256="0" * 64)))
    with pytest.raises(AdapterError, match="'nowhere', which isn't here; allowed: one of cat, style"):
        with_library.render(stack(prompt="a <lora:nowhere:1> fox"))


def test_what_resolve_gives_is_resolved(with_library: Engine, trained: Path) -> None:
    made = stack(choice(trained, trigger=True), prompt="a {red|green|blue} cat, {day|night}", seed=7)
    resolved = with_library.resolve(made)
    assert "{" not in resolved.prompt and resolved.prompt.startswith(lora_file.inspect(trained).trigger)
    assert with_library.resolve(resolved) == resolved == with_library.resolve(made)


def test_adapters_beyond_the_budget_are_read_again(trained: Path, trained_style: Path) -> None:
    small = Engine("imprimatura", device="cpu", dtype="float32", kept_bytes=trained.stat().st_size + 1)
    first = pixels(small, stack(choice(trained)))
    for _ in range(2):
        assert apart(first, pixels(small, stack(choice(trained)))) == 0
        pixels(small, stack(choice(trained_style)))
        assert small.shelf.num_bytes <= trained.stat().st_size + trained_style.stat().st_size


# Hostile words.

ANYTHING = st.text(max_size=40) | st.from_regex(r"(linear|steps|points|box|mask|curve=|IN|OUT)[0-9:. =-]{0,30}", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(text=ANYTHING, parse=st.sampled_from(["schedule", "region", "blocks"]))
def test_any_text_is_read_or_refused(text: str, parse: str) -> None:
    paths = ["unet.down_blocks.0.attn1.to_q", "unet.mid_block.attn2.to_k", "unet.up_blocks.1.attn1.to_q"]
    made = AdapterChoice(file="x", **{parse: (text,) if parse == "blocks" else text})
    calls: dict[str, Callable[[], object]] = {
        "schedule": lambda: [abs(strength.schedule(made).at(place / 7)) <= 4 for place in range(8)], "region": lambda: regions.resolved(made, (8, 8)),
        "blocks": lambda: strength.block_factors(made, paths),
    }  # fmt: skip
    try:
        found = calls[parse]()
    except UserError as error:
        assert parse in str(error)
    else:
        assert found or not text.strip()
        assert parse != "schedule" or all(found)  # type: ignore[call-overload]


# The command.


def test_a_stack_file_says_it_all_and_its_picture_brings_it_back(tmp_path: Path, trained: Path, trained_style: Path, run_velatura: Callable[..., Any]) -> None:
    (tmp_path / "outputs").mkdir()
    for name, path in (("one", trained), ("two", trained_style)):
        (tmp_path / "outputs" / f"{name}.safetensors").write_bytes(path.read_bytes())
    Image.new("L", (16, 16), 255).save(tmp_path / "outputs" / "mask.png")
    (tmp_path / "outputs" / "stack.toml").write_text(
        'prompt = "a {red|blue} fox"\nsteps = 2\n[[adapters]]\nfile = "one.safetensors"\nschedule = "linear 1 0"\n'
        '[[adapters]]\nfile = "two.safetensors"\nregion = "mask mask.png"\ntrigger = true\n'
    )
    made = run_velatura("render", "--stack", "outputs/stack.toml", "--set", "adapters.1.weight=0.5", "--set", "sampler=euler", "--out", "a.png")
    assert made.returncode == 0, made.stderr
    again = run_velatura("render", "--from", "a.png", "--out", "b.png")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    axes = [text for key in ("adapters.0.weight=0,1", "seed=1,2,3", "prompt=a fox|a cat, red") for text in ("--axis", key)]
    grid = run_velatura("render", "--stack", "outputs/stack.toml", *axes, "--out", "grid.png")
    assert grid.returncode == 0, grid.stderr
    assert len(list((tmp_path / "grid").glob("*.png"))) == 12
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width > 2 * 128 and sheet.height > 6 * 128  # a page a weight, a row a seed, a column a prompt
    strip = run_velatura("render", "--stack", "outputs/stack.toml", "--strip", "--out", "strip.png")
    assert strip.returncode == 0, strip.stderr
    with Image.open(tmp_path / "strip.png") as sheet:
        assert sheet.width > 4 * 128  # the base, each of two, both


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("steps = ", [], "is not TOML"), ("prompts = 'x'", [], "did you mean prompt"), ("[[adapters]]\nfile = 'no.safetensors'", [], "no.safetensors"),
        ("", ["--set", "adapters.3.weight=1"], "there is no such setting"), ("", ["--set", "sampler=magic"], "allowed for this base: ddim"),
        ("", ["--prompt", "x"], "--stack takes everything"),
        ("", ["--out", "x.gif"], ".gif"), ("", ["--quantise", "int3"], "allowed: none, int8, nf4, fp8"), ("", ["--strip"], "needs a LoRA that is on"),
        ("", ["--axis", "seed"], "KEY=VALUE,VALUE"), ("", ["--axis", "sed=1,2"], "did you mean seed"), ("", ["--axis", "seed=1,x"], "seed is 'x'"),
    ],
)  # fmt: skip
def test_a_bad_stack_file_or_option_is_refused_in_a_line(text: str, options: list[str], says: str, tmp_path: Path, run_velatura: Callable[..., Any]) -> None:
    (tmp_path / "s.toml").write_text(text)
    done = run_velatura("render", "--stack", "s.toml", *options)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
