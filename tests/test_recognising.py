"""Whatever is dropped on the page is known by its content, goes where it belongs, or is refused in a sentence."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
import single_files
import torch
from PIL import Image
from safetensors.torch import save_file

from app import arrival_view, card_view, kept_fields, open_in_tab, recognising, saved_stacks, ui
from app.arrival import Arrival
from app.context import Context
from app.library_items import Shelf
from tests import foreign_pictures
from tests.test_library_keeping import lora
from trainer import presets
from trainer.config import StackConfig
from trainer.data import scanning
from trainer.other_trainers import importing, presets_from

KOHYA_SETS = '[general]\nenable_bucket = true\n[[datasets]]\nbatch_size = 4\n[[datasets.subsets]]\nimage_dir = "/x"\n'
AI_TOOLKIT = 'job: extension\nconfig:\n  name: "x"\n  process:\n    - type: sd_trainer\n'


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    return ui.open_workspace(tmp_path / "workspace")


def dropped(context: Context, path: Path) -> Arrival:
    (arrival,) = recognising.take(context, [path])
    assert str(path.parent) not in f"{arrival.what} {arrival.where}"
    return arrival


def test_a_lora_under_any_name_goes_to_the_library_once(context: Context, tmp_path: Path) -> None:
    source = lora(tmp_path / "fox.safetensors")
    path = source.rename(tmp_path / "fox.txt")
    arrival = dropped(context, path)
    assert arrival.what.startswith("A LoRA") and [file.name for file in context.loras.iterdir()] == ["fox.safetensors"]
    assert arrival.opens == ("lora", next(iter(context.known_loras())))
    again = dropped(context, path)
    assert "here already, as fox" in again.what and len(list(context.loras.iterdir())) == 1


def test_a_picture_of_another_tool_becomes_a_stack_that_opens(context: Context, tmp_path: Path) -> None:
    lora(context.loras / "fox.safetensors")
    (info,) = context.find_loras().values()
    text = "a fox <lora:fox:0.8>\nSteps: 5, Sampler: Euler, CFG scale: 3, Seed: 7, Size: 64x64"
    path = foreign_pictures.a1111(tmp_path / "x.png", text)
    arrival = dropped(context, path.rename(tmp_path / "x.bin"))
    assert arrival.what.startswith("A picture of another tool") and arrival.opens == ("stack", "x.toml")
    stack = saved_stacks.read(context, saved_stacks.folder(context) / "x.toml")
    assert stack.adapters[0].sha256 == info.sha256 and saved_stacks.picture(saved_stacks.every(context)[0])
    from trainer.render.picture_metadata import read_stack

    carried = Path(open_in_tab.TARGETS["stack"].value(context, "x.toml"))
    assert carried.is_relative_to(context.cache) and read_stack(carried, context.known_loras()).prompt == stack.prompt


def test_pictures_without_a_recipe_become_one_dataset_with_their_captions(context: Context, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{name}.jpg")
    (tmp_path / "a.txt").write_text("a red square")
    (arrival,) = recognising.take(context, [tmp_path / "a.jpg", tmp_path / "a.txt", tmp_path / "b.jpg"])
    folder = context.dataset(arrival.opens[1] if arrival.opens else None)
    assert len(context.pictures(folder)) == 2 and (folder / "a.txt").read_text().strip() == "a red square"


def test_a_zip_becomes_a_dataset_and_one_without_pictures_leaves_nothing(context: Context, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    for name, inside in (("set", "a.png"), ("none", "notes.md")):
        with zipfile.ZipFile(tmp_path / f"{name}.dat", "w") as archive:
            archive.write(tmp_path / "a.png" if inside == "a.png" else tmp_path / "a.png", inside)
    assert dropped(context, tmp_path / "set.dat").opens == ("dataset", "set")
    assert not dropped(context, tmp_path / "none.dat").is_taken and context.dataset_names() == ["set"]


def test_a_zip_of_kohyas_keeps_its_folders_for_they_say_repeats(context: Context, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "b.png")
    with zipfile.ZipFile(tmp_path / "mokka.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "train/10_mokka cat/a.png")
        archive.writestr("train/10_mokka cat/a.txt", "a red one")
        archive.write(tmp_path / "b.png", "train/3_mokka cat/a.png")
        archive.writestr("../evil_10_x/c.png", (tmp_path / "b.png").read_bytes())
    arrival = dropped(context, tmp_path / "mokka.zip")
    assert arrival.opens == ("dataset", "mokka") and "c.png" in arrival.where
    config = presets.load(presets.names()[0], {"data.folder": str(context.dataset("mokka"))})
    assert [(item.captions, item.repeats) for item in scanning.scan(config).items] == [
        (("a red one",), 10),
        (("mokka cat",), 3),
    ]


def test_a_checkpoint_becomes_a_base_that_is_offered_at_once(context: Context, tmp_path: Path) -> None:
    page = ui.compose(context)
    file = single_files.empty_file(single_files.full_size_sd("meta"), tmp_path / "artist v2.safetensors")
    arrival = dropped(context, file.rename(tmp_path / "artist v2.bin"))
    base = context.workspace / "bases" / "artist-v2.safetensors"
    assert "Stable Diffusion 1" in arrival.what and "2.1 GB" in arrival.what and base.is_file()
    assert ("artist-v2.safetensors", str(base)) in context.base_choices()

    # The page as it is loaded next, and the one that is open.
    offered = {
        part["props"]["elem_id"]: [value for _, value in part["props"]["choices"]]
        for part in page.config["components"]
        if part["props"].get("elem_id") in ("field-base", "stack-base")
    }
    assert len(offered) == 2 and all(str(base) in values for values in offered.values())
    opener = open_in_tab._Opener(
        page, context, next(part for part in page.blocks.values() if isinstance(part, gr.Tabs))
    )
    what, key = arrival.opens or ("", "")
    updates = opener.updates({}, f"{what} {key}")
    field = opener.fields["base"]
    assert field.elem_id == "field-base" and updates[field]["value"] == str(base)
    assert str(base) in [value for _, value in updates[field]["choices"]]

    # Once, and none that lacks a part or that no family here knows.
    assert "here already" in dropped(context, tmp_path / "artist v2.bin").what
    part = {name: tensor for name, tensor in single_files.full_size_sd("meta").items() if "cond_stage" not in name}
    lacking = dropped(context, single_files.empty_file(part, tmp_path / "no text.safetensors"))
    assert not lacking.is_taken and "text_encoder" in lacking.what
    assert list((context.workspace / "bases").iterdir()) == [base]


def test_what_is_no_whole_checkpoint_is_refused(context: Context, tmp_path: Path) -> None:
    names = ["input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight", "label_emb.0.0.weight"]
    tensors = {f"model.diffusion_model.{name}": torch.zeros(4, 4, 3, 3) for name in names}
    save_file(tensors, tmp_path / "big.safetensors")
    arrival = dropped(context, tmp_path / "big.safetensors")
    assert not arrival.is_taken and list(context.loras.iterdir()) == [] and "Traceback" not in arrival.what
    assert "model" in arrival.what


@pytest.mark.parametrize("raw", [b"\x80\x02}q\x00.", b"GGUF\3\0\0\0", b"PK\x03\x04" + b"\0" * 26 + b"archive/data.pkl"])
def test_models_that_could_run_programs_are_not_opened(context: Context, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    arrival = dropped(context, tmp_path / "model.safetensors")
    assert not arrival.is_taken and ".safetensors" in arrival.what


RECIPES = sorted(path for path in (Path(__file__).parent / "other_trainers" / "recipes").iterdir() if path.is_file())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_another_trainers_recipe_becomes_a_preset_and_every_key_of_it_is_told(
    context: Context, tmp_path: Path, recipe: Path
) -> None:
    path = tmp_path / "x.txt"  # known by its content
    path.write_bytes(recipe.read_bytes())
    seen = dropped(context, path)
    assert seen.what.startswith("A recipe of ") and seen.offer and seen.opens is None, seen
    told = arrival_view.html(context, [seen], None)
    keys = importing.read(recipe).keys
    assert f"What became of its {len(keys)} keys" in told and "What it changes" in told
    assert presets.own() == {}, "it was only shown"

    (arrival,) = recognising.keep(context, [seen.offer])
    assert arrival.what == seen.what and arrival.opens and arrival.opens[0] == "preset", arrival
    (preset,) = presets.own()
    assert presets.load(preset, {}) == presets.load(preset, importing.read(recipe).settings)
    assert presets_from.report_of(presets.path_of(preset)) == [
        replace(key, value=str(key.value)[:200], became=key.became[:200], why=key.why[:200]) for key in keys
    ]
    item = next(item for item in Shelf(context).every("presets") if item.key == arrival.opens[1])
    shown = card_view.html(context, item)
    assert f"What became of its {len(keys)} keys" in shown and shown.count("<tr>") == len(keys) + 1
    assert open_in_tab.TARGETS["preset"].value(context, arrival.opens[1]) == str(presets.path_of(preset))


@pytest.mark.parametrize("text", [KOHYA_SETS, AI_TOOLKIT])
def test_a_piece_of_a_recipe_is_one_too(context: Context, tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    (arrival,) = recognising.keep(context, [dropped(context, tmp_path / "x").offer])
    assert arrival.opens == ("preset", "preset:x")


def test_a_workflow_is_named_in_one_sentence(context: Context, tmp_path: Path) -> None:
    """Harm 11: a kohya config gave nine errors, each with the same list."""
    (tmp_path / "f.json").write_text(json.dumps({"3": {"class_type": "KSampler", "inputs": {}}}))
    arrival = dropped(context, tmp_path / "f.json")
    assert not arrival.is_taken and "ComfyUI" in arrival.what and presets.own() == {}
    assert arrival.what.count(".") <= 1 and len(arrival.what) < 120 and not arrival.where


def test_settings_of_ours_are_kept_whatever_they_are_called(context: Context, tmp_path: Path) -> None:
    config = presets.load(presets.names()[0], {"max_steps": 77})
    presets.save(config, tmp_path / "x.txt")
    arrival = dropped(context, tmp_path / "x.txt")
    assert arrival.opens == ("config", "x.toml")
    assert presets.load(open_in_tab.TARGETS["config"].value(context, "x.toml"), {}).max_steps == 77
    (tmp_path / "s.json").write_text(json.dumps(StackConfig(prompt="a fox", seed=9).model_dump(mode="json")))
    assert dropped(context, tmp_path / "s.json").opens == ("stack", "s.toml")
    assert saved_stacks.read(context, saved_stacks.folder(context) / "s.toml").seed == 9


@pytest.mark.parametrize(
    "name, text",
    [
        ("j.csv", "prompt,seed\na fox,1\na cat,2\n"),
        ("j.jsonl", '{"prompt": "a fox", "seed": 1}\n{"prompt": "a cat", "seed": 2}\n'),
        ("j.txt", '[{"prompt": "a fox", "seed": 1}, {"prompt": "a cat", "seed": 2}]'),
        ("j.toml", 'prompts = ["a fox", "a cat"]\nseeds = [1]\n'),
    ],
)
def test_a_jobs_file_is_kept_for_batch(context: Context, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    arrival = dropped(context, tmp_path / name)
    assert arrival.what.startswith("A jobs file") and arrival.opens and arrival.opens[0] == "jobs"
    assert Path(open_in_tab.TARGETS["jobs"].value(context, arrival.opens[1])).is_relative_to(context.cache)


@pytest.mark.parametrize(
    "raw", [b"", b"hello", b"\xff\xfe\xfd", b"{" * 9000, b"[" * 9000, b"\0" * 64, b'{"a": 1}', b"a,b\n1,2\n", b"<svg/>"]
)
def test_what_nobody_knows_is_refused_in_words(context: Context, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.png").write_bytes(raw)
    assert not dropped(context, tmp_path / "x.png").is_taken
    assert context.dataset_names() == [] and list(context.loras.iterdir()) == []


@pytest.mark.parametrize("what", sorted(open_in_tab.TARGETS))
@pytest.mark.parametrize("key", ["../jobs.sqlite", "/etc/passwd", "..", "", "nobody"])
def test_only_what_is_here_is_opened(context: Context, what: str, key: str) -> None:
    from trainer.errors import UserError

    with pytest.raises(UserError):
        open_in_tab.TARGETS[what].value(context, key)


def test_what_is_opened_fills_the_fields_of_its_tab(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fields' own listeners answer, whatever the tabs hold; below the browser, which is slow to start."""
    lora(context.loras / "fox.safetensors")
    (sha256,) = context.find_loras()
    saved_stacks.save(context, StackConfig(prompt="a fox in snow", seed=9), "snow")
    (context.datasets / "mine").mkdir()
    presets.save(presets.load(presets.names()[0], {"max_steps": 77}), tmp_path / "c.toml")
    config = dropped(context, tmp_path / "c.toml")
    monkeypatch.setattr(kept_fields, "watch", lambda page: None)  # which has many fields sent as one
    page = ui.compose(context)
    tabs = next(block for block in page.blocks.values() if isinstance(block, gr.Tabs))
    opener = open_in_tab._Opener(page, context, tabs)
    held = {part: getattr(part, "value", None) for part in opener.inputs}

    def values(wanted: str) -> dict[str, object]:
        updates = opener.updates(dict(held), wanted)
        plain = {part: update.get("value") if isinstance(update, dict) else update for part, update in updates.items()}
        return {str(part.elem_id): value for part, value in plain.items()} | {"tab": updates[tabs]["selected"]}

    assert values("dataset mine").items() >= {"tab": "dataset", "dataset": "mine"}.items()
    assert values(f"lora {sha256}").items() >= {"tab": "stack", "lora-1": sha256}.items()
    assert values("stack snow.toml").items() >= {"tab": "stack", "stack-prompt": "a fox in snow"}.items()
    assert config.opens is not None
    assert values(" ".join(config.opens)).items() >= {"tab": "train", "field-max_steps": 77}.items()
