"""What every family must show on its tiny model, against diffusers itself (`tests/family_truths.py` says how it is asked)."""

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

from tests import plain
from trainer import bases, families, loop, lora_file, loss, objective, presets, session, validation
from trainer.config import AdapterChoice, StackConfig, TrainConfig
from trainer.data import scan
from trainer.errors import ConfigError, ModelError
from trainer.families.contract import Family
from trainer.render import analysis, modes, overlap, samplers
from trainer.render.engine import Engine
from trainer.training_model import TrainingModel

SIZE_PX = 64


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


def config(family: Family, tiny: Path, folder: Path, **changes: Any) -> TrainConfig:
    """Everything the family can target, alpha unlike rank; keywords are settings with `__` for the dot."""
    settings = {
        "family": family.name, "base": str(tiny), "resolution_px": SIZE_PX, "max_steps": 3, "batch_size": 2, "learning_rate": 0.05,
        "preview_every_steps": 0, "adapter.targets": "all", "adapter.rank": 3, "adapter.alpha": 6.0, "adapter.text_encoder": len(family.components) > 1,
        "data.folder": str(folder), "dtype": "float32", "preview.guidance_rescale": 0.0,
    }  # fmt: skip
    return presets.load(plain.STYLE, settings | {key.replace("__", "."): value for key, value in changes.items()})


def train(settings: TrainConfig, parent: Path, name: str) -> tuple[Path, list[Any]]:
    run, stream = session.start(settings, parent, name, None)
    events = list(stream)
    assert events[-1].kind == "finished"
    return run.lora_file, events


@dataclass(frozen=True)
class Pair:
    """Two LoRAs of one base, of different layers and ranks."""

    one: Path
    two: Path


