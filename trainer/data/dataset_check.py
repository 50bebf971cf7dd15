"""What an artist wants to know of a folder before a night of training: bad pictures, and what captions lack.

Each picture is decoded once. The checks are cheap and run on any processor; none of them leaves a picture out, they
only say. A caption is not needed: a folder is best looked through before it is captioned.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import imagehash
import numpy
from PIL import Image

from trainer import files
from trainer.config.data import CaptionsConfig, DataConfig
from trainer.data import buckets, caption_variants, opening, sources
from trainer.data import scanning as data
from trainer.data.formats import IMAGE_SUFFIXES
from trainer.data.picture_file import PictureFile
from trainer.data.scanning import Item
from trainer.errors import DataError
from trainer.printing import listed, printable

if TYPE_CHECKING:
    from PIL import Image

MEASURED_PX = 256
# On the 93 sample pictures and nine photographs, sharpness is 0.23 at least. Blurred with a Gaussian of 1.5 of the
# pixels that are measured (6 pixels of a 1024 px picture) it is 0.005 to 0.08 for the samples, with 1 pixel 0.02 to
# 0.23.
BLURRED_BELOW = 0.09
# Of the sample pictures saved as JPEG at quality 40, 88 % differ from themselves by 6 bits of the 64 or fewer; of all
# pairs of different pictures, one does: two faces that do look alike. At 10 bits, shoes begin to look like other shoes.
ALIKE_BITS = 6
_SHOWN = 20


@dataclass(frozen=True)
class Small:
    """A picture whose shorter side is below half the resolution."""

    name: str
    width_px: int
    height_px: int


@dataclass(frozen=True)
class Blurred:
    """A picture without sharp edges; `sharpness` is below BLURRED_BELOW."""

    name: str
    sharpness: float


@dataclass(frozen=True)
class SameCaption:
    """Pictures that share their caption to the letter."""

    caption: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class LongCaption:
    """A caption of more tokens than the text encoder reads."""

    name: str
    tokens: int


@dataclass(frozen=True)
class BucketRow:
    """A bucket of the plan; `cut_off` is the largest share of a picture's area that is lost in it."""

    width_px: int
    height_px: int
    pictures: int
    entries: int
    cut_off: float


@dataclass(frozen=True)
class Report:
    """What was found; names are paths below the folder, groups hold two at least."""

    folder: str
    resolution_px: int
    trigger: str
    num_found: int  # pictures by their names
    num_pictures: int  # that open
    num_trained: int  # that open and have something to be trained with
    problems: tuple[str, ...]  # a line for each file left out or read in a special way
    small: tuple[Small, ...]
    blurred: tuple[Blurred, ...]
    duplicates: tuple[tuple[str, ...], ...]  # the same file, byte for byte
    near_duplicates: tuple[tuple[str, ...], ...]
    missing_captions: tuple[str, ...]
    identical_captions: tuple[SameCaption, ...]
    without_trigger: tuple[str, ...]
    long_captions: tuple[LongCaption, ...]
    window_tokens: int | None
    buckets: tuple[BucketRow, ...]
    num_cropped: int
    bucket_table: str
    tags: dict[str, int]  # in how many captions each stands, most frequent first

    @property
    def num_findings(self) -> int:
        """How many things there are to look at."""
        lists = (self.problems, self.small, self.blurred, self.duplicates, self.near_duplicates, self.missing_captions)
        return sum(map(len, (*lists, self.identical_captions, self.without_trigger, self.long_captions)))


@dataclass(frozen=True)
class Measured:
    """A picture that opens, by numbers."""

    file: PictureFile
    size: tuple[int, int]
    sha256: str
    sharpness: float
    phash: int  # of 64 bits
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.file.name


