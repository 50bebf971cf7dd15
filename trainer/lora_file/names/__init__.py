"""What the modules of a LoRA file are: its scheme, its family, and each module's path in diffusers' spelling.

Names and shapes alone tell. There is one file a family (`FAMILY`, rows of names); a new file here is a family whose
files are known by name, whether or not it can be trained. A module's name in a file is a prefix that shows the scheme
(`lora_unet_`, `transformer.` ...), and the rest, which is looked up in every family's rows. Most names decide alone.
Where families share names (FLUX.1, Chroma and FLUX.2; Stable Diffusion 1 and 2) shapes decide, then the header, then
what the family's trainers usually write. Families that can't be told apart are reported as rivals.

These rows are for reading. The names that a file is written with come from the model itself (a family's `file_keys` and
`file_names`, asked by `trainer/export.py`), so a family can be trained whose files nobody has named yet.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from trainer.lora_file.names.rows import (
    Family,
    Row,
    Size,
    Spelling,
    TextEncoder,
    amounts,
    filled,
    heights,
    numbered,
    spellings,
)

Shape = tuple[int, int] | None  # outputs and inputs, a convolution's kernel laid flat
HEADER_KEYS = ("ss_base_model_version", "modelspec.architecture")  # the header's keys that are read
# Prefix of a denoiser's module -> scheme. The first that fits counts, so longer names stand before their beginnings.
_DENOISER = {
    "lora_unet_": "kohya", "lora_transformer_": "onetrainer", "lycoris_unet_": "lycoris", "lycoris_": "lycoris",
    "model.diffusion_model.": "comfyui", "diffusion_model.": "comfyui",
    "unet.base_model.model.": "peft", "transformer.base_model.model.": "peft",
    "base_model.model.diffusion_model.": "peft", "base_model.model.": "peft",
    "unet.": "diffusers", "transformer.": "diffusers", "": "bare",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What of a model a module of a file is: one layer, or several that the file keeps in one weight."""

    component: str
    row: Row
    numbers: tuple[int, ...]
    part: int | None  # one of the row's paths; None for all together
    spelling: Spelling
    prefix: str

    @property
    def paths(self) -> tuple[str, ...]:
        """`component.module.path` of each layer."""
        chosen = self.row.paths if self.part is None else (self.row.paths[self.part],)
        return tuple(f"{self.component}.{filled(path, self.numbers)}" for path in chosen)

    def swaps(self, out: int, into: int) -> bool:
        """Whether the first code has shift and scale in the other order than diffusers, in a weight of (out, into).

        Only modulations of these two parts are so, which have twice as many outputs as inputs.
        """
        return self.row.swapped and out == 2 * into

    def parts(self, out: int, into: int) -> tuple[int, ...] | None:
        """How many outputs each layer has, in a weight of (out, into); None if that can't be told."""
        return (out,) if self.part is not None else heights(self.row, out, into)

    def fits(self, shape: Shape, size: Size) -> bool | None:
        """Whether a weight of this shape belongs to a model of this size; None if either isn't known."""
        # A block's number beyond the model's depth.
        block = filled(self.row.paths[0], self.numbers).split(".")
        if len(block) > 1 and block[1].isdecimal() and int(block[1]) >= size.depths.get(block[0], 1 << 30):
            return False
        if shape is None:
            return None
        # Outputs and inputs, as far as the size has values for them.
        texts = self.row.outs if self.part is None else (self.row.outs[self.part],)
        outs, into = [amounts(text, size.values) for text in texts], amounts(self.row.into, size.values)
        if not into or not all(outs):
            return None
        return shape[1] in into and (shape[0] in outs[0] if len(outs) == 1 else shape[0] == sum(out[0] for out in outs))


@dataclass(frozen=True)
class Named:
    """What a file's modules are.

    `unknown` are those that the family has no layer for; `rivals` are families that fit as well.
    """

    scheme: str
    family: Family | None
    size: str  # the published model that fits, or empty
    targets: dict[str, Target]
    unknown: tuple[str, ...]
    rivals: tuple[str, ...]


@cache
def registry() -> dict[str, Family]:
    """Every family's names, by its name."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return {module.FAMILY.name: module.FAMILY for module in modules if hasattr(module, "FAMILY")}


# The numbers in a template (None for `#`), the template, its row, which of the row's paths, and whose spelling it is.
_Entry = tuple[tuple[int | None, ...], str, Row, int | None, Spelling]


@cache
def _index(family: str) -> dict[tuple[str, str], list[_Entry]]:
    """What a family's names stand for, by (component, name with `#` for numbers and `_` for dots)."""
    own = registry()[family]
    index: dict[tuple[str, str], list[_Entry]] = {}
    for component, rows in [(own.component, own.rows), *((text.component, text.rows) for text in own.texts)]:
        for layer in rows:
            for template, spelling, part in spellings(layer):
                # transformers >= 5.6 has no `text_model.` in its own paths; files have it or not.
                for plain in (template, template.removeprefix("text_model.")):
                    skeleton, numbers = numbered(plain)
                    index.setdefault((component, skeleton.replace(".", "_")), []).append(
                        (numbers, plain, layer, part, spelling)
                    )
    return index


