"""One thing of the library in plain words: what it is, and where it is used."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import library_items, saved_stacks, shared_cards, start_choices, views
from app.library_items import Item, Shelf
from app.texts import say, say_num
from trainer import base_match, methods, runs
from trainer.errors import UserError
from trainer.lora_file import LoraInfo
from trainer.printing import plain, some
from trainer.report import compared

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
        (say("word.trigger"), plain(info.trigger, 200)),
        (say("item.for"), _for(info.model or library_items.family_title(info.family), str(info.base or ""))),
        (say("item.kind"), say("item.method", method=_method(info.method), rank=info.rank)),
        (say("item.goes_on_from"), _goes_on_from(info)),
        (say("item.new_words"), some([f"{word} ({num})" for word, num in info.embeddings.items()])),
        (say("item.size"), size(info.size_bytes)),
        (say("item.made"), _day(info.path)),
    ]
    # Where it is used, and where it comes from.
    pictures = shown.index.drawn_with().get(item.key, [])
    uses = [say_num("item.drawn_with", len(pictures))] if pictures else []
    stacks = [path.stem for path in saved_stacks.every(shown.context) if item.key in _hashes(path)]
    uses += [say_num("item.in_stacks", len(stacks), names=some(stacks))] if stacks else []
    made = run_of(shown, item)
    uses += [say("item.made_by", run=plain(made, 120))] if made else []
    if made and info.path.parent == shown.context.runs / made:
        lines.append((say("item.old_or_new"), _verdict(info.path.parent)))
    return Details(lines, uses, pictures, base_match.at_home(info.path) or "", header(info))


def _goes_on_from(info: LoraInfo) -> str:
    """What a LoRA of ours went on from; "" for a LoRA that began anew."""
    config = info.recipe.get("config") if isinstance(info.recipe, dict) else None
    start = config.get("start") if isinstance(config, dict) else None
    source = start.get("source") if isinstance(start, dict) else None
    return start_choices.of_source(source) if isinstance(source, str) else ""


def run_of(shown: Shelf, item: Item) -> str:
    """The name of the run whose folder a LoRA lies in; "" if it lies in none."""
    return next((path.parent.name for path in item.paths if path.parent.parent == shown.context.runs), "")


def _for(family: str, base: str) -> str:
    """What a LoRA is for: a family, and the base that it was trained on."""
    return (say("item.family_trained_on", family=family, base=plain(Path(base).name, 80)) if base else family).strip()


def _hashes(path: Path) -> set[str]:
    with suppress(UserError):
        return {lora.sha256 for lora in saved_stacks.settings(path).adapters}
    return set()


def _run(shown: Shelf, item: Item) -> Details:
    # What it was started with, and how it went.
    run = runs.Run(shown.context.runs / item.key)
    facts, done = shown.index.run(run), library_items.finished(shown.context, run)
    best = views.last(shown.context.logs.read(run.events_file), views.Recommended)
    lines = [
        (say("item.state"), next(iter(plain(item.facts, 200).split(" · ")), "")),
        (say("word.dataset"), plain(Path(facts.dataset).name, 120)),
        (say("word.trigger"), plain(facts.trigger, 120)),
        (say("item.for"), _for(library_items.family_title(facts.family), facts.base)),
        (say("item.goes_on_from"), start_choices.of_source(facts.source)),
        (say("item.old_or_new"), _verdict(run.folder)),
        (say("item.best_step"), f"{best.step}: {plain(best.reason, 300)}" if best else ""),
        (say("item.took"), views.duration(done.seconds) if done else ""),
        (say("item.folder"), plain(item.key, 120) if item.note.title else ""),
    ]

    # What came of it, and what that was used for.
    made = [info for info in shown.context.known_loras().values() if run.folder in [path.parent for path in _of(info)]]
    drawn = shown.index.drawn_with()
    pictures = [path for info in made for path in drawn.get(info.sha256, [])]
    uses = [say("item.run_made", loras=some([plain(info.name, 80) for info in made]))] if made else []
    uses += [say_num("item.drawn_with_made", len(pictures))] if pictures else []
    return Details(lines, uses, pictures)


def _verdict(folder: Path) -> str:
    """What a retraining found of its old and its new LoRA, or why nothing; "" for any other run."""
    found = compared.read(folder)
    if found is None:
        reason = plain(compared.problem(folder), 600)
        return say("verdict.problem", reason=reason) if reason else ""
    names = say("item.new_and_old", new=plain(found.new, 120), old=plain(found.old, 120))
    return f"{plain(found.sentence, 600)} {names}"


def _of(info: LoraInfo) -> list[Path]:
    return [info.path, *info.copies]


def _picture(shown: Shelf, item: Item) -> Details:
    path = item.paths[0]
    facts = shown.index.picture(path)
    loras = [say("item.at_weight", name=plain(name, 60), weight=weight) for _, name, weight in facts.loras]
    here = shown.context.known_loras()
    # LoRAs that are gone, without which it can't be drawn again.
    gone = [plain(name, 60) for sha256, name, _ in facts.loras if sha256 not in here]
    lines = [
        (say("item.prompt"), plain(facts.prompt, 1000)),
        (say("word.loras"), some(loras, most=8)),
        (say("word.seed"), "" if facts.seed is None else str(facts.seed)),
        (say("word.base"), plain(Path(facts.base).name, 80)),
        (say("item.drawn"), _day(path)),
    ]
    warning = say("item.gone", names=some(gone)) if gone else ""
    return Details(lines, [], [], warning)


def _stack(shown: Shelf, item: Item) -> Details:
    try:
        stack = saved_stacks.settings(item.paths[0])
    except UserError as error:
        return Details([], [], [], plain(str(error)))
    loras = [
        say("item.at_weight", name=plain(lora.name or say("word.a_lora"), 60), weight=lora.weight)
        for lora in stack.adapters
    ]
    here = shown.context.known_loras()
    # LoRAs that are gone, without which the stack can't be drawn.
    gone = [plain(lora.name, 60) for lora in stack.adapters if lora.sha256 not in here]
    lines = [
        (say("word.loras"), some(loras, most=8)),
        (say("item.prompt"), plain(stack.prompt, 1000)),
        (say("word.seed"), str(stack.seed)),
        (say("word.base"), plain(Path(stack.base).name, 80)),
        (say("item.size"), f"{stack.width_px} x {stack.height_px}"),
    ]
    return Details(lines, [], [], say("item.stack_gone", names=some(gone)) if gone else "")


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
    words = say("item.with_caption", num=with_captions, all=num) if num else ""
    uses = [say_num("item.used_by_runs", len(trained), names=some(trained))] if trained else []
    made = [info.name for info in shown.context.known_loras().values() if trained_on(info) == item.key]
    names = some([plain(name, 80) for name in made])
    uses += [say_num("item.trained_loras", len(made), names=names)] if made else []
    return Details([(say("word.captions"), words), (say("item.made"), _day(folder))], uses, [])


def trained_on(info: LoraInfo) -> str:
    """The name of the folder that a LoRA of ours was trained on; "" where its header doesn't say."""
    config = info.recipe.get("config") if isinstance(info.recipe, dict) else None
    data = config.get("data") if isinstance(config, dict) else None
    folder = data.get("folder") if isinstance(data, dict) else None
    return folder if isinstance(folder, str) else ""


# Words.


def size(num_bytes: int) -> str:
    """`3.4 MB`, `6.5 GB`."""
    return say("item.gb", gb=num_bytes / 1e9) if num_bytes >= 1e9 else say("item.mb", mb=num_bytes / 1e6)


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
