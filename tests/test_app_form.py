"""The form: every setting of a model is drawn once, with its own words, and comes back as it was."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import gradio as gr
import pytest
from pydantic import Discriminator, Field

from app import form_words
from app.form import Form
from app.form_fields import specs
from trainer import presets
from trainer.config import AdapterChoice, StackConfig, TrainConfig, parse
from trainer.errors import ConfigError
from trainer.schema import SET, Settings, setting


class Round(Settings):
    method: Literal["round"] = Field(title="Method", description="Kind.")
    radius: int = setting(3, "Radius", "How round.", ge=1, le=9)


class Square(Settings):
    method: Literal["square"] = Field(title="Method", description="Kind.")
    side: float = setting(2.0, "Side", "How wide.", gt=0)


class Paint(Settings):
    thick: bool = setting(False, "Thick", "Or thin.", advanced=True)
    ridges: int = setting(0, "Ridges", "In thick paint.", advanced=True, only_with={"paint.thick": (True,)})
    depth: float = setting(0.5, "Depth", "Of the ridges.", gt=0, advanced=True, only_with={"paint.ridges": SET})
    tools: tuple[str, ...] = setting((), "Tools", "One a line.", advanced=True)
    grip: int = setting(
        1, "Grip", "Of the tools.", advanced=True, only_with={"paint.tools": SET, "shape.method": ("square",)}
    )
    hue: int = setting(0, "Hue", "In colour.", advanced=True, only_with={"mode": ("colour",)})
    odd: int = setting(0, "Odd", "Of a fact nobody knows.", advanced=True, only_with={"moon": ("full",)})


class Shapes(Settings):
    name: str = setting("", "Name", "Of it.")
    shape: Annotated[Round | Square, Discriminator("method")]
    paint: Paint = Paint()


FACTS = {"name": {"": {"mode": ("grey",)}, "bright": {"mode": ("grey", "colour")}}}
START = Shapes(shape=Round(method="round", radius=4))


def shapes() -> Form:
    return Form(Shapes, START, frozenset(), {}, FACTS)


def drawn(form: Form) -> dict[Any, Any]:
    """What the page would send for the form as drawn."""
    with gr.Blocks():
        form.draw_rest(advanced=False)
        form.draw_rest(advanced=True)
        form.connect()
    return {component: getattr(component, "value", None) for component in form.components.values()}


@pytest.mark.parametrize("name", presets.names())
def test_preset_comes_back_from_the_form(name: str) -> None:
    config = presets.load(name, {})
    form = Form(TrainConfig, config, frozenset(), {})
    assert parse(TrainConfig, form.values(drawn(form)), "the form") == config


@pytest.fixture(scope="module")
def first_preset() -> tuple[Form, dict[Any, Any]]:
    """A form of the first preset, and what the page would send for it."""
    form = Form(TrainConfig, presets.load(presets.names()[0], {}), frozenset(), {})
    return form, drawn(form)


@pytest.mark.parametrize("name", presets.names())
def test_fill_shows_what_the_config_says(name: str, first_preset: tuple[Form, dict[Any, Any]]) -> None:
    form, values = first_preset[0], dict(first_preset[1])
    config = presets.load(name, {"adapter.rank": 5, "preview.prompts": ["one", "two"]})
    for component, update in form.fill(config).items():
        values[component] = update.get("value", values[component])
    assert parse(TrainConfig, form.values(values), "the form") == config


@pytest.mark.parametrize("model", [TrainConfig, StackConfig])
def test_every_setting_has_its_words_and_one_component(model: type[Settings]) -> None:
    start = presets.load(presets.names()[0], {}) if model is TrainConfig else StackConfig.model_validate({})
    form = Form(model, start, frozenset({"version", "adapters"}), {})
    drawn(form)
    assert set(form.components) == {spec.key for spec in specs(model)} - {"version", "adapters"}
    for key, component in form.components.items():
        info = form.specs[key].info
        help_text, kinds = str(component.info), form.specs[key].kinds.values()  # type: ignore[attr-defined]
        words = form_words.as_done_here(str(info.description))
        assert component.label == info.title and (help_text in kinds or help_text.startswith(words)), key
        has_usual = "sual" in help_text or "empty" in help_text
        assert has_usual or form.specs[key].default is None or kinds, f"{key}: no usual value"


def test_a_number_that_may_be_empty_comes_back_empty_or_as_it_was() -> None:
    form = Form(AdapterChoice, AdapterChoice(), frozenset(), {}, name="layer")
    values = drawn(form)
    box = form.components["text_weight"]
    assert parse(AdapterChoice, form.values(values), "the form") == AdapterChoice()
    assert parse(AdapterChoice, form.values(values | {box: " -0.5 "}), "the form").text_weight == -0.5
    full = AdapterChoice(
        weight=0.5,
        text_weight=0.25,
        blocks=("IN=0", "OUT=1"),
        schedule="linear 1 0",
        region="box 0 0 1 1",
        trigger=True,
    )
    shown = {component: update["value"] for component, update in form.fill(full).items()}
    assert parse(AdapterChoice, form.values(values | shown), "the form") == full
    with pytest.raises(ConfigError, match="text_weight is 'x'"):
        parse(AdapterChoice, form.values(values | {box: "x"}), "the form")


def test_empty_number_is_refused_by_name() -> None:
    form = Form(TrainConfig, presets.load(presets.names()[0], {}), frozenset(), {})
    values = drawn(form)
    values[form.components["max_steps"]] = None
    with pytest.raises(Exception, match="max_steps"):
        parse(TrainConfig, form.values(values), "the form")


def test_union_shows_and_sends_the_chosen_kind_only() -> None:
    form = shapes()
    values = drawn(form)
    assert {"name", "shape.method", "shape.round.radius", "shape.square.side"} < set(form.components)
    assert form.values(values)["shape"] == {"method": "round", "radius": 4}
    for component, update in form.fill(Shapes(shape=Square(method="square", side=7.5))).items():
        values[component] = update.get("value", values.get(component))
        component.visible = update.get("visible", True)
    assert form.values(values)["shape"] == {"method": "square", "side": 7.5}
    assert not form.components["shape.round.radius"].visible and form.components["shape.square.side"].visible


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ({}, set()),
        ({"paint.thick": True}, {"ridges"}),
        ({"paint.thick": True, "paint.ridges": 3}, {"ridges", "depth"}),
        ({"paint.thick": False, "paint.ridges": 3}, set()),  # what is hidden counts as at its default: conditions chain
        ({"paint.tools": ["knife"]}, {"grip"}),
        ({"shape.method": "square"}, {"grip"}),
        ({"name": "bright"}, {"hue"}),
        ({"name": "unheard of"}, {"hue"}),  # nothing is known of it, so it is not judged
    ],
)
def test_setting_is_read_where_its_condition_is_met(values: dict[str, Any], read: set[str]) -> None:
    form = shapes()
    state = form.read({"name": "", "shape.method": "round"} | values)
    assert {name for name in ("ridges", "depth", "grip", "hue") if state[f"paint.{name}"]} == read
    assert state["paint.odd"] and state["paint.thick"]


def test_hidden_setting_is_not_sent_and_comes_back_as_it_was() -> None:
    form = shapes()
    values = drawn(form)
    values |= {form.components["paint.thick"]: True, form.components["paint.ridges"]: 3}
    assert form.values(values)["paint"]["ridges"] == 3
    values[form.components["paint.thick"]] = False
    assert (
        "ridges" not in form.values(values)["paint"] and parse(Shapes, form.values(values), "the form").paint == Paint()
    )
    values[form.components["paint.thick"]] = True
    assert form.values(values)["paint"]["ridges"] == 3


def test_no_setting_of_the_form_is_refused_for_being_unread() -> None:
    """Whatever is chosen and hidden again: the form never sends what the config would call unread."""
    form = Form(
        TrainConfig,
        presets.load(presets.names()[0], {}),
        frozenset(),
        {},
        {"family": {"sd": {"prediction": ("epsilon", "v")}}},
    )
    values = drawn(form)
    changes = {
        "optimizer.name": "other", "optimizer.other": "Lion", "objective.loss": "huber", "objective.huber_delta": 0.7,
        "data.mask": "file",
        "data.mask_folder": "/masks", "inversion.token": "x", "inversion.vectors": 3, "objective.timesteps": "mode",
        "objective.timesteps_mode_scale": 0.5,
    }  # fmt: skip
    values |= {form.components[key]: value for key, value in changes.items()}
    assert parse(TrainConfig, form.values(values), "the form").optimizer.other == "Lion"
    start = presets.load(presets.names()[0], {})
    back = {
        "optimizer.name": "adamw",
        "objective.loss": "l2",
        "data.mask": "off",
        "inversion.token": "",
        "objective.timesteps": "uniform",
    }
    values |= {form.components[key]: value for key, value in back.items()}
    assert parse(TrainConfig, form.values(values), "the form") == start


def test_every_condition_of_the_real_form_can_be_met_by_something_drawn() -> None:
    form = Form(
        TrainConfig,
        presets.load(presets.names()[0], {}),
        frozenset(),
        {},
        {"family": {"sd": {"prediction": ("epsilon",)}}},
    )
    for spec in form.specs.values():
        assert not spec.conditions or form._controllers(spec), spec.key


def test_group_is_gone_while_nothing_in_it_is_read() -> None:
    form = shapes()
    with gr.Blocks():
        form.draw("name", "shape.method", "shape.round.radius", "shape.square.side", "paint.thick")
        form.draw_group("Ridges", ["paint.ridges", "paint.depth"])
        form.draw_rest(advanced=True)
        form.connect()
    ((group, _),) = form.groups
    assert group.visible is False
    filled = form.fill(Shapes(shape=START.shape, paint=Paint(thick=True)))
    assert filled[group]["visible"] is True and filled[form.components["paint.depth"]]["visible"] is False


def test_change_sets_what_is_named_and_shows_what_that_brings() -> None:
    form = shapes()
    values = drawn(form)
    updates = form.change(values, {"paint.thick": True, "paint.ridges": 2, "shape.radius": 9, "no.such": 1})
    assert updates[form.components["paint.ridges"]] == gr.update(value=2, visible=True)
    assert (
        updates[form.components["shape.round.radius"]]["value"] == 9
        and "value" not in updates[form.components["shape.square.side"]]
    )
    assert updates[form.components["paint.depth"]]["visible"] is True
