"""What is trained beside pictures and the adapter: masks, regularisation, preservation, a stack to live with, a new
word.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from tests import plain
from trainer import against_stack, attaching, data, lora_file, objective, presets, session
from trainer.config import InversionConfig
from trainer.errors import ConfigError, UserError
from trainer.events import Finished, Step
from trainer.new_word import Word
from trainer.training_model import TrainingModel


@pytest.fixture
def pictures(tmp_path: Path, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path / "pictures", "mokka dot, {colour}")


def config(tiny: Path, pictures: Path, **settings: object):
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 4, "batch_size": 4, "checkpoint_every_steps": 4,
        "preview_every_steps": 0,
        "learning_rate": 1e-2, "data.folder": str(pictures), "data.caption_dropout": 0, "preview.prompts": [],
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | settings)


def train(parent: Path, settings, name: str = "x"):
    run, stream = session.start(settings, parent, name, None)
    events = list(stream)
    assert isinstance(events[-1], Finished)
    return run, events


def ready(tmp_path: Path, settings) -> TrainingModel:
    """A studio before its first step."""
    studio = TrainingModel.open(settings)
    studio.prepare(tmp_path / ".cache", data.scan(settings), None)
    attaching.attach(studio, None)
    return studio


def mask(folder: Path, name: str, box: tuple[int, int, int, int]) -> None:
    image = Image.new("L", (40, 40), 0)
    ImageDraw.Draw(image).rectangle(box, fill=255)
    image.save(folder / f"{name}.mask.png")


def test_a_masked_loss_is_the_weighted_mean_over_the_picture(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    """Step 1 against the same numbers by hand: left half masked in, the rest at a tenth."""
    for number in range(4):
        mask(pictures, str(number), (0, 0, 19, 39))
    settings = config(tiny, pictures, max_steps=1, **{"data.mask": "file", "objective.unmasked_weight": 0.1})
    _, events = train(tmp_path, settings)
    loss = next(event.loss for event in events if isinstance(event, Step))
    studio = ready(tmp_path / "again", settings)
    (batch,) = studio.encoded.batches(0)
    assert batch.masks is not None and batch.masks.shape == (4, 1, *batch.latents.shape[2:])
    assert torch.equal(
        batch.masks[:, :, :, : batch.masks.shape[3] // 2 - 1],
        torch.ones(1).expand_as(batch.masks[:, :, :, : batch.masks.shape[3] // 2 - 1]),
    )
    rng = objective.generator(settings.seed, "noise", 0)
    noise = torch.randn(batch.latents.shape, generator=rng)
    timesteps = torch.randint(0, 1000, (4,), generator=rng)
    with torch.no_grad():
        prediction = studio.predict(
            objective.add_noise(studio.schedule, batch.latents, noise, timesteps), timesteps, batch.captions
        )
    squared = (prediction - noise).square().double().numpy()
    weight = numpy.broadcast_to(batch.masks.numpy() * 0.9 + 0.1, squared.shape)
    by_hand = ((squared * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean()
    assert loss == pytest.approx(by_hand, rel=1e-5)


def test_alpha_is_a_mask_when_asked(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    for path in sorted(pictures.glob("*.png")):
        image = Image.open(path).convert("RGBA")
        image.putalpha(Image.new("L", image.size, 255))
        ImageDraw.Draw(image).rectangle((0, 0, 39, 19), fill=(0, 0, 0, 0))
        image.save(path)
    studio = ready(tmp_path, config(tiny, pictures, **{"data.mask": "alpha"}))
    (batch,) = studio.encoded.batches(0)
    assert batch.masks is not None
    height = batch.masks.shape[2]
    assert batch.masks[:, :, : height // 2 - 1].max() == 0 and batch.masks[:, :, height // 2 + 1 :].min() == 1


def test_regularisation_pictures_are_trained_with_their_weight_and_without_the_trigger(
    tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    other = tmp_path / "class"
    other.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (60 * number, 90, 90)).save(other / f"{number}.png")
        (other / f"{number}.txt").write_text("a dot")
    settings = config(
        tiny,
        pictures,
        **{"data.regularisation": str(other), "data.regularisation_weight": 0.25, "data.trigger": "mokka"},
    )
    studio = ready(tmp_path, settings)
    batches = [batch for step in range(studio.encoded.order.num_batches) for batch in studio.encoded.batches(step)]
    captions = [
        (caption, float(weight))
        for batch in batches
        for caption, weight in zip(batch.captions, batch.weights, strict=True)
    ]
    assert (
        sum("mokka" in caption for caption, _ in captions) == 4
        and sum("mokka" not in caption for caption, _ in captions) == 4
    )
    assert all((weight == 0.25) == ("mokka" not in caption) for caption, weight in captions)
    train(tmp_path, settings)


def test_preservation_holds_the_class_to_what_the_base_says(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    """Trained with and without it: with it, the prediction for the class caption stays nearer the base's."""

    def moved(weight: float) -> float:
        preserved = {"objective.preservation_weight": weight, "data.class_caption": "dog"} if weight else {}
        settings = config(tiny, pictures, max_steps=25, **{"data.trigger": "mokka", **preserved})
        run, _ = train(tmp_path / str(weight), settings)
        studio = ready(tmp_path / "look", config(tiny, pictures))
        deltas = lora_file.read(
            run.lora_file,
            studio.file_keys,
            {path: tuple(tensor.shape) for path, tensor in studio.base_weights().items()},
        )
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = studio.predict(latents, torch.tensor([500]), ["dog dot, red"])
            for path, weights in studio.base_weights().items():
                if path in deltas:
                    weights.add_(deltas[path].dense(weights, torch.float32))
            return float((studio.predict(latents, torch.tensor([500]), ["dog dot, red"]) - before).square().mean())

    assert moved(3.0) < 0.7 * moved(0.0)


