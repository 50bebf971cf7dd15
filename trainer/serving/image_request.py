"""What `POST /v1/images/generations` may ask for: OpenAI's fields, and ours beside them.

Strict: a number in quotes is no number, an unknown field is refused by name, and a value of OpenAI's that would change
nothing here (`quality`, `style`) is refused unless it is the one that asks for nothing.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from trainer.config.parsing import from_json
from trainer.config.refusals import explain, shown
from trainer.config.stack import MAX_REGION_CHARS, WIDEST_WEIGHT
from trainer.errors import ConfigError
from trainer.schema import Settings
from trainer.serving.api_error import ApiError

MOST_PICTURES = 10
MAX_SIDE_PX = 4096
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_MAX_DEPTH = 8


def _clean(text: str) -> str:
    """Text without control characters but line breaks and tabs. Raises: ValueError."""
    if bad := next((sign for sign in text if sign < " " and sign not in "\n\r\t" or sign == "\x7f"), None):
        raise ValueError(f"has the control character U+{ord(bad):04X}; allowed: printable text")
    return text


def _plain_name(text: str) -> str:
    """A name, which is never a path. Raises: ValueError."""
    if "/" in text or "\\" in text:
        raise ValueError("has a slash; allowed: a name of the library, without folders")
    return _clean(text)


Text = Annotated[str, StringConstraints(max_length=8000), AfterValidator(_clean)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=400), AfterValidator(_plain_name)]
Weight = Annotated[float, Field(ge=-WIDEST_WEIGHT, le=WIDEST_WEIGHT)]
_STRICT = ConfigDict(strict=True)
Short = Annotated[str, StringConstraints(max_length=256), AfterValidator(_clean)]


class LoraAsked(Settings):
    """One LoRA of a request, by name or hash."""

    model_config = _STRICT

    name: Name | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")] | None = None
    weight: Weight = 1.0
    text_weight: Weight | None = None
    blocks: Annotated[
        list[Annotated[str, StringConstraints(max_length=400), AfterValidator(_clean)]], Field(max_length=400)
    ] = []
    schedule: Annotated[str, StringConstraints(max_length=4000), AfterValidator(_clean)] = ""
    region: Annotated[str, StringConstraints(max_length=MAX_REGION_CHARS), AfterValidator(_clean)] = ""
    trigger: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> LoraAsked:
        if bool(self.name) == bool(self.sha256):
            raise ValueError("a LoRA is given by its name or by its sha256, and by one of them")
        text = self.region.strip()
        if text and not text.startswith(("box ", "mask data:")):
            raise ValueError(
                f"region is {shown(text)}; allowed: 'box LEFT TOP RIGHT BOTTOM' from 0 to 1, or 'mask data:' and a PNG "
                f"in base64"
            )
        return self


class LoraAlias(Settings):
    """A LoRA as vLLM-Omni's images API has it."""

    model_config = _STRICT

    name: Name
    scale: Weight = 1.0


class ImageRequest(Settings):
    """One request for pictures."""

    model_config = _STRICT

    # OpenAI's.
    prompt: Annotated[str, StringConstraints(min_length=1, max_length=8000), AfterValidator(_clean)]
    model: Annotated[str, StringConstraints(max_length=2000), AfterValidator(_plain_name)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_PICTURES)] | None = None
    size: Short | None = None
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    user: Short | None = None
    safety_identifier: Short | None = None
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    output_format: Literal["png"] | None = None
    moderation: Literal["auto"] | None = None

    # Ours.
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    negative_prompt: Text | None = None
    steps: Annotated[int, Field(ge=1, le=500)] | None = None
    guidance_scale: Annotated[float, Field(ge=1, le=30)] | None = None
    loras: Annotated[list[LoraAsked], Field(max_length=32)] = []
    lora: LoraAlias | None = None
    mode: Short | None = None
    sampler: Short | None = None
    progress: bool = False
    deadline_s: Annotated[float, Field(gt=0, le=86_400)] | None = None

    @property
    def num_pictures(self) -> int:
        return self.n or 1

    @property
    def size_px(self) -> tuple[int, int] | None:
        """Width and height; None for the base's own. Raises: ApiError."""
        if self.size in (None, "", "auto"):
            return None
        match = _SIZE.fullmatch(self.size or "")
        if not match or max(int(match[1]), int(match[2])) > MAX_SIDE_PX:
            raise ApiError(
                400,
                f"size is {shown(self.size)}; allowed: WIDTHxHEIGHT in pixels up to {MAX_SIDE_PX}, such as 128x128, or "
                f"auto.",
                param="size",
            )
        return int(match[1]), int(match[2])


def read(raw: bytes) -> ImageRequest:
    """The request in a body. Raises: ApiError, which names the first field that is wrong."""
    try:
        values = from_json(raw, "the request's body")
    except ConfigError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, f"the request's body is {shown(values)}; allowed: a JSON object.", code="invalid_json")
    if _depth(values) > _MAX_DEPTH:
        raise ApiError(400, f"the request's body is more than {_MAX_DEPTH} deep.", code="invalid_json")
    try:
        return ImageRequest.model_validate(values)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ApiError(
            400, str(explain(error, ImageRequest, "the request")), param=place[:200] or None, code="invalid_value"
        ) from None


def _depth(values: Any) -> int:
    """How deep tables and lists lie in each other; JSON that Python's reader took is never endless."""
    depth, layer = 0, [values]
    while layer and depth <= _MAX_DEPTH:
        depth += 1
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth
