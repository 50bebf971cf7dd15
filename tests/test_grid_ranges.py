"""Ranges among the values of a grid's axis, and how many pictures a grid is said to have."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

from app import grids, ui
from app.context import Context
from app.render_requests import Rendering
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.render import modes

PLACES = {1: 0}


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


@pytest.mark.parametrize(
    ("key", "typed", "values"),
    [
        ("weight 1", "0-1 [5]", "0 0.25 0.5 0.75 1"),
        ("weight 1", "0 - 1[3]", "0 0.5 1"),
        ("weight 1", "-1-1 [3]", "-1 0 1"),
        ("weight 1", "-2--1 (+0.5)", "-2 -1.5 -1"),
        ("weight 1", "0-0.3 (+0.1)", "0 0.1 0.2 0.3"),
        ("weight 1", "1-0 [5]", "1 0.75 0.5 0.25 0"),
        ("weight 1", "0-1 [4]", "0 0.3333 0.6667 1"),
        ("weight 1", "0, 0.2-0.4 (+0.1), 1", "0 0.2 0.3 0.4 1"),
        ("weight 1", "-0.5, 1", "-0.5 1"),
        ("steps", "1-10 (+2)", "1 3 5 7 9"),
        ("steps", "10-1 (-3)", "10 7 4 1"),
        ("steps", "20-40 [3]", "20 30 40"),
        ("seed", "1-4, 17", "1 2 3 4 17"),
        ("seed", "4-1", "4 3 2 1"),
        ("seed", "1-4 [1]", "1"),
        ("seed", "1-2 [5]", "1 2"),
        ("guidance_scale", "1-7 (+1.5)", "1 2.5 4 5.5 7"),
    ],
)
def test_a_range_stands_for_its_values(context: Context, key: str, typed: str, values: str) -> None:
    assert grids.axis_of(context, key, typed, PLACES).values == tuple(values.split())


@pytest.mark.parametrize("typed", ["1-4", "a cat 1-4 [3]", "1-10 (+2)"])
def test_a_prompt_is_no_range(context: Context, typed: str) -> None:
    assert grids.axis_of(context, "prompt", typed, PLACES).values == (typed,)


@pytest.mark.parametrize("typed", ["1-4 (-1)", "4-1 (+1)", "1-4 (+0)", "0-1 [0]", "1-401", "0-9999999999999999 (+1)",
                                   "0-1 [999999]", "0-1 (+0.00000001)"])  # fmt: skip
def test_a_range_without_values_or_with_too_many_is_refused(context: Context, typed: str) -> None:
    with pytest.raises(ConfigError, match=r"the range .* holds .* allowed: 1 to 400"):
        grids.axis_of(context, "seed", typed, PLACES)


@pytest.mark.parametrize("typed", ["1-", "-", "1-2-3", "1-4 []", "1-4 [-2]", "1-4 (2)", "１-４", "0-1 [5", "1e3-2"])
def test_what_is_no_range_is_refused_as_the_value_that_it_is(context: Context, typed: str) -> None:
    with context.engine(StackConfig()) as engine, pytest.raises(ConfigError, match="seed is"):
        grids.grid_of(context, StackConfig(), [("seed", typed)], PLACES)(engine, Rendering())


WORDED = [
    ([("words", "apple, pear")], ["a red apple", "a red pear"], ["", ""]),
    ([("words", "red | dark blue"), ("words", "apple | pear, ripe")],
     ["a red apple", "a red pear, ripe", "a dark blue apple", "a dark blue pear, ripe"], [""] * 4),
    ([("words", "apple, pear"), ("prompt", "an apple | two apples")],
     ["an apple", "two apples", "an pear", "two pears"], [""] * 4),
    ([("words", "blur, noise"), ("seed", "1")], ["a red apple"] * 2, ["blur", "noise"]),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "prompts", "negative"), WORDED)
def test_words_take_the_place_of_words_in_the_prompts(
    context: Context, typed: list[tuple[str, str]], prompts: list[str], negative: list[str]
) -> None:
    stack = StackConfig(
        prompt="a red apple", negative_prompt="blur" if any(negative) else "", steps=1, width_px=64, height_px=64
    )
    with context.engine(stack) as engine:
        sheet = grids.grid_of(context, stack, typed, PLACES)(engine, Rendering())
    drawn = [picture.stack for picture in sheet.pictures]
    assert [picture.prompt for picture in drawn] == prompts
    assert [picture.negative_prompt for picture in drawn] == negative
    assert len(set(sheet.labels)) == len(drawn), "each cell is named apart"


def test_words_that_no_prompt_has_are_refused(context: Context) -> None:
    stack = StackConfig(prompt="a red apple", steps=1)
    with context.engine(stack) as engine, pytest.raises(ConfigError, match="the words 'cat' are not in the prompt"):
        grids.grid_of(context, stack, [("words", "cat, dog")], PLACES)(engine, Rendering())


def test_what_an_axis_begins_with_can_be_drawn(context: Context) -> None:
    for _, key in grids.settings(2):
        if offer := grids.OFFERED.get(key.split(" ")[0]):
            assert len(grids.axis_of(context, key, offer, {1: 0, 2: 1}).values) > 1, key
    assert tuple(grids.OFFERED["mode"].split(", ")) == tuple(modes.registry())


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([("", "")], ""),
        ([("seed", "")], ""),
        ([("seed", "1,, 2")], ""),
        ([("seed", "4")], "1 picture"),
        ([("seed", "1-4"), ("weight 1", "0-1 [5]"), ("", "1, 2")], "20 pictures"),
        ([("prompt", "a cat, red | a dog"), ("checkpoint", "cat")], "2 pictures for each checkpoint"),
        ([("checkpoint", "cat")], "1 picture for each checkpoint"),
        ([("seed", "1-40"), ("steps", "1-40")], "1,600 pictures; up to 400 can be drawn"),
    ],
)
def test_the_number_of_pictures_is_said(typed: list[tuple[str, str]], words: str) -> None:
    assert grids.count(typed) == words


def test_the_number_stands_beside_the_button_and_follows_what_is_typed(context: Context) -> None:
    with gr.Blocks() as page:
        made = grids.Grids(context, 2)
        made.connect(set(), lambda *_: iter(()), [], {})
    (counted,) = [fn for fn in page.fns.values() if made.num in fn.outputs]
    held = dict.fromkeys([*made.keys, *made.values], "") | {made.keys[0]: "seed", made.values[0]: "1-3"}
    assert counted.fn is not None and counted.fn(held) == "3 pictures"
    watched = {target for target, _ in counted.targets}
    assert watched == {part._id for part in (*made.keys, *made.values)}
