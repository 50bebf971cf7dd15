"""Where a LoRA file loads and where not, and why.

Each verdict says which version of the tool it is for; where nothing was tried, it is "not checked".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trainer.errors import AdapterError
from trainer.lora_file import names, tool_names
from trainer.lora_file.names import Named
from trainer.lora_file.tool_rules import MAKE_PLAIN, FileFacts, Tool, is_text, tools

if TYPE_CHECKING:
    from trainer.lora_file.reading import Module

Verdict = Literal["yes", "partly", "wrong", "no", "not checked"]
_KOHYAS_SUFFIXES = {"alpha", "dora_scale", "lora_down.weight"}


@dataclass(frozen=True)
class Place:
    """What a tool makes of a file: how many of its modules it finds, and whether it then does what the file says."""

    tool: str
    verdict: Verdict
    loads: int
    of: int
    why: str
    version: str = ""


def where(known: Named, modules: Mapping[str, Module], has_words: bool = False) -> tuple[Place, ...]:
    """A verdict for each tool; none for a file whose family isn't known.

    `has_words` says that the file carries new words beside its modules.
    """
    if known.family is None:
        return ()
    file = _facts(known, modules, has_words)
    return tuple(_place(tool, known, file, modules) for tool in tools())


def _place(tool: Tool, known: Named, file: FileFacts, modules: Mapping[str, Module]) -> Place:
    assert known.family
    num, family = len(modules), file.family

    def verdict(word: Verdict, loads: int, why: str) -> Place:
        return Place(tool.name, word, loads, num, why, tool.version)

    # Families and methods that were not tried, or that the tool hasn't.
    if tool.tried is not None and family not in tool.tried:
        return verdict("not checked", 0, f"its LoRAs for {known.family.title} were not tried")
    if family not in tool.families:
        return verdict("no", 0, f"has no LoRAs for {known.family.title}")
    if tool.methods is not None and (others := file.methods - tool.methods):
        return verdict("not checked", 0, f"its {'/'.join(sorted(others))} was not tried; {MAKE_PLAIN}")
    # Modules that make it load nothing.
    kinds = {name: _method(module) for name, module in modules.items()}
    for name, kind in kinds.items():
        if reason := tool.stopped(family, kind, name):
            return verdict("no", 0, f"{reason} where it has {name}")
    # Modules that it finds.
    missing = [name for name, target in known.targets.items() if not tool.finds(family, kinds[name], name, target)]
    loads = num - len(missing) - len(known.unknown)
    trouble, stops = tool.trouble(file)
    if stops:
        return verdict("no", 0, trouble)
    if not loads:
        return verdict("no", 0, _why_none(tool, known, file))
    if loads < num:
        first, more = (missing + list(known.unknown))[0], num - loads - 1
        reason = f"doesn't know {first} and {more} more" if more else f"doesn't know {first}"
        reason += f"; its picture silently lacks {'them' if more else 'it'}"
        return verdict("partly", loads, f"{reason}; {trouble}" if trouble else reason)
    return verdict("wrong" if trouble else "yes", loads, trouble)


def _why_none(tool: Tool, known: Named, file: FileFacts) -> str:
    """Why nothing of a file loads, and what to do: give it other names if those load, or else make it a plain LoRA."""
    assert known.family
    reason = f"finds nothing of a file of {known.scheme} names for {known.family.title}"
    if file.methods != {"lora"}:
        reason += f" in {'/'.join(sorted(file.methods))}"
    for scheme in dict.fromkeys((known.family.default, "kohya", "comfyui", "diffusers")):
        if scheme != known.scheme and _would_load(tool, known, file, scheme):
            return f"{reason}; `velatura lora convert --to {scheme}` gives it names that load"
    return f"{reason}; {MAKE_PLAIN}" if file.methods != {"lora"} else reason


def _would_load(tool: Tool, known: Named, file: FileFacts, scheme_name: str) -> bool:
    """True if the tool finds the file's first layer under another scheme's names."""
    family = known.family
    assert family
    target = next((target for target in known.targets.values() if not is_text(target)), None)
    if target is None:
        return False
    try:
        scheme = tool_names.scheme_of(scheme_name, family)
    except AdapterError:
        return False
    # Only a plain LoRA's layers can be fused and split.
    fused = scheme.original and len(target.row.paths) > 1
    if file.methods != {"lora"} and fused != (target.part is None):
        return False
    part = None if fused or len(target.row.paths) == 1 else target.part or 0
    name = tool_names.module_name(family, target, part, scheme)
    renamed, _ = names.find(family, name)
    return renamed is not None and all(tool.finds(file.family, method, name, renamed) for method in file.methods)


def _method(module: Module) -> str:
    """A module's method as the tables name it, which tell the two spellings of OFT apart."""
    if module.method == "oft" and any(suffix.startswith("oft_blocks") for suffix in module.parts):
        return "oft_blocks"
    return module.method


def _facts(known: Named, modules: Mapping[str, Module], has_words: bool) -> FileFacts:
    assert known.family
    has_kohyas_suffixes = any(_KOHYAS_SUFFIXES & set(module.parts) for module in modules.values())
    return FileFacts(
        family=known.family.name,
        scheme=known.scheme,
        methods={_method(module) for module in modules.values()} - {"values"},
        alphas={module.alpha or 0.0 for module in modules.values() if "alpha" in module.parts},
        in_header=any(
            "alpha" not in module.parts
            and module.alpha is not None
            and module.update is not None
            and module.alpha != module.update.rank
            for module in modules.values()
        ),
        axis=_axis(modules),
        is_mixed=known.scheme in ("diffusers", "peft") and has_kohyas_suffixes,
        has_words=has_words,
        is_whole=_is_whole(known),
    )


def _axis(modules: Mapping[str, Module]) -> str:
    """Which axis DoRA's lengths are along, by the first module that has any; see `FileFacts.axis`."""
    lengths = [
        (suffix, module.parts[suffix])
        for module in modules.values()
        for suffix in module.parts
        if suffix.startswith(("dora_scale", "lora_magnitude_vector"))
    ]
    if not lengths:
        return ""
    suffix, first = lengths[0]
    if suffix.startswith("lora_magnitude"):
        return "vector"
    return "input" if first.ndim > 1 and first.shape[0] == 1 < first.shape[1] else "output"


def _is_whole(known: Named) -> bool:
    """True if a file has every layer of each block that it touches."""
    assert known.family
    blocks: dict[tuple[str, tuple[int, ...]], int] = {}
    rows = Counter(row.paths[0].split(".#")[0] for row in known.family.rows if ".#" in row.paths[0])
    for target in known.targets.values():
        if target.numbers and not is_text(target):
            block = target.row.paths[0].split(".#")[0]
            blocks[block, target.numbers] = blocks.get((block, target.numbers), 0) + 1
    return all(count == rows[block] for (block, _), count in blocks.items())
