"""Pictures and captions from outside -> files in a dataset folder, and one line for each that was left out.

Every upload is hostile. Only pictures that open and captions that are UTF-8 come in, under names of our making, and
nothing that is there is ever replaced: the next is `-2`. Python's `zipfile` is trusted with parsing only: sizes are
counted while reading, since headers lie, and overlapping entries (CVE-2024-0450: 6 KB -> 100 MB) are refused whole.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from trainer import files, system, unique_names
from trainer.data import caption_files, imagefolder, other_tools_files
from trainer.data.formats import CAPTION_SUFFIXES, IMAGE_SUFFIXES
from trainer.data.opening import open_image
from trainer.errors import DataError
from trainer.printing import printable

MAX_ENTRIES = 5_000
MAX_FILE_BYTES = 50 << 20
MAX_TOTAL_BYTES = 2 << 30
MAX_RATIO = 100
# What is wrong with a path itself, and not with the disk.
_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EILSEQ, errno.EINVAL)
_RATIO_FROM_BYTES = 1 << 20  # below it, plain text packs as well as a bomb does


@dataclass
class Report:
    """What came in, by its new name, and a line for each thing that did not."""

    added: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def message(self) -> str:
        """Both as one text."""
        num = len(self.added)
        lines = [f"{num} picture{'' if num == 1 else 's'} added."]
        if self.left_out:
            lines += [f"{len(self.left_out)} left out:", *(f"  {line}" for line in self.left_out)]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Source:
    """One file offered: its name as it came, and how to read at most the allowed bytes of it (DataError otherwise)."""

    name: str
    read: Callable[[], bytes]

    @property
    def key(self) -> str:
        """What a picture and its caption share: the path without suffix."""
        path = PurePosixPath(self.name.replace("\\", "/"))
        return str(path.with_suffix("")) if path.name else self.name

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1].lower()


def safe_stem(name: str) -> str:
    """A file stem of letters, digits, dot, dash and underscore, at most 80, whatever path or trick `name` holds."""
    # NFC: macOS writes accents apart from their letters, and would make another name of the same.
    last = re.split(r"[\\/]", unicodedata.normalize("NFC", name))[-1]
    stem = re.sub(r"[^\w.-]+", "-", os.path.splitext(last)[0]).strip("-. ")[:80].strip("-. ")
    while len(stem.encode()) > 200:  # a file name holds 255 bytes
        stem = stem[:-1]
    return f"{stem}-file" if stem.lower() in system.RESERVED else stem or "picture"


def add_pictures(folder: Path, files: Iterable[Path]) -> Report:
    """Copy pictures and their captions into `folder`. Raises: DataError if there are too many."""
    paths = list(files)
    if len(paths) > MAX_ENTRIES:
        raise DataError(f"{len(paths)} files are too many at once; allowed: up to {MAX_ENTRIES}.")
    return _add(folder, [_Source(path.name, _reader(path)) for path in paths], Report())


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with path.open("rb") as file:
                return _capped(file.read(MAX_FILE_BYTES + 1))
        except OSError as error:
            raise DataError(f"can't be read: {error.strerror}") from None

    return read


def _capped(raw: bytes) -> bytes:
    if len(raw) > MAX_FILE_BYTES:
        raise DataError(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
    return raw


def add_zip(folder: Path, zip_path: Path) -> Report:
    """Copy the pictures and captions of a zip into `folder`.

    Raises: DataError if the zip as a whole can't be trusted.
    """
    report = Report()
    with _entries(zip_path, report) as entries:
        sources = _with_rows(entries, report)
        captioned = {source.key for source in sources if source.suffix in CAPTION_SUFFIXES}
        aside = {source: reason for source in sources if (reason := _aside(source.name, source.key in captioned))}
        report.left_out += [
            f"{_shown(source.name)} {reason}." for source, reason in aside.items() if source.suffix in IMAGE_SUFFIXES
        ]
        return _add(folder, [source for source in sources if source not in aside], report)


def _with_rows(sources: list[_Source], report: Report) -> list[_Source]:
    """The files, each row of a metadata file among them as the caption of a picture that has none beside it."""
    pictures = {PurePosixPath(source.name): source for source in sources if source.suffix in IMAGE_SUFFIXES}
    captions = {source.key: source for source in sources if source.suffix in CAPTION_SUFFIXES}
    tables = [source for source in sources if PurePosixPath(source.name).name in imagefolder.NAMES]
    rest = [source for source in sources if source not in tables]
    for table in tables:
        home = PurePosixPath(table.name).parent
        with tempfile.TemporaryDirectory() as scratch:
            # The reader opens a path, so the table lies in a file; its pictures are there by name alone.
            path = Path(scratch, PurePosixPath(table.name).name)
            named = {
                path.parent.joinpath(name.relative_to(home)): source
                for name, source in pictures.items()
                if name.is_relative_to(home)
            }
            try:
                path.write_bytes(table.read())
            except DataError as error:
                report.left_out.append(f"{_shown(table.name)} {error}.")
                continue
            rows, problems = imagefolder.read(path, set(named))
        report.left_out += problems
        for picture, text in rows.items():
            # A caption file beside the picture counts before a row.
            if (key := named[picture].key) not in captions:
                captions[key] = _Source(f"{key}.txt", text.encode)
                rest.append(captions[key])
    return rest


def names_in(zip_path: Path) -> list[str]:
    """The names of what may be read of a zip. Raises: DataError if it can't be trusted."""
    with _entries(zip_path, Report()) as sources:
        return [source.name for source in sources]


