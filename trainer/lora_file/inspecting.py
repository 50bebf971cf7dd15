"""What is known of a LoRA file without a base model: scheme, family, method, ranks and energy by block, where it loads, recipe."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.errors import AdapterError
from trainer.lora_file import names, reading, where_it_loads
from trainer.lora_file.content import content
from trainer.lora_file.header import recipe_of, whole
from trainer.lora_file.locating import name_of

_LARGEST = 1e300  # of a squared norm that can be added to others
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
    read = content(path)
    header, found = read.header, reading.modules_of(read)
    known = reading.named(header)
    updates = {module: one.update for module, one in found.items() if one.update is not None}
    alphas = {one.alpha for one in found.values() if one.alpha is not None}
    squares = {module: update.squared_norm() for module, update in updates.items()}
    recipe = recipe_of(header.metadata)
    config = recipe.get("config", {}) if recipe else {}
    return LoraInfo(
        path=read.path,
        name=name_of(path),
        sha256=read.sha256,
        family=_text(config.get("family")) or (known.family.name if known.family else _versioned(header.metadata)),
        base=_text(config.get("base")) or header.metadata.get("ss_sd_model_name"),
        method="+".join(sorted({one.method for one in found.values()})),
        rank=max((update.rank for update in updates.values()), default=0),
        alpha=next(iter(alphas)) if len(alphas) == 1 else None,
        num_modules=len(found),
        num_parameters=sum(update.num_parameters for update in updates.values()),
        size_bytes=header.data_start + len(read.data),
        norm=_norm(list(squares.values())),
        trigger=header.metadata.get("modelspec.trigger_phrase", ""),
        title=header.metadata.get("modelspec.title", name_of(path)),
        metadata=header.metadata,
        recipe=recipe,
        embeddings={word: len(next(iter(parts.values()))) for word, parts in reading.words(read).items()},
        scheme=known.scheme,
        model=f"{known.family.title} {known.size}".strip() if known.family else "",
        rivals=known.rivals,
        unknown=known.unknown,
        blocks=_blocks(known, found, squares),
        places=where_it_loads.where(known, found, bool(reading.words(read))),
        extras=sum(len(one.extras) for one in found.values()),
    )


def _versioned(metadata: dict[str, str]) -> str | None:
    """The family that the header names, for files whose modules tell nothing."""
    version = metadata.get("ss_base_model_version", "")
    known = (family.name for family in names.registry().values() if any(version.startswith(start) for start in family.versions))
    return next(known, version) or None


def _norm(squares: list[float | None]) -> float | None:
    there = [square for square in squares if square is not None]
    if len(there) < len(squares):
        return None
    return math.sqrt(math.fsum(there)) if max(there, default=0.0) < _LARGEST else math.inf


def _blocks(known: names.Named, found: dict[str, reading.Module], squares: dict[str, float | None]) -> dict[str, Block]:
    grouped: dict[str, list[str]] = {}
    for module in squares:
        target = known.targets.get(module)
        grouped.setdefault(block_of(target.paths[0]) if target else module.split(".")[0], []).append(module)
    whole = _norm(list(squares.values()))
    blocks = {}
    for block, members in sorted(grouped.items(), key=lambda item: _natural(item[0])):
        updates = [update for member in members if (update := found[member].update) is not None]
        ranks = [update.rank for update in updates]
        norm = _norm([squares[member] for member in members])
        alphas = Counter(alpha for member in members if (alpha := found[member].alpha) is not None)
        share = None if norm is None or not whole else (norm / whole) ** 2
        blocks[block] = Block(len(members), (min(ranks), max(ranks)), tuple(sorted(alphas)), norm, share)
    return blocks


def block_of(path: str) -> str:
    """`unet.down_blocks.1` of a path in it, or all but its last part where nothing is numbered."""
    match = _BLOCK.match(path)
    return match["block"] if match else ".".join(path.split(".")[:2])


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", name)]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def library(folders: list[Path]) -> dict[str, LoraInfo]:
    """Every readable LoRA file below the folders, by hash, newest last; what can't be read is passed over."""
    files = [path for folder in folders for path in folder.rglob("*.safetensors") if not _is_inner(path.relative_to(folder)) and os.path.isfile(path)]
    found: dict[str, LoraInfo] = {}
    for path in sorted(files, key=os.path.getmtime):
        try:
            info = inspect(path)
        except AdapterError:
            continue
        before = found.get(info.sha256)
        found[info.sha256] = replace(info, copies=(*before.copies, before.path)) if before else info
    return found


def _is_inner(path: Path) -> bool:
    """Caches and checkpoints are not LoRAs to choose from."""
    return any(part.startswith(".") or part == "checkpoints" for part in path.parts)


def describe(info: LoraInfo) -> str:
    """The same for people."""
    said = {
        "file": str(info.path), "title": info.title, "hash": f"{info.sha256[:12]} ({info.sha256})", "scheme": info.scheme,
        "family": _family(info), "base": info.base or "not said", "method": info.method, "rank": str(info.rank),
        "alpha": "differs by module" if info.alpha is None and any(block.alphas for block in info.blocks.values()) else str(info.alpha or "missing: scale 1"),
        "modules": f"{info.num_modules}, {info.num_parameters} numbers, {info.size_bytes} bytes",
        "norm": "takes the base to know" if info.norm is None else f"{info.norm:.4g}",
        "trigger": info.trigger or "none said", "tags": _tags(info.metadata), "recipe": "of ours, inside" if info.recipe else "none of ours",
        "words": ", ".join(f"{word} ({num} vectors)" for word, num in info.embeddings.items()) or "none",
    }  # fmt: skip
    if info.unknown:
        said["unknown"] = f"{len(info.unknown)} modules, such as {', '.join(info.unknown[:3])}"
    if info.extras:
        said["also sets"] = f"{info.extras} biases or norms"
    lines = [f"{name:>10}  {text}" for name, text in said.items()]
    lines += ["", "loads in"] + [_place(place) for place in info.places]
    lines += ["", f"{'block':<46}{'modules':>8}{'rank':>10}{'alpha':>10}{'norm':>11}{'energy':>9}"]
    for name, block in info.blocks.items():
        ranks = str(block.ranks[0]) if block.ranks[0] == block.ranks[1] else f"{block.ranks[0]}-{block.ranks[1]}"
        alphas = "/".join(f"{alpha:g}" for alpha in block.alphas[:3]) or "-"
        norm, share = "-" if block.norm is None else f"{block.norm:.4g}", "-" if block.share is None else f"{block.share * 100:.1f} %"
        lines.append(f"{name:<46}{block.modules:>8}{ranks:>10}{alphas:>10}{norm:>11}{share:>9}")
    return "\n".join(lines)


def _place(place: where_it_loads.Place) -> str:
    return f"  {f'{place.tool} {place.version}':<34}{place.verdict:<13}{place.loads:>5} of {place.of}  {place.why}".rstrip()


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