def check(
    folder: Path,
    settings: DataConfig,
    captions: CaptionsConfig,
    resolution_px: int,
    multiple_px: int,
    count_tokens: Callable[[str], int] | None = None,
    window_tokens: int | None = None,
) -> Report:
    """Everything about a folder's pictures and captions, trained at `resolution_px` with these settings.

    Captions are counted by `count_tokens` and called long beyond `window_tokens`, if both are given. Raises: DataError
    if nothing in the folder is a picture, ConfigError for rules of repeats and weights.
    """
    # The pictures that open.
    survey = sources.survey(folder, settings, "the dataset")
    problems = [f"{picture.name} {picture.refusal}: left out." for picture in survey.pictures if picture.refusal]
    measured = _measure_all(survey.pictures, min(MEASURED_PX, resolution_px), problems)
    problems += data.noted_lines({picture.name: picture.notes for picture in measured}) + survey.problems
    if not measured:
        reason = listed(problems, "  ") or f"  it has no {', '.join(IMAGE_SUFFIXES)} files."
        raise DataError(f"nothing in {str(folder)!r} can be used:\n{reason}")

    # The buckets they would train in.
    items = _items(measured)
    entries = buckets.plan_at(items, (resolution_px, *settings.more_resolutions_px), settings, multiple_px)

    # Their captions, as training reads them.
    trigger = settings.trigger
    texts = {
        picture.name: data.with_trigger(picture.file.text, trigger) for picture in measured if not picture.file.refusal
    }

    return Report(
        folder=str(folder),
        resolution_px=resolution_px,
        trigger=trigger,
        num_found=len(survey.pictures) + survey.num_foreign,
        num_pictures=len(measured),
        num_trained=sum(bool(text or trigger) for text in texts.values()),
        problems=tuple(problems + buckets.notes(entries, items, settings)),
        small=tuple(
            Small(picture.name, *picture.size) for picture in measured if min(picture.size) < resolution_px / 2
        ),
        blurred=_blurred(measured),
        duplicates=groups({picture.name: picture.sha256 for picture in measured}),
        near_duplicates=near_duplicates(measured),
        missing_captions=tuple(name for name, text in texts.items() if not text),
        identical_captions=_same_captions(texts),
        without_trigger=tuple(
            name for name, text in texts.items() if trigger and text and not data.has_trigger(text, trigger)
        ),
        long_captions=_long_captions(texts, count_tokens, window_tokens),
        window_tokens=window_tokens,
        buckets=_rows(entries, items),
        num_cropped=buckets.num_cropped(entries, items),
        bucket_table=buckets.describe(entries, items),
        tags=_count_tags(texts, captions),
    )


# Pictures.


def _measure_all(pictures: list[PictureFile], side_px: int, problems: list[str]) -> list[Measured]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(measure, pictures, [side_px] * len(pictures)))
    problems += [result for result in results if isinstance(result, str)]
    return [result for result in results if not isinstance(result, str)]


def measure(file: PictureFile, side_px: int) -> Measured | str:
    """The picture by numbers, taken from a grey version of at most `side_px`; or what is wrong with it."""
    try:
        whole, notes = opening.open_whole(file.path)
        image = opening.flat(whole, opening.WHITE)
        digest = files.sha256(file.path)
    except DataError as error:
        return f"{file.name} {error}: left out."
    except OSError as error:
        return f"{file.name} can't be read ({error.strerror}): left out."
    size = image.size
    grey = image.convert("L")
    grey.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return Measured(file, size, digest, sharpness(grey), int(str(imagehash.phash(grey)), 16), notes)


def sharpness(grey: Image.Image) -> float:
    """Variance of the Laplacian over the variance of a grey picture ("L"): 0 without any edge, about 1 if sharp.

    It is for pictures scaled down to MEASURED_PX, or to a smaller resolution that is trained at: at full size, noise
    looks sharp, and so does a soft picture that training scales down. The Laplacian's variance is Pech-Pacheco et al.'s
    measure of focus (ICPR 2000, doi:10.1109/ICPR.2000.903548); over the picture's own variance it does not take a pale
    picture for a blurred picture.
    """
    pixels = numpy.asarray(grey, dtype=numpy.float64)
    inner = pixels[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    laplacian = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:] - 4 * inner
    return float(laplacian.var() / max(float(pixels.var()), 1.0))


def _items(measured: list[Measured]) -> list[Item]:
    """The pictures as a plan of buckets takes them."""
    return [
        Item(picture.file.path, (picture.file.text,), picture.sha256, *picture.size, picture.file.repeats)
        for picture in measured
    ]


def _blurred(measured: list[Measured]) -> tuple[Blurred, ...]:
    soft = [picture for picture in measured if picture.sharpness < BLURRED_BELOW]
    return tuple(Blurred(picture.name, round(picture.sharpness, 4)) for picture in soft)


