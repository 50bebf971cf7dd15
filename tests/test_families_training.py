"""Training of every family on its tiny model, against diffusers itself: `tests/family_truths.py` says how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import family_truths
import pytest
import torch

from tests.family_runs import config, train
from trainer import attaching, bases, families, loop, loss, objective, validation
from trainer.data import scan
from trainer.errors import ConfigError, ModelError
from trainer.families.contract import Family
from trainer.training_model import TrainingModel


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


# The tiny model and the names of its layers.


def test_tiny_is_the_same_every_time_and_small(family: Family, tiny: Path, tmp_path: Path) -> None:
    again = family.tiny(tmp_path)
    names = sorted(path.relative_to(tiny) for path in tiny.rglob("*.safetensors"))
    assert names and all((tiny / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert sum((tiny / name).stat().st_size for name in names) < 6_000_000
    assert bases.family_of(str(tiny)) == family.name


def test_the_base_of_another_family_is_refused_by_name(family: Family, tiny: Path) -> None:
    for other in families.registry().values():
        if other is not family:
            with pytest.raises(
                ModelError,
                match=f"is a {family.pipeline} .family {family.name}.; family {other.name} needs a {other.pipeline}",
            ):
                bases.resolve(str(tiny), other)


# Training.


@pytest.fixture(scope="module")
def studio(family: Family, tiny: Path, dots: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingModel:
    values = (
        {"objective.weighting": "min-snr"} if "flow" not in family.prediction else {"objective.shift": "resolution"}
    )
    settings = config(
        family,
        tiny,
        dots,
        adapter__text_encoder=False,
        data__buckets=True,
        **{key.replace(".", "__"): value for key, value in values.items()},
    )
    made = TrainingModel.open(settings)
    made.prepare(tmp_path_factory.mktemp("cache"), scan(settings), None)
    attaching.attach(made, None)
    return made


def test_the_first_steps_loss_is_what_diffusers_computes(studio: TrainingModel) -> None:
    losses = loop.learn(studio, 0).losses
    wanted = []
    for batch in studio.encoded.batches(0):
        rng = objective.generator(studio.config.seed, "noise", batch.number)
        noise = torch.randn(batch.latents.shape, generator=rng)
        timesteps = loss.draw_timesteps(
            studio.config.objective, studio.schedule, len(batch), rng, studio.image_tokens(batch.latents)
        )
        images = [
            family_truths.pixels(studio.encoded.dataset, name, batch.latents.shape[-2:], studio.pipe)
            for name in batch.names
        ]
        assert len(images) == len(batch.captions)
        with torch.no_grad(), studio.base():
            wanted.append(family_truths.losses(studio.pipe, images, batch.captions, noise, timesteps))
    torch.testing.assert_close(losses.cpu(), torch.cat(wanted), rtol=1e-5, atol=1e-5)


def test_the_timestep_shift_is_the_pipelines_at_that_resolution(studio: TrainingModel) -> None:
    if studio.schedule.prediction != "flow":
        pytest.skip("no flow, so no shift")
    settings = studio.config.objective.model_copy(update={"shift": "resolution", "timesteps": "uniform"})
    for height, width in ((8, 8), (128, 128), (96, 160)):  # of latents
        latents = torch.zeros(1, 1, height, width)
        rng, again = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        timesteps = loss.draw_timesteps(settings, studio.schedule, 500, rng, studio.image_tokens(latents))
        plain = torch.rand(500, generator=again)
        torch.testing.assert_close(
            timesteps / 1000,
            family_truths.shifted(studio.pipe, plain, height, width).clamp(min=1e-3),
            rtol=1e-4,
            atol=1e-5,
        )


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
    attaching.attach(studio, None)
    loop.learn(studio, 0)
    assert all(torch.equal(weight, weights[path]) for path, weight in studio.base_weights().items()) and len(
        weights
    ) == len(studio.file_keys)


def test_validation_and_a_neutral_prompts_drift_are_measured(
    family: Family, tiny: Path, dots: Path, tmp_path: Path
) -> None:
    settings = config(
        family, tiny, dots, data__heldout=str(dots), validate_every_steps=3, validation__neutral_prompts=("a house",),
        preview__steps=1,
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
