"""Where a LoRA file loads and where not, and why: the other tools' name maps and what they make of alphas, methods and DoRA's axes.

What ComfyUI and InvokeAI find stands in tables that their own code filled (`tables`). diffusers is held by tests against its own converters and
loaders. A1111, Forge and sd-scripts were read, not run. Each verdict says of which version it is; where nothing was tried, "not checked".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trainer.lora_file import names
from trainer.lora_file.names import Named, Target
from trainer.lora_file.tables import table

if TYPE_CHECKING:
    from trainer.lora_file.reading import Module

_SD = ("sd", "sdxl")
Verdict = Literal["yes", "partly", "wrong", "no", "not checked"]
Finds = Callable[[str, str, str, Target], bool]  # family, method, module, what it is
_VERSIONS = {"diffusers": "0.42.1", "A1111": "1.10", "Forge": "of June 2025", "kohya": "sd-scripts of February 2026"}
_THEIRS = {"alpha", "dora_scale", "lora_down.weight"}
_PLAIN = "make it a plain LoRA with `velatura lora to-plain`"


@dataclass(frozen=True)
class Place:
    """What a tool makes of a file: how many of its modules it finds, and whether it then does what the file says."""

    tool: str
    verdict: Verdict
    loads: int
    of: int
    why: str
    version: str = ""


@dataclass(frozen=True)
class _File:
    """What the verdicts depend on."""

    family: str
    scheme: str
    methods: set[str]
    alphas: set[float]  # those of modules that have one, and 0.0 for those that have none
    in_header: bool  # the alpha stands in the header, and isn't the rank
    axis: str  # of DoRA: "", "output", "input", or "vector" where it is written as PEFT does
    is_mixed: bool  # tensors as kohya or LyCORIS call them under diffusers' names
    has_words: bool
    is_whole: bool  # has every layer of each block that it touches


@dataclass(frozen=True)
class _Tool:
    """How a tool is asked: which modules it finds, what it then gets wrong (and whether it stops at it), and why it would stop at one module."""

    name: str
    version: str
    families: Collection[str]  # that it has LoRAs for
    finds: Finds
    trouble: Callable[[_File], tuple[str, bool]]
    stopped: Callable[[str, str, str], str] = lambda family, method, module: ""
    tried: frozenset[str] | None = None  # families; None: all
    methods: frozenset[str] | None = None


def where(known: Named, found: Mapping[str, Module], has_words: bool = False) -> tuple[Place, ...]:
    """A verdict for each tool; none for a file whose family isn't known. `has_words`: it carries new words beside its modules."""
    if known.family is None:
        return ()
    file = _file(known, found, has_words)
    return tuple(_place(tool, known, file, found) for tool in _tools())


def _tools() -> tuple[_Tool, ...]:
    comfy, invoke = table("comfyui"), table("invokeai")
    return (
        _Tool("diffusers", _VERSIONS["diffusers"], tuple(name for name, family in names.registry().items() if family.taken), _diffusers, _diffusers_wrong),
        _Tool("ComfyUI", comfy.version, comfy.families, lambda family, method, module, target: comfy.finds(family, method, module), _comfy_wrong,
              comfy.stopped, comfy.families | comfy.lacks, comfy.methods),
        _Tool("A1111", _VERSIONS["A1111"], _having("A1111"), _a1111, _a1111_wrong, methods=_READ_BY_A1111),
        _Tool("Forge", _VERSIONS["Forge"], _having("Forge"), _forge, _comfy_wrong, methods=_READ_BY_A1111),
        _Tool("InvokeAI", invoke.version, invoke.families, lambda family, method, module, target: invoke.finds(family, method, module), _invoke_wrong,
              invoke.stopped, invoke.families | invoke.lacks, invoke.methods),
        _Tool("kohya", _VERSIONS["kohya"], _having("kohya"), _kohya, _kohya_wrong),
    )  # fmt: skip


def _having(tool: Literal["A1111", "Forge", "kohya"]) -> tuple[str, ...]:
    """The families that a tool has LoRAs for, by what was read of it."""
    return tuple(name for name, family in names.registry().items() if tool in family.read_by)


