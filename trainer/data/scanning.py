"""A folder of pictures and captions -> what can be trained on, and one message that names every file that can't.

Every file is decoded whole here, before any model is loaded. What is wrong with one file never stops the others; what
was done about it is said. Where the pictures are and what the folder says about them is `trainer.data.sources`; how a
picture is opened, `trainer.data.opening`.
"""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainer import choices, files
from trainer.config import TrainConfig
from trainer.config.data import CaptionsConfig, DataConfig
from trainer.data import caption_variants, opening, picture_replacing, sources
from trainer.data.formats import CAPTION_SUFFIXES as CAPTION_SUFFIXES
from trainer.data.formats import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from trainer.data.opening import open_image as open_image
from trainer.data.picture_file import PictureFile, first_names
from trainer.errors import DataError
from trainer.lazy import Image, ImageOps, numpy, torch
from trainer.printing import listed, printable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

# Where each cut lies along the side that is too long, 0 to 1: the centre, and four that together show all of it.
_PLACES = (0.5, 0.0, 1 / 3, 2 / 3, 1.0)
PLACEHOLDER = "[trigger]"  # in captions written for ai-toolkit


@dataclass(frozen=True)
class Item:
    """One picture that opens, and what it is trained with."""

    path: Path
    # Finished but for what `trainer.data.caption_variants` draws; several only with captions.lines = choose.
    captions: tuple[str, ...]
    sha256: str  # of the picture file
    width_px: int  # turned as its EXIF says
    height_px: int
    repeats: int = 1
    weight: float = 1.0
    mask: Path | None = None  # the picture itself: its own transparency
    mask_sha256: str = ""
    regular: bool = False  # of the regularisation set

    @property
    def name(self) -> str:
        """The picture's name as a message, a page or a log may show it."""
        return printable(self.path.name)

    @property
    def caption(self) -> str:
        """The first of its captions."""
        return self.captions[0]


@dataclass(frozen=True)
class Dataset:
    """What a folder holds: usable items sorted by name.

    `problems` has a line for each file that was left out or read in a special way.
    """

    folder: Path
    items: list[Item]
    problems: list[str]
    num_left_out: int = 0  # pictures that will not train, each for a reason among the problems

    @property
    def digest(self) -> str:
        """sha256 over all that training sees: names, pictures, captions, masks, repeats and weights."""
        state = hashlib.sha256()
        for item in self.items:
            parts = (
                item.path.name,
                item.sha256,
                len(item.captions),
                *item.captions,
                item.repeats,
                item.weight,
                item.mask_sha256,
                item.regular,
            )
            state.update("\0".join(map(str, parts)).encode("utf-8", "surrogateescape") + b"\n")
        return state.hexdigest()

    @property
    def message(self) -> str:
        """How many pictures will train where some will not, and all problems, as one message."""
        num_used, num_problems = len(self.items), len(self.problems)
        share = f"{num_used} of {num_used + self.num_left_out} pictures can be used. " if self.num_left_out else ""
        head = f"{share}{num_problems} thing{'' if num_problems == 1 else 's'} to know about {self.folder}:"
        return "\n".join([head, *(f"  {line}" for line in self.problems)])


# Scanning folders.


def scan(config: TrainConfig) -> Dataset:
    """The training set of a config: data.folder, then data.regularisation.

    Raises: DataError if a folder is missing or nothing in it can be used, ConfigError for rules of repeats and weights.
    """
    data = config.data
    if not data.folder:
        raise DataError("data.folder is not set; name a folder of pictures with --data DIR.")
    training = scan_folder(Path(data.folder), "data.folder", data, config.captions, data.trigger)
    if not data.regularisation:
        return training
    plain = data.model_copy(update={"trigger": "", "repeats": (), "weights": (), "mask": "off", "mask_folder": ""})
    regularisation = scan_folder(
        Path(data.regularisation), "data.regularisation", plain, config.captions, data.class_caption
    )
    regular = [replace(item, regular=True, weight=data.regularisation_weight) for item in regularisation.items]
    problems = training.problems + [f"data.regularisation: {line}" for line in regularisation.problems]
    return Dataset(
        training.folder, training.items + regular, problems, training.num_left_out + regularisation.num_left_out
    )


def scan_heldout(config: TrainConfig) -> Dataset | None:
    """The held-out set of a config, or None if it names none. Its captions are settled: nothing about them is drawn."""
    data = config.data
    if not data.heldout:
        return None
    plain = data.model_copy(update={"repeats": (), "weights": (), "mask": "off", "mask_folder": ""})
    dataset = scan_folder(Path(data.heldout), "data.heldout", plain, config.captions, data.trigger)
    items = [
        replace(item, repeats=1, captions=(caption_variants.settled(item.captions, config.captions, config.seed),))
        for item in dataset.items
    ]
    problems = list(dataset.problems)
    if data.folder and Path(data.folder).resolve() == dataset.folder.resolve():
        problems.append(
            "data.heldout is the training folder itself: what is measured on it says nothing about new pictures."
        )
    return Dataset(dataset.folder, items, problems, dataset.num_left_out)


