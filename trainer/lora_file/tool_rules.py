"""What each tool finds in a LoRA file, and what it then gets wrong: alphas, methods and DoRA's axes.

What ComfyUI and InvokeAI find stands in tables that their own code filled (`tables`). diffusers is held by tests
against its own converters and loaders. A1111, Forge and sd-scripts were read, not run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from trainer.lora_file import names
from trainer.lora_file.names import Target
from trainer.lora_file.tables import Table, table

MAKE_PLAIN = "make it a plain LoRA with `velatura lora to-plain`"
_INPUT_AXIS = "takes DoRA's lengths for those of the input axis: use `velatura lora to-plain`"
_SD = ("sd", "sdxl")
_VERSIONS = {"diffusers": "0.42.1", "A1111": "1.10", "Forge": "of June 2025", "kohya": "sd-scripts of February 2026"}
_READ_BY_A1111 = frozenset(("lora", "dora", "loha", "lokr", "loha-dora", "lokr-dora", "full", "oft", "oft_blocks"))

Finds = Callable[[str, str, str, Target], bool]  # (family, method, module, its layer) -> whether the tool finds it


@dataclass(frozen=True)
class FileFacts:
    """What of a file the verdicts depend on."""

    family: str
    scheme: str
    methods: set[str]
    alphas: set[float]  # those of modules that have an alpha, and 0.0 for modules without
    in_header: bool  # the alpha stands in the header, and isn't the rank
    axis: str  # of DoRA: "", "output", "input", or "vector" where it is written as PEFT does
    is_mixed: bool  # tensors as kohya or LyCORIS call them under diffusers' names
    has_words: bool
    is_whole: bool  # has every layer of each block that it touches


@dataclass(frozen=True)
class Tool:
    """What a tool makes of files: the modules that it finds, and what it gets wrong."""

    name: str
    version: str
    families: Collection[str]  # that it has LoRAs for
    finds: Finds
    trouble: Callable[[FileFacts], tuple[str, bool]]  # what it gets wrong, or "", and whether it then loads nothing
    # (family, method, module) -> why it loads nothing of a file with such a module, or "".
    stopped: Callable[[str, str, str], str] = lambda family, method, module: ""
    tried: frozenset[str] | None = None  # families; None: all
    methods: frozenset[str] | None = None  # that were tried; None: all


def tools() -> tuple[Tool, ...]:
    """Every tool that a verdict is given for."""
    comfy, invoke = table("comfyui"), table("invokeai")
    loaded = tuple(name for name, family in names.registry().items() if family.taken)
    return (
        Tool("diffusers", _VERSIONS["diffusers"], loaded, _diffusers_finds, _diffusers_trouble),
        _by_table("ComfyUI", comfy, _comfy_trouble),
        Tool("A1111", _VERSIONS["A1111"], _having("A1111"), _a1111_finds, _a1111_trouble, methods=_READ_BY_A1111),
        Tool("Forge", _VERSIONS["Forge"], _having("Forge"), _forge_finds, _comfy_trouble, methods=_READ_BY_A1111),
        _by_table("InvokeAI", invoke, _invoke_trouble),
        Tool("kohya", _VERSIONS["kohya"], _having("kohya"), _kohya_finds, _kohya_trouble),
    )


def _by_table(name: str, rows: Table, trouble: Callable[[FileFacts], tuple[str, bool]]) -> Tool:
    """A tool whose own code filled a table."""

    def finds(family: str, method: str, module: str, target: Target) -> bool:
        return rows.finds(family, method, module)

    tried = rows.families | rows.lacks
    return Tool(name, rows.version, rows.families, finds, trouble, rows.stopped, tried, rows.methods)


def _having(tool: Literal["A1111", "Forge", "kohya"]) -> tuple[str, ...]:
    """The families that a tool has LoRAs for, by its code as it was read."""
    return tuple(name for name, family in names.registry().items() if tool in family.read_by)


def is_text(target: Target) -> bool:
    """True for a layer of a text encoder."""
    return target.component.startswith("text_encoder")


def _diffusers_finds(family: str, method: str, module: str, target: Target) -> bool:
    if is_text(target):
        is_clip = "text_model" in target.row.paths[0]
        in_own_names = target.prefix == f"{target.component}."
        in_kohyas = target.prefix.startswith("lora_te") and family in ("sd", "sdxl", "flux")
        return is_clip and (in_own_names or in_kohyas)
    if target.prefix == "lora_transformer_" and ".attn." not in target.row.paths[0]:
        return False  # its converter of OneTrainer's names has attention only
    if family == "flux" and target.prefix == "lora_unet_" and "transformer_blocks." not in target.row.paths[0]:
        # Its converter of kohya's names gives what is outside the blocks no prefix, and its loader then ignores it.
        return False
    taken = names.registry()[family].taken.get(target.prefix, ())
    return target.spelling in taken or (target.spelling == "both" and bool(taken))


def _diffusers_trouble(file: FileFacts) -> tuple[str, bool]:
    # What stops it.
    if others := file.methods - {"lora", "dora"}:
        return f"raises ValueError for {'/'.join(sorted(others))}; {MAKE_PLAIN}", True
    if file.has_words and file.family not in ("flux", "chroma"):
        return "raises ValueError for the new word that lies in the file", True
    if file.is_mixed and file.family not in ("flux", "chroma"):
        return (
            "raises for tensors called as kohya does under its own names; `velatura lora convert --to diffusers` "
            "calls them as it does",
            True,
        )
    if file.family == "lumina2" and file.scheme == "comfyui" and not file.is_whole:
        return (
            "its converter raises KeyError unless every layer of a block is there; `velatura lora convert --to "
            "diffusers` gives it names that load",
            True,
        )
    if file.scheme == "bare" and not file.alphas:
        return "its loader takes names without a prefix only where there is an alpha", True
    # What it loads otherwise than the file says.
    if file.axis and not (file.axis == "vector" and file.family not in _SD):
        return "drops or misreads DoRA's lengths: use `velatura lora to-plain`", False
    if len(file.alphas) > 1 and file.family in _SD:
        return (
            "drops alphas that differ by layer (on attention the most common one wins); `velatura lora convert` makes "
            "them one",
            False,
        )
    return "", False


def _comfy_trouble(file: FileFacts) -> tuple[str, bool]:
    if file.axis == "vector":
        return "passes over DoRA's lengths in PEFT's names: use `velatura lora to-plain`", False
    if file.axis == "output":
        return "divides DoRA's output axis by ||W|| instead of ||W + dW||: use `velatura lora to-plain`", False
    if file.in_header:
        return (
            "doesn't read the alpha in the header, so the strength is wrong; `velatura lora convert` folds it in",
            False,
        )
    return "", False


def _forge_finds(family: str, method: str, module: str, target: Target) -> bool:
    """Forge's maps are ComfyUI's of its time, without diffusers' names of SD 3."""
    if method == "oft" or (family == "sd3" and target.prefix == "transformer."):
        return False
    return table("comfyui").finds(family, "lora", module)