def _place(tool: _Tool, known: Named, file: _File, found: Mapping[str, Module]) -> Place:
    assert known.family
    num, family = len(found), file.family

    def verdict(word: Verdict, loads: int, why: str) -> Place:
        return Place(tool.name, word, loads, num, why, tool.version)

    if tool.tried is not None and family not in tool.tried:
        return verdict("not checked", 0, f"its LoRAs for {known.family.title} were not tried")
    if family not in tool.families:
        return verdict("no", 0, f"has no LoRAs for {known.family.title}")
    if tool.methods is not None and (others := file.methods - tool.methods):
        return verdict("not checked", 0, f"its {'/'.join(sorted(others))} was not tried; {_PLAIN}")
    kinds = {module: _kind(one) for module, one in found.items()}
    if stopped := next((f"{why} where it has {module}" for module, kind in kinds.items() if (why := tool.stopped(family, kind, module))), ""):
        return verdict("no", 0, stopped)
    missing = [module for module, target in known.targets.items() if not tool.finds(family, kinds[module], module, target)]
    loads = num - len(missing) - len(known.unknown)
    trouble, stops = tool.trouble(file)
    if stops:
        return verdict("no", 0, trouble)
    if not loads:
        return verdict("no", 0, _why_none(tool, known, file))
    if loads < num:
        first, more = (missing + list(known.unknown))[0], num - loads - 1
        said = f"doesn't know {first} and {more} more" if more else f"doesn't know {first}"
        return verdict("partly", loads, f"{said}; its picture silently lacks {'them' if more else 'it'}" + (f"; {trouble}" if trouble else ""))
    return verdict("wrong" if trouble else "yes", loads, trouble)


def _why_none(tool: _Tool, known: Named, file: _File) -> str:
    """What to do about a file of which nothing loads: other names where those load there, else a plain LoRA where that does."""
    assert known.family
    said = f"finds nothing of a file of {known.scheme} names for {known.family.title}"
    if file.methods != {"lora"}:
        said += f" in {'/'.join(sorted(file.methods))}"
    for scheme in dict.fromkeys((known.family.default, "kohya", "comfyui", "diffusers")):
        if scheme != known.scheme and _would_load(tool, known, file, scheme):
            return f"{said}; `velatura lora convert --to {scheme}` gives it names that load"
    return f"{said}; {_PLAIN}" if file.methods != {"lora"} else said


def _would_load(tool: _Tool, known: Named, file: _File, scheme: str) -> bool:
    """Whether a tool finds a first layer of the file under another scheme's names."""
    from trainer.errors import AdapterError
    from trainer.lora_file import renaming

    family = known.family
    assert family
    target = next((target for target in known.targets.values() if not _is_text(target)), None)
    if target is None:
        return False
    try:
        rules = renaming.scheme_of(scheme, family)
    except AdapterError:
        return False
    fused = rules.original and len(target.row.paths) > 1
    if file.methods != {"lora"} and fused != (target.part is None):
        return False  # only a plain LoRA's layers are fused and taken apart
    name = renaming.module_name(family, target, None if fused or len(target.row.paths) == 1 else target.part or 0, rules)
    there, _ = names.find(family, name)
    return there is not None and all(tool.finds(file.family, method, name, there) for method in file.methods)


def _kind(one: Module) -> str:
    """A module's method as the tables name it: which spelling of OFT matters."""
    return "oft_blocks" if one.method == "oft" and any(suffix.startswith("oft_blocks") for suffix in one.parts) else one.method


def _file(known: Named, found: Mapping[str, Module], has_words: bool) -> _File:
    assert known.family
    lengths = [(suffix, one.parts[suffix]) for one in found.values() for suffix in one.parts if suffix.startswith(("dora_scale", "lora_magnitude_vector"))]
    axis = ""
    if lengths:
        suffix, first = lengths[0]
        inputs = first.ndim > 1 and first.shape[0] == 1 < first.shape[1]
        axis = "vector" if suffix.startswith("lora_magnitude") else "input" if inputs else "output"
    in_header = any("alpha" not in one.parts and one.alpha is not None and one.update is not None and one.alpha != one.update.rank for one in found.values())
    return _File(
        known.family.name, known.scheme, {_kind(one) for one in found.values()} - {"values"},
        {one.alpha or 0.0 for one in found.values() if "alpha" in one.parts},
        in_header, axis, known.scheme in ("diffusers", "peft") and any(_THEIRS & set(one.parts) for one in found.values()), has_words,
        _is_whole(known),
    )  # fmt: skip


def _is_whole(known: Named) -> bool:
    """Whether a file has every layer of each block that it touches."""
    assert known.family
    blocks: dict[tuple[str, tuple[int, ...]], int] = {}
    rows = Counter(row.paths[0].split(".#")[0] for row in known.family.rows if ".#" in row.paths[0])
    for target in known.targets.values():
        if target.numbers and not _is_text(target):
            block = target.row.paths[0].split(".#")[0]
            blocks[block, target.numbers] = blocks.get((block, target.numbers), 0) + 1
    return all(count == rows[block] for (block, _), count in blocks.items())


