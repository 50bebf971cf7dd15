"""The doors of what is trained on and of what a run leaves behind; see `tests.doors`."""

from __future__ import annotations

import io
import json
import random
import sqlite3
import stat
import struct
import zipfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from tests import doors, fuzzing
from tests.doors import Call, Case
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import captions as ours
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
    found = [_encoded(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    found += [_encoded("RGB", "PNG", icc_profile=profile, exif=exif.tobytes(), pnginfo=chunks), _encoded("P", "PNG", transparency=b"\0\x80\xff")]
    found += [_encoded("RGB", "PNG", transparency=(1, 2, 3)), _encoded("L", "JPEG"), _encoded("CMYK", "JPEG"), _encoded("RGB", "JPEG", progressive=True)]
    found += [_encoded("RGB", "JPEG", icc_profile=profile, exif=exif.tobytes()), _encoded("RGB", "WEBP", lossless=True), _encoded("RGBA", "WEBP")]
    found += [_encoded("RGB", "WEBP", icc_profile=profile, exif=exif.tobytes()), _encoded("RGB", "AVIF"), _encoded("RGBA", "AVIF", exif=exif.tobytes())]
    others = [Image.new("RGB", (24, 20), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP", "GIF", "TIFF"):
        found.append(_encoded("RGB", kind, save_all=True, append_images=others))
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append(_encoded("RGB", "HEIF"))
    return found


def pictures(room: Path) -> Case:
    """A picture to be trained on, as pixels, as a mask and as a thumbnail; and as one that may tell what it was made from."""
    from trainer.data import dataset_check
    from trainer.render import image

    good = good_pictures()

    def case(chance: random.Random) -> list[Call]:
        path = room / f"x{chance.choice(['.png', '.jpg', '.webp', '.avif', '.heic'])}"
        path.write_bytes(fuzzing.data(good, chance))

        def trained() -> None:
            picture, notes = opening.open_whole(path)
            dataset_check.sharpness(opening.flat(picture, opening.WHITE).convert("L"))
            "".join(notes).encode()

        return [trained, lambda: opening.open_mask(path), lambda: opening.opacity(path), lambda: image.read(path)]

    return case


PNG = _encoded("RGB", "PNG")
NAMES = ["a.png", "a.txt", "b/a.jpg", "../../evil.png", "/etc/evil.png", "C:\\evil.png", "con.png", ".hidden.png", "\u202egnp.png", "a\0.png", "masks/a.png"]
NAMES += ["__MACOSX/a.png", "10_cat/a.png", "metadata.jsonl", "metadata.csv", "a" * 300 + ".png", "a/" * 40 + "a.png", "x.caption", "a.PNG", "b.exe", "", "/"]


def _zip(chance: random.Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for _ in range(chance.randint(0, 5)):
            name = chance.choice(NAMES) if chance.random() < 0.8 else fuzzing.text(NAMES, chance, 2)[:60_000].encode("utf-8", "replace").decode()
            entry = zipfile.ZipInfo(name, (1980 + chance.randrange(100), 1, 1, 0, 0, 0))
            entry.external_attr = chance.choice([0, 0, 0, stat.S_IFLNK << 16, stat.S_IFDIR << 16, 0xFFFFFFFF])
            packed = chance.random()
            entry.compress_type = zipfile.ZIP_STORED if packed < 0.4 else zipfile.ZIP_DEFLATED if packed < 0.95 else zipfile.ZIP_BZIP2
            kind = chance.randrange(40)
            content = bytes(1 << 21) if kind == 0 else chance.randbytes(50) if kind < 6 else fuzzing.data([PNG], chance) if kind < 12 else PNG
            if name.lower().endswith((".txt", ".caption", ".jsonl", ".csv")):
                content = fuzzing.raw(fuzzing.text(["a cat", ROWS], chance), chance)
            with suppress(ValueError):
                archive.writestr(entry, content)
    return file.getvalue() if chance.random() < 0.4 else fuzzing.data([file.getvalue()], chance)


def zips(room: Path) -> Case:
    """A zip dropped on the page, and one that is named as a dataset."""
    from trainer.data import archives, uploads

    def case(chance: random.Random) -> list[Call]:
        here = doors.fresh(room / "here")
        path = here / "x.zip"
        path.write_bytes(_zip(chance))
        files = [here / f"{number}{chance.choice(['.png', '.txt', '.jpg'])}" for number in range(2)]
        for file in files:
            file.write_bytes(fuzzing.data([PNG, b"a cat"], chance, 2))
        return [
            lambda: uploads.add_zip(here / "set", path).message.encode(), lambda: "\n".join(archives.opened(path)[1]).encode(),
            lambda: uploads.add_pictures(here / "set", files).message.encode(),
        ]  # fmt: skip

    return case


ROWS = '{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b.png", "caption": "é"}\n'
TABLE = [["file_name", "text"], ["a.png", "a cat, sitting"], ["b.png", "b"], ["../x.png", ""]]
WORDS = ["a cat, sitting, {red|blue|{a|b}} | x", "[trigger] on a hill\ntwo\nlines", "mokka " * 50, "日本語, 猫", "a"]
HISTORY = (
    '{"edit": 1, "picture": "a.png", "sidecar": "a.txt", "before": null, "after": "a\\n", "at": 1.0}\n{"undo": 1, "picture": "a.png", "sidecar": "a.txt"}\n'
)


def captions(room: Path) -> Case:
    """A folder's captions in each of their files, with their history; from the page's table and the check to the strings that are trained."""
    from app.tabs import dataset as tab
    from trainer.config import TrainConfig
    from trainer.data import caption_variants, scanning

    there = doors.context(room)
    config = TrainConfig(family="sd", base="imprimatura", adapter={"method": "lora"}, max_steps=1)  # type: ignore[arg-type]

    def case(chance: random.Random) -> list[Call]:
        folder = doors.fresh(room / "datasets" / "set")
        for name in ("a.png", "b.png"):
            (folder / name).write_bytes(PNG)
        said: dict[str, str] = {
            "a.txt": fuzzing.text(WORDS, chance), "a.caption": fuzzing.text(WORDS, chance), "b.txt": fuzzing.text(WORDS, chance, 1),
            "b.json": fuzzing.as_json(fuzzing.broken({"caption": "a cat"}, chance), chance), "metadata.jsonl": fuzzing.text([ROWS, WORDS[0]], chance),
            "metadata.csv": fuzzing.as_rows(TABLE, chance), ours.HISTORY: fuzzing.text([HISTORY, HISTORY * 3], chance),
        }  # fmt: skip
        for name in chance.sample(list(said), chance.randint(1, 4)):
            (folder / name).write_bytes(fuzzing.raw(said[name], chance))
        trigger, written = chance.choice(["", "mokka", "a", "[x]", "猫"]), fuzzing.text(WORDS, chance)
        asked = CaptionsConfig(
            wildcards=chance.random() < 0.5, shuffle_tags=chance.random() < 0.5, tag_dropout=chance.choice([0, 0.5]), lines=chance.choice(["join", "choose"])
        ) if chance.random() < 0.9 else CaptionsConfig()  # fmt: skip
        whole = config.model_copy(update={"data": DataConfig(folder=str(folder), trigger=trigger), "captions": asked})

        def trained() -> None:
            found = scanning.scan(whole)
            found.message.encode()
            for item in found.items:
                "".join(caption_variants.variants(item.captions, asked, 1)).encode()
                caption_variants.settled(item.captions, asked, 1)

        def edited() -> None:
            ours.write_caption(folder / "a.png", written)
            ours.undo(folder)
            ours.undo(folder)

        return [trained, edited, lambda: tab.overview(there, "set", 0)[2].encode(), lambda: tab.check(there, "set", 64, trigger).encode()]

    return case


# What a run and a batch leave behind.


def _lines(values: list[dict[str, Any]], chance: random.Random) -> bytes:
    """JSON lines, some of them damaged, out of order or said twice."""
    rows = [fuzzing.as_json(fuzzing.broken(one, chance), chance) if chance.random() < 0.4 else json.dumps(one) for one in values]
    if chance.random() < 0.5:
        rows = chance.choices(rows, k=chance.randint(0, 2 * len(rows)))
    return fuzzing.raw("\n".join(rows) + chance.choice(["\n", "", "\r\n"]), chance)


def _events() -> list[dict[str, Any]]:
    from trainer import events as said

    return [json.loads(said.to_line(one)) for one in (
        said.Started("r", 30, 0, 4, 2, 1000, "cpu", "float32", "imprimatura"), said.Planned([[64, 64, 3], [128, 64, 1]], 2, 1), said.Cached(4, 4, 1.5),
        *(said.Step(step, 1 / step, 1e-4, 0.5, 0.2) for step in range(1, 6)),
        *(said.Validated(step, 0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 4, [0.1] * 10, [0.2] * 10, 0.3, 0.01) for step in (3, 5)),
        said.Sampled(5, "a cat", "samples/a.png", 0.99, "a.png"), said.Saved(5, "checkpoints/step-5"), said.Warned("look"), said.Adjusted(2, "slower"),
        said.Overtrained(5, 3, "it rose"), said.Recommended(3, "best.safetensors", "the lowest"), said.Folded(1, 2, [1, 2], [0.1, 0.2], 0.3),
        said.Stopped(4), said.Failed("RuntimeError", "out of paint"), said.Finished(5, "r.safetensors", 9.5, 0.7, 1 << 30),
    )]  # fmt: skip


def _job(kind: str = "train", state: str = "finished") -> Any:
    from app.jobs import Job

    return Job(1, kind, "r", "", state, None, None, 1, 0, 1.0, 2.0, 3.0, "")  # type: ignore[arg-type]


def events(room: Path) -> Case:
    """A run's events.jsonl, as the page polls it, as the report is written and as a resumed run reads it."""
    from app import views
    from app.jobs import Training
    from app.tabs import library
    from trainer import report
    from trainer.runs import Run

    there, good = doors.context(room), _events()
    run = Run(doors.fresh(room / "runs" / "r"))
    doors.fresh(run.folder / "samples")
    (run.folder / "samples" / "a.png").write_bytes(PNG)

    def case(chance: random.Random) -> list[Call]:
        run.events_file.write_bytes(_lines(good, chance))
        job = _job(state=chance.choice(list(views.STATES)))

        def shown() -> str:
            found = there.logs.read(run.events_file)
            bar = views.progress_html("r", views.progress(job, found, 1))
            drawn = [bar, views.loss_html(found), views.gain(found), views.best_step(found), views.messages(job, found), views.plan_html(found)]
            drawn += [views.notices_html(found), views.recommendation_html(found, None), views.heldout_html(found)]
            return "".join([*drawn, *map(str, views.samples(run.folder, found)), *map(str, views.files(run.folder, found))])

        def written() -> str:
            report.write(run)
            return run.report_file.read_text(encoding="utf-8")

        def listed() -> str:
            return json.dumps(library.run_rows(there), ensure_ascii=False)

        return [shown, written, run.state, lambda: Training(room / "runs", room).saved_step(job), listed]

    return case


REHEARSED = {
    "step_s": 0.5,
    "eta_s": 90,
    "peak_bytes": 1 << 30,
    "disk_bytes": 1 << 20,
    "fits": True,
    "settings": ["batch_size=2", "memory.x=true"],
    "budget_bytes": 7,
}
RENDERED = [
    {"event": "planned", "rows": 3, "pictures": 3}, {"event": "rendered", "done": 1, "total": 3, "seconds": 1.5, "file": "a.png"},
    {"event": "rendered", "done": 2, "total": 3, "seconds": 2.5, "file": "b.png"}, {"event": "ended", "done": 2, "failed": 1, "seconds": 9.5},
]  # fmt: skip
SAID = [
    "error: the rank is 0; allowed: 1 to 256.\n  and more\n",
    "Traceback (most recent call last):\n  File x\nValueError: y\n",
    '{"event": "step"}\n',
    "hm\n",
]


def logs(room: Path) -> Case:
    """The end of a job's log: the rehearsal's answer, the last words of one that failed, a batch's progress."""
    from app import batches, views

    there = doors.context(room)

    def case(chance: random.Random) -> list[Call]:
        kind = chance.choice(["train", "rehearse", "batch-csv"])
        job = _job(kind, chance.choice(list(views.STATES)))
        content = _lines(RENDERED if chance.random() < 0.5 else [REHEARSED], chance) + fuzzing.raw(fuzzing.text(SAID, chance), chance)
        there.runner.log_file(job).write_bytes(content * chance.choice([1, 1, 30]))
        log = there.runner.log_file(job)

        def answered() -> str:
            answer = there.runner.answer(job)
            return views.rehearsal_html(job, answer) + str(views.suggested(answer))

        def drawn() -> str:
            return views.progress_html("r", batches.progress(job, batches.told(log)))

        return [answered, drawn, lambda: views.messages(_failed(there.runner._last_words(job)), [])]

    return case


def _failed(error: str) -> Any:
    import dataclasses

    return dataclasses.replace(_job(state="failed"), error=error)


def batches(room: Path) -> Case:
    """A jobs file, CSV or TOML, by the command and dropped on the page; and the manifest, journal and sheets of a batch that goes on."""
    from app import batches as page
    from trainer.config import BatchConfig
    from trainer.render import batch_command, batch_manifest, batch_plan, jobs_file

    there = doors.context(room / "page")
    rows = [
        ["prompt", "negative", "lora", "seed", "steps", "size", "guidance", "name"],
        ["a cat", "", "cat:0.5", "1", "4", "128x128", "3", "{number}-{prompt}"],
    ]
    rows += [["{a|b} <lora:cat:0.5>", "b", "", "", "", "", "", ""], ["c", "", "", "0", "2", "64x64", "", "x"]]
    whole = {
        "prompts": ["a", "{b|c}"],
        "seeds": [1, "3-5"],
        "weights": [0.5, 1],
        "stacks": [["cat:0.5", {"file": "cat", "weight": 1}]],
        "steps": 4,
        "name": "{seed}",
    }
    record = {"done": "ab" * 32, "file": "1.png", "bytes": 7, "mtime_ns": 1, "sha256": "ab" * 32}
    journal = [record, {"failed": "cd" * 32, "problem": "x"}, {"begun": ["ab" * 32]}]
    table = [list(batch_manifest.COLUMNS), ["1", "done", "1.png", "a", "", "b", "", "1", "4", "64x64", "3", "ab", ""], ["2", "failed", *[""] * 10, "why"]]
    keys = [*BatchConfig.model_fields, "file", "weight", "name"]

    def case(chance: random.Random) -> list[Call]:
        suffix = chance.choice([".csv", ".toml"])
        path, out = room / f"x{suffix}", doors.fresh(room / "out")
        said = fuzzing.as_rows(rows, chance) if suffix == ".csv" else fuzzing.as_toml(fuzzing.broken(whole, chance, keys), chance)
        path.write_bytes(fuzzing.raw(said, chance))
        (out / ".batch").mkdir()
        (out / "manifest.csv").write_bytes(fuzzing.raw(fuzzing.as_rows(table, chance), chance))
        (out / ".batch" / "journal.jsonl").write_bytes(_lines(journal, chance))
        (out / ".batch" / "sheets.json").write_bytes(fuzzing.raw(fuzzing.as_json(fuzzing.broken({"page-0001.png": "ab"}, chance), chance), chance))

        def planned() -> str:
            plan = batch_plan.make(jobs_file.read(path, jobs_file.Defaults()), library=there.find_loras)
            plan.reconcile(out)
            batch_manifest.write_sheets(plan, out)
            batch_manifest.write_manifest(plan, out / "manifest.csv")
            return batch_command.describe(plan)

        def dropped() -> str:
            return page.plan_html(page.plan_text(page.uploaded(there, path), [there.loras]))

        def listed() -> str:
            return page.problems(_job("batch-csv"), page.manifest(out)) + str(page.Drawing(room, room, ()).saved_step(_job()))

        return [dropped, listed, planned]

    return case


def tables(room: Path) -> Case:
    """The table of jobs, damaged as a file or holding rows that nobody wrote."""
    from app import views
    from app.jobs import JobRunner

    there = doors.context(room / "page")
    for number in range(3):
        there.runner.submit(f"cat {number}", "max_steps = 3")
    good = [(room / "page" / "jobs.sqlite").read_bytes()]
    with closing(sqlite3.connect(room / "page" / "jobs.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    good.append((room / "page" / "jobs.sqlite").read_bytes())
    columns = ["id", "kind", "name", "config", "state", "pid", "pid_start", "attempt", "saved_step", "created", "started", "ended", "error"]

    def case(chance: random.Random) -> list[Call]:
        here = doors.fresh(room / "here")
        path = here / "jobs.sqlite"
        path.write_bytes(good[-1] if chance.random() < 0.5 else fuzzing.data(good, chance))
        for _ in range(chance.randint(0, 4)):
            with suppress(sqlite3.Error, OverflowError, UnicodeError), closing(sqlite3.connect(path)) as connection, connection:
                said = chance.choice([*fuzzing.NUMBERS, None, b"\xff\xfe", *fuzzing.WORDS, "running", "stopping", "../x", chance.randrange(2**22)])
                connection.execute(f"UPDATE job SET {chance.choice(columns)} = ? WHERE id = ?", (said, chance.randint(1, 3)))

        def opened() -> str:
            runner = JobRunner(here, there.runner.work, here / "runs")
            shown = [views.job_label(job) + views.progress_html(job.name, views.progress(job, [])) + views.messages(job, []) for job in runner.every()]
            runner.tick()
            return "".join(shown) + "".join(views.messages(job, []) for job in runner.every()) + runner.submit("cat", "x = 1").name

        return [opened]

    return case


ALL = (pictures, zips, captions, events, logs, batches, tables)
