"""Where a LoRA file loads and where not, and why: the other tools' name maps and what they make of alphas, methods and DoRA's axes.

Measured on diffusers 0.42, ComfyUI, A1111, Forge, InvokeAI and sd-scripts as of 2026 (running their code, or reading it where they don't run
without their models). A module counts as loaded only if that tool finds it by name; what it then computes wrongly is said as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trainer.lora_file.names import Named, Target

if TYPE_CHECKING:
    from trainer.lora_file.reading import Module

_SD = ("sd", "sdxl")
_KOHYA_FAMILIES = ("sd", "sdxl", "sd3", "flux", "chroma", "lumina2", "anima")
_INVOKE_FAMILIES = ("sd", "sdxl", "flux", "flux2", "anima", "krea2", "qwen", "zimage")
# Families whose files ComfyUI finds under diffusers' paths, by prefix.
_COMFY = {
    "transformer.": ("sd3", "flux", "chroma", "flux2", "auraflow", "pixart", "hidream", "qwen", "krea2", "zimage", "lumina2"),
    "lycoris_": ("sd", "sdxl", "sd3", "flux", "chroma", "flux2", "hidream", "qwen", "krea2", "zimage", "lumina2"),
    "lora_transformer_": ("sd3", "flux", "chroma", "flux2"),
    "base_model.model.": ("sd3", "pixart"),
    "unet.base_model.model.": ("pixart",),
    "diffusion_model.": ("krea2", "zimage", "lumina2"),
    "": ("flux", "chroma", "flux2", "qwen", "krea2", "zimage", "lumina2"),
}
# Prefixes that diffusers' loader of a family takes, and whose spelling behind them.
_DIFFUSERS: dict[str, dict[str, tuple[str, ...]]] = {
    "sd": {"unet.": ("diffusers",), "lora_unet_": ("diffusers",)},
    "sdxl": {"unet.": ("diffusers",), "lora_unet_": ("original", "diffusers")},
    "sd3": {"transformer.": ("diffusers",)},
    "flux": {"transformer.": ("diffusers",), "lora_unet_": ("original",), "lora_transformer_": ("diffusers",), "": ("alias",)},
    "chroma": {"transformer.": ("diffusers",), "lora_unet_": ("original",)},
    "flux2": {"transformer.": ("diffusers",), "lora_unet_": ("original",), "diffusion_model.": ("original", "diffusers"),
              "base_model.model.": ("original", "diffusers")},
    "qwen": {"transformer.": ("diffusers",), "lora_unet_": ("diffusers",), "diffusion_model.": ("diffusers",), "": ("diffusers",)},
    "zimage": {"transformer.": ("diffusers",), "lora_unet_": ("original", "diffusers"), "diffusion_model.": ("diffusers",)},
    "wan": {"transformer.": ("diffusers",), "lora_unet_": ("original",), "diffusion_model.": ("original",)},
    "lumina2": {"transformer.": ("diffusers",), "diffusion_model.": ("original",)},
    "krea2": {"transformer.": ("diffusers",), "diffusion_model.": ("original",), "base_model.model.": ("original",)},
    "anima": {"transformer.": ("diffusers",), "diffusion_model.": ("original",)},
    "hidream": {"transformer.": ("diffusers",), "diffusion_model.": ("diffusers",)},
    "sana": {"transformer.": ("diffusers",)}, "auraflow": {"transformer.": ("diffusers",)}, "pixart": {},
}  # fmt: skip

Verdict = Literal["yes", "partly", "wrong", "no"]
Finds = Callable[[str, Target], bool]


@dataclass(frozen=True)
class Place:
    """What a tool makes of a file: how many of its modules it finds, and whether it then does what the file says."""

    tool: str
    verdict: Verdict
    loads: int
    of: int
    why: str


@dataclass(frozen=True)
class _File:
    """What the verdicts depend on."""

    family: str
    scheme: str
    methods: set[str]
    alphas: set[float]  # those of modules that have one, and 0.0 for those that have none
    in_header: bool  # the alpha stands in the header, and isn't the rank
    axis: str  # of DoRA: "", "output" or "input"
    extras: bool


def where(known: Named, found: Mapping[str, Module]) -> tuple[Place, ...]:
    """A verdict for each tool; none for a file whose family isn't known."""
    if known.family is None:
        return ()
    file = _file(known.family.name, known.scheme, found)
    tools: dict[str, tuple[Finds, Callable[[_File], tuple[str, bool]]]] = {
        "diffusers": (_diffusers, _diffusers_wrong), "ComfyUI": (_comfy, _comfy_wrong), "A1111": (_a1111, _a1111_wrong), "Forge": (_forge, _comfy_wrong),
        "InvokeAI": (_invoke, _invoke_wrong), "kohya": (_kohya, _kohya_wrong),
    }  # fmt: skip
    return tuple(_place(tool, known, file, finds, wrong, len(found)) for tool, (finds, wrong) in tools.items())


