"""The text of a picture without the picture: pasted into Stack's prompt or dropped as a file, it becomes a stack."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from app import recipes, recognising, saved_stacks, ui
from app.context import Context
from app.tabs import stack as stack_tab
from tests import foreign_pictures
from tests.test_library_keeping import lora
from tests.test_page_frame import HOSTILE
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError, ConfigError, DataError
from trainer.render import a1111_text, opening, picture_metadata

TEXT = """a fox <lora:fox:0.8>, {red|blue}
Negative prompt: blurry
Steps: 5, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3, Seed: 7, Size: 64x128, Model: meadow, \
Hires upscale: 2"""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    made = ui.open_workspace(tmp_path / "workspace")
    lora(made.loras / "fox.safetensors")
    made.find_loras()
    return made


def pasted(context: Context, text: Any) -> tuple[stack_tab._Tab, dict[Any, Any]]:
    """Stack, and what its handler answers to a text that the page sends."""
    with gr.Blocks():
        tab = stack_tab._Tab(context)
    return tab, tab.take_text(SimpleNamespace(text=text))  # type: ignore[arg-type]


def test_a_pasted_text_is_read_as_its_picture_is(context: Context, tmp_path: Path) -> None:
    picture = foreign_pictures.a1111(tmp_path / "x.png", TEXT)
    assert recipes.read_text(context, TEXT) == recipes.read_picture(context, picture)
    assert recipes.read_text(context, TEXT.replace("\n", "\r\n")) == recipes.read_picture(context, picture)


def test_our_own_text_gives_its_stack_back(context: Context) -> None:
    stack, _ = recipes.read_text(context, TEXT.replace("{red|blue}", "red"))
    again, _ = recipes.read_text(context, a1111_text.infotext(stack, "imprimatura", "0" * 10, "DDIM"))
    keys = ("prompt", "negative_prompt", "seed", "steps", "guidance_scale", "width_px", "height_px", "sampler")
    assert [getattr(again, key) for key in keys] == [getattr(stack, key) for key in keys]
    assert [(one.sha256, one.weight) for one in again.adapters] == [(one.sha256, 0.8) for one in stack.adapters]


def test_a_graph_or_a_recipe_of_ours_is_read_as_its_picture_is(context: Context, tmp_path: Path) -> None:
    for number, graph in enumerate((foreign_pictures.comfyui_prompt(), foreign_pictures.comfyui_workflow())):
        form = ("prompt", "workflow")[number]
        picture = foreign_pictures.comfyui(tmp_path / f"{number}.png", **{form: graph})
        for text in (json.dumps(graph), json.dumps({form: graph}), json.dumps(graph, indent=2)):
            assert recipes.read_text(context, text) == recipes.read_picture(context, picture)
    (sha256,) = context.known_loras()
    lora = AdapterChoice(sha256=sha256, weight=0.7, schedule="linear 1 0", blocks=("IN=0.5",))
    stack = StackConfig(prompt="a fox\nat dusk", seed=12, adapters=(lora,), mode="switch")
    picture = picture_metadata.save(picture_metadata.Picture(Image.new("RGB", (64, 64)), stack), tmp_path / "ours.png")
    ours = recipes.read_picture(context, picture)
    for text in (json.dumps(picture_metadata.read(picture).recipe), saved_stacks.text_of(stack)):
        assert recipes.read_text(context, text) == ours == (ours[0], [])
    assert ours[0].adapters[0].schedule == "linear 1 0" and ours[0].prompt == "a fox\nat dusk"


def test_a_recipe_of_ours_whose_lora_is_not_here_or_that_says_nonsense_is_refused(context: Context) -> None:
    gone = StackConfig(adapters=(AdapterChoice(sha256="0" * 64, name="gone"),))
    with pytest.raises(AdapterError, match="not here"):
        recipes.read_text(context, saved_stacks.text_of(gone))
    for text, words in (
        ('{"seed": -1}', "seed"), ('{"base": "/etc"}', "base"), ("seed = 1\nsteps = 'x'", "steps"),
        ('{"adapters": [{"file": "/etc/passwd"}]}', "LoRA"), ('{"adapters": 3, "seed": 1}', "adapters"),
    ):  # fmt: skip
        with pytest.raises((ConfigError, AdapterError), match=words):
            recipes.read_text(context, text)


def test_a_dropped_graph_is_a_saved_stack(context: Context, tmp_path: Path) -> None:
    for name, graph in (("api", foreign_pictures.comfyui_prompt()), ("page", foreign_pictures.comfyui_workflow())):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(graph), encoding="utf-8")
        (arrival,) = recognising.take(context, [path])
        assert arrival.is_taken and arrival.what == "A ComfyUI workflow.", arrival
        assert "seed = 77" in (saved_stacks.folder(context) / f"{name}.toml").read_text()
    (tmp_path / "none.json").write_text(json.dumps({"3": {"class_type": "Note", "inputs": {}}}))
    (arrival,) = recognising.take(context, [tmp_path / "none.json"])
    assert not arrival.is_taken and "this ComfyUI graph has no seed" in arrival.what


def test_the_form_has_the_texts_stack_and_says_what_was_left_out(context: Context) -> None:
    tab, changes = pasted(context, TEXT)
    shown = {key: changes[part]["value"] for key, part in tab.form.components.items() if "value" in changes[part]}
    assert (shown["seed"], shown["steps"], shown["width_px"], shown["height_px"]) == (7, 5, 64, 128)
    assert shown["negative_prompt"] == "blurry" and shown["prompt"].strip().startswith("a fox")
    (sha256,) = context.known_loras()
    assert changes[tab.rows.choices[0]]["value"] == sha256 and changes[tab.stage.opened].stack.seed == 7
    notice = changes[tab.stage.warned]
    assert notice["visible"] and "Not taken from the text" in notice["value"]
    assert "made on the base meadow" in notice["value"] and "hires fix" in notice["value"]


@pytest.mark.parametrize(
    "text",
    ["", "a fox", "x" * 200_000, HOSTILE, "Steps: \ud800", None, 7, ["Steps: 5"], {"Steps": 5}, "\0" * 1000,
     TEXT + "y" * 200_000, "{" * 100_000, '{"class_type": 1}', '{"nodes": [[]], "links": {}}', "[]", "{}",
     '{"prompt": {"1": {"class_type": "KSampler"}',
     '{"nodes": [{"id": 1, "type": "Note"}], "links": []}',
     "seed = " * 5000, "adapters = [" * 5000],
)  # fmt: skip
def test_what_is_no_text_of_a_picture_is_refused_in_words(context: Context, text: Any) -> None:
    with pytest.raises(gr.Error) as refused:
        pasted(context, text)
    assert "Traceback" not in refused.value.message and len(refused.value.message) < 1000


@pytest.mark.parametrize("part", [HOSTILE, "half \ud800 a pair", "<lora:" * 300, "(" * 3000, "🦊" * 2000])
def test_a_hostile_prompt_in_the_text_stays_text(context: Context, part: str) -> None:
    try:
        tab, changes = pasted(context, TEXT.replace("a fox", part))
    except gr.Error as error:
        assert "Traceback" not in error.message
        return
    assert HOSTILE not in changes[tab.stage.warned]["value"]


def test_a_dropped_text_file_is_a_saved_stack(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "fox of civitai.txt"
    path.write_text(TEXT, encoding="utf-8")
    (arrival,) = recognising.take(context, [path])
    assert arrival.is_taken and arrival.what == "The text of a picture." and "made on the base meadow" in arrival.where
    (saved,) = saved_stacks.every(context)
    assert arrival.opens == ("stack", saved.name) and "seed = 7" in saved.read_text()


def test_a_text_beside_its_picture_stays_a_caption_and_others_are_refused(context: Context, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text(TEXT)
    (arrival,) = recognising.take(context, [tmp_path / "one.png", tmp_path / "one.txt"])
    assert (context.datasets / arrival.opens[1] / "one.txt").is_file() and not saved_stacks.every(context)  # type: ignore[index]
    for text in ("a fox", "Steps: many, Seed: 1, Size: big", "Steps: 20\nto a better life", "Steps: 5, " * 30_000):
        (tmp_path / "two.txt").write_text(text)
        (arrival,) = recognising.take(context, [tmp_path / "two.txt"])
        assert not arrival.is_taken and "nothing in it that is known here" in arrival.where + arrival.what


def test_a_table_of_prompts_with_such_a_text_in_a_cell_stays_a_table(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text('prompt,seed\n"a fox\nSteps: 5, Sampler: Euler, Seed: 7, Size: 64x64",1\n', encoding="utf-8")
    (arrival,) = recognising.take(context, [path])
    assert arrival.what.startswith("A jobs file")


def test_a_text_without_settings_says_what_one_looks_like() -> None:
    with pytest.raises(DataError, match=r"allowed: text with a last line such as 'Steps: 20, Sampler: Euler, Seed: 1'"):
        opening.stack_of_text("a fox", StackConfig(), {})