def _a1111_finds(family: str, method: str, module: str, target: Target) -> bool:
    """A1111 has kohya's names for the UNets alone, OFT only in the old spelling (`oft_blocks`)."""
    if family not in _SD or method == "oft":
        return False
    kohya = target.prefix.startswith("lora_te") if is_text(target) else target.prefix == "lora_unet_"
    return kohya and (is_text(target) or target.spelling in ("diffusers", "both") or family == "sdxl")


def _a1111_trouble(file: FileFacts) -> tuple[str, bool]:
    if file.axis == "output":
        return _INPUT_AXIS, False
    return "", False


def _invoke_trouble(file: FileFacts) -> tuple[str, bool]:
    if file.axis == "output":
        return _INPUT_AXIS, False
    if file.in_header:
        return "doesn't read the alpha in the header, so the strength is wrong", False
    return "", False


def _kohya_finds(family: str, method: str, module: str, target: Target) -> bool:
    if is_text(target):
        return target.prefix.startswith("lora_te")
    return target.prefix == "lora_unet_" and (target.spelling in ("original", "both") or family in _SD)


def _kohya_trouble(file: FileFacts) -> tuple[str, bool]:
    if not file.methods <= {"lora", "dora"}:
        return (
            f"its own network has no {'/'.join(sorted(file.methods - {'lora', 'dora'}))}: nothing loads, silently; "
            f"{MAKE_PLAIN}",
            True,
        )
    if file.axis:
        return "ignores DoRA's lengths: use `velatura lora to-plain`", False
    return "", False