@pytest.fixture(scope="module")
def loras(family: Family, tiny: Path, dots: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    parent = tmp_path_factory.mktemp("runs")
    one, events = train(config(family, tiny, dots, preview_every_steps=3, preview__prompts=("a dot",), preview__steps=2), parent, "one")
    assert [event.kind for event in events].count("sampled") == 2, [event for event in events if event.kind == "warned"]
    two, _ = train(config(family, tiny, dots, seed=5, adapter__targets="attention", adapter__rank=2, adapter__text_encoder=False), parent, "two")
    return Pair(one, two)


@pytest.fixture(scope="module")
def engine(family: Family, tiny: Path) -> Engine:
    return Engine(str(tiny), family.name, device="cpu", dtype="float32")


def stack(engine: Engine, *adapters: AdapterChoice, **values: Any) -> StackConfig:
    given = {"prompt": "mokka, a cat", "negative_prompt": "dark", "steps": 2, "guidance_scale": 3.0, "width_px": SIZE_PX, "height_px": SIZE_PX}
    if not engine.family.negates:
        given["negative_prompt"] = ""
    elif engine.family.guidance == "distilled":
        given["true_guidance_scale"] = 2.0
    return StackConfig(family=engine.family.name, base=engine.base, adapters=adapters, **given | values)


def choice(file: Path, weight: float = 1.0, **values: Any) -> AdapterChoice:
    return AdapterChoice(file=str(file), weight=weight, **values)


def pixels(engine: Engine, made: StackConfig) -> numpy.ndarray:
    return numpy.asarray(engine.render(made).image, dtype=int)


# The tiny model and the names of its layers.


def test_tiny_is_the_same_every_time_and_small(family: Family, tiny: Path, tmp_path: Path) -> None:
    again = family.tiny(tmp_path)
    names = sorted(path.relative_to(tiny) for path in tiny.rglob("*.safetensors"))
    assert names and all((tiny / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert sum((tiny / name).stat().st_size for name in names) < 6_000_000
    assert bases.family_of(str(tiny)) == family.name


def test_every_target_setting_matches_layers_and_every_layer_has_a_key_of_its_own(family: Family, engine: Engine) -> None:
    keys = engine.file_keys
    assert len(set(keys.values())) == len(keys)
    paths = [path.removeprefix(f"{engine.component}.") for path in keys if path.startswith(f"{engine.component}.")]
    counts = [sum(bool(re.fullmatch(pattern, path)) for path in paths) for pattern in family.targets.values()]
    assert counts[0] > 0 and counts == sorted(counts)
    for component in [*family.components][1:]:
        assert any(re.fullmatch(family.text_targets, path.partition(".")[2]) for path in keys if path.startswith(f"{component}."))


def test_the_base_of_another_family_is_refused_by_name(family: Family, tiny: Path) -> None:
    for other in families.registry().values():
        if other is not family:
            with pytest.raises(ModelError, match=f"is a {family.pipeline} .family {family.name}.; family {other.name} needs a {other.pipeline}"):
                bases.resolve(str(tiny), other)


# Training.


@pytest.fixture(scope="module")
def studio(family: Family, tiny: Path, dots: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingModel:
    values = {"objective.weighting": "min-snr"} if "flow" not in family.prediction else {"objective.shift": "resolution"}
    settings = config(family, tiny, dots, adapter__text_encoder=False, data__buckets=True, **{key.replace(".", "__"): one for key, one in values.items()})
    made = TrainingModel.open(settings)
    made.prepare(tmp_path_factory.mktemp("cache"), scan(settings), None)
    made.attach(None)
    return made


def test_the_first_steps_loss_is_what_diffusers_computes(studio: TrainingModel) -> None:
    found = loop.learn(studio, 0).losses
    wanted = []
    for batch in studio.encoded.batches(0):
        rng = objective.generator(studio.config.seed, "noise", batch.number)
        noise = torch.randn(batch.latents.shape, generator=rng)
        timesteps = loss.draw_timesteps(studio.config.objective, studio.schedule, len(batch), rng, studio.image_tokens(batch.latents))
        images = [family_truths.pixels(studio.encoded.dataset, name, batch.latents.shape[-2:], studio.pipe) for name in batch.names]
        assert len(images) == len(batch.captions)
        with torch.no_grad(), studio.base():
            wanted.append(family_truths.losses(studio.pipe, images, batch.captions, noise, timesteps))
    torch.testing.assert_close(found.cpu(), torch.cat(wanted), rtol=1e-5, atol=1e-5)


def test_the_timestep_shift_is_the_pipelines_at_that_resolution(studio: TrainingModel) -> None:
    if studio.schedule.prediction != "flow":
        pytest.skip("no flow, so no shift")
    settings = studio.config.objective.model_copy(update={"shift": "resolution", "timesteps": "uniform"})
    for height, width in ((8, 8), (128, 128), (96, 160)):  # of latents
        latents = torch.zeros(1, 1, height, width)
        rng, again = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        found = loss.draw_timesteps(settings, studio.schedule, 500, rng, studio.image_tokens(latents))
        plain = torch.rand(500, generator=again)
        torch.testing.assert_close(found / 1000, family_truths.shifted(studio.pipe, plain, height, width).clamp(min=1e-3), rtol=1e-4, atol=1e-5)


def test_twenty_steps_on_two_pictures_halve_their_loss_and_leave_the_base_bitwise(
    family: Family, tiny: Path, draw_dots: Callable[..., Path], tmp_path: Path
) -> None:
    folder = draw_dots(tmp_path / "dots", "a {colour} dot", num=2)
    before = {path: path.read_bytes() for path in tiny.rglob("*.safetensors")}
    settings = config(
        family,
        tiny,
        folder,
        max_steps=20,
        learning_rate=0.02,
        adapter__rank=16,
        adapter__alpha=16.0,
        data__heldout=str(folder),
        validate_every_steps=20,
        accumulation=2,
    )
    file, events = train(settings, tmp_path / "runs", "learns")
    (measured,) = [event for event in events if event.kind == "validated"]
    assert measured.loss < measured.base_loss / 2
    assert {path: path.read_bytes() for path in tiny.rglob("*.safetensors")} == before
    studio = TrainingModel.open(settings)
    weights = {path: weight.clone() for path, weight in studio.base_weights().items()}
    studio.prepare(tmp_path / "cache", scan(settings), None)
    studio.attach(None)
    loop.learn(studio, 0)
    assert all(torch.equal(weight, weights[path]) for path, weight in studio.base_weights().items()) and len(weights) == len(studio.file_keys)


def test_a_stopped_and_resumed_run_ends_in_the_same_bytes(family: Family, tiny: Path, dots: Path, loras: Pair, tmp_path: Path) -> None:
    settings = config(family, tiny, dots, seed=5, adapter__targets="attention", adapter__rank=2, adapter__text_encoder=False, checkpoint_every_steps=1)
    run, stream = session.start(settings, tmp_path, "two", None)
    for event in stream:
        if event.kind == "saved" and event.step == 2:
            break
    stream.close()
    again, rest = session.start(run.config(), tmp_path, "two", run)
    assert list(rest)[-1].kind == "finished" and again.folder == run.folder
    tensors = [lora_file.inspect(file).sha256 for file in (run.lora_file, loras.two)]
    assert tensors[0] == tensors[1]


def test_validation_and_a_neutral_prompts_drift_are_measured(family: Family, tiny: Path, dots: Path, tmp_path: Path) -> None:
    settings = config(
        family, tiny, dots, data__heldout=str(dots), validate_every_steps=3, validation__neutral_prompts=("a house",), preview__steps=1,
        objective__preservation_weight=0.5, data__class_caption="dot",
    )  # fmt: skip
    _, events = train(settings, tmp_path, "watched")
    (measured,) = [event for event in events if event.kind == "validated"]
    assert measured.num_pictures == 2 and measured.drift > 0 and len(measured.deciles) == validation.NUM_TIMESTEPS


def test_a_new_word_is_trained_or_refused_by_name(family: Family, tiny: Path, dots: Path) -> None:
    if family.words:
        assert config(family, tiny, dots, inversion__token="mokkaword").inversion.token == "mokkaword"
    else:
        with pytest.raises(ConfigError, match="inversion.token is 'mokkaword'; new words are not known for"):
            config(family, tiny, dots, inversion__token="mokkaword")


# The file in the family's own pipeline.


def test_the_file_in_the_familys_own_pipeline_gives_our_deltas_and_our_picture(family: Family, tiny: Path, loras: Pair, engine: Engine) -> None:
    pipe = getattr(diffusers, family.pipeline).from_pretrained(str(tiny), torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    family_truths.load(pipe, loras.one)
    deltas = lora_file.read(loras.one, engine.file_keys, engine.shapes)
    theirs = {}
    for component in family.components:
        layers = {name: module for name, module in getattr(pipe, component).named_modules() if hasattr(module, "get_delta_weight")}
        theirs |= {f"{component}.{name}": module.get_delta_weight("a").detach() for name, module in layers.items()}
    assert set(theirs) == set(deltas) and {path.partition(".")[0] for path in theirs} == set(family.components)
    for path, delta in theirs.items():
        assert float((deltas[path].dense(engine.weights[path], torch.float32) - delta).norm()) <= 1e-5 * float(delta.norm())
    family_truths.weigh(pipe, 0.8)
    asked = stack(engine, choice(loras.one, 0.8))
    wanted = family_truths.picture(pipe, asked)
    with engine.folded(asked):
        assert float(abs(wanted - family_truths.picture(engine.pipe, asked)).max()) <= 1e-4
    found = pixels(engine, asked)
    assert abs(found - (wanted * 255).round().astype(int)).max() <= 1
    assert abs(found - pixels(engine, stack(engine))).max() > 5


# Stacking.


def test_two_fold_into_the_dense_sum_and_leave_the_base_bitwise(engine: Engine, loras: Pair) -> None:
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    one, two = (lora_file.read(file, engine.file_keys, engine.shapes) for file in (loras.one, loras.two))
    with engine.folded(stack(engine, choice(loras.one, 0.7), choice(loras.two, -1.3))):
        for path, weight in engine.weights.items():
            wanted = before[path].double()
            for updates, factor in ((one, 0.7), (two, -1.3)):
                if path in updates:
                    wanted = wanted + factor * updates[path].dense(before[path], torch.float64)
            torch.testing.assert_close(weight.double(), wanted, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(weight, before[path]) for path, weight in engine.weights.items())


def test_half_precision_rendering_restores_the_base_bitwise(family: Family, tiny: Path, loras: Pair) -> None:
    engine = Engine(str(tiny), family.name, device="cpu", dtype="bfloat16")
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    with engine.folded(stack(engine, choice(loras.one, -1.7))):
        assert any(not torch.equal(weight, before[path]) for path, weight in engine.weights.items())
    assert all(torch.equal(weight, before[path]) for path, weight in engine.weights.items())
    assert engine.render(stack(engine, choice(loras.one))).image.size == (SIZE_PX, SIZE_PX)


def test_a_mixed_batch_is_its_pictures_one_by_one_and_weight_0_is_the_base(engine: Engine, loras: Pair) -> None:
    asked = [
        stack(engine, choice(loras.one, 0.6), choice(loras.two, 1.2), seed=1), stack(engine, choice(loras.one, -0.7), seed=2), stack(engine, seed=3),
        stack(engine, choice(loras.two, 0.0), seed=3), stack(engine, choice(loras.one, 1.0, text_weight=0.0), seed=4, prompt="a dog", negative_prompt=""),
    ]  # fmt: skip
    together = [numpy.asarray(picture.image, dtype=int) for picture in engine.render_all(asked)]
    alone = [pixels(engine, one) for one in asked]
    assert all(abs(left - right).max() <= 1 for left, right in zip(together, alone, strict=True))
    assert numpy.array_equal(alone[2], alone[3]) and abs(alone[0] - alone[1]).max() > 5


def test_what_runs_live_is_what_is_folded(engine: Engine, loras: Pair) -> None:
    adapters = choice(loras.one, 0.8), choice(loras.two, -0.5)
    live = tuple(one.model_copy(update={"schedule": "steps 0:1 0.99:1.0001"}) for one in adapters)
    assert abs(pixels(engine, stack(engine, *adapters)) - pixels(engine, stack(engine, *live))).max() <= 1


def test_the_conflict_map_knows_every_layer_and_every_block(engine: Engine, loras: Pair) -> None:
    chosen = [choice(loras.one), choice(loras.two, 0.5)]
    read = [lora_file.read(file, engine.file_keys, engine.shapes) for file in (loras.one, loras.two)]
    found = analysis.analyse([overlap.load(one, engine.file_keys, engine.shapes) for one in chosen], engine.weights)
    both = [{path for path, update in updates.items() if update.squared_norm()} for updates in read]
    assert set(found.layers) == set(read[0]) | set(read[1]) and set(found.pairs[0].layers) == both[0] & both[1]
    gram = sum(
        float((read[0][path].dense(weight, torch.float64) * read[1][path].dense(weight, torch.float64)).sum())
        for path, weight in engine.weights.items()
        if path in read[0] and path in read[1]
    )  # fmt: skip
    lengths = [sum(float(update.squared_norm()) for update in updates.values()) ** 0.5 for updates in read]
    assert found.pairs[0].total.cosine == pytest.approx(gram / lengths[0] / lengths[1], abs=1e-5)
    assert len(found.blocks) > 2


def test_every_mode_that_fits_draws_another_picture_and_leaves_no_trace(family: Family, engine: Engine, loras: Pair) -> None:
    adapters = choice(loras.one, 1.5), choice(loras.two, 1.5)
    before, drawn = pixels(engine, stack(engine)), {}
    for name in modes.registry():
        if family.guidance == "distilled" and modes.registry()[name].splits_guidance:
            with pytest.raises(ConfigError, match="two halves of guidance"):
                engine.render(stack(engine, *adapters, mode=name))
            continue
        if modes.registry()[name].place:  # needs trigger words, which these have not; tests/test_auto_regions.py has
            with pytest.raises(ConfigError, match="has no trigger word" if engine.component == "unet" else "reads the cross-attention of a UNet"):
                engine.render(stack(engine, *adapters, mode=name, steps=3))
            continue
        drawn[name] = pixels(engine, stack(engine, *adapters, mode=name, steps=3))
    assert all(abs(left - right).max() > 0 for left, right in itertools.combinations(drawn.values(), 2))
    assert numpy.array_equal(pixels(engine, stack(engine)), before)


def test_a_mode_is_told_which_rows_are_without_the_prompt(family: Family, engine: Engine, loras: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    if family.guidance == "distilled":
        pytest.skip("its guidance is no second half of the batch")
    asked = stack(engine, choice(loras.one, text_weight=0.0), choice(loras.two), mode="loratorio", steps=1)
    encode = family.encode_negative or (lambda pipe, prompts: family.encode_text(pipe, prompts, 1))
    said = encode(engine.pipe, [asked.negative_prompt]) + family.encode_text(engine.pipe, [asked.prompt], 1)
    wanted, seen, texts = [one["encoder_hidden_states"] for one in said], [], []

    def told(call: Callable[[list[float]], torch.Tensor], num: int, step: int, num_steps: int, unsaid: Callable[[int], slice]) -> torch.Tensor:
        found = call([1.0] * num)
        seen.extend(number in range(len(found))[unsaid(len(found))] for number in range(len(found)))
        return found

    def look(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        for one in [*given, *named.values()]:
            rows = one if isinstance(one, list) or (torch.is_tensor(one) and one.ndim > 1) else []
            texts.extend(row for row in rows if torch.is_tensor(row) and any(row.shape == text.shape for text in wanted))

    monkeypatch.setitem(modes.registry(), "loratorio", replace(modes.registry()["loratorio"], predict=told))
    handle = getattr(engine.pipe, engine.component).register_forward_pre_hook(look, with_kwargs=True)
    engine.render(asked)
    handle.remove()
    assert seen == [row.shape == wanted[0].shape and torch.allclose(row, wanted[0]) for row in texts] and sorted(seen) == [False, True]


@pytest.mark.parametrize("kind", ["box 0 0 0.5 1", "blocks", "schedule"])
def test_regions_blocks_and_schedules_act(kind: str, engine: Engine, loras: Pair) -> None:
    block = next(iter(analysis.analyse([overlap.load(choice(loras.two), engine.file_keys, engine.shapes)], engine.weights).blocks))
    values = {"blocks": {"blocks": (f"{block.replace(f'{engine.component}.', '')}=0",)}, "schedule": {"schedule": "linear 1 0"}}.get(kind, {"region": kind})
    plain, changed = (pixels(engine, stack(engine, choice(loras.two, 2.0, **one), steps=3)) for one in ({}, values))
    assert abs(plain - changed).max() > 0


def test_prompts_with_weights_and_of_several_windows_are_drawn_or_read_as_the_pipeline_does(family: Family, engine: Engine) -> None:
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
            asked = stack(engine, sampler=name, steps=3)
            wanted = (family_truths.drawn_by(engine.pipe, asked) * 255).round().astype(int)
            assert abs(pixels(engine, asked) - wanted).max() <= 1, name
        else:
            with pytest.raises(ConfigError, match="sampler is"):
                engine.render(stack(engine, sampler=name))
