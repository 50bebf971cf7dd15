"""What a batch may be like: a picture made here, a stack saved under a name, or one that came from Stack's desk."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from app import desk_stacks, saved_stacks
from app.context import Context
from app.recipes import read_recipe, recent
from app.texts import say
from trainer import families
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError, UserError
from trainer.printing import escape, plain, some
from trainer.render import modes

_LONGEST_PROMPT = 300
_MOST_LORAS = 32


def stack(context: Context, name: str | None) -> StackConfig:
    """The stack of that name. Raises: UserError for a name that isn't here, or a stack that lacks a LoRA."""
    if path := next((path for path in recent(context) if path.name == name), None):
        return read_recipe(context, path)
    if path := _file(context, name):
        return saved_stacks.read(context, path)
    raise ConfigError(say("batch.none_like"))


def choices(context: Context, *chosen: str | None) -> list[tuple[str, str]]:
    """What a batch may be like, as (label, name): pictures, then saved stacks; those whose LoRAs are here.

    Of the stacks that came from a desk only those that are `chosen`, before all others: each page has its own.
    """
    labels: dict[str, str] = {}
    for path in filter(None, (desk_stacks.path_of(context, name) for name in chosen)):
        sent = time.strftime("%H:%M", time.localtime(path.stat().st_mtime))
        labels[f"{desk_stacks.PREFIX}{path.name}"] = say("batch.from_desk", time=sent)
    labels |= {path.name: plain(path.name) for path, _ in context.thumbnails(recent(context))}
    labels |= {path.name: say("batch.saved_stack", name=plain(path.stem, 120)) for path in saved_stacks.every(context)}
    able = []
    for name, label in labels.items():
        with suppress(UserError):  # a sheet, or what needs a LoRA that is gone
            stack(context, name)
            able.append((label, name))
    return able


def thumbnail(context: Context, name: str | None) -> str | None:
    """The picture's thumbnail, or that of the small picture beside a stack; None where there is none."""
    paths = [path for path in recent(context) if path.name == name]
    beside = saved_stacks.picture(path) if (path := _file(context, name)) else None
    paths += [beside] if beside else []
    return next((str(thumbnail) for _, thumbnail in context.thumbnails(paths)), None)


def html(context: Context, name: str | None) -> str:
    """What each picture of the batch takes from it, in a few lines; "" for what can't be drawn."""
    try:
        chosen = stack(context, name)
    except UserError:
        return ""
    loras = some([_lora(lora) for lora in chosen.adapters if lora.enabled], most=_MOST_LORAS)
    settings = [
        say("batch.size", width=chosen.width_px, height=chosen.height_px),
        say("item.steps", steps=chosen.steps),
        say("batch.guidance", guidance=chosen.guidance_scale),
        chosen.sampler,
        modes.registry()[chosen.mode].title if chosen.mode in modes.registry() else chosen.mode,
        say("batch.on_base", base=Path(chosen.base).name, family=families.registry()[chosen.family].title),
    ]
    lines = [
        (say("word.loras"), loras or say("word.none")),
        (say("batch.drawn_with"), " · ".join(filter(None, settings))),
        (say("item.prompt"), plain(chosen.prompt, _LONGEST_PROMPT)),
        (say("batch.negative"), plain(chosen.negative_prompt, _LONGEST_PROMPT)),
    ]
    shown = [f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in lines if text]
    return f'<dl class="like-says">{"".join(shown)}</dl>'


def _lora(lora: AdapterChoice) -> str:
    """`fox at 0.8 (text weight 0.5, schedule, region)`."""
    more = [say("batch.text_weight", weight=lora.text_weight)] if lora.text_weight is not None else []
    parts = {"blocks": lora.blocks, "schedule": lora.schedule, "region": lora.region, "trigger": lora.trigger}
    more += [AdapterChoice.model_fields[key].title or key for key, value in parts.items() if value]
    words = say("item.at_weight", name=plain(lora.name or lora.sha256[:12], 60), weight=lora.weight)
    return f"{words} ({', '.join(part.lower() for part in more)})" if more else words


def _file(context: Context, name: str | None) -> Path | None:
    """The file of a saved stack, or of one that came from a desk."""
    saved = next((path for path in saved_stacks.every(context) if path.name == name), None)
    return saved or desk_stacks.path_of(context, name)