def _place(tool: str, known: Named, file: _File, finds: Finds, wrong: Callable[[_File], tuple[str, bool]], num: int) -> Place:
    missing = [module for module, target in known.targets.items() if not finds(file.family, target)]
    loads = num - len(missing) - len(known.unknown)
    trouble, stops = wrong(file)
    if not loads:
        return Place(tool, "no", 0, num, _why_none(tool, known, file.family))
    if stops:
        return Place(tool, "no", 0, num, trouble)
    if loads < num:
        first = (missing + list(known.unknown))[0]
        return Place(
            tool,
            "partly",
            loads,
            num,
            f"doesn't know {first} and {num - loads - 1} more; its picture silently lacks them" + (f"; {trouble}" if trouble else ""),
        )
    return Place(tool, "wrong" if trouble else "yes", loads, num, trouble)


def _why_none(tool: str, known: Named, family: str) -> str:
    assert known.family
    offered = {"A1111": _SD, "Forge": (*_SD, "sd3", "flux", "chroma"), "InvokeAI": _INVOKE_FAMILIES, "kohya": _KOHYA_FAMILIES}
    if family not in offered.get(tool, (family,)) or (tool == "ComfyUI" and family == "sana") or (tool == "diffusers" and not _DIFFUSERS[family]):
        return f"has no LoRAs for {known.family.title}"
    return f"its name map has no {known.scheme} names for {known.family.title}; convert the file to {_advice(tool, known.family.default)} names"


def _advice(tool: str, default: str) -> str:
    return "diffusers" if tool == "diffusers" and default == "diffusers" else "kohya" if tool in ("A1111", "kohya") else default


def _file(family: str, scheme: str, found: Mapping[str, Module]) -> _File:
    lengths = [one.parts[suffix] for one in found.values() for suffix in one.parts if suffix.startswith(("dora_scale", "lora_magnitude_vector"))]
    axis = "" if not lengths else "input" if lengths[0].ndim > 1 and lengths[0].shape[0] == 1 < lengths[0].shape[1] else "output"
    in_header = any("alpha" not in one.parts and one.alpha is not None and one.update is not None and one.alpha != one.update.rank for one in found.values())
    return _File(
        family, scheme, {one.method for one in found.values()}, {one.alpha or 0.0 for one in found.values() if "alpha" in one.parts}, in_header, axis,
        any(one.extras for one in found.values()),
    )  # fmt: skip


def _is_text(target: Target) -> bool:
    return target.component.startswith("text_encoder")


def _diffusers(family: str, target: Target) -> bool:
    if _is_text(target):
        paths = f"{target.component}." == target.prefix and ("text_model" in target.row.paths[0])
        kohya = target.prefix.startswith("lora_te") and family in ("sd", "sdxl", "flux") and "text_model" in target.row.paths[0]
        return paths or kohya
    if target.prefix == "lora_transformer_" and ".attn." not in target.row.paths[0]:
        return False  # its converter of OneTrainer's names knows attention only
    if family == "flux" and target.prefix == "lora_unet_" and "transformer_blocks." not in target.row.paths[0]:
        return False  # its converter of kohya's names gives what is outside the blocks no prefix, and its loader then passes over it
    taken = _DIFFUSERS.get(family, {}).get(target.prefix, ())
    return target.spelling in taken or (target.spelling == "both" and bool(taken))