def scan_folder(folder: Path, field: str, data: DataConfig, captions: CaptionsConfig, fallback: str) -> Dataset:
    """Every picture below `folder`, decoded once, with its captions; `fallback` is the caption of those without.

    Raises: DataError if the folder is missing or nothing in it can be used, ConfigError for rules of repeats and
    weights.
    """
    picture_replacing.settle(folder)  # or a picture might be trained with the mask of what it was
    survey = sources.survey(folder, data, field)
    own_mask = _is_own_mask(data.mask)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        opened = list(pool.map(lambda picture: _open(picture, own_mask), survey.pictures))

    # An item for each picture that opens and has a caption.
    problems: list[str] = []
    items: list[Item] = []
    maskless: list[str] = []
    for picture, image in zip(survey.pictures, opened, strict=True):
        refusal = image if isinstance(image, str) else picture.refusal
        if refusal or isinstance(image, str):
            problems.append(f"{picture.name} {refusal}: left out.")
            continue
        text = picture.text or _fallback(picture, fallback, field, problems)
        if not text:
            continue
        if image.empty_mask:
            problems.append(f"{picture.name} has a mask that is black all over: nothing of it counts in full.")
        maskless += [] if image.mask else [picture.name]
        items.append(_item(picture, image, _captions(text, data.trigger, captions)))

    # What to know of several pictures at once.
    if data.mask != "off" and maskless and items:
        names = f"{', '.join(maskless[:3])}{', ...' if maskless[3:] else ''}"
        problems.append(f"{len(maskless)} of {len(items)} pictures have no mask ({names}): trained whole.")
    notes = {
        picture.name: image.notes
        for picture, image in zip(survey.pictures, opened, strict=True)
        if isinstance(image, _Opened)
    }
    unfilled = [picture.name for picture in survey.pictures if PLACEHOLDER in picture.text and not data.trigger]
    if unfilled:
        problems.append(
            f"{first_names(unfilled)}: the caption says {PLACEHOLDER}, and data.trigger is not set: read as it stands."
        )
    lines = [printable(line) for line in problems + noted_lines(notes)]
    num_left_out = len(survey.pictures) + survey.num_foreign - len(items)
    dataset = Dataset(folder, items, lines + survey.problems, num_left_out)
    if not items:
        reason = f"it has no {', '.join(IMAGE_SUFFIXES)} files."
        if dataset.problems:
            reason = f"\n{listed(dataset.problems, '  ')}"
        raise DataError(f"{field} is {str(folder)!r}, where nothing can be used: {reason}")
    return dataset


@dataclass(frozen=True)
class _Opened:
    """What training needs to know of a picture, and only opening it tells."""

    notes: tuple[str, ...]
    size: tuple[int, int]
    sha256: str
    mask: Path | None
    mask_sha256: str
    empty_mask: bool


def _open(picture: PictureFile, own_mask: bool) -> _Opened | str:
    """The opened picture and its mask, or what is wrong with one of them."""
    # The picture, decoded whole.
    try:
        image, notes = opening.open_whole(picture.path)
        size, digest = image.size, files.sha256(picture.path)
        path = (picture.path if image.has_transparency_data else None) if own_mask else picture.mask
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"can't be read ({error.strerror})"
    if path is None:
        return _Opened(notes, size, digest, None, "", False)

    # Its mask.
    try:
        mask = _open_mask(path, picture.path)
        if mask.size != size:
            return (
                f"is {size[0]} x {size[1]} pixels, but its mask {path.name} is {mask.width} x {mask.height}; "
                "make them alike, or remove the mask to train the whole picture"
            )
        mask_digest = digest if path == picture.path else files.sha256(path)
        return _Opened(notes, size, digest, path, mask_digest, mask.getextrema()[1] == 0)
    except DataError as error:
        return f"has a mask {path.name} that {error}"


def noted_lines(notes: dict[str, tuple[str, ...]]) -> list[str]:
    """A line for each thing that pictures have and that is not used, with their names."""
    having: dict[str, list[str]] = {}
    for name, lines in notes.items():
        for line in lines:
            having.setdefault(line, []).append(name)
    return [f"{first_names(names)} {'has' if len(names) == 1 else 'have'} {line}." for line, names in having.items()]


def _is_own_mask(mask: Literal["off", "file", "alpha"]) -> bool:
    """Whether a picture's mask is its own transparency."""
    match mask:
        case "off" | "file":
            return False
        case "alpha":
            return True
        case _:
            choices.never(mask)


def _fallback(picture: PictureFile, fallback: str, field: str, problems: list[str]) -> str:
    """The caption of a picture that has none beside it; "" if there is none for it either, which leaves it out."""
    is_regular = field == "data.regularisation"
    if fallback:
        caption = f"the class {fallback!r}" if is_regular else f"the trigger {fallback!r} alone"
        problems.append(f"{picture.name} has no caption: trained with {caption}.")
    else:
        way_out = "name its folder like 1_cat" if is_regular else "set data.trigger to train it on the trigger alone"
        problems.append(f"{picture.name} has no caption: left out (write {picture.path.stem}.txt, or {way_out}).")
    return fallback


