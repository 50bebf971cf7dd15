"""The base of every settings model, and how a field says its label, help and bounds once for the CLI, UI and docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import reduce
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


MOST_LINES = 256  # of a setting about single layers
SET = "set"  # in `only_with`: any value that isn't empty or zero
# By dotted setting, or a fact such as `prediction`: the values with which the setting is read, or SET.
OnlyWith = dict[str, Any]
# What a path-valued setting names, and so what the page looks it up among.
PathKind = Literal["dataset", "lora", "loras", "base", "mask", "start", "run"]


def setting(
    default: Any,
    label: str,
    help: str,
    *,
    advanced: bool = False,
    only_with: OnlyWith | None = None,
    path: PathKind | None = None,
    **bounds: Any,
) -> Any:
    """A pydantic field with its label and help; `advanced` fields are folded away in the UI.

    `path` says that its value is opened, and as what: the page lets only such through as the server offers.
    `only_with` says when it is read at all: if any of those settings has one of those values. `bounds` are pydantic's
    own (`ge`, `le`, `gt`, `max_length`, `multiple_of`), forwarded whole.
    """
    # What pydantic has no place for travels in the schema's free part, where the page and the docs read it.
    extra: dict[str, Any] = {"advanced": advanced, "only_with": only_with or {}, "path": path or ""}
    return Field(default, title=label, description=help, json_schema_extra=extra, **bounds)


def path_kind(field: FieldInfo) -> str:
    """What a path-valued setting names, "" for any other."""
    extra = field.json_schema_extra
    return str(extra.get("path") or "") if isinstance(extra, dict) else ""


def unread(config: Settings, facts: dict[str, tuple[str, ...]]) -> list[str]:
    """A sentence for each setting that was changed though nothing would read it.

    `facts` are what the family or base offers, such as `{"prediction": ("epsilon", "v")}`; a condition on a fact that
    isn't among them is not judged.
    """
    return [
        problem for name, value, field in _leaves(config) if (problem := _unread(name, value, field, config, facts))
    ]


def unread_defaults(config: Settings, facts: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """The same settings, by dotted name, each with its default."""
    leaves = list(_leaves(config))
    return {name: field.default for name, value, field in leaves if _unread(name, value, field, config, facts)}


def _unread(name: str, value: Any, field: FieldInfo, config: Settings, facts: dict[str, tuple[str, ...]]) -> str | None:
    """A sentence if a setting was changed though nothing would read it."""
    extra = field.json_schema_extra
    conditions: OnlyWith = dict(extra.get("only_with", {})) if isinstance(extra, dict) else {}  # type: ignore[arg-type]
    if not conditions or field.is_required() or value == field.default:
        return None

    # One condition that holds is enough; of the others it is said why not.
    why = []
    for key, allowed in conditions.items():
        if key in facts:  # of the family or base
            if set(facts[key]) & set(allowed):
                return None
            why.append(f"{key} is {' or '.join(facts[key])}; it is for {' or '.join(allowed)}")
        elif "." not in key:  # a fact that isn't known here
            return None
        else:
            current: Any = reduce(lambda group, part: getattr(group, part, None), key.split("."), config)  # type: ignore[arg-type, return-value]
            if current if allowed == SET else current in allowed:
                return None
            wanted = "set" if allowed == SET else " or ".join(map(repr, allowed))
            why.append(f"{key} is {current!r}; it is for {key} {wanted}")
    return f"{name} is {value!r}, but nothing would read it: {', and '.join(why)}."


def _leaves(config: Settings, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """Every setting in every section: its dotted name, its value and its field."""
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if isinstance(value, Settings):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value, field


# Settings that several adapter methods share.


def rank_setting(default: int = 8) -> Any:
    """Inner size of a low-rank update."""
    return setting(default, "Rank", "Inner size of the update; 8-32 for a style, 16-64 for a person.", ge=1, le=256)


def alpha_setting(default: float = 8.0) -> Any:
    """Numerator of the update's scale."""
    return setting(
        default, "Alpha", "The update is scaled by alpha / rank; equal to the rank means unscaled.", gt=0, le=1024
    )