def unpack_zip(folder: Path, zip_path: Path, place: Callable[[str], Path | None]) -> Report:
    """Copy what a dataset is made of into an empty `folder`, each entry where `place` says. Raises: as `add_zip`."""
    report, total, taken = Report(), 0, set()
    with _entries(zip_path, report) as sources:
        for source in sources:
            where = place(source.name)
            is_picture = source.suffix in IMAGE_SUFFIXES
            try:
                # What is refused by its name.
                if where is None:
                    raise DataError("has a name that can't be a file's everywhere")
                if str(where).lower() in taken:
                    raise DataError("is there twice, or differs from another only in case")
                if not is_picture and source.suffix not in CAPTION_SUFFIXES and where.name not in imagefolder.NAMES:
                    raise DataError("is no picture, caption or metadata")

                # What is refused by its content; sizes are counted here, since headers lie.
                raw = source.read()
                total += len(raw)
                if total > MAX_TOTAL_BYTES:
                    raise DataError(f"and what came before are together larger than {MAX_TOTAL_BYTES >> 30} GiB")
                if is_picture:
                    open_image(io.BytesIO(raw)).close()
                _put(folder / where, raw)
            except DataError as error:
                report.left_out.append(f"{_shown(source.name)} {error}.")
                continue
            taken.add(str(where).lower())
            report.added += [str(where)] if is_picture else []
    return report


def _put(path: Path, raw: bytes) -> None:
    """Raises: DataError for a path that can't be beside the others, OSError where there is no writing at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    except OSError as error:
        if error.errno not in _PATH_ERRORS:
            raise
        raise DataError(f"has a path that can't be written here ({error.strerror})") from None


@contextmanager
def _entries(zip_path: Path, report: Report) -> Iterator[list[_Source]]:
    """The files of a zip that may be read; the others are named in the report.

    Raises: DataError, also from reading in the body.
    """
    try:
        if zip_path.stat().st_size > MAX_TOTAL_BYTES:
            raise DataError(f"{zip_path.name} is larger than {MAX_TOTAL_BYTES >> 30} GiB.")
        with zipfile.ZipFile(zip_path) as archive:
            # The whole first, then each entry by its header; what it holds is counted as it is read.
            entries = archive.infolist()
            _check_whole(zip_path.name, entries, archive.start_dir)
            sources = []
            for entry in entries:
                if entry.filename.endswith("/") or _is_litter(entry.filename):
                    continue
                if problem := _refusal(entry):
                    report.left_out.append(f"{_shown(entry.filename)} {problem}.")
                    continue
                sources.append(_Source(entry.filename, _entry_reader(archive, entry)))
            yield sources
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise DataError(f"{zip_path.name} is not a zip that can be read: {str(error)[:120]}") from None


def _check_whole(name: str, entries: list[zipfile.ZipInfo], directory_start: int) -> None:
    """Raises: DataError for too many entries, or for some that overlap, as bombs do that unpack one part many times."""
    if len(entries) > MAX_ENTRIES:
        raise DataError(f"{name} has {len(entries)} entries; allowed: up to {MAX_ENTRIES}.")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise DataError(
                f"{name} has entries that overlap ({_shown(entry.filename)}); such a zip is made to do harm and is "
                f"refused."
            )
        end = entry.header_offset + 30 + entry.compress_size  # a local header has 30 bytes at least
    if end > directory_start:
        raise DataError(f"{name} has entries that overlap its directory; such a zip is made to do harm and is refused.")


def _is_litter(name: str) -> bool:
    """What systems put into every zip: no word need be lost about it."""
    *folders, last = re.split(r"[\\/]", name)
    return other_tools_files.is_litter(last) or any(other_tools_files.is_waste(folder) for folder in folders)


def _aside(name: str, captioned: bool) -> str:
    """Why a picture is not of the set, by the folder it lies in, as the end of a sentence; "" if it is of the set."""
    folders = re.split(r"[\\/]", name)[:-1]
    return next(
        (f"lies in {folder}, which {reason}" for folder in folders if (reason := _reason(folder, captioned))), ""
    )


def _reason(folder: str, captioned: bool) -> str:
    return other_tools_files.aside(folder) or ("" if captioned else other_tools_files.aside_without_captions(folder))


def _refusal(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry is not even read, by its header; None if it may be."""
    # The mode of a Unix file; 0 in a zip that was made elsewhere.
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device, not a file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in a way that isn't supported; allowed: stored, deflate"
    if entry.file_size > MAX_FILE_BYTES:
        return f"is larger than {MAX_FILE_BYTES >> 20} MiB"
    if entry.file_size > _RATIO_FROM_BYTES and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
        return f"unpacks to more than {MAX_RATIO} times its size"
    return None