def groups(keys: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    """Names with the same key, where there are two or more."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, key in keys.items():
        groups[key].append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def near_duplicates(measured: list[Measured]) -> tuple[tuple[str, ...], ...]:
    """Groups of pictures that look alike though their files differ, each linked to another of its group.

    Every picture is compared with those not yet in a group, one vector operation each: 0.1 s for 5,000 pictures.
    """
    hashes = numpy.array([picture.phash for picture in measured], dtype=numpy.uint64)
    left = numpy.ones(len(measured), dtype=bool)
    groups = []
    for start in range(len(measured)):
        if not left[start]:
            continue
        left[start] = False
        group, queue = [start], [start]  # what is like a member of the group joins it
        while queue:
            near = numpy.flatnonzero(left & (numpy.bitwise_count(hashes ^ hashes[queue.pop()]) <= ALIKE_BITS))
            left[near] = False
            group += near.tolist()
            queue += near.tolist()
        # Groups of one file only are copies, which have a list of their own.
        if len({measured[index].sha256 for index in group}) > 1:
            groups.append(tuple(measured[index].name for index in sorted(group)))
    return tuple(groups)


def _rows(entries: list[buckets.Entry], items: list[Item]) -> tuple[BucketRow, ...]:
    inside: dict[buckets.Bucket, list[int]] = defaultdict(list)
    for entry in entries:
        inside[entry.bucket].append(entry.index)
    rows = []
    for bucket, indexes in sorted(inside.items(), key=lambda row: (-row[0][0] * row[0][1], row[0])):
        cut_off = max(buckets.cut_off(items[i].width_px, items[i].height_px, bucket) for i in indexes)
        rows.append(BucketRow(*bucket, len(set(indexes)), len(indexes), round(cut_off, 4)))
    return tuple(rows)


# Captions.


def _long_captions(
    texts: dict[str, str], count_tokens: Callable[[str], int] | None, window_tokens: int | None
) -> tuple[LongCaption, ...]:
    """The captions that no text encoder reads to the end; none where nothing is known of the encoder."""
    if count_tokens is None or window_tokens is None:
        return ()
    counts = {name: count_tokens(text) for name, text in texts.items() if text}
    return tuple(LongCaption(name, count) for name, count in counts.items() if count > window_tokens)


def _same_captions(texts: dict[str, str]) -> tuple[SameCaption, ...]:
    return tuple(
        SameCaption(texts[names[0]], names) for names in groups({name: text for name, text in texts.items() if text})
    )


def _count_tags(texts: dict[str, str], captions: CaptionsConfig) -> dict[str, int]:
    counts = Counter(
        tag for text in texts.values() for tag in dict.fromkeys(caption_variants.tags(text, captions.separator))
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# Words.


def describe(report: Report) -> str:
    """The report as a page for people; long lists are cut short."""
    # The head.
    num, window = report.num_pictures, report.window_tokens
    others = ""
    if report.num_trained < report.num_found:
        others = ": the others are left out, or have no caption and there is no trigger"
    parts = [
        f"{num} picture{'' if num == 1 else 's'} in {report.folder} can be opened; looked at for training at "
        f"{report.resolution_px} px.\n"
        f"{report.num_trained} of {report.num_found} will train{others}."
    ]

    # A section for each kind of finding.
    sections = [
        ("Left out, or to know", report.problems),
        (
            f"Small: the shorter side is below {report.resolution_px // 2} px",
            [f"{finding.name}  {finding.width_px} x {finding.height_px} px" for finding in report.small],
        ),
        (
            "Blurred: no sharp edge; the adapter would learn the blur",
            [f"{finding.name}  sharpness {finding.sharpness:.3f}" for finding in report.blurred],
        ),
        ("The same file more than once: it counts as often", [" = ".join(names) for names in report.duplicates]),
        (
            "Look alike: keep the best, or the adapter learns this one by heart",
            [" ~ ".join(names) for names in report.near_duplicates],
        ),
        ("No caption", report.missing_captions),
        (
            "The same caption: nothing tells these apart",
            [f"{finding.caption!r}: {', '.join(finding.names)}" for finding in report.identical_captions],
        ),
        (f"Caption without the trigger {report.trigger!r}: it will be put in front", report.without_trigger),
        (
            f"Caption longer than the {window} tokens that are read: the rest is cut off",
            [f"{finding.name}  {finding.tokens} tokens" for finding in report.long_captions],
        ),
    ]
    parts += [_section(title, lines) for title, lines in sections if lines]
    if not report.num_findings:
        parts.append("Nothing to mend.")

    # Buckets and tags.
    parts.append(f"Buckets\n{_indented(report.bucket_table.splitlines())}")
    repeated = [f"{count:>5}  {tag}" for tag, count in report.tags.items() if count > 1]
    if repeated:
        parts.append(_section("Tags, and in how many captions", repeated))
    return "\n\n".join(parts)


def _section(title: str, lines: Sequence[str]) -> str:
    shown = [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more (--json lists all)"] if len(lines) > _SHOWN else [])]
    return f"{title} ({len(lines)})\n{_indented(shown)}"


def _indented(lines: list[str]) -> str:
    """Lines as a terminal may show them: names hold anything."""
    return "\n".join("  " + printable(line[:400]) for line in lines)