def _is_text(target: Target) -> bool:
    return target.component.startswith("text_encoder")


def _diffusers(family: str, method: str, module: str, target: Target) -> bool:
    if _is_text(target):
        paths = f"{target.component}." == target.prefix and ("text_model" in target.row.paths[0])
        kohya = target.prefix.startswith("lora_te") and family in ("sd", "sdxl", "flux") and "text_model" in target.row.paths[0]
        return paths or kohya
    if target.prefix == "lora_transformer_" and ".attn." not in target.row.paths[0]:
        return False  # its converter of OneTrainer's names knows attention only
    if family == "flux" and target.prefix == "lora_unet_" and "transformer_blocks." not in target.row.paths[0]:
        return False  # its converter of kohya's names gives what is outside the blocks no prefix, and its loader then passes over it
    taken = names.registry()[family].taken.get(target.prefix, ())
    return target.spelling in taken or (target.spelling == "both" and bool(taken))


def _diffusers_wrong(file: _File) -> tuple[str, bool]:
    if others := file.methods - {"lora", "dora"}:
        return f"raises ValueError for {'/'.join(sorted(others))}; {_PLAIN}", True
    if file.has_words and file.family not in ("flux", "chroma"):
        return "raises ValueError for the new word that lies in the file", True
    if file.is_mixed and file.family not in ("flux", "chroma"):
        return "raises for tensors called as kohya does under its own names; `velatura lora convert --to diffusers` calls them as it does", True
    if file.family == "lumina2" and file.scheme == "comfyui" and not file.is_whole:
        return "its converter raises KeyError unless every layer of a block is there; `velatura lora convert --to diffusers` gives it names that load", True
    if file.scheme == "bare" and not file.alphas:
        return "its loader takes names without a prefix only where there is an alpha", True
    if file.axis and not (file.axis == "vector" and file.family not in _SD):
        return "drops or misreads DoRA's lengths: use `velatura lora to-plain`", False
    if len(file.alphas) > 1 and file.family in _SD:
        return "drops alphas that differ by layer (on attention the most common one wins); `velatura lora convert` makes them one", False
    return "", False


def _comfy_wrong(file: _File) -> tuple[str, bool]:
    if file.axis == "vector":
        return "passes over DoRA's lengths in PEFT's names: use `velatura lora to-plain`", False
    if file.axis == "output":
        return "divides DoRA's output axis by ||W|| instead of ||W + dW||: use `velatura lora to-plain`", False
    if file.in_header:
        return "doesn't read the alpha in the header, so the strength is wrong; `velatura lora convert` folds it in", False
    return "", False


_READ_BY_A1111 = frozenset(("lora", "dora", "loha", "lokr", "loha-dora", "lokr-dora", "full", "oft", "oft_blocks"))


def _forge(family: str, method: str, module: str, target: Target) -> bool:
    """Forge's maps are ComfyUI's of its time, without diffusers' names of SD 3."""
    if method == "oft" or (family == "sd3" and target.prefix == "transformer."):
        return False
    return table("comfyui").finds(family, "lora", module)


def _a1111(family: str, method: str, module: str, target: Target) -> bool:
    if family not in _SD or method == "oft":
        return False
    kohya = target.prefix.startswith("lora_te") if _is_text(target) else target.prefix == "lora_unet_"
    return kohya and (_is_text(target) or target.spelling in ("diffusers", "both") or family == "sdxl")


def _a1111_wrong(file: _File) -> tuple[str, bool]:
    return ("takes DoRA's lengths for those of the input axis: use `velatura lora to-plain`", False) if file.axis == "output" else ("", False)


def _invoke_wrong(file: _File) -> tuple[str, bool]:
    if file.axis == "output":
        return "takes DoRA's lengths for those of the input axis: use `velatura lora to-plain`", False
    return ("doesn't read the alpha in the header, so the strength is wrong", False) if file.in_header else ("", False)


def _kohya(family: str, method: str, module: str, target: Target) -> bool:
    if _is_text(target):
        return target.prefix.startswith("lora_te")
    return target.prefix == "lora_unet_" and (target.spelling in ("original", "both") or family in _SD)


def _kohya_wrong(file: _File) -> tuple[str, bool]:
    if not file.methods <= {"lora", "dora"}:
        return f"its own network has no {'/'.join(sorted(file.methods - {'lora', 'dora'}))}: nothing loads, silently; {_PLAIN}", True
    return ("ignores DoRA's lengths: use `velatura lora to-plain`", False) if file.axis else ("", False)