def test_the_class_caption_stands_in_for_the_trigger(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    studio = ready(
        tmp_path,
        config(
            tiny, pictures, **{"data.trigger": "mokka", "objective.preservation_weight": 1, "data.class_caption": "cat"}
        ),
    )
    (batch,) = studio.encoded.batches(0)
    assert batch.class_captions == [caption.replace("mokka", "cat") for caption in batch.captions]


# Training against a stack.


@pytest.fixture
def other_lora(tmp_path: Path, tiny: Path, pictures: Path) -> Path:
    run, _ = train(
        tmp_path / "other",
        config(tiny, pictures, max_steps=10, seed=3, **{"adapter.rank": 4, "adapter.alpha": 4.0}),
        "other",
    )
    return run.lora_file


def test_training_starts_from_the_base_with_the_stack_on_it(
    tmp_path: Path, tiny: Path, pictures: Path, other_lora: Path
) -> None:
    bare = ready(tmp_path, config(tiny, pictures))
    stacked = ready(tmp_path, config(tiny, pictures, **{"against.adapters": [f"{other_lora}:0.5"]}))
    shapes = {path: tuple(weight.shape) for path, weight in bare.base_weights().items()}
    deltas = lora_file.read(other_lora, bare.file_keys, shapes)
    before, after = bare.base_weights(), stacked.base_weights()
    for path, weight in before.items():
        wanted = weight + 0.5 * deltas[path].dense(weight, torch.float32) if path in deltas else weight
        torch.testing.assert_close(after[path], wanted)
    assert deltas


def test_the_file_trained_against_a_stack_is_the_new_adapter_alone(
    tmp_path: Path, tiny: Path, pictures: Path, other_lora: Path
) -> None:
    run, _ = train(tmp_path, config(tiny, pictures, **{"against.adapters": [str(other_lora)]}))
    recipe = lora_file.inspect(run.lora_file).recipe
    assert recipe is not None and recipe["config"]["against"]["adapters"] == [other_lora.name]
    assert lora_file.inspect(run.lora_file).rank == 16


def test_the_overlap_is_the_energy_in_the_stacks_own_directions(
    tmp_path: Path, tiny: Path, pictures: Path, other_lora: Path
) -> None:
    """Against dense projections, and 1 for the stack's own update."""
    studio = ready(
        tmp_path, config(tiny, pictures, **{"against.adapters": [str(other_lora)], "against.overlap_penalty": 0.5})
    )
    for parameter in studio.parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    shapes = {path: tuple(weight.shape) for path, weight in studio.base_weights().items()}
    theirs = lora_file.read(other_lora, studio.file_keys, shapes)
    energy = total = 0.0
    for component, attached in studio.attachments.items():
        for path, (down, up, scale) in attached.factors().items():
            their = theirs[f"{component}.{path}"].dense(studio.base_weights()[f"{component}.{path}"], torch.float64)
            left, values, right = torch.linalg.svd(their, full_matrices=False)
            rank = int((values > values[0] * 1e-6).sum())
            ours = (scale * up @ down).double()
            total += float((left[:, :rank].T @ ours @ right[:rank].T).square().sum())
            energy += float(their.square().sum())
    assert float(studio.overlap()) == pytest.approx(total / energy, rel=1e-3)
    own = {path: (delta.down, delta.up, delta.scale) for path, delta in theirs.items()}
    assert float(against_stack.overlap(studio.spans, studio.span_energy, own)) == pytest.approx(1, rel=1e-4)


def test_the_penalty_keeps_them_apart(tmp_path: Path, tiny: Path, pictures: Path, other_lora: Path) -> None:
    def overlap(penalty: float) -> float:
        stack = {"against.adapters": [str(other_lora)], **({"against.overlap_penalty": penalty} if penalty else {})}
        run, _ = train(tmp_path / str(penalty), config(tiny, pictures, max_steps=15, **stack))
        studio = ready(tmp_path, config(tiny, pictures, **stack))
        shapes = {path: tuple(weight.shape) for path, weight in studio.base_weights().items()}
        ours = lora_file.read(run.lora_file, studio.file_keys, shapes)
        return float(
            against_stack.overlap(
                studio.spans,
                studio.span_energy,
                {path: (delta.down, delta.up, delta.scale) for path, delta in ours.items()},
            )
        )

    assert overlap(10.0) < 0.6 * overlap(0.0)


@pytest.mark.parametrize("line", ["nowhere.safetensors:1", "", ":"])
def test_a_stack_that_is_not_there_is_refused(line: str, tmp_path: Path, tiny: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match="against.adapters"):
        train(tmp_path, config(tiny, pictures, **{"against.adapters": [line]}))


# A new word.


def test_a_new_word_is_learned_and_carried_in_the_file(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    word = {
        "inversion.token": "mokka",
        "inversion.vectors": 2,
        "inversion.start_from": "cat",
        "inversion.learning_rate": 0.1,
    }
    run, events = train(tmp_path, config(tiny, pictures, max_steps=6, **word))
    (vectors,) = lora_file.embeddings(run.lora_file)["mokka"].values()
    studio = ready(tmp_path, config(tiny, pictures, **word))
    assert studio.word is not None and vectors.shape == studio.word.start["text_encoder"].shape == (2, 32)
    assert not torch.equal(vectors, studio.word.start["text_encoder"])


def test_a_word_changes_no_weight_and_only_its_own_captions(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    studio = TrainingModel.open(config(tiny, pictures))
    before = {name: tensor.clone() for name, tensor in studio.pipe.text_encoder.state_dict().items()}
    plain = studio.family.encode_text(studio.pipe, ["a red dot"], 1)[0]["encoder_hidden_states"]
    word = Word(studio.pipe, InversionConfig(token="mokka", vectors=3, start_from="cat"))
    with torch.no_grad():
        word.vectors["text_encoder"] += 1.0
        after = studio.family.encode_text(studio.pipe, ["a red dot"], 1)[0]["encoder_hidden_states"]
        embeddings = studio.family.encode_text(studio.pipe, ["a mokka dot"], 1)[0]["encoder_hidden_states"]
        with word.off():
            untouched = studio.family.encode_text(studio.pipe, ["a mokka dot"], 1)[0]["encoder_hidden_states"]
    assert torch.equal(plain, after) and not torch.allclose(embeddings, untouched)
    assert all(torch.equal(tensor, before[name]) for name, tensor in studio.pipe.text_encoder.state_dict().items())
    assert studio.family.count_tokens(studio.pipe, "mokka") == 3


def test_a_word_the_base_knows_is_refused(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    studio = TrainingModel.open(config(tiny, pictures))
    Word(studio.pipe, InversionConfig(token="mokka"))
    with pytest.raises(ConfigError, match="already has as a word"):
        Word(studio.pipe, InversionConfig(token="mokka"))


# The text encoder.


def test_the_text_encoder_learns_too_and_its_keys_are_those_other_tools_read(
    tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    run, _ = train(tmp_path, config(tiny, pictures, **{"adapter.text_encoder": True}))
    tensors = load_file(run.lora_file)
    text = [name for name in tensors if name.startswith("lora_te_text_model_encoder_layers_")]
    assert len(text) == 2 * 6 * 3 and any(tensors[name].any() for name in text if "lora_up" in name)


def test_long_captions_are_named_or_read_whole(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    (pictures / "1.txt").write_text("mokka dot, green, " + "a very long caption with many words " * 12)
    _, events = train(tmp_path, config(tiny, pictures))
    assert any(
        "1.png:" in event.message and "set captions.long=chunk" in event.message
        for event in events
        if event.kind == "warned"
    )
    studio = ready(tmp_path, config(tiny, pictures, **{"captions.long": "chunk"}))
    assert studio.encoded.chunks > 1
    window = studio.pipe.tokenizer.model_max_length
    assert (
        studio.encoded.conditioning("mokka dot, red")["encoder_hidden_states"].shape[0]
        == studio.encoded.chunks * window
    )
    train(tmp_path, config(tiny, pictures, **{"captions.long": "chunk"}), "chunked")