def _diffusers_wrong(file: _File) -> tuple[str, bool]:
    if file.methods & {"loha", "lokr", "oft", "full", "loha-dora", "lokr-dora"} and file.family not in ("flux2", "zimage"):
        return f"raises ValueError for {'/'.join(sorted(file.methods))}; make it a plain LoRA with `velatura lora to-plain`", True
    if file.scheme == "bare" and not file.alphas:
        return "its loader takes names without a prefix only where there is an alpha", True
    if file.axis:
        return "drops or misreads DoRA's lengths: use `velatura lora to-plain`", False
    if len(file.alphas) > 1 and file.family in _SD:
        return "drops alphas that differ by layer (on attention the most common one wins); `velatura lora convert` makes them one", False
    return "", False


def _comfy(family: str, target: Target) -> bool:
    if family == "sana":
        return False
    name = target.row.paths[target.part or 0]
    if _is_text(target):
        prefix = target.prefix
        return (prefix.startswith(("lora_te", "text_encoders.")) or f"{target.component}." == prefix) and (
            "text_model" in name or not prefix.startswith("text_encoder.")
        )
    original = target.spelling in ("original", "both")
    if target.prefix in ("lora_unet_", "diffusion_model.", "model.diffusion_model.") and original:
        return True
    if target.prefix == "lora_unet_" or target.prefix == "unet.":
        # Only the spelling of before 2023 is known for attention: `attn1.processor.to_q`.
        return family in _SD and (target.prefix == "lora_unet_" or ".attn" not in name)
    return family in _COMFY.get(target.prefix.replace("lycoris_unet_", "lycoris_"), ()) and target.spelling in ("diffusers", "both")


def _comfy_wrong(file: _File) -> tuple[str, bool]:
    if file.axis == "output":
        return "divides DoRA's output axis by ||W|| instead of ||W + dW||: use `velatura lora to-plain`", False
    if file.in_header:
        return "doesn't read the alpha in the header, so the strength is wrong; `velatura lora convert` folds it in", False
    return "", False


def _forge(family: str, target: Target) -> bool:
    if family not in (*_SD, "sd3", "flux", "chroma") or (family == "sd3" and target.prefix == "transformer."):
        return False
    return _comfy(family, target)


def _a1111(family: str, target: Target) -> bool:
    if family not in _SD:
        return False
    kohya = target.prefix.startswith("lora_te") if _is_text(target) else target.prefix == "lora_unet_"
    return kohya and (_is_text(target) or target.spelling in ("diffusers", "both") or family == "sdxl")


def _a1111_wrong(file: _File) -> tuple[str, bool]:
    return ("takes DoRA's lengths for those of the input axis: use `velatura lora to-plain`", False) if file.axis == "output" else ("", False)


def _invoke(family: str, target: Target) -> bool:
    if family in _SD:
        return _a1111(family, target)
    return family in _INVOKE_FAMILIES and (not _is_text(target) or target.prefix.startswith("lora_te"))


def _invoke_wrong(file: _File) -> tuple[str, bool]:
    if file.axis == "output":
        return "takes DoRA's lengths for those of the input axis: use `velatura lora to-plain`", False
    return ("doesn't read the alpha in the header, so the strength is wrong", False) if file.in_header else ("", False)


def _kohya(family: str, target: Target) -> bool:
    if family not in _KOHYA_FAMILIES:
        return False
    if _is_text(target):
        return target.prefix.startswith("lora_te")
    return target.prefix == "lora_unet_" and (target.spelling in ("original", "both") or family in _SD)


def _kohya_wrong(file: _File) -> tuple[str, bool]:
    if not file.methods <= {"lora", "dora"}:
        return f"its own network has no {'/'.join(sorted(file.methods - {'lora', 'dora'}))}: nothing loads, silently", True
    return ("ignores DoRA's lengths: use `velatura lora to-plain`", False) if file.axis else ("", False)
