"""Many pictures at once, as a TOML file says them: prompts x stacks x weights x seeds, and how files are called."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, StringConstraints, field_validator, model_validator

from trainer.config import weights
from trainer.config.stack import AdapterChoice
from trainer.schema import Settings, setting

MAX_PICTURES = 1_000_000
NAME = "{number}-{seed}-{digest}"
NAME_FIELDS = ("number", "seed", "prompt", "stack", "base", "digest")
SHEETS = "contact-sheets"  # a folder that no picture may be put into
_NAME_ALLOWED = (
    f"a file name with {', '.join(f'{{{field}}}' for field in NAME_FIELDS)} in it, folders with '/' "
    f"between, no '..', no name that starts with a dot"
)
_AS_IT_SAYS = "left out: what the command's option says."
_AS_THE_BASE_SAYS = "left out: what the command's option says, else what the base is usually drawn with."


def adapter(text: str) -> dict[str, Any]:
    """`fox.safetensors:0.8` as the values of an AdapterChoice; weight 1 if it is left out.

    Raises: ValueError in words for a weight that is no number.
    """
    file, weight = weights.split(text)
    try:
        number = 1.0 if weight is None else weights.number(weight)
    except ValueError as error:
        raise ValueError(f"LoRA {text.strip()[:120]!r}: {error}") from None
    # The last part of a path of any system.
    name = file.replace("\\", "/").rpartition("/")[2].removesuffix(".safetensors")
    return {"file": file, "name": name, "weight": number}


def seeds(item: int | str) -> range:
    """`7`, `"7"` or `"1-8"` as the seeds it means. Raises: ValueError in words."""
    match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", str(item))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if not 0 <= first <= last < 2**32:
        raise ValueError(
            f"seeds has {str(item)[:40]!r}; allowed: numbers from 0 to {2**32 - 1} and ranges of them, such as '1-8'."
        )
    return range(first, last + 1)


def check_name(template: str) -> str:
    """The template if every name it gives lies in the folder. Raises: ValueError in words."""
    # What is left when the fields are filled in with something harmless must be harmless on every system.
    literal = re.sub("|".join(rf"\{{{field}\}}" for field in NAME_FIELDS), "x", template)
    parts = literal.split("/")
    if (
        not 0 < len(template) <= 200
        or re.search(r'[{}\\:*?"<>|\x00-\x1f\x7f]', literal)
        or any(not part.strip() or part.startswith((".", " ")) or part.endswith((".", " ")) for part in parts)
        or parts[0].casefold() == SHEETS
    ):
        raise ValueError(
            f"name is {template[:80]!r}; allowed: up to 200 characters, {_NAME_ALLOWED}, and no folder {SHEETS}."
        )
    return template


def _adapter_values(choice: Any) -> Any:
    return adapter(choice) if isinstance(choice, str) else choice


Stack = Annotated[tuple[Annotated[AdapterChoice, BeforeValidator(_adapter_values)], ...], "one a picture"]
Prompt = Annotated[str, StringConstraints(max_length=8000)]


class BatchConfig(Settings):
    """Every prompt with every stack at every weight with every seed, in that order; a picture each."""

    version: Literal[1] = 1
    prompts: tuple[Prompt, ...] = setting(
        (), "Prompts", f"What to draw, one after the other; {_AS_IT_SAYS}", max_length=100_000
    )
    stacks: tuple[Stack, ...] = setting(
        (),
        "Stacks",
        f"Lists of LoRAs, each as FILE:WEIGHT or with all its settings; [] is the base alone; {_AS_IT_SAYS}",
        max_length=10_000,
    )
    steps_of: str | None = setting(
        None,
        "Steps of",
        "A run's folder: each stack is drawn with each of its saved steps on top; left out: without.",
        path="run",
    )
    weights: tuple[float, ...] = setting(
        (1.0,), "Weights", "Each stack is drawn with its weights times each of these.", min_length=1, max_length=1000
    )
    seeds: tuple[int | str, ...] = setting(
        (), "Seeds", f"Numbers and ranges such as '1-8'; {_AS_IT_SAYS}", max_length=100_000
    )
    negative_prompt: Prompt | None = setting(None, "Negative prompt", f"What to keep out; {_AS_IT_SAYS}")
    family: str | None = setting(None, "Family", "Architecture of the base model; left out: the base's own.")
    base: str | None = setting(
        None,
        "Base",
        f"imprimatura, a diffusers folder, a checkpoint file, a name from `velatura models list`, or a downloaded hub "
        f"id; {_AS_IT_SAYS}",
        path="base",
    )
    mode: str | None = setting(None, "Mode", "How several LoRAs go together; left out: sum.")
    wide_weights: bool | None = setting(None, "Wide weights", f"Allow weights beyond -2 to 2; {_AS_IT_SAYS}")
    sampler: str | None = setting(None, "Sampler", "How the noise is taken away; left out: the base's own.")
    steps: int | None = setting(None, "Steps", f"Sampling steps, 1 to 500; {_AS_THE_BASE_SAYS}")
    guidance_scale: float | None = setting(
        None, "Guidance", f"How closely the pictures follow the prompt, 1 to 30; {_AS_THE_BASE_SAYS}"
    )
    guidance_rescale: float | None = setting(None, "Guidance rescale", "0 to 1; left out: the base's own.")
    true_guidance_scale: float | None = setting(
        None, "True guidance", "1 to 30, for distilled bases such as FLUX.1; left out: 1."
    )
    width_px: int | None = setting(None, "Width", f"In pixels; {_AS_THE_BASE_SAYS}")
    height_px: int | None = setting(None, "Height", f"In pixels; {_AS_THE_BASE_SAYS}")
    name: str | None = setting(None, "Name", f"How files are called: {_NAME_ALLOWED}; {_AS_IT_SAYS}")

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str | None) -> str | None:
        return value if value is None else check_name(value)

    @field_validator("weights")
    @classmethod
    def _bounded_weights(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if bad := [weight for weight in value if not -20 <= weight <= 20]:
            raise ValueError(f"weights has {bad[0]:g}; allowed: -20 to 20.")
        return value

    @model_validator(mode="after")
    def _not_too_many(self) -> BatchConfig:
        num = self.num_pictures
        if num > MAX_PICTURES:
            raise ValueError(f"prompts, stacks, weights and seeds make {num} pictures; allowed: up to {MAX_PICTURES}.")
        return self

    @property
    def num_pictures(self) -> int:
        """What the lists multiply to. Raises: ValueError for a seed that can't be read."""
        # An empty list is one choice: the command's own.
        return math.prod(max(1, len(each)) for each in (self.prompts, self.stacks, self.weights)) * max(
            1, sum(len(seeds(item)) for item in self.seeds)
        )

    def settings(self) -> dict[str, Any]:
        """What it says of every picture alike, as values of a StackConfig."""
        own = {"prompts", "stacks", "steps_of", "weights", "seeds", "name", "version"}
        return {key: value for key, value in self.model_dump(exclude=own).items() if value is not None}