def look_up(family: Family, component: str, name: str, prefix: str = "") -> Target | None:
    """The layer of a family that is called so, in any spelling, with dots or underscores."""
    skeleton, numbers = numbered(name)
    dotted = "." in name
    for fixed, template, layer, part, spelling in _index(family.name).get((component, skeleton.replace(".", "_")), ()):
        if len(fixed) != len(numbers):
            continue
        pairs = list(zip(fixed, numbers, strict=True))
        if not all(wanted is None or wanted == number for wanted, number in pairs):
            continue
        free = tuple(number for wanted, number in pairs if wanted is None and number is not None)
        # With dots a name must be spelled exactly; with underscores where the dots were is lost.
        if not dotted or name == filled(template, free):
            return Target(component, layer, free, part, spelling, prefix)
    return None


def _in_text(family: Family, module: str) -> tuple[TextEncoder, str, str] | None:
    """The text encoder that a module belongs to, its prefix there and its name; None for one of the denoiser."""
    for text in family.texts:
        prefixes = [
            *(f"{prefix}_" for prefix in text.kohya),
            f"{text.component}.base_model.model.",
            f"{text.component}.",
            f"text_encoders.{text.comfy}.transformer.",
            f"text_encoders.{text.comfy}.",
        ]
        for prefix in prefixes:
            if module.startswith(prefix):
                return text, prefix, module.removeprefix(prefix)
    return None


def find(family: Family, module: str) -> tuple[Target | None, str]:
    """What a module of a file is in this family, and the scheme that its prefix says."""
    # A text encoder's.
    text = _in_text(family, module)
    if text:
        encoder, prefix, name = text
        scheme = "diffusers"
        if prefix.startswith("lora_te"):
            scheme = "kohya"
        elif prefix.startswith("text_encoders."):
            scheme = "comfyui"
        return look_up(family, encoder.component, name, prefix), scheme
    # The denoiser's.
    for prefix, scheme in _DENOISER.items():
        if module.startswith(prefix):
            name = module.removeprefix(prefix).replace(".processor.", ".") if scheme != "bare" else module
            target = look_up(family, family.component, name, prefix)
            if target is None and scheme in ("diffusers", "bare"):  # old diffusers: `attn1.processor.to_out_lora`
                name = name.replace(".processor.", ".")
                target = look_up(family, family.component, name, prefix) or look_up(
                    family, family.component, f"{name}.0", prefix
                )
            # Three schemes have no prefix.
            if target is not None and scheme == "bare":
                scheme = "xlabs" if ".processor." in module else "bfl" if target.spelling == "original" else "bare"
            if target is not None or scheme != "bare":
                return target, scheme
    return None, "unknown"


def identify(shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None) -> Named:
    """Scheme and family of a file's modules, `{module as the file spells it: shape of the weight it is for}`."""
    stated = " ".join((metadata or {}).get(key, "") for key in HEADER_KEYS).lower().split()
    # Some modules are enough to leave most families out, which is several times as fast as judging all.
    sample = list(shapes)[:: len(shapes) // 8 + 1]
    likely = [family for family in registry().values() if any(find(family, module)[0] for module in sample)]
    judged = [_judge(family, shapes, stated) for family in likely or registry().values()]
    best = max(judged, key=lambda verdict: verdict[0])
    rank, _, size, targets, schemes = best
    family = best[1] if targets else None
    # Rivals fit as well by names and shapes, which are the first two numbers.
    rivals = (
        tuple(other[1].name for other in judged if other is not best and other[0][:2] == rank[:2]) if family else ()
    )
    scheme = "+".join(sorted(schemes - {"unknown"})) or "unknown"
    unknown = tuple(module for module in shapes if module not in targets)
    return Named(scheme, family, size, targets, unknown, rivals)


# How well a family fits, the family, its size, and the modules' layers and schemes in it.
_Judged = tuple[tuple[float, float, bool, int, int], Family, str, dict[str, Target], set[str]]


def _judge(family: Family, shapes: Mapping[str, Shape], stated: list[str]) -> _Judged:
    """How well a family fits, and what it makes of the modules.

    In order of weight: the share of modules that have a name, the share that fits its best size, whether the header
    names it, how many names its trainers usually write, and how common it is.
    """
    # Names.
    targets, schemes = {}, set()
    for module in shapes:
        target, scheme = find(family, module)
        schemes.add(scheme)
        if target is not None:
            targets[module] = target
    # Shapes.
    best_share, size = 0.0, ""
    for candidate in family.sizes if targets else ():
        verdicts = [target.fits(shapes[module], candidate) for module, target in targets.items()]
        share = sum(verdict is True for verdict in verdicts) / len(verdicts)
        if share > best_share:
            best_share, size = share, candidate.name if False not in verdicts else ""
    # The header, and habit.
    num_usual = sum(_usual(family, target) for target in targets.values())
    is_stated = any(word.startswith(version) for word in stated for version in family.versions)
    rank = (len(targets) / max(1, len(shapes)), best_share, is_stated, num_usual, -family.rarity)
    return rank, family, size, targets, schemes


def _usual(family: Family, target: Target) -> bool:
    """Whether trainers of this family write names like this."""
    if target.prefix == "lora_unet_":
        return target.spelling in ("both", family.kohya)
    return target.prefix != "" or family.bare or target.spelling in ("original", "alias")