def targets_setting() -> Any:
    """Which layers are adapted; the field's type lists what a method can adapt."""
    return setting(
        "attention",
        "Targets",
        "Which layers get an update: attention is the usual; all adds feed-forward and convolutions and learns (and "
        "over-trains) faster.",
    )


def dropout_setting(what: str) -> Any:
    """Share of the adapter that is left out at random while training."""
    return setting(
        0.0,
        "Dropout",
        f"Share of {what} left out at random while training, against over-training; 0 is off, 0.1 is usual.",
        ge=0,
        le=0.9,
        advanced=True,
    )


def text_encoder_setting() -> Any:
    """Whether the text encoder is adapted too."""
    return setting(
        False,
        "Text encoder",
        "Also adapt the text encoder's attention and feed-forward; helps with a new name, costs time and some "
        "obedience.",
        advanced=True,
    )


def only_layers_setting() -> Any:
    """Layers that alone are adapted."""
    return setting(
        (),
        "Only layers",
        "Of the targets, only layers whose path has one of these texts; * is any text, as in up_blocks.*attn2; one a "
        "line.",
        max_length=MOST_LINES,
        advanced=True,
    )


def without_layers_setting() -> Any:
    """Layers that are not adapted."""
    return setting(
        (),
        "Without layers",
        "Of the targets, no layer whose path has one of these texts; * is any text; one a line.",
        max_length=MOST_LINES,
        advanced=True,
    )


def block_ranks_setting() -> Any:
    """Ranks of single blocks."""
    return setting(
        (),
        "Block ranks",
        "up_blocks.1=16 gives layers whose path has that text another rank at the same scale; * is any text; one a "
        "line, the first that fits counts.",
        max_length=MOST_LINES,
        advanced=True,
    )


_MOST_STARS = 3  # of a line of ranks, which PEFT matches as a regular expression
_LAYER_TEXT = re.compile(r"[A-Za-z0-9._*/-]{1,200}")


def parse_ranks(lines: tuple[str, ...]) -> dict[str, int]:
    """`("up_blocks.1=16",)` -> `{"up_blocks.1": 16}`. Raises: ValueError in words."""
    ranks = {}
    for line in lines:
        text, equals, rank = (part.strip() for part in line.rpartition("="))
        can_be = equals and text and rank.isdecimal() and len(rank) <= 3 and 1 <= int(rank) <= 256
        if not can_be or text.count("*") > _MOST_STARS:
            raise ValueError(
                f"adapter.block_ranks has {line[:80]!r}; allowed: PATH=RANK with a rank of 1 to 256 and up to "
                f"{_MOST_STARS} of * for any text, such as up_blocks.1=16."
            )
        ranks[text] = int(rank)
    return ranks


def _readable_ranks(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines, if each can be read. Raises: ValueError."""
    parse_ranks(lines)
    return lines


BlockRanks = Annotated[tuple[str, ...], pydantic.AfterValidator(_readable_ranks)]


def _readable_layers(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines, if each is a text that a path may have. Raises: ValueError."""
    for line in lines:
        if not _LAYER_TEXT.fullmatch(line.strip()) or not line.strip("* "):
            raise ValueError(
                f"a line of layers is {line[:80]!r}; allowed: up to 200 of letters, digits, dots, _, - and /, with * "
                f"for any text, such as up_blocks.*attn2."
            )
    return lines


Layers = Annotated[tuple[str, ...], pydantic.AfterValidator(_readable_layers)]


def rank_patterns(lines: tuple[str, ...]) -> dict[str, int]:
    """Block ranks as PEFT's `rank_pattern`: regular expressions over module paths."""
    # PEFT takes the first pattern that matches, and so the first line that fits.
    return {f".*{'.*'.join(map(re.escape, text.split('*')))}.*": rank for text, rank in parse_ranks(lines).items()}
