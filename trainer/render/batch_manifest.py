"""What lies beside a batch's pictures: `manifest.csv`, a line for each row, and contact sheets of 100 pictures."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from trainer import damaged_pictures, files
from trainer.config.batch import SHEETS
from trainer.render.batch_journal import HIDDEN
from trainer.render.batch_ledger import Plan, Work

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = (
    *("row", "state", "file", "prompt", "negative", "base", "lora"),
    *("seed", "steps", "size", "guidance", "digest", "problem"),
)
PER_SHEET = 100  # pictures
_ACROSS, _CELL_PX, _GAP_PX, _LINE_PX = 10, 192, 8, 14
_SHEET = re.compile(r"page-[0-9]{4,6}\.png")  # no other name is believed: sheets that are no longer wanted are removed
_INK, _PAPER, _GREY = (40, 38, 36), (250, 249, 246), (210, 208, 204)


# The manifest.


def manifest_file(out: Path) -> Path:
    """`manifest.csv`, or with -2, -3 ... where that is another's file."""
    path = out / "manifest.csv"
    number = 1  # a number is only put behind the second
    while path.exists() and not _is_ours(path):
        number += 1
        path = out / f"manifest-{number}.csv"
    return path


def _is_ours(path: Path) -> bool:
    """Whether a file begins as a manifest does; any other is somebody's and stays."""
    head = ",".join(COLUMNS).encode()
    try:
        if not path.is_file():  # a pipe would never answer
            return False
        with path.open("rb") as file:
            return file.read(len(head) + 3).removeprefix(b"\xef\xbb\xbf").startswith(head)
    except OSError:
        return False


def write_manifest(plan: Plan, path: Path) -> None:
    """All rows, whole or not at all. In UTF-8 with a mark, by which spreadsheet programs know it."""
    with (
        files.replacing(path, path.parent / HIDDEN / "manifest.tmp") as unfinished,
        unfinished.open("w", encoding="utf-8-sig", newline="", errors="replace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number, work in plan.rows():
            stack = work.stack
            loras = "; ".join(f"{adapter.name or adapter.file}:{adapter.weight:g}" for adapter in stack.adapters)
            texts = (work.file if work.state == "done" else "", stack.prompt, stack.negative_prompt, stack.base, loras)
            numbers = (stack.seed, stack.steps, f"{stack.width_px}x{stack.height_px}", f"{stack.guidance_scale:g}")
            problem = map(harmless, (work.digest, work.why))
            writer.writerow((number, work.state, *map(harmless, texts), *numbers, *problem))


def harmless(text: str) -> str:
    """A cell that no spreadsheet program takes for a formula.

    It has `'` before what could begin one (OWASP, CSV injection), and no control characters.
    """
    plain = "".join(letter if letter >= " " or letter == "\n" else " " for letter in text)
    return f"'{plain}" if plain.lstrip()[:1] in tuple("=+-@＝＋－＠'|%") else plain


# Contact sheets.


def write_sheets(plan: Plan, out: Path) -> int:
    """How many pages of contact sheets there are now, of the pictures that are there, in the order of the rows.

    Only pages whose content changed are drawn.
    """
    record = out / HIDDEN / "sheets.json"
    contents = _drawn_sheets(record)
    done = (work for work in plan.pictures() if work.state == "done")
    number = 0
    while page := list(itertools.islice(done, PER_SHEET)):
        number += 1
        path = out / SHEETS / f"page-{number:04d}.png"
        # What a page shows: the same rows with the same pictures give the same page.
        content = hashlib.sha256(
            json.dumps([(work.place, work.digest, work.file) for work in page]).encode()
        ).hexdigest()
        if contents.get(path.name) != content or not path.exists():
            _save(_sheet(page, out), path)
            contents[path.name] = content

    # Pages beyond the last are from an earlier run with more pictures.
    for name in [name for name in contents if name > f"page-{number:04d}.png"]:
        (out / SHEETS / name).unlink(missing_ok=True)
        del contents[name]
    files.write(record, json.dumps(contents).encode(), record.with_suffix(".json.tmp"))
    return number


def _drawn_sheets(record: Path) -> dict[str, Any]:
    """The content of each sheet that was drawn before, as a hash, by its file's name."""
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: content for name, content in values.items() if _SHEET.fullmatch(name)}


def _save(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path, path.with_name(f".{path.name}.tmp")) as unfinished:
        sheet.save(unfinished, "PNG")


def _sheet(page: list[Work], out: Path) -> Image.Image:
    """One page; each picture is opened, shrunk and let go before the next."""
    across = min(_ACROSS, len(page))
    down = -(-len(page) // across)
    step_x, step_y = _CELL_PX + _GAP_PX, _CELL_PX + 2 * _LINE_PX + _GAP_PX
    sheet = Image.new("RGB", (across * step_x + _GAP_PX, down * step_y + _GAP_PX), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, work in enumerate(page):
        left, top = _GAP_PX + place % across * step_x, _GAP_PX + place // across * step_y
        # The picture, in the middle of its cell.
        try:
            with Image.open(out / work.file, formats=("PNG", "WEBP", "JPEG")) as opened:
                opened.draft("RGB", (_CELL_PX, _CELL_PX))  # a JPEG is decoded at a smaller size
                picture = opened.convert("RGB")
            picture.thumbnail((_CELL_PX, _CELL_PX))
            sheet.paste(picture, (left + (_CELL_PX - picture.width) // 2, top + (_CELL_PX - picture.height) // 2))
        except damaged_pictures.errors():  # taken away or damaged meanwhile
            pen.rectangle((left, top, left + _CELL_PX, top + _CELL_PX), outline=_GREY)
        # Its labels below.
        for line, text in enumerate(_labels(work)):
            pen.text((left, top + _CELL_PX + line * _LINE_PX), _cut(text, font), _INK, font)
    return sheet


def _labels(work: Work) -> Iterator[str]:
    loras = ", ".join(f"{adapter.name} {adapter.weight:g}" for adapter in work.stack.adapters) or "no LoRA"
    yield f"{work.place}  seed {work.stack.seed}  {loras}"
    yield " ".join(work.stack.prompt[:200].split()) or work.file


def _cut(text: str, font: object) -> str:
    """The text, cut where it is wider than a cell."""
    length = getattr(font, "getlength", len)
    if length(text) <= _CELL_PX:
        return text
    # A twentieth at a time: prompts are long, and each try measures the whole text.
    while text and length(text + "…") > _CELL_PX:
        text = text[: -max(1, len(text) // 20)]
    return text + "…"
