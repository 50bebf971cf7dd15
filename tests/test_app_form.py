"""The form: every setting of a model is drawn once, with its own words, and comes back as it was."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import gradio as gr
import pytest
from pydantic import Discriminator, Field

from app.form import Form, specs
from trainer import presets
from trainer.config import StackConfig, TrainConfig, parse
from trainer.schema import Settings, setting


class Round(Settings):
    method: Literal["round"] = Field(title="Method", description="Kind.")
    radius: int = setting(3, "Radius", "How round.", ge=1, le=9)


class Square(Settings):
    method: Literal["square"] = Field(title="Method", description="Kind.")
    side: float = setting(2.0, "Side", "How wide.", gt=0)


class Shapes(Settings):
    name: str = setting("", "Name", "Of it.")
    shape: Annotated[Round | Square, Discriminator("method")]


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


@pytest.mark.parametrize("name", presets.names())
def test_fill_shows_what_the_config_says(name: str) -> None:
    form = Form(TrainConfig, presets.load(presets.names()[0], {}), frozenset(), {})
    found = drawn(form)
    config = presets.load(name, {"adapter.rank": 5, "preview.prompts": ["one", "two"]})
    for component, update in form.fill(config).items():
        found[component] = update.get("value", found[component])
    assert parse(TrainConfig, form.values(found), "the form") == config


@pytest.mark.parametrize("model", [TrainConfig, StackConfig])
def test_every_setting_has_its_words_and_one_component(model: type[Settings]) -> None:
    start = presets.load(presets.names()[0], {}) if model is TrainConfig else StackConfig.model_validate({})
    form = Form(model, start, frozenset({"version", "adapters"}), {})
    drawn(form)
    assert set(form.components) == {spec.key for spec in specs(model)} - {"version", "adapters"}
    for key, component in form.components.items():
        field = form.specs[key].field
        assert component.label == field.title and component.info == field.description, key  # type: ignore[attr-defined]


def test_empty_number_is_refused_by_name() -> None:
    form = Form(TrainConfig, presets.load(presets.names()[0], {}), frozenset(), {})
    found = drawn(form)
    found[form.components["max_steps"]] = None
    with pytest.raises(Exception, match="max_steps"):
        parse(TrainConfig, form.values(found), "the form")


def test_union_shows_and_sends_the_chosen_kind_only() -> None:
    form = Form(Shapes, Shapes(shape=Round(method="round", radius=4)), frozenset(), {})
    found = drawn(form)
    assert set(form.components) == {"name", "shape.method", "shape.round.radius", "shape.square.side"}
    assert form.values(found) == {"name": "", "shape": {"method": "round", "radius": 4}}
    for component, update in form.fill(Shapes(shape=Square(method="square", side=7.5))).items():
        found[component] = update.get("value", found[component])
        component.visible = update.get("visible", True)
    assert form.values(found) == {"name": "", "shape": {"method": "square", "side": 7.5}}
    assert not form.components["shape.round.radius"].visible and form.components["shape.square.side"].visible
