"""What stands in a card: a title and who says so, the base and LoRAs by hash, evidence of a run, samples.

Every text and list has a limit, no value is a path of anybody's machine, and an unknown key is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from trainer.schema import Settings

SCHEMA = 3
MOST_SAMPLES, MOST_POINTS, MOST_LORAS = 24, 400, 32
_MOST = 10**15
Kind = Literal["train", "stack", "batch"]
DatasetKind = Literal["unknown", "style", "character", "concept"]
Masks = Literal["none", "some", "all"]
CaptionStyle = Literal["none", "tags", "words", "sentences", "mixed"]


def _line(text: str) -> str:
    """The text. Raises: ValueError for more than one line: a second could pass for a line of the file it goes into."""
    if "\n" in text:
        raise ValueError("it holds several lines; allowed: one")
    return text


def _printed(text: str) -> str:
    """The text. Raises: ValueError for control characters."""
    if any(sign < " " and sign != "\n" or "\x7f" <= sign <= "\x9f" for sign in text):
        raise ValueError("it holds control characters; allowed: letters, signs, spaces and new lines")
    return text


def _address(text: str) -> str:
    """The address. Raises: ValueError for what is none."""
    if text and (not text.startswith(("https://", "http://")) or any(sign.isspace() for sign in text)):
        raise ValueError("it is no address; allowed: https://... without spaces")
    return text


Line = Annotated[str, StringConstraints(max_length=200), AfterValidator(_printed), AfterValidator(_line)]
Text = Annotated[str, StringConstraints(max_length=8000), AfterValidator(_printed)]
Address = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_address), AfterValidator(_printed)]
Hash = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
Count = Annotated[int, Field(ge=0, le=_MOST)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Measure = Annotated[float, Field(ge=-1e12, le=1e12)]


class BaseOrigin(Settings):
    """The base by name and hash, and where it can be had."""

    name: Line = ""
    sha256: Hash = ""  # of the denoiser's config and weights
    file_sha256: Hash = ""  # of a checkpoint in one file
    source_url: Address = ""


class LoraOrigin(Settings):
    """A LoRA by hash, and where it can be had."""

    role: Literal["made", "used"] = "used"  # made by this recipe, or used in it
    name: Line = ""
    sha256: Hash = ""  # of the tensors, as `sshs_model_hash`
    size_bytes: Count = 0
    source_url: Address = ""


class DatasetFacts(Settings):
    """The pictures and captions that were trained on, by numbers."""

    kind: DatasetKind = "unknown"  # what its pictures teach, as whoever shares it says or the preset was for
    masks: Masks = "none"  # how many of its pictures have a mask
    num_pictures: Count = 0
    num_heldout: Count = 0
    num_regular: Count = 0
    shorter_side_px: Annotated[tuple[Count, ...], Field(max_length=3)] = ()  # smallest, median, largest
    wide: Count = 0  # pictures by shape
    tall: Count = 0
    square: Count = 0
    captions: CaptionStyle = "none"
    caption_words: Count = 0  # median
    has_trigger: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of captions with it before it is put there
    name: Line = ""  # only where it was asked for


class HeldoutPoint(Settings):
    """One measurement on held-out pictures."""

    step: Count
    loss: Measure
    gain: Measure  # the fall against the base, 0.1 = 10 %
    gain_low: Measure = 0.0
    gain_high: Measure = 0.0


class Recommendation(Settings):
    """Which step to use, and why."""

    step: Count
    reason: Text


class Evidence(Settings):
    """What a run of the settings showed."""

    device: Line = ""
    dtype: Line = ""
    num_steps: Count = 0
    step_s: Seconds = 0.0  # median
    total_s: Seconds = 0.0
    peak_memory_bytes: Count = 0
    dataset: DatasetFacts = DatasetFacts()
    heldout: Annotated[tuple[HeldoutPoint, ...], Field(max_length=MOST_POINTS)] = ()
    recommended: Recommendation | None = None


class Sample(Settings):
    """A picture that was drawn with what was trained, or with the stack; the picture is a member of the file."""

    picture: Annotated[str, StringConstraints(pattern=r"^samples/[0-9]{2}\.webp$")]
    prompt: Text = ""
    seed: Count = 0
    step: Count = 0


class Card(Settings):
    """`card.toml`: everything but the settings and the pictures."""

    schema_version: Literal[3] = 3
    kind: Kind
    title: Line
    head: Text = ""  # the comment that a preset begins with
    author: Line = ""
    licence: Line = ""
    note: Text = ""
    source_url: Address = ""
    made_with: Line = ""  # Velatura's version
    base: BaseOrigin = BaseOrigin()
    loras: Annotated[tuple[LoraOrigin, ...], Field(max_length=MOST_LORAS)] = ()
    evidence: Evidence | None = None
    samples: Annotated[tuple[Sample, ...], Field(max_length=MOST_SAMPLES)] = ()
