"""The Stack tab beyond its picture: conflict map, balanced weights, every mode, grids over any settings, one LoRA of
all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import Image

from app import grids, masks, sheets, stack_analysis, stack_depth, ui
from app.context import Context
from app.render_requests import Rendering
from app.tabs import stack
from trainer import lora_file
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.render import baking

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
HOSTILE = "<img src=x onerror=1>"


def lora(path: Path, value: float, shape: tuple[int, int]) -> Path:
    parts = {"lora_down.weight": torch.full((2, shape[1]), value), "lora_up.weight": torch.full((shape[0], 2), 0.01)}
    path.parent.mkdir(exist_ok=True)
    lora_file.save(path, {LAYER: parts}, {}, torch.float32)
    return path


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    made = ui.open_workspace(tmp_path / "workspace", [str(tiny)])
    shape = _shape(tiny)
    lora(made.loras / "one.safetensors", 0.3, shape)
    lora(made.loras / f"{HOSTILE.replace('/', '')}.safetensors", 0.2, shape)
    made.find_loras()
    return made


def _shape(tiny: Path) -> tuple[int, int]:
    from safetensors import safe_open

    with safe_open(tiny / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        return tuple(file.get_slice("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight").get_shape())


def made(context: Context, **changes: Any) -> StackConfig:
    values = {
        "prompt": "a fox",
        "width_px": 32,
        "height_px": 32,
        "steps": 2,
        "guidance_scale": 3.0,
        "base": context.bases[1],
    } | changes
    return stack.stack_of(context, values, [(sha256, 1.0, True, {}) for sha256 in context.known_loras()])


def test_a_bake_never_writes_over_a_lora_that_took_its_name_meanwhile(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = baking.lora

    def slow(*args: Any, **more: Any) -> baking.Baked:
        made = real(*args, **more)
        (context.loras / "both.safetensors").write_bytes(b"another's")
        return made

    monkeypatch.setattr(baking, "lora", slow)
    path = context.bake(made(context), "both", 0).path
    assert path.name == "both-2.safetensors" and lora_file.inspect(path)
    assert (context.loras / "both.safetensors").read_bytes() == b"another's" and not list(context.loras.glob(".*"))


def test_two_that_push_the_same_way_are_named_and_their_balance_halves_them(context: Context) -> None:
    from trainer.render import analysis

    result = context.analyse(made(context))
    assert result.pairs[0].total.cosine == pytest.approx(1, abs=1e-4)
    proposed = analysis.balance(result)
    assert proposed.weights == pytest.approx([0.6, 0.6], abs=1e-3)  # 0.3 alone is the strongest; 0.3 + 0.2 is 5/3 of it
    html = stack_analysis.report_html(result, ["mode k-lora"])
    plain, folded = html.split("<details")
    assert "They push the same way in the middle of the model: shapes." in plain and "they may burn" not in folded
    assert "cosine" not in html and "attentions" not in html
    assert 'class="together" style="height:100%"' in plain and 'class="against" style="height:0%"' in plain
    assert "1 of 1" in html and "Left out of account: mode k-lora" in html
    assert HOSTILE not in html and "&lt;img" in html


def test_where_two_pull_against_each_other_is_said_and_drawn_downwards(context: Context, tiny: Path) -> None:
    lora(context.loras / "back.safetensors", -0.2, _shape(tiny))
    context.find_loras()
    wanted = [info.sha256 for info in context.known_loras().values() if info.name in ("one", "back")]
    against = made(context).model_dump(exclude={"adapters"})
    result = context.analyse(stack.stack_of(context, against, [(sha256, 1.0, True, {}) for sha256 in wanted]))
    (place,) = stack_depth.places(result)
    assert (place.part, place.together) == ("middle", 0) and place.against == pytest.approx(1, abs=1e-3)
    assert "They pull against each other in the middle of the model: shapes." in stack_depth.words(result)
    assert 'class="against" style="height:100%"' in stack_depth.html(result)


def test_what_the_map_leaves_out_is_named(context: Context) -> None:
    plain = made(context)
    assert stack_analysis.unseen(plain) == [] and stack_analysis.unseen(
        plain.model_copy(update={"mode": "k-lora"})
    ) == ["mode k-lora"]


def test_two_that_take_turns_do_not_meet(context: Context) -> None:
    plain = made(context)
    first, second = plain.adapters
    turns = (
        first.model_copy(update={"schedule": "steps 0:1 0.5:0"}),
        second.model_copy(update={"schedule": "steps 0:0 0.5:1"}),
    )
    result = context.analyse(plain.model_copy(update={"adapters": turns}))
    assert (
        result.pairs[0].total.interference == result.pairs[0].total.cosine == 0
        and result.total.ratio < context.analyse(plain).total.ratio
    )


def test_a_stack_without_a_lora_is_not_analysed(context: Context) -> None:
    nothing = stack.stack_of(context, {"base": context.bases[1]}, [])
    with pytest.raises(ConfigError, match="no LoRA is on"):
        context.analyse(nothing)


def test_the_map_is_of_the_base_also_after_a_picture(context: Context) -> None:
    stack = made(context)
    before = context.analyse(stack)
    context.render(stack)
    assert context.analyse(stack).total == before.total


def test_one_lora_of_all_is_in_the_library_and_draws_what_the_stack_draws(context: Context) -> None:
    request = made(context)
    baked = context.bake(request, "../../both of/them", 0)
    assert baked.path.parent == context.loras and baked.path.stem == "them" and baked.residual < 1e-3
    (info,) = [info for info in context.known_loras().values() if info.path == baked.path]
    alone = stack.stack_of(context, request.model_dump(exclude={"adapters"}), [(info.sha256, 1.0, True, {})])
    left, right = (context.render(chosen).image for chosen in (request, alone))
    assert max(high for _, high in _difference(left, right).getextrema()) <= 2


def _difference(left: Image.Image, right: Image.Image) -> Image.Image:
    from PIL import ImageChops

    return ImageChops.difference(left, right)


def cells(sheet: Image.Image, size: tuple[int, int]) -> set[bytes]:
    """The pixels of every rectangle of this size in the sheet that has paper above and to the left of it."""
    import numpy

    pixels = numpy.asarray(sheet)
    paper = (pixels == pixels[0, 0]).all(-1)
    corners = ~paper[1:, 1:] & paper[:-1, 1:] & paper[1:, :-1]
    rectangles = (pixels[y + 1 : y + 1 + size[1], x + 1 : x + 1 + size[0]] for y, x in numpy.argwhere(corners))
    return {rectangle.tobytes() for rectangle in rectangles if rectangle.shape[:2] == size[::-1]}


def is_among(picture: bytes, cells: set[bytes]) -> bool:
    import numpy

    wanted, *others = (numpy.frombuffer(raw, numpy.uint8).astype(int) for raw in (picture, *cells))
    return any(abs(wanted - other).max() <= 2 for other in others)


def test_every_mode_and_a_grid_over_three_settings_are_sheets_of_the_very_pictures(context: Context) -> None:
    stack = made(context)

    def shown(**changes: Any) -> bytes:
        picture = context.render(stack.model_copy(update=changes)).image
        return picture.resize((64, 64), Image.Resampling.BICUBIC).tobytes()  # small pictures are shown twice as large

    drawn = [shown(mode=mode) for mode in ("sum", "switch", "composite", "loratorio", "k-lora")]
    with context.engine(stack) as engine:
        assert set(drawn) <= cells(sheets.of_modes(engine, stack, Rendering()).image, (64, 64))
    axes = [("seed", "1, 2"), ("weight 2", "0, 1"), ("prompt", "a fox, red | an owl")]
    make = grids.grid_of(context, stack, axes, {1: 0, 2: 1})
    rendering = Rendering()
    with context.engine(stack) as engine:
        made_sheet = make(engine, rendering)
    sheet = made_sheet.image
    assert rendering.num_pictures == rendering.num_drawn == len(made_sheet.pictures) == len(made_sheet.labels) == 8
    first, second = stack.adapters
    drawn = [
        shown(seed=seed, prompt=prompt, adapters=(first, second.model_copy(update={"weight": weight})))
        for seed in (1, 2)
        for weight in (0.0, 1.0)
        for prompt in ("a fox, red", "an owl")
    ]
    # Seeds are drawn together, which may round otherwise than alone: by 1 of 255, and by 2 once it is enlarged.
    assert len(set(drawn)) > 4 and all(is_among(picture, cells(sheet, (64, 64))) for picture in drawn)


@pytest.mark.parametrize(
    ("key", "values", "problem"),
    [
        ("weight 3", "0, 1", "LoRA 3, which is not on"),
        ("seed", "1,, 2", "write some with commas"),
        ("checkpoint", "../../etc", "there is none yet"),
        ("seed", "x", "seed is 'x'"),
        ("mode", "loudest", "mode"),
        ("steps", ",".join(map(str, range(1, 500))), "up to 400"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_words(context: Context, key: str, values: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        request = made(context)
        make = grids.grid_of(context, request, [(key, values)], {1: 0, 2: 1})
        with context.engine(request) as engine:
            make(engine, Rendering())


def test_what_each_lora_does_is_a_sheet_whose_cells_are_whole_stacks(context: Context) -> None:
    request = made(context)
    rendering = Rendering()
    with context.engine(request) as engine:
        sheet = sheets.of_each(engine, request, rendering)
    assert rendering.num_pictures == 4 and sheet.labels[0] == "base" and sheet.labels[-1] == "all"
    assert [[adapter.enabled for adapter in picture.stack.adapters] for picture in sheet.pictures] == [
        [False, False],
        [True, False],
        [False, True],
        [True, True],
    ]


def test_a_mask_picture_that_was_brought_is_a_region_and_no_other_file_is(context: Context, tmp_path: Path) -> None:
    """Harm 10: the help offered a mask, the page refused every file."""
    picture = tmp_path / "..left half.png"
    Image.new("RGBA", (2000, 40), (255, 255, 255, 255)).save(picture)
    name = masks.add(context, picture)
    assert masks.names(context) == [name] and "/" not in name
    sha256 = next(iter(context.known_loras()))

    def region(text: str) -> str:
        chosen = stack.stack_of(context, {"base": context.bases[1]}, [(sha256, 1.0, True, {"region": text})])
        return chosen.adapters[0].region

    assert region(f"mask {name}") == region(region(f"mask {name}")) == f"mask {context.masks / name}"
    request = made(context).model_copy(update={"adapters": ()})
    chosen = stack.stack_of(
        context, request.model_dump(exclude={"adapters"}), [(sha256, 1.0, True, {"region": f"mask {name}"})]
    )
    assert context.render(chosen).stack.adapters[0].region.startswith("mask data:")
    (context.masks / ".hidden.png").write_bytes(b"x")
    for other in ("mask ../jobs.sqlite", "mask .hidden.png", "mask *", f"mask {picture}", "mask", "nonsense"):
        with pytest.raises(ConfigError, match="no file of the server's"):
            region(other)


def test_a_sheets_cells_are_pictures_beside_it_that_go_where_it_goes(context: Context) -> None:
    from app import item_changes
    from app.library_items import Shelf
    from app.recipes import read_recipe

    request = made(context)
    with context.engine(request) as engine:
        sheet = sheets.over_weights(engine, request, [[0.2, 0.6]], Rendering())
    path = sheets.save(sheet, context.renders, "grid-1")
    cells = sheets.cells_of(path)
    assert cells and cells.labels == sheet.labels and cells.num_columns == 2
    assert [read_recipe(context, cell).adapters[0].weight for cell in cells.paths] == [0.2, 0.6]
    shelf = Shelf(context)
    key = item_changes.rename(shelf, shelf.item("pictures", path.name), "my grid")
    assert sheets.cells_of(context.renders / key) and not sheets.cells_folder(path).exists()
    entry = item_changes.throw(shelf, shelf.item("pictures", key))
    assert not list(context.renders.glob("*"))
    item_changes.restore(shelf, entry.id)
    assert sheets.cells_of(context.renders / key)
    (sheets.cells_folder(context.renders / key) / "cells.json").write_text('{"labels": 3}')
    assert sheets.cells_of(context.renders / key) is None


def test_a_picture_is_called_by_its_recipe_whatever_its_file_is_called(context: Context) -> None:
    """The picture of Show me stood among the recent ones as a sheet."""
    from app.stack_pictures import Stage
    from trainer.render import picture_metadata

    context.renders.mkdir(exist_ok=True)
    picture = picture_metadata.Picture(Image.new("RGB", (64, 64)), made(context, seed=4))
    picture_metadata.save(picture, context.renders / "show-me-3.png")
    Image.new("RGB", (64, 64)).save(context.renders / "4-0123abcd.png")
    with gr.Blocks():
        stage = Stage(context)
        stage.draw()
    update = stage.show_recent()
    captions = dict(zip(update[stage.files], [words for _, words in update[stage.gallery]["value"]], strict=True))
    assert captions == {"show-me-3.png": "seed 4", "4-0123abcd.png": "sheet"}


def test_every_part_of_the_form_that_a_picture_is_drawn_from_is_live(context: Context) -> None:
    with gr.Blocks() as page:
        tab = stack._Tab(context)
    lives = [fn for fn in page.fns.values() if fn.fn is not None and getattr(fn.fn, "__name__", "") == "draw_live"]
    heard = {component for fn in lives for component, event in fn.targets if event != "then"}
    wanted = {*tab.form.components.values(), *tab.rows.inputs()} - {tab.form.components["base"]}
    assert {part._id for part in wanted} <= heard


def test_what_a_live_picture_was_drawn_from_is_not_drawn_again(context: Context) -> None:
    """A slider that stops where it was asks for nothing."""
    from app.stack_pictures import Stage

    stage, desk = Stage(context), context.desks.of("a")
    with gr.Blocks():
        stage.draw()
    request = made(context)
    answers = list(stage.pictures(desk, request.model_copy(update={"steps": 9}), quick=True))
    pictures = [answer[stage.picture]["value"] for answer in answers if stage.picture in answer]
    assert isinstance(pictures[0], Image.Image), "the quick one, which is not kept"
    assert len(pictures) == 2 and len(list(context.renders.glob("*.png"))) == 1
    assert desk.stack == request.model_copy(update={"steps": 9}) and desk.rendering is None
    assert answers[-1][stage.cancel]["value"] == "Cancel" and not answers[-1][stage.cancel]["interactive"]


def test_a_stack_is_saved_under_a_name_and_loaded_again(context: Context) -> None:
    """Of the issue: save as a preset beside one's own, share as one file."""
    from types import SimpleNamespace

    from app import saved_stacks
    from app.stack_saving import Saving

    request = made(context)
    with gr.Blocks():
        saving = Saving(context, lambda held: request)
    asked: Any = SimpleNamespace(session_hash="a")
    with pytest.raises(Exception, match="has no name"):
        saving.put_by({saving.name: " "}, asked)
    update = saving.put_by({saving.name: "../Two & two"}, asked)
    (path,) = saved_stacks.every(context)
    assert path.parent == context.stacks and update[saving.saved]["value"] == path.name
    assert str(context.workspace) not in path.read_text()
    assert saved_stacks.read(context, path).adapters == request.adapters
