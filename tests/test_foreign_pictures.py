"""A picture of another tool becomes a stack, by `velatura render --from` and dropped on the page, with a sentence for
all that could not be used.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app import recipes, ui
from tests import foreign_pictures as made
from tests.test_naming import small
from trainer import lora_file
from trainer.config import StackConfig
from trainer.errors import DataError
from trainer.lora_file import LoraInfo
from trainer.render import a1111_text, comfy, comfy_reading, opening

A1111 = """a watermill at dusk <lora:cat:0.75>
Negative prompt: blurry
Steps: 22, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 77, Size: 512x640, \
Model hash: 0123456789, Model: meadow, Clip skip: 2, \
Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: Latent, \
ControlNet 0: "Module: canny, Weight: 1", Lora hashes: "cat: {digest}", Version: v1.10.1"""
FORGE = A1111.replace("Version: v1.10.1", "Version: f2.0.1v1.10.1-previous-664-gd557aef9")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoraInfo]:
    folder = tmp_path_factory.mktemp("library")
    small(folder / "sub" / "cat.safetensors", seed=1)
    small(folder / "dog.safetensors", seed=2)
    return lora_file.library([folder])


def cat(library: dict[str, LoraInfo]) -> LoraInfo:
    return next(info for info in library.values() if info.name == "cat")


def of_file(info: LoraInfo) -> str:
    return hashlib.sha256(info.path.read_bytes()).hexdigest()[:10]


def laid(path: Path, library: dict[str, LoraInfo], base: StackConfig | None = None) -> tuple[StackConfig, str]:
    stack, notes = opening.stack_of(path, base or StackConfig(), library)
    assert all(note.endswith(".") and len(note) < 1200 for note in notes)
    return stack, "\n".join(notes)


WRITERS: dict[str, tuple[Callable[[Path, LoraInfo], Path], tuple[str, ...], tuple[str, ...]]] = {
    "a1111": (
        lambda path, info: made.a1111(path, A1111.format(digest=info.sha256[:12])),
        (".png", ".jpg", ".webp"),
        ("hires fix", "ControlNet", "text encoder", "Denoising"),
    ),
    "forge": (
        lambda path, info: made.a1111(path, FORGE.format(digest=info.sha256[:12])),
        (".png", ".jpg", ".webp"),
        ("hires fix", "ControlNet"),
    ),
    "fooocus json": (
        lambda path, info: made.fooocus(path, json.dumps(made.fooocus_values(of_file(info))), "fooocus"),
        (".png", ".jpg", ".webp"),
        ("styles", "sharpness 2.0"),
    ),
    "fooocus text": (
        lambda path, info: made.fooocus(path, made.fooocus_text(of_file(info)), "a1111"),
        (".png", ".jpg", ".webp"),
        ("Sharpness",),
    ),
    "swarmui": (
        lambda path, info: made.swarmui(path, made.swarmui_values(info.sha256)),
        (".png", ".jpg", ".webp"),
        ("controlnetstrength", "refinermethod"),
    ),
    "invokeai": (
        lambda path, info: made.invokeai(path, made.INVOKEAI),
        (".png",),
        ("ControlNet", "hires fix", "by its name alone"),
    ),
    "comfyui": (
        lambda path, info: made.comfyui(path, made.comfyui_prompt()),
        (".png", ".webp"),
        ("hires fix", "ControlNet", "gone.safetensors (no hash) is not here"),
    ),
}


@pytest.mark.parametrize(
    ("tool", "suffix"), [(tool, suffix) for tool, (_, suffixes, _) in WRITERS.items() for suffix in suffixes]
)
def test_a_picture_of_each_tool_becomes_the_stack_it_was_made_from(
    tool: str, suffix: str, library: dict[str, LoraInfo], tmp_path: Path
) -> None:
    write, _, words = WRITERS[tool]
    stack, notes = laid(write(tmp_path / f"x{suffix}", cat(library)), library)
    assert (stack.prompt.strip(), stack.negative_prompt) == ("a watermill at dusk", "blurry")
    assert (stack.steps, stack.guidance_scale, stack.seed, stack.width_px, stack.height_px) == (22, 6.5, 77, 512, 640)
    assert stack.sampler == "dpm++_2m_karras" and [(adapter.sha256, adapter.weight) for adapter in stack.adapters] == [
        (cat(library).sha256, 0.75)
    ]
    assert "made on the base" in notes and "meadow" in notes and "drawn on imprimatura" in notes
    for part in words:
        assert part in notes, notes


def test_a_workflow_alone_says_the_stack(library: dict[str, LoraInfo], tmp_path: Path) -> None:
    """The page's form, of FLUX: a bypassed LoRA and a muted one do nothing, guidance is the model's own input."""
    base = StackConfig(family="flux", base="meadow")
    for suffix in (".png", ".webp"):
        stack, notes = laid(made.comfyui(tmp_path / f"x{suffix}", workflow=made.comfyui_workflow()), library, base)
        assert (stack.prompt, stack.seed, stack.steps, stack.sampler) == ("a watermill at dusk", 77, 22, "flow_euler")
        assert (stack.guidance_scale, stack.true_guidance_scale, stack.width_px, stack.height_px) == (
            3.5,
            1.0,
            512,
            640,
        )
        assert (
            [(adapter.name, adapter.weight) for adapter in stack.adapters] == [("cat", 0.75)]
            and "off" not in notes
            and "muted" not in notes
        )
    text_weight = laid(made.comfyui(tmp_path / "y.png", made.comfyui_prompt()), library)[0].adapters[0].text_weight
    assert text_weight == 0.5


@pytest.mark.parametrize("form", [0, 1])
def test_our_own_graph_is_read_back(form: int, library: dict[str, LoraInfo]) -> None:
    first = StackConfig(
        prompt="a fox",
        negative_prompt="blur",
        seed=9,
        steps=7,
        sampler="euler_a",
        guidance_scale=4.5,
        guidance_rescale=0.5,
        adapters=({"name": "cat", "weight": 0.5, "text_weight": 0.25}, {"name": "dog", "weight": -1}),
    )
    graphs = comfy.graphs(first, "meadow", "ddim")
    reading = comfy_reading.graph(graphs[0] if form == 0 else None, graphs[1] if form == 1 else None)
    back, _ = a1111_text.apply_infotext(StackConfig(), reading, library)  # type: ignore[arg-type]
    for key in (
        "prompt",
        "negative_prompt",
        "seed",
        "steps",
        "sampler",
        "guidance_scale",
        "guidance_rescale",
        "width_px",
        "height_px",
    ):
        assert getattr(back, key) == getattr(first, key), key
    assert [(Path(adapter.file).stem, adapter.weight, adapter.text_weight) for adapter in back.adapters] == [
        ("cat", 0.5, 0.25),
        ("dog", -1.0, None),
    ]


STACKERS = [
    (
        "Power Lora Loader (rgthree)",
        {
            "lora_1": {"on": True, "lora": "cat.safetensors", "strength": 0.75},
            "lora_2": {"on": False, "lora": "dog.safetensors", "strength": 1},
        },
    ),
    (
        "Lora Loader Stack (rgthree)",
        {"lora_01": "cat.safetensors", "strength_01": 0.75, "lora_02": "None", "strength_02": 1},
    ),
    (
        "CR LoRA Stack",
        {
            "switch_1": "On",
            "lora_name_1": "cat.safetensors",
            "model_weight_1": 0.75,
            "clip_weight_1": 0.75,
            "switch_2": "Off",
            "lora_name_2": "dog.safetensors",
        },
    ),
    ("LoraLoader|pysssss", {"lora_name": "cat.safetensors", "strength_model": 0.75, "strength_clip": 0.75}),
]


@pytest.mark.parametrize(("kind", "inputs"), STACKERS)
def test_loras_of_stackers_are_read(kind: str, inputs: dict[str, Any], library: dict[str, LoraInfo]) -> None:
    prompt = made.comfyui_prompt()
    prompt["11"] = {"class_type": kind, "inputs": {**inputs, "model": ["4", 0]}}
    stack, _ = a1111_text.apply_infotext(StackConfig(), comfy_reading.graph(prompt, None), library)  # type: ignore[arg-type]
    assert [(Path(adapter.file).stem, adapter.weight, adapter.text_weight) for adapter in stack.adapters] == [
        ("cat", 0.75, None)
    ]


# Values that can't be used are said.


@pytest.mark.parametrize("seed", ["1102676403634909", "-1", "99999999999999999999999", "random", "1.5", str(2**32)])
def test_a_seed_that_cannot_be_taken_is_said_and_stays(seed: str, library: dict[str, LoraInfo], tmp_path: Path) -> None:
    paths = [made.a1111(tmp_path / "a.png", A1111.replace("Seed: 77", f"Seed: {seed}").format(digest="0" * 12))]
    number: Any = int(seed) if seed.lstrip("-").isdigit() else seed
    paths.append(made.invokeai(tmp_path / "i.png", made.INVOKEAI | {"seed": number}))
    paths.append(made.fooocus(tmp_path / "f.png", json.dumps(made.fooocus_values("0") | {"seed": seed}), "fooocus"))
    swarm = made.swarmui_values("0")
    swarm["sui_image_params"]["seed"] = number
    graph = made.comfyui_prompt()
    graph["14"]["inputs"]["value"] = number
    paths += [made.swarmui(tmp_path / "s.png", swarm), made.comfyui(tmp_path / "c.png", graph)]
    for path in paths:
        stack, notes = laid(path, library)
        assert stack.seed == 1 and "seed" in notes.lower() and seed[:12] in notes, (path.name, notes)


def test_the_hash_of_nothing_is_no_hash(library: dict[str, LoraInfo], tmp_path: Path) -> None:
    for digest in ("e3b0c44298fc", "e3b0c44298", "000000000000", "None", ""):
        stack, notes = laid(made.a1111(tmp_path / "a.png", A1111.format(digest=digest)), library)
        assert [adapter.sha256 for adapter in stack.adapters] == [
            cat(library).sha256
        ] and "LoRA cat was found by its name alone." in notes
    other, notes = laid(made.a1111(tmp_path / "a.png", A1111.format(digest="abcdefabcdef")), library)
    assert not other.adapters and "LoRA cat (hash abcdefabcdef) is not here." in notes


def test_tags_in_a_negative_prompt_are_left_out_and_said(library: dict[str, LoraInfo], tmp_path: Path) -> None:
    text = A1111.replace("Negative prompt: blurry", "Negative prompt: blurry <lora:dog:1>, <hypernet:x:1>").format(
        digest="e3b0c44298fc"
    )
    stack, notes = laid(made.a1111(tmp_path / "a.png", text), library)
    assert (
        stack.negative_prompt == "blurry,"
        and "<lora:dog:1>, <hypernet:x:1> in the negative prompt are left out" in notes
        and len(stack.adapters) == 1
    )


def test_what_a1111_edits_between_steps_is_said(library: dict[str, LoraInfo], tmp_path: Path) -> None:
    _, notes = laid(
        made.a1111(
            tmp_path / "a.png",
            "a [fox:cat:0.5] AND a dog\nSteps: 3, Sampler: Restart, CFG scale: seven, Seed: 1, Size: 100x64",
        ),
        library,
    )
    for part in ("[fox:cat:0.5]", "AND", "'Restart' is not known here", "CFG scale is 'seven'", "width_px is 100"):
        assert part in notes, notes


def test_a_base_that_is_offered_is_taken_by_its_name(library: dict[str, LoraInfo], tmp_path: Path) -> None:
    path = made.invokeai(tmp_path / "i.png", made.INVOKEAI)
    stack, notes = opening.stack_of(
        path, StackConfig(), library, {"Meadow.safetensors": "imprimatura", "other": "/nowhere"}
    )
    assert stack.base == "imprimatura" and stack.family == "sd" and notes


def test_a_picture_that_says_nothing_is_refused(tmp_path: Path) -> None:
    for path in (
        made.png(tmp_path / "a.png"),
        made.png(tmp_path / "b.png", Comment="hello"),
        made.comfyui(tmp_path / "c.png", {"1": {"class_type": "LoadImage", "inputs": {}}}),
    ):
        with pytest.raises(DataError, match="carries no Velatura recipe, and no text of A1111"):
            opening.stack_of(path, StackConfig(), {})
    with pytest.raises(DataError, match="JSON of a tool that is not known here, with tool, steps"):
        opening.stack_of(made.png(tmp_path / "d.png", parameters='{"tool": "x", "steps": 3}'), StackConfig(), {})
    for text in ("a fox\nSteps: 20", "a nice walk, 2024", "Negative prompt: x", "{"):
        with pytest.raises(DataError, match="carries no Velatura recipe"):
            opening.stack_of(made.a1111(tmp_path / "e.jpg", text), StackConfig(), {})


# Through the doors.


@pytest.mark.parametrize("tool", ["a1111", "comfyui"])
def test_the_command_draws_it_and_says_what_is_missing(
    tool: str, run_velatura: Any, library: dict[str, LoraInfo], trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "cat.safetensors").write_bytes(trained.read_bytes())
    info = lora_file.inspect(trained)
    write, _, words = WRITERS[tool]
    picture = write(tmp_path / "theirs.png", info)
    small_ = ("--set", "steps=1", "--set", "width_px=64", "--set", "height_px=64")
    done = run_velatura("render", "--from", picture, *small_, "--out", tmp_path / "ours.png")
    assert done.returncode == 0, done.stderr
    for part in ("note: ", "made on the base", *words[:2]):
        assert part in done.stderr
    recipe = a1111_text.parse_infotext(Image.open(tmp_path / "ours.png").info["parameters"])
    assert (recipe.prompt.strip(), recipe.seed, recipe.loras[0].sha256) == ("a watermill at dusk", 77, info.sha256[:12])


def test_the_page_takes_it_with_what_the_server_offers(
    library: dict[str, LoraInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context = ui.open_workspace(tmp_path / "workspace", [])
    context.loras.mkdir(parents=True, exist_ok=True)
    (context.loras / "cat.safetensors").write_bytes(cat(library).path.read_bytes())
    for tool, (write, suffixes, words) in WRITERS.items():
        stack, notes = recipes.read_picture(context, write(tmp_path / f"x{suffixes[-1]}", cat(library)))
        assert (
            stack.prompt.strip() == "a watermill at dusk"
            and stack.base == "imprimatura"
            and [Path(adapter.file).name for adapter in stack.adapters] == ["cat.safetensors"]
        ), tool
        assert all(part in "\n".join(notes) for part in words if "not here" not in part)


def test_the_tab_shows_the_stack_and_what_was_not_taken(
    library: dict[str, LoraInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr

    from app.tabs import stack as stack_tab

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context = ui.open_workspace(tmp_path / "workspace", [])
    context.loras.mkdir(parents=True, exist_ok=True)
    (context.loras / "cat.safetensors").write_bytes(cat(library).path.read_bytes())
    with gr.Blocks():
        tab = stack_tab._Tab(context)
    picture = made.a1111(
        tmp_path / "x.webp",
        A1111.replace("<lora:cat:0.75>", "<lora:cat:0.75> <lora:<b>x</b>:1>").format(digest="e3b0c44298fc"),
    )
    changes = tab.dropping.take(str(picture))

    def value(component: object) -> object:
        return changes[component]["value"] if isinstance(changes[component], dict) else changes[component]

    components = tab.form.components
    shown = {
        key: value(components[key])
        for key in ("prompt", "negative_prompt", "seed", "steps", "width_px", "height_px", "sampler")
    }
    assert shown["negative_prompt"] == "blurry" and (
        shown["seed"],
        shown["steps"],
        shown["width_px"],
        shown["height_px"],
    ) == (77, 22, 512, 640)
    assert shown["sampler"] == "dpm++_2m_karras" and shown["prompt"].startswith("a watermill at dusk")
    assert (value(tab.rows.choices[0]), value(tab.rows.weights[0]), value(tab.rows.choices[1])) == (
        cat(library).sha256,
        0.75,
        None,
    )
    notice = changes[tab.stage.warned]
    assert (
        notice["visible"]
        and "hires fix" in notice["value"]
        and "made on the base meadow" in notice["value"]
        and "<b>" not in notice["value"]
    )
    many = " ".join("<lora:cat:0.1>" for _ in range(9))
    full = tab.dropping.take(
        str(made.a1111(tmp_path / "y.png", A1111.replace("<lora:cat:0.75>", many).format(digest="")))
    )
    assert "this page holds up to 6" in full[tab.stage.warned]["value"]


def test_a_copied_file_hides_no_name_on_the_page(
    library: dict[str, LoraInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context = ui.open_workspace(tmp_path / "workspace", [])
    context.loras.mkdir(parents=True, exist_ok=True)
    for name in ("cat", "cat (1)"):
        (context.loras / f"{name}.safetensors").write_bytes(cat(library).path.read_bytes())
    stack, notes = recipes.read_picture(context, made.a1111(tmp_path / "x.png", A1111.format(digest="")))
    assert len(stack.adapters) == 1 and "LoRA cat was found by its name alone." in notes