def _entry_reader(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with archive.open(entry) as file:
                return _capped(file.read(MAX_FILE_BYTES + 1))
        except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, ValueError, EOFError) as error:
            raise DataError(f"is damaged in the zip ({str(error)[:80]})") from None

    return read


def _shown(name: str) -> str:
    """A name as a message may hold it: printable and short."""
    return printable(name[:120]) or "(no name)"


def _add(folder: Path, sources: list[_Source], report: Report) -> Report:
    """Write the files into the folder; what came in and what did not.

    Raises: DataError if nothing can be written there.
    """
    try:
        return _written(folder, sources, report)
    except Timeout:
        raise DataError(f"{folder.name} is being filled by others; try again in a minute. {report.message}") from None
    except OSError as error:
        raise DataError(
            f"{folder.name} can't take these files ({error.strerror or error}); {caption_files.mend(error)} "
            f"{report.message}"
        ) from None


def _written(folder: Path, sources: list[_Source], report: Report) -> Report:
    """The report, with pictures first, then captions beside the picture they came with, under its new stem."""
    folder.mkdir(parents=True, exist_ok=True)
    stems: dict[str, str] = {}  # by the key of a picture, the stem it was written under
    total = 0
    # Pictures before their captions, and .txt before .caption, since the first caption counts.
    ordered = sorted(sources, key=lambda source: (source.suffix in CAPTION_SUFFIXES, source.suffix == ".caption"))
    for number, source in enumerate(ordered):
        problem = None
        try:
            # What is neither picture nor caption is not even read.
            raw = source.read() if source.suffix in (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES) else b""
            total += len(raw)
            if total > MAX_TOTAL_BYTES:
                report.left_out.append(
                    f"{_shown(source.name)} and the {len(ordered) - number - 1} after it: together they are larger "
                    f"than {MAX_TOTAL_BYTES >> 30} GiB."
                )
                break
            if source.suffix in CAPTION_SUFFIXES:
                problem = _add_caption(folder, source, raw, stems)
            elif source.suffix in IMAGE_SUFFIXES:
                stems.setdefault(source.key, name := _add_picture(folder, source, raw))
                report.added.append(name + source.suffix)
            else:
                problem = (
                    f"is neither a picture ({', '.join(IMAGE_SUFFIXES)}) nor a caption ({', '.join(CAPTION_SUFFIXES)})"
                )
        except DataError as error:
            problem = str(error)
        if problem:
            report.left_out.append(f"{_shown(source.name)} {problem}.")
    return report


def _claiming(folder: Path) -> FileLock:
    """A lock to hold while a name is looked for and taken.

    A name that is free can be claimed without a lock, but not a stem: `a.png` and `a.jpg` would share one caption.
    """
    return FileLock(str(folder / ".uploads.lock"), timeout=60)


def _add_picture(folder: Path, source: _Source, raw: bytes) -> str:
    """The stem it was written under, which no other picture or caption of the folder has."""
    # It must open before anything is written.
    open_image(io.BytesIO(raw)).close()
    with unique_names.temporary(folder) as temporary:
        files.write_synced(temporary, raw)
        with _claiming(folder):
            taken = {os.path.splitext(name)[0].lower() for name in os.listdir(folder) if not name.startswith(".")}
            names = unique_names.numbered(folder, safe_stem(source.name), source.suffix)
            return unique_names.put(temporary, (path for path in names if path.stem.lower() not in taken)).stem


def _add_caption(folder: Path, source: _Source, raw: bytes, stems: dict[str, str]) -> str | None:
    """Write the caption beside its picture; what is wrong with it otherwise. Raises: DataError."""
    text = caption_files.decode(raw, "file")
    stem = stems.get(source.key)
    if stem is None:
        stem = safe_stem(source.name)
        if not any((folder / f"{stem}{suffix}").is_file() for suffix in IMAGE_SUFFIXES):
            return "is a caption without a picture"
    with _claiming(folder):
        if any((folder / f"{stem}{suffix}").exists() for suffix in CAPTION_SUFFIXES):
            return f"would replace the caption of {stem}; edit it there instead"
        caption_files.write_caption(folder / f"{stem}.png", text)
    return None
