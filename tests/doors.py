"""The doors that a file or a text from outside passes, one kind each: a damaged one is made, and everything that reads such is tried on it.

A kind is set up once in a folder of its own and then asked for one case after the other: the calls to be judged, in their order. What stands before
them is not timed.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w

from tests import foreign_pictures as made
from tests import fuzzing
from tests.test_naming import small
from trainer.config import CaptionsConfig, DataConfig, StackConfig, TrainConfig

Call = Callable[[], Any]
Case = Callable[[random.Random], list[Call]]
EXAMPLES = Path(__file__).parents[1] / "app" / "examples"
PRESETS = Path(__file__).parents[1] / "presets"
STYLES = "oil\n# no\nink\n2::{a|b}\n"


def context(room: Path) -> Any:
    """A page's workspace with one LoRA, `cat`, whose jobs are never begun."""
    from app.context import Context
    from app.jobs import JobRunner

    class Nothing:
        def command(self, job: Any) -> list[str]:
            return ["/nowhere/at/all"]

        def finished(self, job: Any) -> bool:
            return False

        def saved_step(self, job: Any) -> int:
            return 0

    small(room / "loras" / "cat.safetensors", seed=1)
    found = Context(room, JobRunner(room, Nothing(), room / "runs"))
    found.find_loras()
    return found


# LoRA files and bases.


def headers(room: Path) -> Case:
    """A LoRA file, by itself or as PEFT's folder, from our header reader to the library's table."""
    from app.tabs import library
    from tests.test_lora_fuzz import CONFIG, changed, mutated, seeds, survives
    from trainer import lora_file, presets, single_file

    good = seeds()

    def case(chance: random.Random) -> list[Call]:
        path = room / "x.safetensors"
        content = mutated(chance.choice(good), chance) if chance.random() < 0.8 else fuzzing.data(good, chance)
        if chance.random() < 0.1:
            path = room / "folder"
            path.mkdir(exist_ok=True)
            (path / "adapter_model.safetensors").write_bytes(content)
            (path / "adapter_config.json").write_bytes(changed(json.loads(CONFIG), chance))
            return [lambda: survives(path, chance)]
        path.write_bytes(content)

        def shown() -> None:
            info = lora_file.inspect(path)
            json.dumps([library.lora_rows({info.sha256: info}), library.details(info)], ensure_ascii=False).encode()

        return [shown, lambda: survives(path, chance), lambda: presets.load(str(path), {}), lambda: single_file.detect(single_file.read_head(path))]

    return case


def bases(room: Path) -> Case:
    """A diffusers folder's configs, the list of registered bases, and the head of a base in one file."""
    from trainer import base_defaults, families, model_registry, single_file
    from trainer import bases as ours

    own = ours.IMPRIMATURA
    configs = {
        name: json.loads((own / name).read_text()) for name in ("model_index.json", "vae/config.json", "unet/config.json", "scheduler/scheduler_config.json")
    }
    tables = {"models": {"meadow": {"path": str(own), "family": "sd", "sha256": "ab" * 32, "size_bytes": 7, "changed_ns": 1, "parts": {"vae": "v"}}}}
    heads = [_head(names) for names in CHECKPOINTS]
    for part in json.loads((own / "model_index.json").read_text()):
        (room / "base" / part).mkdir(parents=True, exist_ok=True)
    family = families.registry()["sd"]

    def case(chance: random.Random) -> list[Call]:
        for name, values in configs.items():
            (room / "base" / name).write_bytes(fuzzing.raw(fuzzing.as_json(fuzzing.broken(values, chance), chance), chance))
        head = fuzzing.data(heads, chance)
        (room / "base" / "unet" / "x.safetensors").write_bytes(head)
        (room / "one.safetensors").write_bytes(head)
        model_registry.home().mkdir(parents=True, exist_ok=True)
        (model_registry.home() / "models.toml").write_bytes(fuzzing.raw(fuzzing.as_toml(fuzzing.broken(tables, chance), chance), chance))
        folder, file = str(room / "base"), room / "one.safetensors"
        return [
            lambda: ours.resolve(folder, family), lambda: ours.family_of(folder), lambda: base_defaults.of(folder, family),
            lambda: ours.multiple_px(room / "base"),
            lambda: ours.longest_px(room / "base"), lambda: ours.num_parameters(room / "base"), lambda: ours.resolve("meadow", family),
            lambda: ours.family_of("meadow"), lambda: single_file.plan(file, single_file.Wishes()), lambda: base_defaults.of(str(file), family),
            lambda: ours.prediction_of(room / "base", family),
            lambda: single_file.plan(file, single_file.Wishes(like=room / "base")),
        ]  # fmt: skip

    return case


