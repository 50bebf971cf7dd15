"""The doors of what is trained on: pictures, zips and captions; see `tests.doors`."""

from __future__ import annotations

import io
import json
import random
import stat
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from tests import fuzzing
from tests.doors_setup import Call, Case, context, fresh
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import caption_files as ours
from trainer.data import opening


def _encoded(mode: str, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGBA", (24, 20), random.Random(1).randbytes(24 * 20 * 4)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def good_pictures() -> list[bytes]:
    """A small picture of each format, mode and extra that is read."""
    from PIL import ImageCms
    from PIL.PngImagePlugin import PngInfo

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif, chunks = Image.Exif(), PngInfo()
    exif[0x0112] = 6
    chunks.add(b"cICP", bytes((9, 16, 0, 1)))
    chunks.add(b"gAMA", struct.pack(">I", 45455))
    files = [_encoded(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    files += [
        _encoded("RGB", "PNG", icc_profile=profile, exif=exif.tobytes(), pnginfo=chunks),
        _encoded("P", "PNG", transparency=b"\0\x80\xff"),
        _encoded("RGB", "PNG", transparency=(1, 2, 3)),
        *(_encoded("L", "JPEG"), _encoded("CMYK", "JPEG"), _encoded("RGB", "JPEG", progressive=True)),
        _encoded("RGB", "JPEG", icc_profile=profile, exif=exif.tobytes()),
        *(_encoded("RGB", "WEBP", lossless=True), _encoded("RGBA", "WEBP")),
        _encoded("RGB", "WEBP", icc_profile=profile, exif=exif.tobytes()),
        *(_encoded("RGB", "AVIF"), _encoded("RGBA", "AVIF", exif=exif.tobytes())),
    ]
    others = [Image.new("RGB", (24, 20), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP", "GIF", "TIFF"):
        files.append(_encoded("RGB", kind, save_all=True, append_images=others))
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        files.append(_encoded("RGB", "HEIF"))
    return files


def pictures(room: Path) -> Case:
    """A picture to be trained on: as pixels, as a mask, as a thumbnail, and as one that may carry a recipe."""
    from trainer.data import dataset_check
    from trainer.render import picture_metadata

    good = good_pictures()

    def case(chance: random.Random) -> list[Call]:
        path = room / f"x{chance.choice(['.png', '.jpg', '.webp', '.avif', '.heic'])}"
        path.write_bytes(fuzzing.data(good, chance))

        def trained() -> None:
            picture, notes = opening.open_whole(path)
            dataset_check.sharpness(opening.flat(picture, opening.WHITE).convert("L"))
            "".join(notes).encode()

        return [
            trained,
            lambda: opening.open_mask(path),
            lambda: opening.opacity(path),
            lambda: picture_metadata.read(path),
        ]

    return case


PNG = _encoded("RGB", "PNG")
NAMES = [
    "a.png", "a.txt", "b/a.jpg", "../../evil.png", "/etc/evil.png", "C:\\evil.png", "con.png", ".hidden.png",
    "\u202egnp.png", "a\0.png", "masks/a.png", "__MACOSX/a.png", "10_cat/a.png", "metadata.jsonl", "metadata.csv",
    "a" * 300 + ".png", "a/" * 40 + "a.png", "x.caption", "a.PNG", "b.exe", "", "/",
]  # fmt: skip


def _zip(chance: random.Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for _ in range(chance.randint(0, 5)):
            name = chance.choice(NAMES) if chance.random() < 0.8 else _damaged_name(chance)
            entry = zipfile.ZipInfo(name, (1980 + chance.randrange(100), 1, 1, 0, 0, 0))
            entry.external_attr = chance.choice([0, 0, 0, stat.S_IFLNK << 16, stat.S_IFDIR << 16, 0xFFFFFFFF])
            packed = chance.random()
            entry.compress_type = (
                zipfile.ZIP_STORED if packed < 0.4 else zipfile.ZIP_DEFLATED if packed < 0.95 else zipfile.ZIP_BZIP2
            )
            content = _zipped_content(chance)
            if name.lower().endswith((".txt", ".caption", ".jsonl", ".csv")):
                content = fuzzing.raw(fuzzing.text(["a cat", ROWS], chance), chance)
            with suppress(ValueError):
                archive.writestr(entry, content)
    return file.getvalue() if chance.random() < 0.4 else fuzzing.data([file.getvalue()], chance)


def _damaged_name(chance: random.Random) -> str:
    return fuzzing.text(NAMES, chance, 2)[:60_000].encode("utf-8", "replace").decode()  # a zip's field ends at 64 KiB


def _zipped_content(chance: random.Random) -> bytes:
    """Mostly a picture; sometimes a damaged one, noise, or zeros that pack to almost nothing."""
    kind = chance.randrange(40)
    if kind == 0:
        return bytes(1 << 21)
    if kind < 6:
        return chance.randbytes(50)
    return fuzzing.data([PNG], chance) if kind < 12 else PNG


def zips(room: Path) -> Case:
    """A zip dropped on the page, and one that is named as a dataset."""
    from trainer.data import archives, uploads

    def case(chance: random.Random) -> list[Call]:
        here = fresh(room / "here")
        path = here / "x.zip"
        path.write_bytes(_zip(chance))
        files = [here / f"{number}{chance.choice(['.png', '.txt', '.jpg'])}" for number in range(2)]
        for file in files:
            file.write_bytes(fuzzing.data([PNG, b"a cat"], chance, 2))
        return [
            lambda: uploads.add_zip(here / "set", path).message.encode(),
            lambda: "\n".join(archives.opened(path)[1]).encode(),
            lambda: uploads.add_pictures(here / "set", files).message.encode(),
        ]  # fmt: skip

    return case


ROWS = '{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "caption": "é"}\n'
TABLE = [["file_name", "text"], ["a.png", "a cat, sitting"], ["b.png", "b"], ["../x.png", ""]]
WORDS = ["a cat, sitting, {red|blue|{a|b}} | x", "[trigger] on a hill\ntwo\nlines", "mokka " * 50, "日本語, 猫", "a"]
HISTORY = """\
{"edit": 1, "picture": "a.png", "sidecar": "a.txt", "before": null, "after": "a\\n", "at": 1.0}
{"undo": 1, "picture": "a.png", "sidecar": "a.txt"}
"""


def _caption_settings(chance: random.Random) -> CaptionsConfig:
    return CaptionsConfig(
        wildcards=chance.random() < 0.5,
        shuffle_tags=chance.random() < 0.5,
        tag_dropout=chance.choice([0, 0.5]),
        lines=chance.choice(["join", "choose"]),
    )


def captions(room: Path) -> Case:
    """A folder's captions in each of their files, with their history.

    They are read by the page's table, by the check, and as the strings that are trained.
    """
    from app import dataset_checks, dataset_gallery
    from app.dataset_measures import Looks
    from trainer.config import TrainConfig
    from trainer.data import caption_variants, scanning

    there = context(room)
    looks = Looks(there)
    config = TrainConfig(family="sd", base="imprimatura", adapter={"method": "lora"}, max_steps=1)  # type: ignore[arg-type]

    def case(chance: random.Random) -> list[Call]:
        folder = fresh(room / "datasets" / "set")
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(PNG)
        texts: dict[str, str] = {
            "a.txt": fuzzing.text(WORDS, chance),
            "a.caption": fuzzing.text(WORDS, chance),
            "b.txt": fuzzing.text(WORDS, chance, 1),
            "b.json": fuzzing.as_json(fuzzing.broken({"caption": "a cat"}, chance), chance),
            "metadata.jsonl": fuzzing.text([ROWS, WORDS[0]], chance),
            "metadata.csv": fuzzing.as_rows(TABLE, chance),
            ours.HISTORY: fuzzing.text([HISTORY, HISTORY * 3], chance),
        }
        for name in chance.sample(list(texts), chance.randint(1, 4)):
            (folder / name).write_bytes(fuzzing.raw(texts[name], chance))
        trigger, written = chance.choice(["", "mokka", "a", "[x]", "猫"]), fuzzing.text(WORDS, chance)
        settings = _caption_settings(chance) if chance.random() < 0.9 else CaptionsConfig()
        changes = {"data": DataConfig(folder=str(folder), trigger=trigger), "captions": settings}
        whole = config.model_copy(update=changes)

        def gallery(trigger: str) -> dict[str, Any]:
            scene = dataset_gallery.read(there, looks, "set")
            return dataset_gallery.data(there, looks, "set", scene, 64, trigger)

        def trained() -> None:
            dataset = scanning.scan(whole)
            dataset.message.encode()
            for item in dataset.items:
                "".join(caption_variants.variants(item.captions, settings, 1)).encode()
                caption_variants.settled(item.captions, settings, 1)

        def edited() -> None:
            ours.write_caption(folder / "a.png", written)
            ours.undo(folder)
            ours.undo(folder)

        return [
            trained,
            edited,
            lambda: json.dumps(gallery(trigger)).encode(),
            lambda: dataset_checks.as_html(dataset_checks.check(there, "set", 64, trigger)).encode(),
        ]

    return case