def _captions(text: str, trigger: str, captions: CaptionsConfig) -> tuple[str, ...]:
    """The text, or each of its lines: with prefix, suffix, and the trigger in front where it is lacking.

    Blank and double lines are dropped.
    """
    text = with_trigger(text, trigger)
    match captions.lines:
        case "join":
            lines = [text]
        case "choose":
            lines = [line.strip() for line in text.splitlines() if line.strip()]
        case other:
            choices.never(other)
    return tuple(dict.fromkeys(_finished(line, trigger, captions) for line in lines))


def _finished(text: str, trigger: str, captions: CaptionsConfig) -> str:
    """The caption with prefix and suffix, and the trigger in front where it is lacking."""
    text = f"{captions.prefix} {text}" if captions.prefix else text
    if captions.suffix:  # punctuation needs no blank before it
        text = f"{text}{captions.suffix}" if captions.suffix[0] in " ,.;:!?" else f"{text} {captions.suffix}"
    return f"{trigger}, {text}" if trigger and not has_trigger(text, trigger) else text


def with_trigger(text: str, trigger: str) -> str:
    """The text with the trigger where ai-toolkit's captions say `[trigger]`; as it is without a trigger."""
    return text.replace(PLACEHOLDER, trigger) if trigger else text


def has_trigger(text: str, trigger: str) -> bool:
    """Whether the trigger stands in the text as a word of its own, in capitals or not: not `art` in `party`."""
    return _as_word(trigger).search(text) is not None


def trigger_spans(text: str, trigger: str) -> list[tuple[int, int]]:
    """From which character to before which the trigger stands in the text, wherever `has_trigger` sees it."""
    return [match.span() for match in _as_word(trigger).finditer(text)]


def without_trigger(text: str, trigger: str, word: str) -> str:
    """The text with another word in the trigger's place, wherever `has_trigger` sees it."""
    return _as_word(trigger).sub(lambda _: word, text)


def _as_word(trigger: str) -> re.Pattern[str]:
    # Not \b: a trigger may begin or end with a sign, at which \b would ask for a letter beside it.
    before, after = (r"(?<!\w)" if trigger[0].isalnum() else ""), (r"(?!\w)" if trigger[-1].isalnum() else "")
    return re.compile(f"{before}{re.escape(trigger)}{after}", re.IGNORECASE)


def _item(picture: PictureFile, image: _Opened, captions: tuple[str, ...]) -> Item:
    return Item(
        picture.path,
        captions,
        image.sha256,
        *image.size,
        picture.repeats,
        picture.weight,
        image.mask,
        image.mask_sha256,
    )


# Pixels as they are trained on.


def load_pixels(item: Item, bucket: tuple[int, int], cut: int, mirrored: bool, background: str) -> Tensor:
    """The picture (3, h, w) in [-1, 1], scaled to cover the bucket (width, height) and cut to it.

    Cut 0 is at the centre, 1 to 4 are elsewhere.
    """
    framed = _framed(open_image(item.path, background), bucket, cut, mirrored, Image.Resampling.LANCZOS)
    return torch.from_numpy(numpy.array(framed)).permute(2, 0, 1).float() / 127.5 - 1  # (h, w, 3) -> (3, h, w)


def load_mask(item: Item, bucket: tuple[int, int], cut: int, mirrored: bool) -> Tensor:
    """The picture's mask (1, h, w) in [0, 1], framed as its pixels are; ones if it has none."""
    if item.mask is None:
        return torch.ones(1, bucket[1], bucket[0])
    mask = _open_mask(item.mask, item.path)
    framed = _framed(mask, bucket, cut, mirrored, Image.Resampling.BILINEAR)  # Lanczos would ring at a mask's edges
    return torch.from_numpy(numpy.array(framed))[None].float() / 255


def _open_mask(path: Path, picture: Path) -> Image.Image:
    """An 8-bit grey mask: the picture's own opacity if `path` is the picture, else a mask file. Raises: DataError."""
    return opening.opacity(path) if path == picture else opening.open_mask(path)


def frame(item: Item, bucket: tuple[int, int], cut: int, mirrored: bool) -> tuple[int, ...]:
    """Height and width of the picture, top and left of the cut in the scaled picture, height and width of the cut.

    The picture is scaled to cover the bucket. SDXL is conditioned on these numbers.
    """
    scale = max(bucket[0] / item.width_px, bucket[1] / item.height_px)
    top = round((item.height_px * scale - bucket[1]) * _PLACES[cut])
    left = round((item.width_px * scale - bucket[0]) * (1 - _PLACES[cut] if mirrored else _PLACES[cut]))
    return item.height_px, item.width_px, top, left, bucket[1], bucket[0]


def _framed(
    image: Image.Image, bucket: tuple[int, int], cut: int, mirrored: bool, filter: Image.Resampling
) -> Image.Image:
    framed = ImageOps.fit(image, bucket, filter, centering=(_PLACES[cut], _PLACES[cut]))
    return ImageOps.mirror(framed) if mirrored else framed
