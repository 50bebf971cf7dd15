"""The doors of prompts, settings and stacks; see `tests.doors`."""

from __future__ import annotations

import json
import random
from pathlib import Path

import tomli_w

from tests import fuzzing
from tests.doors_setup import PRESETS, STACK_KEYS, Call, Case, context
from trainer.config import CaptionsConfig, DataConfig, StackConfig, TrainConfig

STYLES = "oil\n# no\nink\n2::{a|b}\n"
GOOD = [
    "a (cat:1.3) [dog] BREAK sea \\(x\\)",
    "<lora:cat:0.5> a",
    "<lora:cat:te=1:unet=0.5>",
    "[a:b:0.5] {a|b}",
    "x AND y",
    "a, b, c",
]
PIECES = [
    "{", "}", "|", "$$", "${", "__", "(", ")", "[", "]", ":1.3)", "<lora:", ">",
    "a", " ", "~", "%", "2$$", "::", "1-2$$", "=!", "?=", "!", "@", "\\",
]  # fmt: skip


def prompts(room: Path) -> Case:
    """Wildcards, LoRA tags, weights of words and A1111's edits: from a stack's prompt to the words that are encoded."""
    from tests.test_wildcards import THEIRS
    from trainer import families
    from trainer.config import parse
    from trainer.render import a1111_text, emphasis, prompting

    there, wildcards = context(room / "page"), room / "wildcards"
    good = [*THEIRS, *GOOD]
    readable = sorted(name for name, family in families.registry().items() if family.encode_windows)
    wildcards.mkdir()

    def damaged(chance: random.Random) -> str:
        if chance.random() < 0.4:
            return "".join(chance.choices(PIECES, k=chance.randint(0, 300)))
        return fuzzing.text(good, chance)

    def case(chance: random.Random) -> list[Call]:
        (wildcards / "style.txt").write_bytes(fuzzing.raw(fuzzing.text([STYLES, *good], chance), chance))
        positive, negative = damaged(chance), damaged(chance)
        seed, family = chance.randrange(2**32), chance.choice([*readable, "sd", *families.registry()])

        def drawn() -> None:
            values = {"prompt": positive, "negative_prompt": negative if chance.random() < 0.5 else ""}
            stack = parse(StackConfig, {**values, "seed": seed, "family": family}, "the form")
            stack = prompting.without_tags(stack, wildcards, there.find_loras)
            again = prompting.without_tags(stack, wildcards, there.find_loras)
            assert again == stack
            for prompt in (stack.prompt, stack.negative_prompt):
                emphasis.parse_attention(prompt)
            a1111_text.parse_infotext(a1111_text.infotext(stack, "b", "", "DDIM"))

        def expanded() -> None:
            prompt = prompting.expand(positive, seed, wildcards)
            assert len(prompt) <= max(prompting.MAX_CHARS, len(positive))
            assert prompting.expand(prompt, seed + 1, wildcards) == prompt

        return [
            drawn,
            expanded,
            lambda: emphasis.parse_attention(positive),
            lambda: a1111_text.parse_infotext(positive),
        ]

    return case


def settings(room: Path) -> Case:
    """A preset or config.toml, by the command with --set and dropped on the page, and the report of its settings."""
    from app.tabs.train import recipe_of
    from trainer import presets
    from trainer.report.settings_table import rows

    there = context(room / "page")
    good = [path.read_text() for path in sorted((PRESETS / "train").glob("*.toml"))]
    wholes = [presets.load(name, {}).model_dump(mode="json") for name in presets.names()]
    models = (TrainConfig, DataConfig, CaptionsConfig)
    keys = [*(key for model in models for key in model.model_fields), "method", "rank", "alpha", "targets"]
    path = room / "x.toml"

    def case(chance: random.Random) -> list[Call]:
        if chance.random() < 0.7:
            preset = fuzzing.as_toml(fuzzing.broken(chance.choice(wholes), chance, keys), chance)
        else:
            preset = fuzzing.text(good, chance)
        path.write_bytes(fuzzing.raw(preset, chance))
        changes = []
        if chance.random() < 0.3:
            changes = [f"{chance.choice(keys)}.{chance.choice(keys)}={chance.choice(fuzzing.WORDS)}"]

        def loaded() -> None:
            config = presets.load(str(path), presets.parse_overrides(changes))
            tomli_w.dumps(config.model_dump(mode="json")).encode()
            "".join(map(str, rows(config))).encode()

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


def stacks(room: Path) -> Case:
    """A stack's .toml or .json, with --set and --axis, to what the engine is told."""
    from app import path_gate
    from trainer import base_defaults, families
    from trainer import bases as ours
    from trainer.render import (
        a1111_text,
        axes,
        comfy,
        command,
        family_checks,
        modes,
        picture_metadata,
        regions,
        strength,
    )

    there = context(room / "page")
    good = [path.read_text() for path in sorted((PRESETS / "stack").glob("*.toml"))]
    lora = {"file": "cat.safetensors", "name": "cat", "weight": 0.5, "blocks": ["OUT=0.5", "curve=rising"]}
    lora |= {"schedule": "points 0:0 1:1", "region": "box 0 0 1 1"}
    masked = {**lora, "schedule": "linear 1 0", "region": f"mask data:{_mask()}", "text_weight": 1}
    whole = {"prompt": "a cat", "adapters": [lora, masked], "seed": 3, "steps": 4}
    blocks = [f"unet.{side}_blocks.{number}" for side in ("down", "up") for number in range(4)]
    paths = [*(f"{block}.attentions.0.attn1.to_q" for block in blocks), "unet.mid_block.x"]
    keys = [*STACK_KEYS, "adapters.0.weight", "adapters.0.region", "adapters.9", "adapters.x.y", ""]

    def case(chance: random.Random) -> list[Call]:
        values, suffix = fuzzing.broken(whole, chance, STACK_KEYS), chance.choice([".toml", ".json"])
        if suffix == ".json":
            text = fuzzing.as_json(values, chance)
        else:
            text = fuzzing.as_toml(values, chance) if chance.random() < 0.7 else fuzzing.text(good, chance)
        path, key = room / f"x{suffix}", chance.choice(keys)
        path.write_bytes(fuzzing.raw(text, chance))
        pair = f"{key}={fuzzing.text(['1,2,3', 'a|b', 'box 0 0 1 1', '0.5'], chance, 2)}"

        def resolved() -> None:
            stack = base_defaults.completed(command.from_file(path))
            ours.check_pixels(ours.IMPRIMATURA, {"width_px": stack.width_px, "height_px": stack.height_px})
            family_checks.check(families.registry()[stack.family], stack)
            for adapter in stack.adapters:
                strength.schedule(adapter).at(0.5)
                strength.block_factors(adapter, paths)
                regions.resolved(adapter, (16, 16))
            modes.chosen(stack.mode, len(stack.adapters), stack.guidance_scale)
            json.dumps([picture_metadata.travelling(stack), comfy.graphs(stack, "b", "")], ensure_ascii=False).encode()
            a1111_text.infotext(stack, "b", "", "DDIM").encode()

        return [
            resolved,
            lambda: path_gate.checked(there, command.from_file(path)),
            lambda: command.changed(StackConfig(), [pair]),
            lambda: axes.axis(pair),
        ]

    return case
