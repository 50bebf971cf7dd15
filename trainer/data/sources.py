"""Where the pictures of a folder are, and what the folder says about each: caption, repeats, weight, mask.

Nothing is opened here but text. Every file that is dropped is dropped by a rule, and the rule is said: people search for
hours for why "no images" were found. Layouts, in a folder or in a zip (`archives`): plain folders with captions beside the pictures, an imagefolder's
`metadata.jsonl`/`metadata.csv`, and kohya's `10_mokka cat` folders (ten repeats, `mokka cat` for pictures without caption),
which can be switched off since a number before a name may also be just that.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config import DataConfig
from trainer.data import archives, imagefolder, layouts
from trainer.data.captions import caption_in_json, read_caption
from trainer.data.formats import CAPTION_SUFFIXES, FORMATS, IMAGE_SUFFIXES
from trainer.errors import ConfigError, DataError
from trainer.printing import listed, printable

_FOREIGN_SUFFIXES = {
    *(".gif", ".tif", ".tiff", ".bmp", ".tga", ".jxl", ".jp2", ".psd", ".psb", ".xcf", ".kra", ".clip", ".exr", ".hdr", ".ico", ".svg", ".qoi", ".ppm", ".pgm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".heics", ".avifs", ".apng", ".jxr", ".dds"),
}
MAX_REPEATS = 1000
MAX_WEIGHT = 10.0
_BESIDE = (".json", ".jsonl", ".csv", ".md", ".npz")  # what tools keep beside pictures
_KOHYA = re.compile(r"([0-9]{1,9})_(.+)")


@dataclass(frozen=True)
class Found:
    """A file with a picture's name, not opened yet, and what its folder says about it."""

    path: Path
    name: str  # below the folder, for messages
    text: str  # its caption as written; "" if there is none
    refusal: str = ""  # why its caption can't be read
    repeats: int = 1
    weight: float = 1.0
    mask: Path | None = None


@dataclass(frozen=True)
class Survey:
    """The pictures of a folder sorted by path, and a line for each thing that was left out or read in a special way."""

    pictures: list[Found]
    problems: list[str]
    num_foreign: int = 0  # pictures in formats that are not read


@dataclass(frozen=True)
class Rule:
    """One line `folder=3`: folders whose path fits `pattern`, in which * stands for anything."""

    pattern: str
    value: float

    def fits(self, folder: str) -> bool:
        """Whether the pattern stands for this folder or one that it lies in; in linear time, whatever the pattern."""
        parts = folder.split("/")
        return any(_glob(self.pattern, "/".join(parts[:end])) for end in range(1, len(parts) + 1))


def parse_rules(lines: tuple[str, ...], field: str, whole: bool) -> list[Rule]:
    """Lines `folder=number` of `field`; `whole` numbers for repeats. Raises: ConfigError naming every line that isn't one."""
    allowed = f"folder=NUMBER with a whole number from 1 to {MAX_REPEATS}" if whole else f"folder=NUMBER with a number above 0, up to {MAX_WEIGHT:g}"
    number = r"[0-9]{1,9}" if whole else r"[0-9]{0,9}\.?[0-9]{1,9}"
    rules, wrong = [], []
    for line in lines:
        pattern, equals, value = (part.strip() for part in line.rpartition("="))
        if equals and pattern and re.fullmatch(number, value) and 0 < float(value) <= (MAX_REPEATS if whole else MAX_WEIGHT):
            rules.append(Rule(pattern.strip("/") or ".", float(value)))
        else:
            wrong.append(f"{field} has {line[:80]!r}; allowed: {allowed}, such as {'close-ups=3' if whole else 'sketches=0.5'}.")
    if wrong:
        raise ConfigError(listed(wrong))
    return rules


def survey(folder: Path, data: DataConfig, field: str) -> Survey:
    """Every picture below `folder`, by its name alone.

    Raises: DataError if the folder can't be looked into, ConfigError for rules that can't be read or that fit no folder.
    """
    folder, problems = archives.opened(folder)
    check_folder(folder, field)
    repeats, weights = parse_rules(data.repeats, "data.repeats", True), parse_rules(data.weights, "data.weights", False)
    files = _files(folder, _elsewhere(folder, data), problems)
    pictures, masks, conditions = _sorted_out(files)
    written = _metadata(files, set(pictures), problems)
    found = [_captioned(Found(path, path.relative_to(folder).as_posix(), ""), written.get(path, "")) for path in pictures]
    _double_captions(found, written, problems)
    found = _from_json(found, problems)
    if data.kohya_folders:
        found = _kohya(folder, found, problems)
    found = _ruled(found, repeats, weights)
    if data.mask == "file":
        found = _masked(found, _mask_folder(data), layouts.best_masks(masks))
    if conditions:
        problems.append(f"{some([path.name for path in conditions])}: OneTrainer's conditions, not trained on.")
    _explain_masks(masks, pictures, data, problems)
    _explain_rest(folder, files, pictures, problems)
    foreign = sum(path.suffix.lower() in _FOREIGN_SUFFIXES for path in files)
    return Survey(found, [printable(line) for line in problems], foreign)


