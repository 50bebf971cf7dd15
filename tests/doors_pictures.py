"""The doors of pictures that tell what they were made from; see `tests.doors`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from tests import foreign_pictures as made
from tests import fuzzing
from tests.doors_setup import STACK_KEYS, Call, Case, context

# Pictures that tell what they were made from.


def _readers(room: Path) -> Callable[[Path], list[Call]]:
    """What reads a picture of ours or of another tool: the page's drop, and the command's --from."""
    from app import recipes
    from app.context import newest_first
    from trainer.render import a1111_text, command, picture_metadata

    there = context(room / "page")

    def calls(path: Path) -> list[Call]:
        def dropped() -> None:
            stack, notes = recipes.read_picture(there, path)
            assert all(len(note) < 3000 for note in notes), max(map(len, notes))
            "".join(notes).encode()
            json.dumps(picture_metadata.travelling(stack)).encode()
            a1111_text.infotext(stack, "b", "", "DDIM").encode("utf-8", "strict")

        return [
            dropped,
            lambda: command.from_picture(path, [there.loras])[0].model_dump_json(),
            lambda: command.recipe_of(path),
            lambda: newest_first([path]),
        ]

    return calls


def recipes(room: Path) -> Case:
    """Our own PNG, WebP and JPEG with a damaged recipe, or damaged as files."""
    from tests.test_picture_formats import picture
    from trainer.render import picture_metadata

    good = [
        picture_metadata.save(picture(adapters=()), room / f"good{suffix}").read_bytes()
        for suffix in picture_metadata.FORMATS
    ]
    good += [made.a1111(room / f"other{suffix}", A1111[0]).read_bytes() for suffix in (".png", ".jpg", ".webp")]
    values, read = picture_metadata.travelling(picture().stack), _readers(room)

    def case(chance: random.Random) -> list[Call]:
        path = room / f"x{chance.choice(list(picture_metadata.FORMATS))}"
        if chance.random() < 0.5:
            path.write_bytes(fuzzing.data(good, chance))
            return read(path)
        recipe = fuzzing.as_json(fuzzing.broken(values, chance, STACK_KEYS), chance)
        return read(_carrying(path, picture_metadata.RECIPE_KEY, recipe))

    return case


def _carrying(path: Path, key: str, text: str) -> Path:
    """A picture of ours that carries this text in the place of its recipe; or a PNG, where nothing else can hold it."""
    from trainer.render import picture_metadata

    plain = text.encode("ascii", "backslashreplace").decode()
    if path.suffix == ".webp" and len(plain) < 60_000:
        made.picture().save(path, "WEBP", exif=picture_metadata._exif("a", {0x010E: f"{key}:{plain}"}))
    elif path.suffix in (".jpg", ".jpeg") and len(plain) < 60_000:
        body = key.encode() + b"\0" + plain.encode()
        made.picture().save(path, "JPEG", extra=b"\xff\xef" + (len(body) + 2).to_bytes(2, "big") + body)
    else:
        made.png(path, **{key: text.encode("latin-1", "replace").decode("latin-1")})
    return path


A1111 = [
    "a watermill <lora:cat:0.75>\nNegative prompt: blurry\nSteps: 22, Sampler: Euler, Seed: 7, Size: 64x64, Model: m, "
    'Lora hashes: "cat: e3b0c44298fc"',
    "a (cat:1.3), [x:y:0.5], {a|b}\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, "
    "Size: 512x640, Denoising strength: 0.5, Hires upscale: 2, Version: f2.0, Distilled CFG Scale: 3.5, "
    'CFG Rescale: 0.7, Civitai resources: [{"type":"lora","modelVersionId":12,"weight":0.5}], Clip skip: 2',
    made.fooocus_text("e3b0c44298"),
    "a cat",
    "",
]


def infotexts(room: Path) -> Case:
    """The texts of A1111, Forge and Fooocus in PNG, JPEG and WebP."""
    read = _readers(room)

    def case(chance: random.Random) -> list[Call]:
        text = fuzzing.text(A1111, chance)
        suffix = ".png" if chance.random() < 0.7 else chance.choice([".jpg", ".webp"])
        text = text.encode("utf-16-be", "replace").decode("utf-16-be")
        path = room / f"x{suffix}"
        # What is longer than an EXIF field holds goes into a PNG.
        fits = len(text) < 30_000 or suffix == ".png"
        try:
            return read(made.a1111(path, text) if fits else made.png(path, parameters=text))
        except UnicodeError:
            return read(made.png(path, parameters=text.encode("latin-1", "replace").decode("latin-1")))

    return case


def graphs(room: Path) -> Case:
    """JSON of ComfyUI, InvokeAI, SwarmUI and Fooocus in PNG and WebP."""
    read = _readers(room)
    prompt, workflow = made.comfyui_prompt(), made.comfyui_workflow()
    others = [made.INVOKEAI, made.fooocus_values("0123456789"), made.swarmui_values("12" * 32)]
    keys = ["class_type", "inputs", "lora_name", "strength_model", "model", "positive", "text", "seed", "links"]
    keys += ["nodes", "widgets_values", "mode", "loras"]

    def case(chance: random.Random) -> list[Call]:
        path = room / "x.png"
        if chance.random() < 0.5:
            graphs = [fuzzing.as_json(fuzzing.broken(values, chance, keys), chance) for values in (prompt, workflow)]
            texts = dict(zip(("prompt", "workflow"), graphs, strict=True))
            texts.pop(chance.choice(["prompt", "workflow", "neither"]), None)
        else:
            key = chance.choice(["parameters", "invokeai_metadata", "prompt", "comment"])
            texts = {key: fuzzing.as_json(fuzzing.broken(chance.choice(others), chance, keys), chance)}
        return read(made.png(path, **{key: text.encode("utf-8", "replace").decode() for key, text in texts.items()}))

    return case