CHECKPOINTS = [
    ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_in.weight", "cond_stage_model.x"],
    ["model.diffusion_model.label_emb.0.0.weight", "model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.x", "v_pred", "ztsnr"],
    ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "img_in.weight", "guidance_in.in_layer.weight"],
    ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "model.diffusion_model.x_embedder.proj.weight", "model.diffusion_model.pos_embed"],
    ["transformer_blocks.0.attn.to_q.weight", "proj_out.weight", "cap_embedder.0.weight", "noise_refiner.0.x"],
]


def _head(names: list[str]) -> bytes:
    fields = {name: {"dtype": "F16", "shape": [4, 2], "data_offsets": [16 * number, 16 * number + 16]} for number, name in enumerate(names)}
    text = json.dumps(fields | {"__metadata__": {"modelspec.architecture": "stable-diffusion-v1"}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16 * len(names))


# Pictures that tell what they were made from.


def _told(room: Path) -> Callable[[Path], list[Call]]:
    """What reads a picture of ours or of another tool: the page's drop, and the command's --from."""
    from app import recipes
    from app.context import newest_first
    from trainer.render import command, image

    there = context(room / "page")

    def calls(path: Path) -> list[Call]:
        def dropped() -> None:
            stack, notes = recipes.read_picture(there, path)
            assert all(len(note) < 3000 for note in notes), max(map(len, notes))
            "".join(notes).encode()
            json.dumps(image.travelling(stack)).encode()
            image.infotext(stack, "b", "", "DDIM").encode("utf-8", "strict")

        return [dropped, lambda: command.again(path, [there.loras])[0].model_dump_json(), lambda: command.recipe_of(path), lambda: newest_first([path])]

    return calls


def recipes(room: Path) -> Case:
    """Our own PNG, WebP and JPEG with a damaged recipe, or damaged as files."""
    from tests.test_picture_formats import picture
    from trainer.render import image

    good = [image.save(picture(adapters=()), room / f"good{suffix}").read_bytes() for suffix in image.FORMATS]
    good += [made.a1111(room / f"other{suffix}", A1111[0]).read_bytes() for suffix in (".png", ".jpg", ".webp")]
    values, read = image.travelling(picture().stack), _told(room)

    def case(chance: random.Random) -> list[Call]:
        path = room / f"x{chance.choice(list(image.FORMATS))}"
        if chance.random() < 0.5:
            path.write_bytes(fuzzing.data(good, chance))
            return read(path)
        said = fuzzing.as_json(fuzzing.broken(values, chance, STACK_KEYS), chance)
        return read(_carrying(path, image.RECIPE_KEY, said))

    return case


def _carrying(path: Path, key: str, said: str) -> Path:
    """A picture of ours that carries this text in the place of its recipe; or a PNG, where nothing else can hold it."""
    from trainer.render import image

    plain = said.encode("ascii", "backslashreplace").decode()
    if path.suffix == ".webp" and len(plain) < 60_000:
        made.picture().save(path, "WEBP", exif=image._exif("a", {0x010E: f"{key}:{plain}"}))
    elif path.suffix in (".jpg", ".jpeg") and len(plain) < 60_000:
        body = key.encode() + b"\0" + plain.encode()
        made.picture().save(path, "JPEG", extra=b"\xff\xef" + (len(body) + 2).to_bytes(2, "big") + body)
    else:
        made.png(path, **{key: said.encode("latin-1", "replace").decode("latin-1")})
    return path


A1111 = [
    'a watermill <lora:cat:0.75>\nNegative prompt: blurry\nSteps: 22, Sampler: Euler, Seed: 7, Size: 64x64, Model: m, Lora hashes: "cat: e3b0c44298fc"',
    "a (cat:1.3), [x:y:0.5], {a|b}\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x640, Denoising strength: 0.5, "
    "Hires upscale: 2, Version: f2.0, Distilled CFG Scale: 3.5, CFG Rescale: 0.7, Civitai resources: "
    '[{"type":"lora","modelVersionId":12,"weight":0.5}], Clip skip: 2',
    made.fooocus_text("e3b0c44298"), "a cat", "",
]  # fmt: skip


def infotexts(room: Path) -> Case:
    """The texts of A1111, Forge and Fooocus in PNG, JPEG and WebP."""
    read = _told(room)

    def case(chance: random.Random) -> list[Call]:
        said = fuzzing.text(A1111, chance)
        suffix = ".png" if chance.random() < 0.7 else chance.choice([".jpg", ".webp"])
        said = said.encode("utf-16-be", "replace").decode("utf-16-be")
        path = room / f"x{suffix}"
        try:
            return read(made.a1111(path, said) if len(said) < 30_000 or suffix == ".png" else made.png(path, parameters=said))
        except UnicodeError:
            return read(made.png(path, parameters=said.encode("latin-1", "replace").decode("latin-1")))

    return case


def graphs(room: Path) -> Case:
    """JSON of ComfyUI, InvokeAI, SwarmUI and Fooocus in PNG and WebP."""
    read = _told(room)
    prompt, workflow = made.comfyui_prompt(), made.comfyui_workflow()
    others = [made.INVOKEAI, made.fooocus_values("0123456789"), made.swarmui_values("12" * 32)]
    keys = ["class_type", "inputs", "lora_name", "strength_model", "model", "positive", "text", "seed", "links", "nodes", "widgets_values", "mode", "loras"]

    def case(chance: random.Random) -> list[Call]:
        path = room / "x.png"
        if chance.random() < 0.5:
            said = [fuzzing.as_json(fuzzing.broken(values, chance, keys), chance) for values in (prompt, workflow)]
            texts = dict(zip(("prompt", "workflow"), said, strict=True))
            texts.pop(chance.choice(["prompt", "workflow", "neither"]), None)
        else:
            key = chance.choice(["parameters", "invokeai_metadata", "prompt", "comment"])
            texts = {key: fuzzing.as_json(fuzzing.broken(chance.choice(others), chance, keys), chance)}
        return read(made.png(path, **{key: one.encode("utf-8", "replace").decode() for key, one in texts.items()}))

    return case


# Prompts and settings.


def prompts(room: Path) -> Case:
    """Wildcards, LoRA tags, weights of words and what A1111 edits, from a stack's prompt to the words that are encoded."""
    from tests.test_wildcards import THEIRS
    from trainer import families
    from trainer.config import parse
    from trainer.render import emphasis, image, prompting

    there = context(room / "page")
    good = [*THEIRS, "a (cat:1.3) [dog] BREAK sea \\(x\\)", "<lora:cat:0.5> a", "<lora:cat:te=1:unet=0.5>", "[a:b:0.5] {a|b}", "x AND y", "a, b, c"]
    readable = sorted(name for name, family in families.registry().items() if family.encode_windows)
    pieces = ["{", "}", "|", "$$", "${", "__", "(", ")", "[", "]", ":1.3)", "<lora:", ">", "a", " ", "~", "%", "2$$", "::", "1-2$$", "=!", "?=", "!", "@", "\\"]
    (room / "wildcards").mkdir()

    def case(chance: random.Random) -> list[Call]:
        (room / "wildcards" / "style.txt").write_bytes(fuzzing.raw(fuzzing.text([STYLES, *good], chance), chance))
        said = ["".join(chance.choices(pieces, k=chance.randint(0, 300))) if chance.random() < 0.4 else fuzzing.text(good, chance) for _ in range(2)]
        seed, family = chance.randrange(2**32), chance.choice([*readable, "sd", *families.registry()])

        def drawn() -> None:
            values = {"prompt": said[0], "negative_prompt": said[1] if chance.random() < 0.5 else "", "seed": seed, "family": family}
            stack = prompting.without_tags(parse(StackConfig, values, "the form"), room / "wildcards", there.find_loras)
            again = prompting.without_tags(stack, room / "wildcards", there.find_loras)
            assert again == stack
            for prompt in (stack.prompt, stack.negative_prompt):
                emphasis.parse_attention(prompt)
            image.parse_infotext(image.infotext(stack, "b", "", "DDIM"))

        def expanded(prompt: str, seed: int) -> None:
            found = prompting.expand(prompt, seed, room / "wildcards")
            assert len(found) <= max(prompting.MAX_CHARS, len(prompt)) and prompting.expand(found, seed + 1, room / "wildcards") == found

        return [drawn, lambda: expanded(said[0], seed), lambda: emphasis.parse_attention(said[0]),
                lambda: image.parse_infotext(said[0])]  # fmt: skip

    return case


def settings(room: Path) -> Case:
    """A preset or config.toml, by the command with --set and dropped on the page; and what a changed setting says of itself."""
    from app.tabs.train import recipe_of
    from trainer import presets
    from trainer.report import _rows

    there = context(room / "page")
    good = [path.read_text() for path in sorted((PRESETS / "train").glob("*.toml"))]
    wholes = [presets.load(name, {}).model_dump(mode="json") for name in presets.names()]
    keys = [*TrainConfig.model_fields, *DataConfig.model_fields, *CaptionsConfig.model_fields, "method", "rank", "alpha", "targets"]
    path = room / "x.toml"

    def case(chance: random.Random) -> list[Call]:
        whole = fuzzing.as_toml(fuzzing.broken(chance.choice(wholes), chance, keys), chance) if chance.random() < 0.7 else fuzzing.text(good, chance)
        path.write_bytes(fuzzing.raw(whole, chance))
        pair = f"{chance.choice(keys)}.{chance.choice(keys)}={chance.choice(fuzzing.WORDS)}" if chance.random() < 0.3 else ""

        def loaded() -> None:
            config = presets.load(str(path), presets.parse_overrides([pair] if pair else []))
            tomli_w.dumps(config.model_dump(mode="json")).encode()
            "".join(map(str, _rows(config))).encode()

        return [loaded, lambda: recipe_of(there, str(path))]

    return case


def _mask() -> str:
    """A mask of 16 x 16 cells as it travels."""
    import base64
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (16, 16), 200).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