def pictures_below(folder: Path) -> list[Path]:
    """The pictures of a folder as a survey finds them, sorted: no masks, conditions, thumbnails or waste."""
    return _sorted_out(_files(folder, {}, []))[0]


def mask_beside(picture: Path) -> Path | None:
    """The mask that lies beside a picture; the one that training would take."""
    there = [picture.with_name(f"{picture.stem}{end}{suffix}") for suffix in IMAGE_SUFFIXES for end in (*layouts.MASKS, *layouts.MASKS_BESIDE)]
    there = [path for path in there if os.path.isfile(path)]
    captions = {path.with_name(path.stem) for path in there if any(os.path.isfile(path.with_suffix(suffix)) for suffix in CAPTION_SUFFIXES)}
    return layouts.best_masks(layouts.masks([*there, picture], captions)).get(picture.with_name(picture.stem))


def _sorted_out(files: list[Path]) -> tuple[list[Path], dict[Path, Path], list[Path]]:
    """Pictures, masks and OneTrainer's conditions among all files."""
    there = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    conditions = [path for path in there if layouts.is_condition(path.stem)]
    masks = layouts.masks(there, _captioned_stems(files))
    return [path for path in there if path not in masks and not layouts.is_condition(path.stem)], masks, conditions


def _captioned_stems(files: list[Path]) -> set[Path]:
    return {path.with_name(path.stem) for path in files if path.suffix.lower() in CAPTION_SUFFIXES}


def check_folder(folder: Path, field: str) -> None:
    """Raises: DataError if `folder` is none that can be read."""
    if not os.path.isdir(folder):  # pathlib's own raises for a name that is too long
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise DataError(f"{field} is {str(folder)[:400]!r}, which {what}; it must be a folder or a .zip of pictures.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{field} is {str(folder)!r}, which can't be read: permission denied.")


def _glob(pattern: str, text: str) -> bool:
    """Whether the text is the pattern, * standing for any piece of it; each piece is taken where it first fits."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    if not text.startswith(first) or len(text) < len(first) + len(rest[-1]) or not text.endswith(rest[-1]):
        return False
    at, end = len(first), len(text) - len(rest[-1])
    for piece in rest[:-1]:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _elsewhere(folder: Path, data: DataConfig) -> dict[Path, str]:
    """Folders below this one that another setting names: their pictures are not of this set."""
    named = {"data.folder": data.folder, "data.heldout": data.heldout, "data.regularisation": data.regularisation, "data.mask_folder": data.mask_folder}
    here = folder.resolve()
    resolved = {Path(value).resolve(): field for field, value in named.items() if value}
    return {path: field for path, field in resolved.items() if here in path.parents}


def _files(folder: Path, elsewhere: dict[Path, str], problems: list[str]) -> list[Path]:
    """All files that may be meant, sorted; hidden, linked and foreign folders are not looked into, which is said."""
    files: list[Path] = []
    hidden: list[str] = []

    def unreadable(error: OSError) -> None:
        problems.append(f"{os.path.relpath(str(error.filename), folder)} can't be looked into ({error.strerror}): its pictures are left out.")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(place)
        for name in sorted(folders):
            reason = _not_looked_into(here / name, elsewhere)
            if reason is not None:
                folders.remove(name)
                problems += [f"folder {(here / name).relative_to(folder).as_posix()} {reason}: its pictures are left out."] if reason else []
        hidden += [name for name in names if name.startswith(".") and not layouts.is_litter(name) and name.lower().endswith(IMAGE_SUFFIXES)]
        files += [here / name for name in names if not name.startswith(".") and not layouts.is_litter(name)]
    if hidden:
        problems.append(f"{some(hidden)} {'is' if len(hidden) == 1 else 'are'} hidden (the name begins with a dot): left out.")
    lost = {path: reason for path in files if (reason := _unreachable(path))}
    problems += [f"{path.relative_to(folder).as_posix()} {reason}: left out." for path, reason in lost.items() if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(path for path in files if path not in lost)


def _not_looked_into(path: Path, elsewhere: dict[Path, str]) -> str | None:
    """Why the pictures of a folder are not of the set, as the end of a sentence; "" where there are none, None where they are."""
    if os.path.islink(path):
        return "is a link to another folder"
    if field := elsewhere.get(path.resolve()):
        return f"is {field}"
    reason = "is hidden (its name begins with a dot)" if path.name.startswith(".") else layouts.aside(path.name)
    if not reason and (reason := layouts.aside_without_captions(path.name)) and layouts.holds(path, CAPTION_SUFFIXES):
        return None
    return (reason if layouts.holds(path, IMAGE_SUFFIXES) else "") if reason else None


def _unreachable(path: Path) -> str:
    """Why a name of a folder is no file that can be read; "" if it is one."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else "is no file"
    except FileNotFoundError:
        return "is a link that leads nowhere"
    except (OSError, ValueError) as error:
        return f"can't be reached ({getattr(error, 'strerror', None) or error})"


