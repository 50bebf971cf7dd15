"""One thing of the library in plain words: what it is, and where it is used."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import library_items, saved_stacks, shared_cards, start_choices, views
from app.library_items import Item, Shelf
from trainer import base_match, methods, runs
from trainer.errors import UserError
from trainer.lora_file import LoraInfo
from trainer.printing import plain, some

_DEEPEST = 32  # levels of a header that are shown


def _method(name: str) -> str:
    """What people call a method; by its own name where none here has it, such as full differences."""
    return methods.registry()[name].title if name in methods.registry() else plain(name, 60)


@dataclass(frozen=True)
class Details:
    """What is shown of a thing; nothing is escaped."""

    lines: list[tuple[str, str]]  # label, text
    uses: list[str]  # where it is used, a sentence each
    pictures: list[Path]  # that it is used in
    warning: str = ""
    raw: Any = None  # what its file says, for those who want it


def of(shown: Shelf, item: Item) -> Details:
    """Everything that is shown of a thing."""
    makers = {"loras": _lora, "runs": _run, "pictures": _picture, "stacks": _stack,
              "presets": _preset, "datasets": _dataset}  # fmt: skip
    return makers[item.kind](shown, item)


def _lora(shown: Shelf, item: Item) -> Details:
    info = shown.context.lora(item.key)
    lines = [
        ("Trigger", plain(info.trigger, 200)),
        ("For", f"{info.model or library_items.family_title(info.family)}{_base(info)}".strip()),
        ("Kind", f"{_method(info.method)}, inner size {info.rank}"),
        ("Goes on from", _goes_on_from(info)),
        ("New words", some([f"{word} ({num})" for word, num in info.embeddings.items()])),
        ("Size", size(info.size_bytes)),
        ("Made", _day(info.path)),
    ]
    # Where it is used, and where it comes from.
    pictures = shown.index.drawn_with().get(item.key, [])
    uses = [f"{_count(len(pictures), 'picture')} drawn with it"] if pictures else []
    stacks = [path.stem for path in saved_stacks.every(shown.context) if item.key in _hashes(path)]
    uses += [f"in {_count(len(stacks), 'saved stack')}: {some(stacks)}"] if stacks else []
    made = run_of(shown, item)
    uses += [f"made by the run {plain(made, 120)}, which keeps it too"] if made else []
    return Details(lines, uses, pictures, base_match.at_home(info.path) or "", header(info))


def _goes_on_from(info: LoraInfo) -> str:
    """What a LoRA of ours went on from; "" for one that began anew."""
    config = info.recipe.get("config") if isinstance(info.recipe, dict) else None
    start = config.get("start") if isinstance(config, dict) else None
    source = start.get("source") if isinstance(start, dict) else None
    return start_choices.of_source(source) if isinstance(source, str) else ""


def run_of(shown: Shelf, item: Item) -> str:
    """The name of the run whose folder a LoRA lies in; "" if it lies in none."""
    return next((path.parent.name for path in item.paths if path.parent.parent == shown.context.runs), "")


def _base(info: LoraInfo) -> str:
    return f", trained on {plain(Path(str(info.base)).name, 80)}" if info.base else ""


def _hashes(path: Path) -> set[str]:
    with suppress(UserError):
        return {lora.sha256 for lora in saved_stacks.settings(path).adapters}
    return set()


def _run(shown: Shelf, item: Item) -> Details:
    run = runs.Run(shown.context.runs / item.key)
    facts, done = shown.index.run(run), library_items.finished(shown.context, run)
    best = views.last(shown.context.logs.read(run.events_file), views.Recommended)
    lines = [
        ("State", next(iter(plain(item.facts, 200).split(" · ")), "")),
        ("Dataset", plain(Path(facts.dataset).name, 120)),
        ("Trigger", plain(facts.trigger, 120)),
        ("For", f"{library_items.family_title(facts.family)}, trained on {plain(Path(facts.base).name, 80)}"),
        ("Goes on from", start_choices.of_source(facts.source)),
        ("Best step", f"{best.step}: {plain(best.reason, 300)}" if best else ""),
        ("Took", views.duration(done.seconds) if done else ""),
        ("Folder", plain(item.key, 120) if item.note.title else ""),
    ]
    made = [info for info in shown.context.known_loras().values() if run.folder in [path.parent for path in _of(info)]]
    drawn = shown.index.drawn_with()
    pictures = [path for info in made for path in drawn.get(info.sha256, [])]
    uses = [f"it made {some([plain(info.name, 80) for info in made])}"] if made else []
    uses += [f"{_count(len(pictures), 'picture')} drawn with what it made"] if pictures else []
    return Details(lines, uses, pictures)


def _of(info: LoraInfo) -> list[Path]:
    return [info.path, *info.copies]


def _picture(shown: Shelf, item: Item) -> Details:
    path = item.paths[0]
    facts = shown.index.picture(path)
    loras = [f"{plain(name, 60)} at {weight:g}" for _, name, weight in facts.loras]
    here = shown.context.known_loras()
    gone = [plain(name, 60) for sha256, name, _ in facts.loras if sha256 not in here]
    lines = [
        ("Prompt", plain(facts.prompt, 1000)),
        ("LoRAs", some(loras, most=8)),
        ("Seed", "" if facts.seed is None else str(facts.seed)),
        ("Base", plain(Path(facts.base).name, 80)),
        ("Drawn", _day(path)),
    ]
    warning = f"Not here any more: {some(gone)}." if gone else ""
    return Details(lines, [], [], warning)


def _stack(shown: Shelf, item: Item) -> Details:
    try:
        stack = saved_stacks.settings(item.paths[0])
    except UserError as error:
        return Details([], [], [], plain(str(error)))
    loras = [f"{plain(lora.name or 'a LoRA', 60)} at {lora.weight:g}" for lora in stack.adapters]
    here = shown.context.known_loras()
    gone = [plain(lora.name, 60) for lora in stack.adapters if lora.sha256 not in here]
    lines = [
        ("LoRAs", some(loras, most=8)),
        ("Prompt", plain(stack.prompt, 1000)),
        ("Seed", str(stack.seed)),
        ("Base", plain(Path(stack.base).name, 80)),
        ("Size", f"{stack.width_px} x {stack.height_px}"),
    ]
    return Details(lines, [], [], f"Not here: {some(gone)}. Drop the LoRA here to use the stack." if gone else "")


def _preset(shown: Shelf, item: Item) -> Details:
    """What its file says; the panel draws a preset itself."""
    kept = shared_cards.of_key(item.key)
    settings = kept.card.settings if kept.card else kept.settings
    raw = {"settings": settings.model_dump(mode="json")} if settings else {}
    raw |= {"card": kept.card.card.model_dump(mode="json")} if kept.card else {}
    return Details([], [], [], raw=_shown(raw))


def _dataset(shown: Shelf, item: Item) -> Details:
    folder = item.paths[0]
    num, with_captions = len(shown.context.pictures(folder)), library_items.captioned(shown.context, folder)
    trained = shown.index.trained_on(folder)
    words = f"{with_captions} of {num} have a caption" if num else ""
    uses = [f"trained on or measured by {_count(len(trained), 'run')}: {some(trained)}"] if trained else []
    made = [info.name for info in shown.context.known_loras().values() if _trained_on(info) == item.key]
    uses += [f"{_count(len(made), 'LoRA')} trained on it: {some([plain(name, 80) for name in made])}"] if made else []
    return Details([("Captions", words), ("Made", _day(folder))], uses, [])


def _trained_on(info: LoraInfo) -> str:
    """The name of the folder that a LoRA of ours was trained on."""
    config = info.recipe.get("config") if isinstance(info.recipe, dict) else None
    data = config.get("data") if isinstance(config, dict) else None
    folder = data.get("folder") if isinstance(data, dict) else None
    return folder if isinstance(folder, str) else ""


# Words.


def size(num_bytes: int) -> str:
    """`3.4 MB`, `6.5 GB`."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _count(num: int, noun: str) -> str:
    return f"{num} {noun}{'' if num == 1 else 's'}"


def _day(path: Path) -> str:
    """When a file was last written."""
    with suppress(OSError, ValueError, OverflowError):
        return time.strftime("%d %B %Y, %H:%M", time.localtime(path.stat().st_mtime)).lstrip("0")
    return ""


def header(info: LoraInfo) -> dict[str, Any]:
    """What a LoRA file says of itself, as it may be shown."""
    facts: dict[str, Any] = {
        "name": info.name, "file": info.path.name, "sha256": info.sha256, "family": info.family, "base": info.base,
        "trigger": info.trigger, "title": info.title, "method": info.method, "rank": info.rank, "alpha": info.alpha,
        "modules": info.num_modules, "norm": info.norm if info.norm is None else round(info.norm, 4),
        "parameters": info.num_parameters, "recipe": info.recipe, "metadata": info.metadata,
    }  # fmt: skip
    return dict(_shown(facts))


def _shown(value: Any, depth: int = 0) -> Any:
    """The same with every text as it may be shown, and no deeper than anybody reads: a header holds anything."""
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {plain(key): _shown(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(inner, depth + 1) for inner in value]
    return plain(value, 100_000) if isinstance(value, str) else value
