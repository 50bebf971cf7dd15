"""What is known of a LoRA file without a base model: scheme, family, method, ranks, energy, where it loads, recipe."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer import file_names
from trainer.errors import AdapterError
from trainer.lora_file import names, new_words, reading, where_it_loads
from trainer.lora_file.content import content
from trainer.lora_file.header import recipe_of, whole
from trainer.lora_file.locating import name_of

TRIGGER_KEY = "modelspec.trigger_phrase"
_LARGEST = 1e300  # a larger squared norm can't be added to others
_BLOCK = re.compile(r"^(?P<block>.*?\.\d+)(\.|$)")


@dataclass(frozen=True)
class Block:
    """What a file does in one block of the model."""

    modules: int
    ranks: tuple[int, int]  # least and most
    alphas: tuple[float, ...]
    norm: float | None  # Frobenius norm of the updates; None where that takes the base to know
    share: float | None  # of the energy of the whole file


@dataclass(frozen=True)
class LoraInfo:
    """What is known of a LoRA file without a base model."""

    path: Path
    name: str
    sha256: str  # of the tensor bytes: `sshs_model_hash`, computed, never trusted
    family: str | None
    base: str | None
    method: str
    rank: int
    alpha: float | None
    num_modules: int
    num_parameters: int
    size_bytes: int
    norm: float | None  # Frobenius norm of all updates together; None where that takes the base to know
    trigger: str
    title: str
    metadata: dict[str, str]
    recipe: dict[str, Any] | None
    embeddings: dict[str, int]  # new words and how many vectors each has
    scheme: str = "unknown"
    model: str = ""  # title and size of the family's model
    rivals: tuple[str, ...] = ()  # families that fit as well, by keys and shapes
    unknown: tuple[str, ...] = ()  # modules that the family has no layer for
    blocks: dict[str, Block] = field(default_factory=dict)
    places: tuple[where_it_loads.Place, ...] = ()
    extras: int = 0  # biases and norms that it sets besides weights
    copies: tuple[Path, ...] = ()  # other files of the same content, as a library finds them


def inspect(path: Path) -> LoraInfo:
    """Everything a LoRA file says and is. Raises: AdapterError."""
    # The file.
    read = content(path)
    header, modules, words = read.header, reading.modules_of(read), new_words.words(read)
    known = reading.named(header)
    # Its numbers.
    updates = {name: module.update for name, module in modules.items() if module.update is not None}
    alphas = {module.alpha for module in modules.values() if module.alpha is not None}
    squared_norms = {name: update.squared_norm() for name, update in updates.items()}
    # What it says of itself.
    recipe = recipe_of(header.metadata)
    config = recipe.get("config", {}) if recipe else {}
    return LoraInfo(
        path=read.path,
        name=name_of(path),
        sha256=read.sha256,
        family=_text(config.get("family")) or (known.family.name if known.family else _versioned(header.metadata)),
        base=_text(config.get("base")) or header.metadata.get("ss_sd_model_name"),
        method="+".join(sorted({module.method for module in modules.values()})),
        rank=max((update.rank for update in updates.values()), default=0),
        alpha=next(iter(alphas)) if len(alphas) == 1 else None,
        num_modules=len(modules),
        num_parameters=sum(update.num_parameters for update in updates.values()),
        size_bytes=header.data_start + len(read.data),
        norm=_norm(list(squared_norms.values())),
        trigger=header.metadata.get(TRIGGER_KEY, ""),
        title=header.metadata.get("modelspec.title", name_of(path)),
        metadata=header.metadata,
        recipe=recipe,
        embeddings={word: len(next(iter(parts.values()))) for word, parts in words.items()},
        scheme=known.scheme,
        model=f"{known.family.title} {known.size}".strip() if known.family else "",
        rivals=known.rivals,
        unknown=known.unknown,
        blocks=_blocks(known, modules, squared_norms),
        places=where_it_loads.where(known, modules, bool(words)),
        extras=sum(len(module.extras) for module in modules.values()),
    )


def joined_triggers(headers: Iterable[Mapping[str, str]]) -> str:
    """The trigger words of several files for the header of a file that is made of them, each word once."""
    words = [word.strip() for header in headers for word in header.get(TRIGGER_KEY, "").split(",")]
    return ", ".join(dict.fromkeys(filter(None, words)))


def _versioned(metadata: dict[str, str]) -> str | None:
    """The family that the header names, for files whose modules tell nothing."""
    version = metadata.get("ss_base_model_version", "")
    matches = (
        family.name
        for family in names.registry().values()
        if any(version.startswith(start) for start in family.versions)
    )
    return next(matches, version) or None


def _norm(squares: list[float | None]) -> float | None:
    """The norm of all updates together, from their squared norms; None if one of them isn't known."""
    given = [square for square in squares if square is not None]
    if len(given) < len(squares):
        return None
    return math.sqrt(math.fsum(given)) if max(given, default=0.0) < _LARGEST else math.inf


