"""What every family must show on its tiny model, against diffusers itself (`tests/family_truths.py` says how it is
asked)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import family_truths
import numpy
import pytest
import torch

from tests.family_runs import SIZE_PX, config, train
from trainer import families, lora_file, session
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.families.contract import Family
from trainer.render import analysis, modes, overlap, samplers
from trainer.render.engine import Engine


@pytest.fixture(scope="module", params=sorted(families.registry()))
def family(request: pytest.FixtureRequest) -> Family:
    return families.registry()[request.param]


@pytest.fixture(scope="module")
def tiny(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.tiny(tmp_path_factory.mktemp(family.name))


@pytest.fixture(scope="module")
def dots(draw_dots: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, one of them wider."""
    return draw_dots(tmp_path_factory.mktemp("dots") / "dots", "a {colour} dot", num=2, wider_px=24)


@dataclass(frozen=True)
class Pair:
    """Two LoRAs of one base, of different layers and ranks."""

    first: Path
    second: Path


@pytest.fixture(scope="module")
def loras(family: Family, tiny: Path, dots: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    parent = tmp_path_factory.mktemp("runs")
    first, events = train(
        config(family, tiny, dots, preview_every_steps=3, preview__prompts=("a dot",), preview__steps=2), parent, "one"
    )
    assert [event.kind for event in events].count("sampled") == 2, [event for event in events if event.kind == "warned"]
    second, _ = train(
        config(family, tiny, dots, seed=5, adapter__targets="attention", adapter__rank=2, adapter__text_encoder=False),
        parent,
        "two",
    )
    return Pair(first, second)


@pytest.fixture(scope="module")
def engine(family: Family, tiny: Path) -> Engine:
    return Engine(str(tiny), family.name, device="cpu", dtype="float32")


def stack(engine: Engine, *adapters: AdapterChoice, **values: Any) -> StackConfig:
    given = {
        "prompt": "mokka, a cat",
        "negative_prompt": "dark",
        "steps": 2,
        "guidance_scale": 3.0,
        "width_px": SIZE_PX,
        "height_px": SIZE_PX,
    }
    if not engine.family.negates:
        given["negative_prompt"] = ""
    elif engine.family.guidance == "distilled":
        given["true_guidance_scale"] = 2.0
    return StackConfig(family=engine.family.name, base=engine.base, adapters=adapters, **given | values)


def choice(file: Path, weight: float = 1.0, **values: Any) -> AdapterChoice:
    return AdapterChoice(file=str(file), weight=weight, **values)


def pixels(engine: Engine, made: StackConfig) -> numpy.ndarray:
    return numpy.asarray(engine.render(made).image, dtype=int)


def test_every_target_setting_matches_layers_and_every_layer_has_a_key_of_its_own(
    family: Family, engine: Engine
) -> None:
    keys = engine.file_keys
    assert len(set(keys.values())) == len(keys)
    paths = [path.removeprefix(f"{engine.component}.") for path in keys if path.startswith(f"{engine.component}.")]
    counts = [sum(bool(re.fullmatch(pattern, path)) for path in paths) for pattern in family.targets.values()]
    assert counts[0] > 0 and counts == sorted(counts)
    for component in [*family.components][1:]:
        assert any(
            re.fullmatch(family.text_targets, path.partition(".")[2])
            for path in keys
            if path.startswith(f"{component}.")
        )


def test_a_stopped_and_resumed_run_ends_in_the_same_bytes(
    family: Family, tiny: Path, dots: Path, loras: Pair, tmp_path: Path
) -> None:
    settings = config(
        family,
        tiny,
        dots,
        seed=5,
        adapter__targets="attention",
        adapter__rank=2,
        adapter__text_encoder=False,
        checkpoint_every_steps=1,
    )
    run, stream = session.start(settings, tmp_path, "two", None)
    for event in stream:
        if event.kind == "saved" and event.step == 2:
            break
    stream.close()
    again, rest = session.start(run.config(), tmp_path, "two", run)
    assert list(rest)[-1].kind == "finished" and again.folder == run.folder
    tensors = [lora_file.inspect(file).sha256 for file in (run.lora_file, loras.second)]
    assert tensors[0] == tensors[1]


# The file in the family's own pipeline.


def test_the_file_in_the_familys_own_pipeline_gives_our_deltas_and_our_picture(
    family: Family, tiny: Path, loras: Pair, engine: Engine
) -> None:
    pipe = getattr(diffusers, family.pipeline).from_pretrained(
        str(tiny), torch_dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    family_truths.load(pipe, loras.first)
    deltas = lora_file.read(loras.first, engine.file_keys, engine.shapes)
    theirs = {}
    for component in family.components:
        layers = {
            name: module
            for name, module in getattr(pipe, component).named_modules()
            if hasattr(module, "get_delta_weight")
        }
        theirs |= {f"{component}.{name}": module.get_delta_weight("a").detach() for name, module in layers.items()}
    assert set(theirs) == set(deltas) and {path.partition(".")[0] for path in theirs} == set(family.components)
    for path, delta in theirs.items():
        assert float((deltas[path].dense(engine.weights[path], torch.float32) - delta).norm()) <= 1e-5 * float(
            delta.norm()
        )
    family_truths.weigh(pipe, 0.8)
    asked_stack = stack(engine, choice(loras.first, 0.8))
    wanted = family_truths.picture(pipe, asked_stack)
    with engine.folded(asked_stack):
        assert float(abs(wanted - family_truths.picture(engine.pipe, asked_stack)).max()) <= 1e-4
    drawn = pixels(engine, asked_stack)
    assert abs(drawn - (wanted * 255).round().astype(int)).max() <= 1
    assert abs(drawn - pixels(engine, stack(engine))).max() > 5


# Stacking.


def test_two_fold_into_the_dense_sum_and_leave_the_base_bitwise(engine: Engine, loras: Pair) -> None:
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    first, second = (lora_file.read(file, engine.file_keys, engine.shapes) for file in (loras.first, loras.second))
    with engine.folded(stack(engine, choice(loras.first, 0.7), choice(loras.second, -1.3))):
        for path, weight in engine.weights.items():
            wanted = before[path].double()
            for updates, factor in ((first, 0.7), (second, -1.3)):
                if path in updates:
                    wanted = wanted + factor * updates[path].dense(before[path], torch.float64)
            torch.testing.assert_close(weight.double(), wanted, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(weight, before[path]) for path, weight in engine.weights.items())


def test_half_precision_rendering_restores_the_base_bitwise(family: Family, tiny: Path, loras: Pair) -> None:
    engine = Engine(str(tiny), family.name, device="cpu", dtype="bfloat16")
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    with engine.folded(stack(engine, choice(loras.first, -1.7))):
        assert any(not torch.equal(weight, before[path]) for path, weight in engine.weights.items())
    assert all(torch.equal(weight, before[path]) for path, weight in engine.weights.items())
    assert engine.render(stack(engine, choice(loras.first))).image.size == (SIZE_PX, SIZE_PX)


def test_a_mixed_batch_is_its_pictures_one_by_one_and_weight_0_is_the_base(engine: Engine, loras: Pair) -> None:
    stacks = [
        stack(engine, choice(loras.first, 0.6), choice(loras.second, 1.2), seed=1),
        stack(engine, choice(loras.first, -0.7), seed=2), stack(engine, seed=3),
        stack(engine, choice(loras.second, 0.0), seed=3),
        stack(engine, choice(loras.first, 1.0, text_weight=0.0), seed=4, prompt="a dog", negative_prompt=""),
    ]  # fmt: skip
    together = [numpy.asarray(picture.image, dtype=int) for picture in engine.render_all(stacks)]
    alone = [pixels(engine, asked_stack) for asked_stack in stacks]
    assert all(abs(left - right).max() <= 1 for left, right in zip(together, alone, strict=True))
    assert numpy.array_equal(alone[2], alone[3]) and abs(alone[0] - alone[1]).max() > 5


def test_what_runs_live_is_what_is_folded(engine: Engine, loras: Pair) -> None:
    adapters = choice(loras.first, 0.8), choice(loras.second, -0.5)
    live = tuple(adapter.model_copy(update={"schedule": "steps 0:1 0.99:1.0001"}) for adapter in adapters)
    assert abs(pixels(engine, stack(engine, *adapters)) - pixels(engine, stack(engine, *live))).max() <= 1


def test_the_conflict_map_knows_every_layer_and_every_block(engine: Engine, loras: Pair) -> None:
    chosen = [choice(loras.first), choice(loras.second, 0.5)]
    read = [lora_file.read(file, engine.file_keys, engine.shapes) for file in (loras.first, loras.second)]
    result = analysis.analyse(
        [overlap.load(adapter, engine.file_keys, engine.shapes) for adapter in chosen], engine.weights
    )
    both = [{path for path, update in updates.items() if update.squared_norm()} for updates in read]
    assert set(result.layers) == set(read[0]) | set(read[1]) and set(result.pairs[0].layers) == both[0] & both[1]
    gram = sum(
        float((read[0][path].dense(weight, torch.float64) * read[1][path].dense(weight, torch.float64)).sum())
        for path, weight in engine.weights.items()
        if path in read[0] and path in read[1]
    )  # fmt: skip
    lengths = [sum(float(update.squared_norm()) for update in updates.values()) ** 0.5 for updates in read]
    assert result.pairs[0].total.cosine == pytest.approx(gram / lengths[0] / lengths[1], abs=1e-5)
    assert len(result.blocks) > 2


def test_every_mode_that_fits_draws_another_picture_and_leaves_no_trace(
    family: Family, engine: Engine, loras: Pair
) -> None:
    adapters = choice(loras.first, 1.5), choice(loras.second, 1.5)
    before, drawn = pixels(engine, stack(engine)), {}
    for name in modes.registry():
        if family.guidance == "distilled" and modes.registry()[name].splits_guidance:
            with pytest.raises(ConfigError, match="two halves of guidance"):
                engine.render(stack(engine, *adapters, mode=name))
            continue
        if modes.registry()[name].place:  # needs trigger words, which these have not; tests/test_auto_regions.py has
            with pytest.raises(
                ConfigError,
                match="has no trigger word" if engine.component == "unet" else "reads the cross-attention of a UNet",
            ):
                engine.render(stack(engine, *adapters, mode=name, steps=3))
            continue
        drawn[name] = pixels(engine, stack(engine, *adapters, mode=name, steps=3))
    assert all(abs(left - right).max() > 0 for left, right in itertools.combinations(drawn.values(), 2))
    assert numpy.array_equal(pixels(engine, stack(engine)), before)


def test_a_mode_is_told_which_rows_are_without_the_prompt(
    family: Family, engine: Engine, loras: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family.guidance == "distilled":
        pytest.skip("its guidance is no second half of the batch")
    asked_stack = stack(engine, choice(loras.first, text_weight=0.0), choice(loras.second), mode="loratorio", steps=1)
    encode = family.encode_negative or (lambda pipe, prompts: family.encode_text(pipe, prompts, 1))
    embeddings = encode(engine.pipe, [asked_stack.negative_prompt]) + family.encode_text(
        engine.pipe, [asked_stack.prompt], 1
    )
    wanted, seen, texts = [embedding["encoder_hidden_states"] for embedding in embeddings], [], []

    def recording(
        call: Callable[[list[float]], torch.Tensor],
        num: int,
        step: int,
        num_steps: int,
        without_prompt: Callable[[int], slice],
    ) -> torch.Tensor:
        predictions = call([1.0] * num)
        seen.extend(
            number in range(len(predictions))[without_prompt(len(predictions))] for number in range(len(predictions))
        )
        return predictions

    def look(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        for argument in [*given, *named.values()]:
            rows = argument if isinstance(argument, list) or (torch.is_tensor(argument) and argument.ndim > 1) else []
            texts.extend(
                row for row in rows if torch.is_tensor(row) and any(row.shape == text.shape for text in wanted)
            )

    monkeypatch.setitem(modes.registry(), "loratorio", replace(modes.registry()["loratorio"], predict=recording))
    handle = getattr(engine.pipe, engine.component).register_forward_pre_hook(look, with_kwargs=True)
    engine.render(asked_stack)
    handle.remove()
    assert seen == [row.shape == wanted[0].shape and torch.allclose(row, wanted[0]) for row in texts] and sorted(
        seen
    ) == [False, True]


@pytest.mark.parametrize("kind", ["box 0 0 0.5 1", "blocks", "schedule"])
def test_regions_blocks_and_schedules_act(kind: str, engine: Engine, loras: Pair) -> None:
    block = next(
        iter(
            analysis.analyse(
                [overlap.load(choice(loras.second), engine.file_keys, engine.shapes)], engine.weights
            ).blocks
        )
    )
    values = {
        "blocks": {"blocks": (f"{block.replace(f'{engine.component}.', '')}=0",)},
        "schedule": {"schedule": "linear 1 0"},
    }.get(kind, {"region": kind})
    plain, changed = (
        pixels(engine, stack(engine, choice(loras.second, 2.0, **changes), steps=3)) for changes in ({}, values)
    )
    assert abs(plain - changed).max() > 0


def test_prompts_with_weights_and_of_several_windows_are_drawn_or_read_as_the_pipeline_does(
    family: Family, engine: Engine
) -> None:
    plain = pixels(engine, stack(engine, prompt="a red fox"))
    weighted, long = stack(engine, prompt="a (red:1.8) fox"), stack(engine, prompt=", ".join(["a red fox"] * 40))
    if family.encode_windows:
        assert abs(pixels(engine, weighted) - plain).max() > 0
        assert abs(pixels(engine, long) - pixels(engine, stack(engine, prompt=", ".join(["a red fox"] * 20)))).max() > 0
    else:
        assert pixels(engine, long).shape == plain.shape
        with pytest.raises(ConfigError, match=r"\(word:1.3\)"):
            engine.render(weighted)


def test_every_sampler_that_fits_draws_as_diffusers_scheduler_of_that_name(family: Family, engine: Engine) -> None:
    for name in samplers.SAMPLERS:
        if name in samplers.fitting(family):
            asked_stack = stack(engine, sampler=name, steps=3)
            wanted = (family_truths.drawn_by(engine.pipe, asked_stack) * 255).round().astype(int)
            assert abs(pixels(engine, asked_stack) - wanted).max() <= 1, name
        else:
            with pytest.raises(ConfigError, match="sampler is"):
                engine.render(stack(engine, sampler=name))
