"""How a family's layers are called, row by row: the first code's name, diffusers' path or paths, and the sizes.

"The first code" is the one that a model was published with. A `#` is any number, the same one on both sides, so one row
names a layer in every block and at any depth. So names with underscores are read exactly: kohya's
`double_blocks_7_img_attn_qkv` is looked up as `double_blocks_#_img_attn_qkv`, and where the dots were is never guessed.

Sizes are symbols (`D`, `3D`, `64`), and each published model of a family gives them values. Shapes so tell families
apart that share names, and a small random model of the family is still named right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

_NUMBER = re.compile(r"\d+|#")
_AMOUNT = re.compile(r"(\d*)([A-Z]?)$")

Spelling = Literal["original", "diffusers", "both", "alias"]


@dataclass(frozen=True)
class Row:
    """A layer, or several that the first code keeps in one weight, stacked along the outputs."""

    original: str
    paths: tuple[str, ...]  # diffusers'
    outs: tuple[str, ...]  # outputs of each path; `A|B` where blocks differ
    into: str  # inputs, a convolution's kernel counted in
    swapped: bool  # shift and scale, the two halves of the outputs, change places between the two
    aliases: tuple[str, ...]  # other names of all of it


def row(original: str, paths: str, shape: str, *aliases: str, swapped: bool = False) -> Row:
    """A row from short texts, as in `row("b.#.qkv", "t.#.to_q .to_k .to_v", "D D D < D")`.

    A path that starts with a dot lies beside the first one. The shape is outputs of each path < inputs. An empty
    `original` is diffusers' own name.
    """
    first, *others = paths.split()
    parent = first.rpartition(".")[0]
    outs, _, into = shape.partition("<")
    whole = (first, *(parent + other if other.startswith(".") else other for other in others))
    return Row(original or first, whole, tuple(outs.split()), into.strip(), swapped, aliases)


@dataclass(frozen=True)
class Size:
    """A published model of a family: the values of the symbols, and how many blocks each list of blocks has."""

    name: str
    values: Mapping[str, int]
    # Name of a list of blocks, in diffusers' spelling -> its length.
    depths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a family: the attribute of the pipeline, kohya's prefixes, ComfyUI's, and its layers."""

    component: str
    kohya: tuple[str, ...]
    comfy: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Family:
    """What is known of a family's names. `kohya` says whose spelling stands behind `lora_unet_`."""

    name: str
    title: str
    component: Literal["unet", "transformer"]
    rows: tuple[Row, ...]
    sizes: tuple[Size, ...]
    texts: tuple[TextEncoder, ...]
    kohya: Literal["original", "diffusers"]
    default: Literal["kohya", "diffusers", "comfyui"]  # what is written unless another scheme is asked for
    versions: tuple[str, ...]  # starts of `ss_base_model_version` and `modelspec.architecture`
    architecture: str  # `modelspec.architecture` that is written
    base_version: str  # `ss_base_model_version` that is written
    bare: bool = False  # files without any prefix are usual
    rarity: int = 0  # of families that fit equally well, that with the least is taken
    loader: str = ""  # diffusers' class for its LoRAs, `LoraLoaderMixin` left out; empty where it has none
    # Prefixes that this loader takes, and whose spelling behind them.
    taken: Mapping[str, tuple[Spelling, ...]] = field(default_factory=dict)
    # Of the tools whose code was read, not run, those that have LoRAs of this family.
    read_by: tuple[Literal["A1111", "Forge", "kohya"], ...] = ()
    xlabs: bool = False  # True where XLabs has names for it


def numbered(template: str) -> tuple[str, tuple[int | None, ...]]:
    """A name with every number taken out, and the numbers; `#` is None."""
    return _NUMBER.sub("#", template), tuple(
        None if digits == "#" else int(digits) for digits in _NUMBER.findall(template)
    )


def filled(template: str, numbers: tuple[int, ...]) -> str:
    """The template with each `#` replaced by the next of the numbers."""
    parts = template.split("#")
    return parts[0] + "".join(f"{number}{part}" for number, part in zip(numbers, parts[1:], strict=True))


def amounts(text: str, values: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers that `3D`, `64` or `6D|9D` may be; empty if a symbol has no value."""
    numbers = []
    for amount in text.split("|"):
        match = _AMOUNT.match(amount)
        assert match, text
        if match[2] and match[2] not in values:
            return ()
        numbers.append(int(match[1] or 1) * (values[match[2]] if match[2] else 1))
    return tuple(numbers)


def heights(layer: Row, out: int, into: int) -> tuple[int, ...] | None:
    """How many outputs each path has in a weight of (out, into) of any size; None if that can't be told."""
    if len(layer.paths) == 1:
        return (out,)
    # The inputs give one symbol its value, which tells most of the outputs.
    values = {layer.into: into} if layer.into.isalpha() else {}
    given = [amounts(text, values)[:1] for text in layer.outs]
    remaining = out - sum(sum(amount) for amount in given)
    unknown = {text for text, amount in zip(layer.outs, given, strict=True) if not amount}
    num_unknown = sum(not amount for amount in given)
    # What remains is shared equally by the outputs that aren't known, if all of them are one symbol.
    if remaining < 0 or (not num_unknown and remaining) or len(unknown) > 1:
        return None
    if num_unknown and (remaining % num_unknown or not remaining):
        return None
    return tuple(amount[0] if amount else remaining // num_unknown for amount in given)


def clip(width: str, hidden: str, projection: str | None = None) -> tuple[Row, ...]:
    """Rows of a CLIP text encoder."""
    rows = [
        row("", f"text_model.encoder.layers.#.self_attn.{part}_proj", f"{width} < {width}")
        for part in ("q", "k", "v", "out")
    ]
    rows += [
        row("", "text_model.encoder.layers.#.mlp.fc1", f"{hidden} < {width}"),
        row("", "text_model.encoder.layers.#.mlp.fc2", f"{width} < {hidden}"),
    ]
    return (*rows, row("", "text_projection", f"{projection} < {width}")) if projection else tuple(rows)


def t5(width: str, inner: str, hidden: str) -> tuple[Row, ...]:
    """Rows of a T5 encoder with a gated feed-forward."""
    rows = [row("", f"encoder.block.#.layer.0.SelfAttention.{part}", f"{inner} < {width}") for part in "qkv"]
    rows += [row("", "encoder.block.#.layer.0.SelfAttention.o", f"{width} < {inner}")]
    rows += [row("", f"encoder.block.#.layer.1.DenseReluDense.wi_{part}", f"{hidden} < {width}") for part in "01"]
    return (*rows, row("", "encoder.block.#.layer.1.DenseReluDense.wo", f"{width} < {hidden}"))


def llama(prefix: str = "layers") -> tuple[Row, ...]:
    """Rows of a language model of LLaMA's layout, as text encoders of newer families are; sizes are not told apart."""
    rows = [row("", f"{prefix}.#.self_attn.{part}_proj", "W < V") for part in "qkvo"]
    return (*rows, *(row("", f"{prefix}.#.mlp.{part}_proj", "W < V") for part in ("gate", "up", "down")))


def spellings(layer: Row) -> Iterator[tuple[str, Spelling, int | None]]:
    """Every name of this row: template, whose spelling it is, and which of the paths (None: all together)."""
    same = len(layer.paths) == 1 and layer.original == layer.paths[0]
    yield layer.original, "both" if same else "original", None
    if not same:
        for number, path in enumerate(layer.paths):
            yield path, "diffusers", number if len(layer.paths) > 1 else None
    for alias in layer.aliases:
        yield alias, "alias", None