STACK_KEYS = [*StackConfig.model_fields, "file", "name", "sha256", "weight", "text_weight", "blocks", "schedule", "region", "enabled", "trigger"]


def stacks(room: Path) -> Case:
    """A stack's .toml or .json, with --set and --axis, to what the engine is told."""
    from app import gate
    from trainer import base_defaults, families
    from trainer import bases as ours
    from trainer.render import axes, comfy, command, family_checks, image, modes, regions, strength

    there = context(room / "page")
    good = [path.read_text() for path in sorted((PRESETS / "stack").glob("*.toml"))]
    lora = {
        "file": "cat.safetensors",
        "name": "cat",
        "weight": 0.5,
        "blocks": ["OUT=0.5", "curve=rising"],
        "schedule": "points 0:0 1:1",
        "region": "box 0 0 1 1",
    }
    whole = {
        "prompt": "a cat",
        "adapters": [lora, {**lora, "schedule": "linear 1 0", "region": f"mask data:{_mask()}", "text_weight": 1}],
        "seed": 3,
        "steps": 4,
    }
    paths = [f"unet.{side}_blocks.{number}.attentions.0.attn1.to_q" for side in ("down", "up") for number in range(4)] + ["unet.mid_block.x"]

    def case(chance: random.Random) -> list[Call]:
        values, suffix = fuzzing.broken(whole, chance, STACK_KEYS), chance.choice([".toml", ".json"])
        said = (
            fuzzing.as_json(values, chance) if suffix == ".json" else fuzzing.as_toml(values, chance) if chance.random() < 0.7 else fuzzing.text(good, chance)
        )
        path, key = room / f"x{suffix}", chance.choice([*STACK_KEYS, "adapters.0.weight", "adapters.0.region", "adapters.9", "adapters.x.y", ""])
        path.write_bytes(fuzzing.raw(said, chance))
        pair = f"{key}={fuzzing.text(['1,2,3', 'a|b', 'box 0 0 1 1', '0.5'], chance, 2)}"

        def told() -> None:
            stack = base_defaults.completed(command.from_file(path))
            ours.check_pixels(ours.IMPRIMATURA, {"width_px": stack.width_px, "height_px": stack.height_px})
            family_checks.check(families.registry()[stack.family], stack)
            for one in stack.adapters:
                strength.schedule(one).at(0.5)
                strength.block_factors(one, paths)
                regions.resolved(one, (16, 16))
            modes.chosen(stack.mode, len(stack.adapters), stack.guidance_scale)
            json.dumps([image.travelling(stack), comfy.graphs(stack, "b", "")], ensure_ascii=False).encode()
            image.infotext(stack, "b", "", "DDIM").encode()

        return [told, lambda: gate.checked(there, command.from_file(path)), lambda: command.changed(StackConfig(), [pair]), lambda: axes.axis(pair)]

    return case


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def all_doors() -> Iterator[tuple[str, Callable[[Path], Case]]]:
    """Every kind by its name."""
    from tests import doors_data

    yield from ((one.__name__, one) for one in (headers, bases, recipes, infotexts, graphs, prompts, settings, stacks))
    yield from ((one.__name__, one) for one in doors_data.ALL)
