"""Every path-valued setting that a browser names, in every spelling, becomes a file of the offer or is refused."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import os
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import tomli_w
import torch
from PIL import Image, PngImagePlugin
from pydantic import BaseModel

from app import batches, grids, path_gate, preset_choices, recipes, train_settings, ui
from app.context import Context
from app.tabs import stack, train
from trainer import lora_file, presets
from trainer.config import AdapterChoice, BatchConfig, StackConfig, TrainConfig
from trainer.errors import UserError
from trainer.render.picture_metadata import RECIPE_KEY
from trainer.schema import path_kind

MODELS = (TrainConfig, StackConfig, BatchConfig)  # AdapterChoice is reached through the others
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
# Text that is read as text, and by whom; a text setting that is neither here nor marked as a path fails the walk.
TEXTS = {
    "version", "family", "device", "dtype", "track", "save_dtype", "mode", "sampler", "prompt", "prompts",
    "negative_prompt", "seeds", "name", "sha256", "blocks", "schedule", "method", "targets", "block_ranks",
    "only_layers", "without_layers", "init", "loss", "weighting", "timesteps", "shift", "other", "options",
    "block_rates", "extended", "token", "start_from", "trigger", "neutral_prompts", "crop", "repeats", "weights",
    "background", "mask", "class_caption", "prefix", "suffix", "separator", "lines", "long", "quantise", "offload",
    "attention", "compile",
}  # fmt: skip


@dataclasses.dataclass
class Place:
    """A workspace, and beside it what nobody may be given: pictures, a zip of them, a LoRA and a base."""

    context: Context
    secret: Path

    def spellings(self, name: str) -> dict[str, str]:
        """Ways to write the path of a file of the secret folder."""
        path = str(self.secret / name)
        inside = os.path.relpath(path, self.context.workspace / "datasets")
        (self.context.datasets / "link").unlink(missing_ok=True)
        (self.context.datasets / "link").symlink_to(path)
        return {
            "absolute": path, "upwards": inside,
            "below a dataset": f"mine/{os.path.relpath(path, self.context.datasets / 'mine')}",
            "home": f"~/../..{path}",
            "file url": f"file://{path}", "file url of a host": f"file://localhost{path}",
            "unc": "\\\\server\\share" + path.replace("/", "\\"),
            "long unc": f"\\\\?\\{path}", "drive": f"C:{path}", "leading blank": f" {path}",
            "trailing blank": f"{path} ", "tab": f"\t{path}",
            "no-break space": f"\u00a0{path}", "nul": f"{path}\0", "nul before": f"mine\0{path}",
            "percent": path.replace("/", "%2f").replace(".", "%2e"),
            "mixed slashes": path.replace("/", "/\\", 1), "double slashes": path.replace("/", "//"),
            "dot parts": path.replace("/", "/./"),
            "variable": f"$PWD{path}", "braces": f"${{HOME}}/../..{path}", "percent variable": f"%USERPROFILE%{path}",
        "look-alike slash": path.replace("/", "\u2215"),
            "full-width": path.replace("/", "\uff0f"), "trailing dot": f"{path}.", "trailing slash": f"{path}/",
            "newline": f"{path}\n",
        "quoted": f'"{path}"',
            "link": "link", "link spelled out": str(self.context.datasets / "link"), "with a weight": f"{path}:0.5",
            "with a blank weight": f" {path} :0.5",
            "mark": f"\ufeff{path}", "right to left": f"\u202e{path}", "colon": f":{path}", "null device": "/dev/null",
            "standard input": "/dev/stdin",
            "process": "/proc/self/environ", "other dataset": "../runs", "dots": "..", "dot": ".", "slash": "/",
        }  # fmt: skip


def png(side: int = 32, colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Place:
    import zipfile

    root = tmp_path_factory.mktemp("gate")
    context = ui.open_workspace(root / "workspace", [str(tiny)])
    for folder in (context.datasets / "mine", context.datasets / "masks", root / "secret" / "pictures"):
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.png").write_bytes(png())
            (folder / f"{number}.txt").write_text("a red square")
    with zipfile.ZipFile(root / "secret" / "pictures.zip", "w") as archive:
        archive.write(root / "secret" / "pictures" / "0.png", "0.png")
    parts = {"lora_down.weight": torch.full((1, 32), 0.3), "lora_up.weight": torch.ones(32, 1)}
    lora_file.save(context.loras / "fox.safetensors", {LAYER: parts}, {}, torch.float32)
    lora_file.save(
        root / "secret" / "own.safetensors", {LAYER: {key: 2 * part for key, part in parts.items()}}, {}, torch.float32
    )
    (root / "secret" / "base").mkdir()
    context.find_loras()
    return Place(context, root / "secret")


# What Python says it opens, lists, links or copies.
_HEARD = (
    "open", "os.listdir", "os.scandir", "os.chdir", "os.link", "os.symlink", "shutil.copyfile", "sqlite3.connect"
)  # fmt: skip


class Opened:
    """Which files below a folder, or of the system's, were opened or listed since it was asked to look: by Python's own
    audit events.
    """

    def __init__(self) -> None:
        self.watched, self.seen = "", list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watched and event in _HEARD:
            for argument in arguments[:1]:
                path = os.fsdecode(argument) if isinstance(argument, str | bytes) else ""
                if path.startswith((self.watched, "/dev/", "/proc/self/environ")) and not path.startswith(
                    ("/dev/shm", "/dev/null/")
                ):
                    self.seen.append(path)

    def during(self, watched: Path, act: Callable[[], Any]) -> tuple[list[str], str]:
        """What was opened while `act` ran, and what it raised."""
        self.watched, self.seen = str(watched), []
        try:
            act()
            message = ""
        except UserError as error:
            message = str(error)
        finally:
            self.watched = ""
        return self.seen, message


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a model tree, groups, unions and lists of groups looked through."""
    for name, field in model.model_fields.items():
        inner = list(_models(field.annotation))
        yield from ((f"{prefix}{name}", field),) if not inner else ()
        for part in inner:
            yield from walk(part, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _holds_text(annotation: Any) -> bool:
    return annotation is str or any(
        _holds_text(part) for part in typing.get_args(annotation) if not isinstance(part, str)
    )


FIELDS = sorted({(model.__name__, name) for model in MODELS for name, field in walk(model) if path_kind(field)})


def test_every_text_setting_is_marked_as_a_path_or_known_to_be_none() -> None:
    for model in MODELS:
        for name, field in walk(model):
            last = name.rpartition(".")[2]
            if _holds_text(field.annotation):
                assert path_kind(field) or last in TEXTS, (
                    f"{model.__name__}.{name} holds text: mark it with path= if anybody opens it, or add it to TEXTS"
                )
            assert not (path_kind(field) and last in TEXTS)
    assert len(FIELDS) == 14 and {
        kind for model in MODELS for _, field in walk(model) if (kind := path_kind(field))
    } == {"dataset", "lora", "loras", "base", "mask", "start", "run"}
    assert path_kind(AdapterChoice.model_fields["region"]) == "mask"


def train_values(changes: dict[str, Any]) -> dict[str, Any]:
    values = presets.values(preset_choices.first())
    values["data"] = dict(values.get("data", {}))
    for key, value in changes.items():
        group, _, last = key.rpartition(".")
        (values.setdefault(group, {}) if group else values)[last] = value
    return values


def trained(place: Place, changes: dict[str, Any]) -> None:
    """As the Train tab does it, and on to where a run would read its pictures."""
    from trainer import bases, data, families, session

    config = train_settings.config_of(place.context, train_values(changes), "mine", "", "")
    data.scan(config)
    session.refuse_unread(config, bases.resolve(config.base, families.registry()[config.family]))


def drawn(place: Place, changes: dict[str, Any]) -> None:
    """As the Stack tab does it, and on to where the engine opens what it names."""
    (sha256,) = place.context.known_loras()
    more = {key.removeprefix("adapters."): value for key, value in changes.items() if key.startswith("adapters.")}
    values = {"base": place.context.bases[1], "width_px": 32, "height_px": 32, "steps": 1}
    request = stack.stack_of(
        place.context,
        values | {key: value for key, value in changes.items() if "." not in key},
        [(sha256, 1.0, True, more)],
    )
    place.context._warm(request).resolve(request)


def planned(place: Place, changes: dict[str, Any]) -> None:
    """As the Batch tab does it with a TOML, and on to the plan."""
    adapter = {"file": "fox"} | {
        key.removeprefix("stacks."): value for key, value in changes.items() if key.startswith("stacks.")
    }
    values = {
        "base": place.context.bases[1],
        "prompts": ["a"],
        "width_px": 32,
        "height_px": 32,
        "steps": 1,
        "stacks": [[adapter]],
    }
    path = place.context.workspace / "x.toml"
    path.write_text(
        tomli_w.dumps(values | {key: value for key, value in changes.items() if "." not in key}), encoding="utf-8"
    )
    batches.planned(batches.uploaded(place.context, path), [place.context.loras], place.context.wildcards)


DOORS = {"TrainConfig": trained, "StackConfig": drawn, "BatchConfig": planned}
OWN_TRUTH = {"data.folder", "data.heldout"}  # the page's own pickers say these, whatever a form holds


@pytest.mark.parametrize("model, name", FIELDS)
def test_no_spelling_of_a_strange_path_is_opened(place: Place, opened: Opened, model: str, name: str) -> None:
    files = {
        "dataset": ("pictures", "pictures.zip"),
        "lora": ("own.safetensors",),
        "loras": ("own.safetensors",),
        "base": ("base",),
        "mask": ("pictures/0.png",),
        "start": ("own.safetensors", "pictures"),
        "run": ("pictures", "base"),
    }
    kind = next(
        kind
        for settings_class in MODELS
        for setting, field in walk(settings_class)
        if settings_class.__name__ == model and setting == name and (kind := path_kind(field))
    )
    for file in files[kind]:
        for spelling, text in place.spellings(file).items():
            tries = (
                [text]
                if kind != "mask"
                else [
                    f"mask {text}",
                    f" mask {text}",
                    f"\tmask {text}",
                    f"\u3000mask {text} ",
                    f"MASK {text}",
                    f"mask\t{text}",
                    text,
                ]
            )
            for value in tries:
                given: Any = [value] if kind == "loras" else value
                also = {"data.mask": "file"} if name == "data.mask_folder" else {}
                seen, message = opened.during(
                    place.secret, lambda given=given, also=also: DOORS[model](place, {name: given} | also)
                )
                assert not seen, f"{model}.{name} as {spelling} {value!r} opened {seen}"
                assert message or name in OWN_TRUTH or (name == "adapters.file"), (
                    f"{model}.{name} as {spelling} {value!r} was let through"
                )
                assert str(place.context.workspace) not in message.replace(value.strip(), "").replace(
                    repr(value.strip())[1:-1], ""
                )


def test_what_the_server_offers_is_let_through_by_name(place: Place) -> None:
    context, own = place.context, place.context.loras / "fox.safetensors"
    changes = {
        "data.regularisation": "masks",
        "data.mask": "file",
        "data.mask_folder": "masks",
        "against.adapters": ["fox:0.5", " fox.safetensors ", str(own)],
    }
    config = train_settings.config_of(context, train_values(changes), "mine", "masks", "")
    assert (
        config.data.regularisation == config.data.mask_folder == config.data.heldout == str(context.datasets / "masks")
    )
    assert config.against.adapters == (f"{own}:0.5", f"{own}:1", f"{own}:1")
    again = train_settings.config_of(context, config.model_dump(mode="json"), "mine", "masks", "")
    assert again == config, "a run's own config.toml is taken back"
    drawn(place, {"adapters.region": " box 0 0 0.5 1 "})
    planned(place, {"stacks.region": "box 0 0 0.5 1"})


def test_a_mask_that_the_text_itself_holds_is_let_through(place: Place) -> None:
    drawn_mask = base64.b64encode(png(4)).decode()
    assert (
        path_gate.checked(
            place.context, StackConfig(adapters=(AdapterChoice(file="fox", region=f"mask data:{drawn_mask}"),))
        )
        .adapters[0]
        .region.endswith(drawn_mask)
    )


def test_several_wrong_names_are_one_error_that_names_five(place: Place) -> None:
    stack = StackConfig(adapters=tuple(AdapterChoice(file=f"/etc/{number}") for number in range(9)))
    with pytest.raises(UserError, match=r"9 settings name what is not here: .*and 4 more") as caught:
        path_gate.checked(place.context, stack)
    assert str(caught.value).count("/etc/") == 5


@pytest.mark.parametrize("head", ["\nprompt,lora,base\n", " , \n\n\nprompt,lora,base\n", "\ufeffprompt,lora,base\n",
    "\ufeff\ufefflora,prompt,base\n", "prompt, LORA ,Base\n", "\r\nprompt,lora,base\r\n", '"",\nprompt,lora,base\n',
    '\n"prompt","lora","base"\n'])  # fmt: skip
def test_a_csv_names_no_path_however_it_begins(place: Place, opened: Opened, tmp_path: Path, head: str) -> None:
    columns = [cell.strip(' "\ufeff').lower() for cell in head.strip().splitlines()[-1].split(",")]
    for column in ("lora", "base"):
        for spelling, text in place.spellings("own.safetensors" if column == "lora" else "base").items():
            cells = io.StringIO()
            csv.writer(cells).writerow(
                [text if name == column else "a" if name == "prompt" else "" for name in columns]
            )
            (tmp_path / "x.csv").write_bytes((head + cells.getvalue()).encode("utf-8"))

            def act() -> None:
                batches.planned(
                    batches.uploaded(place.context, tmp_path / "x.csv"), [place.context.loras], place.context.wildcards
                )

            seen, message = opened.during(place.secret, act)
            assert not seen and message, f"{column} as {spelling} {text!r}: {seen} {message}"


def picture_with(path: Path, recipe: str) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text(RECIPE_KEY, recipe)
    Image.new("RGB", (32, 32)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("region", ["mask {}", " mask {}", "\tmask {}\n", "\u00a0mask {}"])
def test_a_dropped_picture_names_no_mask_of_the_server(
    place: Place, opened: Opened, tmp_path: Path, region: str
) -> None:
    (sha256,) = place.context.known_loras()
    adapter = AdapterChoice(name="fox", sha256=sha256, region=region.format(place.secret / "pictures" / "0.png"))
    path = picture_with(
        tmp_path / "a.png", StackConfig(base=place.context.bases[1], adapters=(adapter,)).model_dump_json()
    )
    seen, message = opened.during(place.secret, lambda: recipes.read_recipe(place.context, path))
    assert not seen and "no file of the server's" in message
    seen, message = opened.during(
        place.secret, lambda: batches.composed(place.context, StackConfig(adapters=(adapter,)), "a", "1", "1", "")
    )
    assert not seen and "no file of the server's" in message


@pytest.mark.parametrize(
    "key", ["adapters.0.file", "base", "adapters.0.region", "weight x", "weight ../1", "prompt ", "checkpoint/../.."]
)
def test_a_grid_goes_over_what_is_offered_only(place: Place, key: str) -> None:
    with pytest.raises(UserError):
        grids.axis_of(place.context, key, "/etc/passwd, /etc/shadow", {1: 0})


def test_a_preset_is_one_that_ships(place: Place, tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    presets.save(presets.load(preset_choices.first(), {}), own)
    with gr.Blocks():
        tab = train._Tab(place.context)
    values = {part: getattr(part, "value", None) for part in tab.filling.parts()}
    assert tab.filling.trigger in tab.filling.with_preset(values, preset_choices.first())
    with pytest.raises(UserError, match="not here any more"):
        tab.filling.with_preset(values, str(own))