def _blocks(
    known: names.Named, modules: dict[str, reading.Module], squared_norms: dict[str, float | None]
) -> dict[str, Block]:
    """What the file does in each block, in the order of the model's numbers."""
    grouped: dict[str, list[str]] = {}
    for name in squared_norms:
        target = known.targets.get(name)
        grouped.setdefault(block_of(target.paths[0]) if target else name.split(".")[0], []).append(name)
    whole_norm = _norm(list(squared_norms.values()))
    blocks = {}
    for block, members in sorted(grouped.items(), key=lambda item: _natural(item[0])):
        updates = [update for member in members if (update := modules[member].update) is not None]
        ranks = [update.rank for update in updates]
        norm = _norm([squared_norms[member] for member in members])
        alphas = Counter(alpha for member in members if (alpha := modules[member].alpha) is not None)
        share = None if norm is None or not whole_norm else (norm / whole_norm) ** 2
        blocks[block] = Block(len(members), (min(ranks), max(ranks)), tuple(sorted(alphas)), norm, share)
    return blocks


def block_of(path: str) -> str:
    """`unet.down_blocks.1` of a path in it, or all but its last part where nothing is numbered."""
    match = _BLOCK.match(path)
    return match["block"] if match else ".".join(path.split(".")[:2])


def _natural(name: str) -> list[tuple[str, int]]:
    """A key that sorts `blocks.10` after `blocks.9`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", name)]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def library(folders: list[Path]) -> dict[str, LoraInfo]:
    """Every readable LoRA file below the folders, by hash, newest last; what can't be read is passed over.

    Of the same LoRA under several names the newest counts, but a run's own before its best and its steps.
    """
    files = [
        path
        for folder in folders
        for path in folder.rglob("*.safetensors")
        if not _is_inner(path.relative_to(folder)) and os.path.isfile(path)
    ]
    infos: dict[str, LoraInfo] = {}
    # Oldest first, so that of one hash the newest stays.
    for path in sorted(files, key=os.path.getmtime):
        try:
            info = inspect(path)
        except AdapterError:
            continue
        if before := infos.get(info.sha256):
            is_first = not file_names.is_earlier(path) or file_names.is_earlier(before.path)
            first, second = (info, before) if is_first else (before, info)
            info = replace(first, copies=(*before.copies, second.path))
        infos[info.sha256] = info
    return infos


def _is_inner(path: Path) -> bool:
    """True for caches and checkpoints, which are no LoRAs to choose from."""
    return any(part.startswith(".") or part == file_names.CHECKPOINTS for part in path.parts)


def describe(info: LoraInfo) -> str:
    """All of it as text for people, a table of blocks at the end."""
    alpha = str(info.alpha or "missing: scale 1")
    if info.alpha is None and any(block.alphas for block in info.blocks.values()):
        alpha = "differs by module"
    facts = {
        "file": str(info.path),
        "title": info.title,
        "hash": f"{info.sha256[:12]} ({info.sha256})",
        "scheme": info.scheme,
        "family": _family(info),
        "base": info.base or "not said",
        "method": info.method,
        "rank": str(info.rank),
        "alpha": alpha,
        "modules": f"{info.num_modules}, {info.num_parameters} numbers, {info.size_bytes} bytes",
        "norm": "takes the base to know" if info.norm is None else f"{info.norm:.4g}",
        "trigger": info.trigger or "none said",
        "tags": _tags(info.metadata),
        "recipe": "of ours, inside" if info.recipe else "none of ours",
        "words": ", ".join(f"{word} ({num} vectors)" for word, num in info.embeddings.items()) or "none",
    }
    if info.unknown:
        facts["unknown"] = f"{len(info.unknown)} modules, such as {', '.join(info.unknown[:3])}"
    if info.extras:
        facts["also sets"] = f"{info.extras} biases or norms"
    # What tools make of it, and each block.
    lines = [f"{name:>10}  {text}" for name, text in facts.items()]
    lines += ["", "loads in"] + [_place(place) for place in info.places]
    lines += ["", f"{'block':<46}{'modules':>8}{'rank':>10}{'alpha':>10}{'norm':>11}{'energy':>9}"]
    for name, block in info.blocks.items():
        ranks = str(block.ranks[0]) if block.ranks[0] == block.ranks[1] else f"{block.ranks[0]}-{block.ranks[1]}"
        alphas = "/".join(f"{alpha:g}" for alpha in block.alphas[:3]) or "-"
        norm = "-" if block.norm is None else f"{block.norm:.4g}"
        share = "-" if block.share is None else f"{block.share * 100:.1f} %"
        lines.append(f"{name:<46}{block.modules:>8}{ranks:>10}{alphas:>10}{norm:>11}{share:>9}")
    return "\n".join(lines)


def _place(place: where_it_loads.Place) -> str:
    return (
        f"  {f'{place.tool} {place.version}':<34}{place.verdict:<13}{place.loads:>5} of {place.of}  {place.why}"
    ).rstrip()


def _family(info: LoraInfo) -> str:
    rivals = f"; by names and shapes it could as well be {', '.join(info.rivals)}" if info.rivals else ""
    return (f"{info.model} ({info.family})" if info.model else str(info.family)) + rivals


def _tags(metadata: dict[str, str]) -> str:
    """The most frequent tags that the header counts."""
    try:
        counted = json.loads(metadata.get("ss_tag_frequency", "{}"))
        tags: Counter[str] = Counter()
        for folder in counted.values():
            tags.update({whole(str(tag)): int(count) for tag, count in folder.items()})
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return "can't be read"
    return ", ".join(f"{tag} ({count})" for tag, count in tags.most_common(10)) or "none said"