def some(names: list[str]) -> str:
    """The first three names and how many more there are."""
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _metadata(files: list[Path], pictures: set[Path], problems: list[str]) -> dict[Path, str]:
    """Captions by picture, of every metadata file; the first to name a picture is believed."""
    captions: dict[Path, str] = {}
    for path in files:
        if path.name in imagefolder.NAMES:
            found, wrong = imagefolder.read(path, pictures)
            problems += wrong
            twice = [picture.name for picture in found if picture in captions]
            problems += [f"{path.name} names {some(twice)}, which another metadata file names too: that one is believed."] if twice else []
            captions = found | captions
    return captions


def _captioned(found: Found, written: str) -> Found:
    """With the caption beside the picture, or else the one of a metadata row."""
    try:
        return replace(found, text=read_caption(found.path) or written)
    except DataError as error:
        return replace(found, refusal=str(error))


def _from_json(found: list[Found], problems: list[str]) -> list[Found]:
    """With ai-toolkit's captions, `caption` of a .json beside the picture, where there is no other."""
    texts = {one.path: caption_in_json(one.path) for one in found if not one.text and not one.refusal}
    if read := [one.name for one in found if texts.get(one.path)]:
        problems.append(f"{some(read)}: the caption is read from the .json beside the picture.")
    return [replace(one, text=one.text or texts.get(one.path, "")) for one in found]


def _double_captions(found: list[Found], written: dict[Path, str], problems: list[str]) -> None:
    """Say which of two captions is not read."""
    overruled = [one.name for one in found if one.text and written.get(one.path, one.text) != one.text]
    if overruled:
        problems.append(f"{some(overruled)}: the caption file beside the picture is read, not the metadata row.")
    both = [one.name for one in found if all(os.path.isfile(one.path.with_suffix(suffix)) for suffix in CAPTION_SUFFIXES)]
    if both:
        problems.append(f"{some(both)}: the .txt is read, not the .caption beside it.")


def _kohya(folder: Path, found: list[Found], problems: list[str]) -> list[Found]:
    """With the repeats and the caption that the innermost folder named like `10_mokka cat` gives; one line for each such folder.

    The set's own folder may be one too: its number would repeat everything alike, so only its caption is read.
    """
    names: dict[Path, str] = {}
    captionless: Counter[Path] = Counter()
    result = []
    for one in found:
        home = next((parent for parent in one.path.parents if parent.is_relative_to(folder) and _KOHYA.fullmatch(_own_name(parent))), None)
        if home is None:
            result.append(one)
            continue
        number, caption = _KOHYA.fullmatch(_own_name(home)).groups()  # type: ignore[union-attr]
        names[home], count = caption, int(number)
        if count > MAX_REPEATS:
            result.append(one)
            continue
        missing = not one.text and not one.refusal
        captionless[home] += missing
        if count or home == folder:
            result.append(replace(one, repeats=1 if home == folder else count, text=caption if missing else one.text))
    for home, caption in names.items():
        problems.append(_kohya_line(home, folder, caption, captionless[home]))
    return result


def _own_name(folder: Path) -> str:
    return folder.name or folder.resolve().name


