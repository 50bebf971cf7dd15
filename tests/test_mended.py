"""Bugs that a hostile reviewer found in the trainer, each by what must hold instead."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from tests import plain
from trainer import methods, presets, runs, session, stopping
from trainer.errors import ConfigError, RunError, UserError
from trainer.events import Event, Finished, Overtrained, Step, Stopped, Warned
from trainer.families import registry
from trainer.training_model import TrainingModel


@pytest.fixture
def pictures(tmp_path: Path, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path / "pictures", "mokka, a {colour} dot")


def config(tiny: Path, pictures: Path, **settings: object):
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 4, "batch_size": 2, "checkpoint_every_steps": 2,
        "preview_every_steps": 0,
        "learning_rate": 1e-2, "data.folder": str(pictures), "preview.prompts": [],
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | settings)


def train(parent: Path, settings, name: str = "x") -> tuple[runs.Run, list[Event]]:
    run, stream = session.start(settings, parent, name, runs.find_resumable(parent, name))
    return run, list(stream)


def stop_after(parent: Path, settings, step: int) -> runs.Run:
    run, stream = session.start(settings, parent, "x", None)
    for event in stream:
        if isinstance(event, Step) and event.step == step:
            break
    stream.close()
    return run


TARGETS = [
    (name, targets)
    for name, module in methods.registry().items()
    for targets in registry()["sd"].targets
    if targets in str(module.Config.model_fields["targets"].annotation)
]


@pytest.mark.parametrize(("method", "targets"), TARGETS)
def test_every_method_trains_on_every_target_it_offers(
    method: str, targets: str, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    _, events = train(
        tmp_path, config(tiny, pictures, max_steps=2, **{"adapter.method": method, "adapter.targets": targets})
    )
    assert isinstance(events[-1], Finished)


def test_a_penalty_with_nothing_to_keep_apart_is_refused(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    other, _ = train(tmp_path / "other", config(tiny, pictures, **{"adapter.method": "loha"}))
    stack = {"against.adapters": [str(other.lora_file)], "against.overlap_penalty": 1.0}
    with pytest.raises(ConfigError, match="nothing trained shares a layer with a plain LoRA"):
        train(tmp_path, config(tiny, pictures, **stack))


def test_the_penalty_does_not_grow_as_the_stacks_weight_falls(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    other, _ = train(tmp_path / "other", config(tiny, pictures, seed=3, max_steps=8))

    def longest(weight: float) -> float:
        stack = {"against.adapters": [f"{other.lora_file}:{weight}"], "against.overlap_penalty": 1.0}
        _, events = train(tmp_path / str(weight), config(tiny, pictures, **stack))
        return max(event.grad_norm for event in events if isinstance(event, Step))

    assert longest(0.01) < 3 * longest(1.0)


def test_a_run_that_stopped_early_and_is_resumed_trains_no_further(tmp_path: Path, examples: Path) -> None:
    values = {
        "data.folder": str(examples / "grey-cat" / "train"), "batch_size": 2, "max_steps": 40,
        "validate_every_steps": 1, "checkpoint_every_steps": 1,
        "preview_every_steps": 0, "learning_rate": 3e-2, "optimizer.schedule": "constant", "validation.leave_out": 5,
        "validation.stop_when_overtrained": True,
    }  # fmt: skip
    settings = presets.load(plain.CHARACTER, values)
    whole, events = train(tmp_path, settings, "whole")
    last = next(event.step for event in events if isinstance(event, Overtrained))
    run = stop_after(tmp_path, settings, last)
    train(tmp_path, settings)
    assert run.lora_file.read_bytes() == whole.lora_file.read_bytes()


def test_a_stack_that_was_replaced_is_refused_on_resume(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    first, _ = train(tmp_path / "one", config(tiny, pictures, seed=3))
    second, _ = train(tmp_path / "two", config(tiny, pictures, seed=4))
    settings = config(tiny, pictures, **{"against.adapters": [str(first.lora_file)]})
    stop_after(tmp_path, settings, 3)
    shutil.copy(second.lora_file, first.lora_file)
    with pytest.raises(RunError, match=r"a LoRA of against\.adapters is another file"):
        train(tmp_path, settings)


def test_folds_of_another_dataset_are_refused(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    settings = config(tiny, pictures, validate_every_steps=2, **{"validation.folds": 2})
    stop_after(tmp_path, settings, 1)
    (pictures / "0.txt").write_text("another caption")
    with pytest.raises(
        RunError, match="fold 1, can't go on: the pictures or captions have changed|fold 1, can't go on: the held-out"
    ):
        train(tmp_path, settings)


def test_folds_with_a_held_out_set_are_refused(tiny: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match=r"validation\.folds is set, but so is data\.heldout"):
        config(tiny, pictures, **{"validation.folds": 2, "data.heldout": str(pictures)})


def test_a_stop_in_a_fold_says_so_and_is_logged(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "x" / "folds" / "1" / "events.jsonl"
    monkeypatch.setattr(
        stopping.StopRequest, "__call__", lambda self: log.is_file() and '"event": "step"' in log.read_text()
    )
    run, events = train(tmp_path, config(tiny, pictures, **{"validation.folds": 2}))
    assert isinstance(events[-1], Stopped) and any(
        isinstance(event, Warned) and "stopped in fold 1 of 2" in event.message for event in events
    )
    assert isinstance(run.events()[-1], Stopped) and run.report_file.is_file()


def test_a_stop_while_encoding_is_heeded_at_once(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping.StopRequest, "__call__", lambda self: True)
    run, stream = session.start(config(tiny, pictures), tmp_path, "x", None)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert not [event for event in run.events() if isinstance(event, Step)] and run.state() == "unfinished"


def test_what_is_measured_has_no_open_wildcards(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    for path in pictures.glob("*.txt"):
        path.write_text("mokka, {red|blue} cat")
    settings = config(tiny, pictures, **{"captions.wildcards": True, "validation.leave_out": 1})
    from trainer import data
    from trainer.data import cross_validation

    studio = TrainingModel.open(settings)
    dataset, left = cross_validation.leave_out(data.scan(settings), settings)
    studio.prepare(tmp_path / ".cache", dataset, left)
    for questions in (studio.encoded.questions(left), studio.encoded.questions(dataset)):
        assert questions is not None and set(questions.captions) <= {"mokka, red cat", "mokka, blue cat"}


@pytest.mark.parametrize(
    ("trigger", "caption", "wanted"),
    [
        ("Mokka", "mokka, a cat", "kitten, a cat"),
        ("art", "art, a party", "kitten, a party"),
        ("mokka", "", ""),
        ("mokka", "a dog", "kitten"),
    ],
)
def test_the_class_stands_where_the_trigger_stood(
    trigger: str, caption: str, wanted: str, tiny: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = config(
        tiny, pictures, **{"data.trigger": trigger, "objective.preservation_weight": 1, "data.class_caption": "kitten"}
    )
    studio = TrainingModel.open(settings)
    from trainer import data

    studio.prepare(tmp_path / ".cache", data.scan(settings), None)
    assert studio.encoded._class_caption(caption) == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter.block_ranks": ["nosuchblock=2"]}, "no adapted layer has 'nosuchblock'"),
        ({"inversion.token": "Zzq"}, "'Zzq', which is in no caption"),
        ({"data.trigger": "   "}, "data.trigger"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    settings: dict[str, object], message: str, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, config(tiny, pictures, **settings))


@pytest.mark.parametrize("line", ["up_blocks.0=2", "self_attn.q_proj=3"])
def test_ranks_by_block_may_be_the_denoisers_or_the_text_encoders(
    line: str, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    run, _ = train(tmp_path, config(tiny, pictures, **{"adapter.block_ranks": [line], "adapter.text_encoder": True}))
    text, _, rank = line.partition("=")
    with safe_open(str(run.lora_file), framework="pt") as tensors:
        downs = [name for name in tensors.keys() if name.endswith("lora_down.weight")]  # noqa: SIM118 - it is no dict
        ranks = {name: tensors.get_tensor(name).shape[0] for name in downs}
    assert (
        {number for name, number in ranks.items() if text.replace(".", "_") in name}
        == {int(rank)}
        < set(ranks.values())
    )


def test_the_class_is_read_with_regularisation_pictures(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    other = tmp_path / "class"
    other.mkdir()
    Image.new("RGB", (40, 40), "grey").save(other / "0.png")
    _, events = train(
        tmp_path, config(tiny, pictures, **{"data.regularisation": str(other), "data.class_caption": "a cat"})
    )
    assert isinstance(events[-1], Finished)


def test_a_recipe_says_which_places_must_be_given_anew(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run, _ = train(tmp_path, config(tiny, pictures))
    with pytest.raises(ConfigError, match=r"give with --set: base \(it was 'tiny"):
        presets.load(str(run.lora_file), {"data.folder": str(pictures)})
    again = presets.load(str(run.lora_file), {"data.folder": str(pictures), "base": str(tiny)})
    assert again.adapter == run.config().adapter and again.data.heldout == ""


def test_pictures_in_both_sets_are_told_of(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    _, events = train(tmp_path, config(tiny, pictures, **{"data.heldout": str(copy)}))
    assert any(
        "4 pictures are both trained on and measured with" in event.message
        for event in events
        if isinstance(event, Warned)
    )
