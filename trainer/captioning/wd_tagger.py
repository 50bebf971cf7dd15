"""WD taggers (SmilingWolf's wd-*-tagger-v3): booru tags, each with how sure the model is of it.

The model is run by timm, through transformers, or by onnxruntime: whichever is installed. Neither comes with Velatura.
Pictures as its author prepares them: squared on white, resized, blue before red
(https://huggingface.co/spaces/SmilingWolf/wd-tagger, app.py; its list of faces, whose underscores stay, too).
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import bases
from trainer.captioning.contract import Describe, Kind
from trainer.captioning.opened_model import check_weights, in_words
from trainer.errors import ConfigError, ModelError
from trainer.lazy import Image, numpy, torch, transformers

if TYPE_CHECKING:
    import numpy
    from PIL import Image

GENERAL, CHARACTER = 0.35, 0.85  # how sure it must be
_TAGS, _ONNX = "selected_tags.csv", "model.onnx"
_GENERAL_CATEGORY, _CHARACTER_CATEGORY = "0", "4"  # ratings are 9
_MAX_TAGS = 100_000
_SIDE_PX = 448
_FACES = frozenset({
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^", "o_o",
    "u_u", "x_x", "|_|", "||_||",
})  # fmt: skip
Probabilities = Callable[["Image.Image"], Sequence[float]]


@dataclass(frozen=True)
class Tag:
    """A tag of the model, in the order of its answers."""

    name: str
    category: str


def tags_of(folder: Path) -> list[Tag]:
    """The model's tags. Raises: ModelError if their file is none."""
    with in_words(folder.name, f"has a {_TAGS} that can't be read"):
        try:
            with (folder / _TAGS).open(encoding="utf-8", newline="") as file:
                # A file from outside; one row more than is allowed tells that there are too many.
                lines = itertools.islice(csv.DictReader(file), _MAX_TAGS + 1)
                rows = [Tag(line["name"], line["category"]) for line in lines]
        except csv.Error as error:
            raise ValueError(str(error)) from None
        if not 0 < len(rows) <= _MAX_TAGS or any(not tag.name or not tag.category for tag in rows):
            raise ValueError(f"{len(rows)} rows; each needs a name and a category, and up to {_MAX_TAGS:,} are allowed")
    return rows


def tag_caption(tags: Sequence[Tag], probabilities: Sequence[float]) -> str:
    """The tags that it is sure of, characters first, the surest first; ratings are left out.

    Raises: ModelError if these are the answers of another list of tags.
    """
    if len(tags) != len(probabilities):
        raise ModelError(f"the tagger gives {len(probabilities)} answers, and {_TAGS} has {len(tags)} tags; it is of "
                         f"another model.")  # fmt: skip
    sure = sorted(zip(probabilities, tags, strict=True), key=lambda pair: -pair[0])
    chosen = [tag for share, tag in sure if tag.category == _CHARACTER_CATEGORY and share > CHARACTER]
    chosen += [tag for share, tag in sure if tag.category == _GENERAL_CATEGORY and share > GENERAL]
    return ", ".join(tag.name if tag.name in _FACES else tag.name.replace("_", " ") for tag in chosen)


def prepared(picture: Image.Image, side_px: int) -> numpy.ndarray:
    """The picture squared on white, (side, side, 3), blue, green, red, 0 to 255."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    resized = square.resize((side_px, side_px), Image.Resampling.BICUBIC)
    return numpy.ascontiguousarray(numpy.asarray(resized, dtype=numpy.float32)[:, :, ::-1])


def _known(folder: Path) -> bool:
    return (folder / _TAGS).is_file()


def _has_timm_weights(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file() and (folder / "config.json").is_file()


def _runner(folder: Path) -> Callable[[Path], Probabilities]:
    """By what the model can be run here. Raises: ModelError that says what to install."""
    if _has_timm_weights(folder) and find_spec("timm"):
        return _by_timm
    if (folder / _ONNX).is_file() and find_spec("onnxruntime"):
        return _by_onnx
    ways = ["timm (pip install timm)"] if _has_timm_weights(folder) else []
    ways += ["onnxruntime (pip install onnxruntime)"] if (folder / _ONNX).is_file() else []
    if not ways:
        check_weights(folder, f" Or {_ONNX}.")
    raise ModelError(f"{folder.name} is a WD tagger, and what runs it is not installed: {' or '.join(ways)}.")


def _check(folder: Path, instruction: str) -> None:
    if instruction:
        raise ConfigError(f"{folder.name} is a tagger and takes no instruction; leave the instruction out.")
    tags_of(folder)
    _runner(folder)


def _open(folder: Path, instruction: str) -> Describe:
    tags, probabilities = tags_of(folder), _runner(folder)(folder)
    return lambda picture: tag_caption(tags, probabilities(picture))


def _by_timm(folder: Path) -> Probabilities:
    """What the model says, by timm inside transformers; its weights take values from -1 to 1."""
    device, dtype = bases.hardware("auto", "auto")
    with in_words(folder.name, "can't be opened"):
        model = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype,
            num_labels=len(tags_of(folder)),
        )  # fmt: skip
        model = model.to(device).eval()

    def probabilities(picture: Image.Image) -> Sequence[float]:
        # (1, 3, side, side), from -1 to 1.
        pixels = torch.from_numpy(prepared(picture, _SIDE_PX)).permute(2, 0, 1)[None] / 127.5 - 1.0
        with in_words(folder.name, "can't look at a picture"), torch.inference_mode():
            logits = model(pixel_values=pixels.to(device, dtype)).logits[0]
            return [float(share) for share in logits.float().sigmoid()]

    return probabilities


def _by_onnx(folder: Path) -> Probabilities:
    """What the model says, by onnxruntime; it takes values from 0 to 255, (1, side, side, 3)."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as error:
        raise ModelError(f"onnxruntime can't be loaded ({error}); install it anew.") from None

    # Its errors are of kinds of its own.
    errors = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    with in_words(folder.name, f"has a {_ONNX} that can't be opened"):
        try:
            session: Any = onnxruntime.InferenceSession(str(folder / _ONNX), providers=["CPUExecutionProvider"])
        except errors as error:
            raise ValueError(str(error)) from None
        asked = session.get_inputs()[0]
        side_px = asked.shape[1] if isinstance(asked.shape[1], int) else _SIDE_PX

    def probabilities(picture: Image.Image) -> Sequence[float]:
        with in_words(folder.name, "can't look at a picture"):
            try:
                answers = session.run(None, {asked.name: prepared(picture, side_px)[None]})[0]
            except errors as error:
                raise ValueError(str(error)) from None
            return [float(share) for share in answers[0]]

    return probabilities


KIND = Kind("WD tagger", frozenset(), {}, _check, _open, known=_known)