def _kohya_line(home: Path, folder: Path, caption: str, num_captionless: int) -> str:
    count = int(_own_name(home).split("_")[0])
    shown = _own_name(folder) if home == folder else home.relative_to(folder).as_posix()
    if count > MAX_REPEATS:
        return f"folder {shown}: {count} is not read as kohya's repeats, of which up to {MAX_REPEATS} are allowed."
    if home == folder:
        said = f"folder {shown}: its name is read as kohya's, without the repeats, which would repeat everything alike"
    elif count == 0:
        return f"folder {shown}: read as kohya's 0 repeats, its pictures are left out (data.kohya_folders=false reads a plain name)."
    else:
        said = f"folder {shown}: read as kohya's {count} repeat{'s' if count > 1 else ''}"
    if num_captionless:
        said += f", and as the caption {caption!r} of {num_captionless} picture{'s' if num_captionless > 1 else ''} without one"
    return f"{said} (data.kohya_folders=false reads a plain name)."


def _ruled(found: list[Found], repeats: list[Rule], weights: list[Rule]) -> list[Found]:
    """With repeats and weights of the last rule that fits the picture's folder. Raises: ConfigError for a rule that fits none."""
    folders = {one.path: one.name.rpartition("/")[0] or "." for one in found}
    for field, rules in (("data.repeats", repeats), ("data.weights", weights)):
        for rule in rules:
            if not any(rule.fits(folder) for folder in set(folders.values())):
                there = ", ".join(sorted(set(folders.values()))[:20])
                raise ConfigError(f"{field} has {rule.pattern!r}, which fits no folder with pictures; there are: {there or 'none'} (. is the set itself).")
    result = []
    for one in found:
        times = [rule.value for rule in repeats if rule.fits(folders[one.path])]
        factors = [rule.value for rule in weights if rule.fits(folders[one.path])]
        result.append(replace(one, repeats=int(times[-1]) if times else one.repeats, weight=factors[-1] if factors else one.weight))
    return result


def _mask_folder(data: DataConfig) -> dict[str, Path]:
    """Mask files of the mask folder by their path in it without suffix. Raises: DataError if it is none."""
    if not data.mask_folder:
        return {}
    folder = Path(data.mask_folder)
    check_folder(folder, "data.mask_folder")
    return {_stem(path.relative_to(folder).as_posix()): path for path in _files(folder, {}, []) if path.suffix.lower() in IMAGE_SUFFIXES}


def _stem(name: str) -> str:
    folder, stem = os.path.split(os.path.splitext(name)[0])
    return os.path.join(folder, layouts.mask_stem(stem) or stem)


def _masked(found: list[Found], masks: dict[str, Path], beside: dict[Path, Path]) -> list[Found]:
    """With the mask of the mask folder (under the picture's path there, or its bare name), or the one beside the picture."""
    result = []
    for one in found:
        stem = os.path.splitext(one.name)[0]
        mask = masks.get(stem) or masks.get(stem.rpartition("/")[2]) or beside.get(one.path.with_name(one.path.stem))
        result.append(replace(one, mask=mask))
    return result


def _explain_masks(masks: dict[Path, Path], pictures: list[Path], data: DataConfig, problems: list[str]) -> None:
    """A line for masks that nothing reads."""
    stems = {path.with_name(path.stem) for path in pictures}
    if masks and data.mask != "file":
        problems.append(f"{some([path.name for path in masks])}: masks, and data.mask is {data.mask}: not used.")
    elif lost := [path.name for path, stem in masks.items() if stem not in stems]:
        problems.append(f"{some(lost)}: masks without a picture of that name (the mask of a.jpg is a.mask.png): not used.")


def _explain_rest(folder: Path, files: list[Path], pictures: list[Path], problems: list[str]) -> None:
    """A line for every file that is neither picture nor read as something of one."""
    stems = {path.with_suffix("") for path in pictures}
    others = [path for path in files if path.suffix.lower() not in (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, *_BESIDE)]
    problems += [f"{path.relative_to(folder).as_posix()} is no {FORMATS}: left out." for path in others]
    known = stems | {path.with_suffix("") for path in others}
    for path in files:
        if path.suffix.lower() in CAPTION_SUFFIXES:
            problem = _caption_problem(path, known, stems)
            problems += [f"{path.relative_to(folder).as_posix()} {problem}"] if problem else []


def _caption_problem(path: Path, known: set[Path], stems: set[Path]) -> str | None:
    """Why a caption file is not read; None if it is."""
    stem = path.with_suffix("")
    if stem in stems and not os.path.isfile(path.with_suffix(path.suffix.lower())):
        return f"is not read: a caption's name ends in {path.suffix.lower()}, in small letters; rename it."
    if stem not in known:
        if stem.suffix.lower() in IMAGE_SUFFIXES:
            return f"is a caption without a picture: not used; a caption is called {stem.stem}{path.suffix.lower()}, without {stem.suffix}."
        return "is a caption without a picture: not used."
    return None
