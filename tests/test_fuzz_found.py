"""What the fuzz run found, each by the smallest example that shows it: read or refused in words, at once."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app import batches, job_table
from tests.test_naming import small
from tests.timing import since
from trainer import base_defaults, bases, families, foreign_json, lora_file, model_registry, single_file
from trainer.config import AdapterChoice, DataConfig, StackConfig, parse
from trainer.data import caption_files, sources
from trainer.errors import AdapterError, ConfigError, DataError, ModelError, UserError
from trainer.events import Planned
from trainer.render import batch_ledger, batch_manifest, command, regions
from trainer.render.axes import axis
from trainer.report.plausible import is_plausible

DEEP = "[" * 100_000
NO_TABLES = [DEEP, '{"a": ' * 100_000, "[]", "7", "null", '"x"', "", "{", "\ufeff{"]
SD = families.registry()["sd"]


def with_header(path: Path, fields: dict[str, Any]) -> Path:
    text = json.dumps(fields).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    return path


@pytest.mark.parametrize("read, refusal", [(lora_file.inspect, AdapterError), (single_file.read_head, ModelError)])
@pytest.mark.parametrize(
    "sides", [[2**62] * 100_000, [2**62] * 65, [10**400], [2.5], ["4"], "4", 4, None, [True], [[2]], [float("inf")]]
)
def test_a_tensor_of_sides_that_none_has_is_refused_at_once(
    read: Callable[[Path], Any], refusal: type[UserError], sides: Any, tmp_path: Path
) -> None:
    """The product of a hundred thousand sides took minutes."""
    path = with_header(
        tmp_path / "x.safetensors", {"a.lora_down.weight": {"dtype": "F32", "shape": sides, "data_offsets": [0, 4]}}
    )
    with pytest.raises(refusal):
        read(with_header(tmp_path / "first.safetensors", {"a": 7}))  # what is imported only now is not timed
    start = time.thread_time()
    with pytest.raises(refusal, match="is not a safetensors file") as refused:
        read(path)
    assert since(start) < 1 and len(str(refused.value)) < 500


@pytest.mark.parametrize("place", [[0], [], [0, 4, 8], "04", None, [0, float("inf")]])
def test_a_tensor_that_lies_nowhere_is_refused(place: Any, tmp_path: Path) -> None:
    path = with_header(tmp_path / "x.safetensors", {"a": {"dtype": "F32", "shape": [1], "data_offsets": place}})
    for read, refusal in ((lora_file.inspect, AdapterError), (single_file.read_head, ModelError)):
        with pytest.raises(refusal, match="is not a safetensors file"):
            read(path)


@pytest.mark.parametrize("text", NO_TABLES)
def test_json_that_is_no_table_is_one_kind_of_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError):
        foreign_json.table(tmp_path / "x.json")


@pytest.mark.parametrize("text", NO_TABLES)
def test_a_base_whose_configs_are_damaged_is_refused_in_words_or_drawn_as_its_family_is(
    text: str, tmp_path: Path
) -> None:
    for name in ("vae/config.json", "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for read in (bases.resolve, bases.prediction_of):
        with pytest.raises(ModelError):
            read(*((str(tmp_path), SD) if read is bases.resolve else (tmp_path, SD)))  # type: ignore[operator]
    with pytest.raises(ModelError, match="vae/config.json"):
        bases.multiple_px(tmp_path)
    assert bases.family_of(str(tmp_path)) == "sd" and bases.num_parameters(tmp_path) == 0
    assert base_defaults.of(str(tmp_path), SD).width_px == SD.default_px


@pytest.mark.parametrize("stages", [["x"] * 9000, "x" * 9000, [], 4, None])
def test_an_autoencoder_of_no_possible_size_is_refused(stages: Any, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": stages}))
    with pytest.raises(ModelError, match="vae/config.json"):
        bases.check_pixels(tmp_path, {"width_px": 64})


@pytest.mark.parametrize(
    "text",
    [
        f"models = {DEEP}", 'models.a = "x"', "models = 7", '[models.a]\npath = "x"',
        '[models.a]\npath = 7\nfamily = "sd"',
        '[models.a]\npath = "x"\nfamily = "sd"\n"\\u202e" = 1', '[models.a]\npath = "a\\u0000b"\nfamily = "sd"',
        '[models.a]\npath = "x"\nfamily = "sd"\nparts = 7',
        '[models.a]\npath = "x"\nfamily = "sd"\nsize_bytes = "7"',
        '[models.a]\npath = "x"\nfamily = "sd"\nparts = {vae = 7}',
    ],
)  # fmt: skip
def test_a_damaged_list_of_bases_is_refused_in_words(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path))
    (tmp_path / "models.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="can't be read") as refused:
        model_registry.entries()
    assert str(refused.value).isprintable()


def test_a_base_at_a_path_that_is_too_long_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path))
    (tmp_path / "models.toml").write_text(f'[models.a]\npath = "{"x" * 9000}"\nfamily = "sd"\nsha256 = "ab"\n')
    with pytest.raises(ModelError, match="which is gone") as refused:
        bases.resolve("a", SD)
    assert len(str(refused.value)) < 1000


def test_a_message_can_be_printed_whatever_stands_in_it() -> None:
    message = str(ConfigError("a \x1b[31m\u202e\ud83d\0 猫\n  b"))
    assert message == "a \\x1b[31m\\u202e\\ud83d\\x00 猫\n  b"
    assert all(line.isprintable() for line in message.split("\n")) and message.encode()


def test_a_message_names_what_is_long_by_its_start() -> None:
    for ask in (
        lambda: parse(StackConfig, {"family": "{" * 9000}, "x"),
        lambda: parse(DataConfig, {f"flip{number}": 1 for number in range(9)}, "x"),
        lambda: axis("a" * 9000),
    ):
        with pytest.raises(ConfigError) as refused:
            ask()
        assert len(str(refused.value)) < 1500
    assert str(refused.value).count("\n") == 0


def test_what_is_allowed_in_a_table_is_said_once() -> None:
    with pytest.raises(ConfigError) as refused:
        parse(DataConfig, {f"flip{number}": 1 for number in range(4)}, "x")
    assert str(refused.value).count("did you mean flip?") == 4 and str(refused.value).count("Allowed: folder") == 1


def test_a_number_that_no_float_holds_is_not_plausible() -> None:
    assert not is_plausible(Planned([[64, 64, 10**400]], 1, 1))
    from trainer.events import Step

    assert not is_plausible(Step(1, 10**400, 1.0, 1.0, 1.0)) and not is_plausible(Step(1, float("nan"), 1.0, 1.0, 1.0))  # type: ignore[arg-type]


DONE = {"done": "ab" * 32, "file": "1.png", "bytes": 7, "mtime_ns": 1, "sha256": "ab" * 32}


@pytest.mark.parametrize(
    "record",
    [
        {**DONE, "done": "\ud800"},
        {**DONE, "file": "a\0b"},
        {**DONE, "bytes": 10**40},
        {"failed": "\udfff"},
        {"begun": ["ab", "\ud800"]},
        {"begun": [7]},
    ],
)
def test_a_journal_with_what_no_table_holds_is_read_without_it(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / ".batch").mkdir()
    (tmp_path / ".batch" / "journal.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(DONE) + "\n")
    assert list(batch_ledger.read_journal(tmp_path)) == [DONE]
    batch_ledger.Plan().reconcile(tmp_path)


def test_a_table_of_jobs_whose_column_is_no_text_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    job_table.open_table(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    raw = path.read_bytes()
    assert b"saved_step INTEGER" in raw
    path.write_bytes(raw.replace(b"saved_step INTEGER", b"saved_\xfftep INTEGER"))
    assert "is kept as" in job_table.open_table(path) and job_table.every(path) == []


def test_a_table_of_jobs_of_which_sqlite_says_what_is_no_text_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    job_table.open_table(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE job", b"CREATE TAB\xffE job"))
    with pytest.raises(sqlite3.DatabaseError):
        job_table.every(path)
    assert "is kept as" in job_table.open_table(path) and job_table.every(path) == []


@pytest.mark.parametrize("name", ["../../kept.png", "page-9999.png/../../../kept.png", "\ud800", "x" * 9000, "z\0"])
def test_a_batch_removes_no_file_that_only_its_list_of_sheets_names(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder in (out / ".batch", out / "contact-sheets" / "page-9999.png"):
        folder.mkdir(parents=True)
    (tmp_path / "kept.png").write_text("kept")
    (out / "kept.png").write_text("kept")
    (out / ".batch" / "sheets.json").write_text(json.dumps({name: "ab"}))
    assert batch_manifest.write_sheets(batch_ledger.Plan(), out) == 0
    assert (tmp_path / "kept.png").exists() and (out / "kept.png").exists()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".safetensors", "d/" * 2000])
def test_a_path_that_no_file_can_have_is_refused_in_words(name: str, tmp_path: Path) -> None:
    for ask in (
        lambda: sources.check_folder(Path(name), "data.folder"),
        lambda: regions.resolved(AdapterChoice(file="x", region=f"mask {name[:4000]}"), (16, 16)),
        lambda: lora_file.inspect(Path(name)),
        lambda: command.from_file(Path(name)),
        lambda: command.from_picture(Path(name), []),
        lambda: command.stack("imprimatura", [name], {}, None),
    ):
        with pytest.raises(UserError):
            ask()


def test_a_library_with_a_link_that_leads_nowhere_is_read_without_it(tmp_path: Path) -> None:
    small(tmp_path / "cat.safetensors")
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    assert [info.name for info in lora_file.library([tmp_path]).values()] == ["cat"]


def test_a_log_of_nothing_but_ends_of_lines_takes_no_time(tmp_path: Path) -> None:
    """The page reads its end each second."""
    log = tmp_path / "job-1.log"
    log.write_bytes(b'{"event": "ended", "seconds": 1, "failed": 0}\n' + b"\r" * 65_000)
    start = time.thread_time()
    assert [event["event"] for event in batches.last_events(log)] == ["ended"]
    assert since(start) < 0.1


@pytest.mark.parametrize("name", ["\ud800.txt", "a\0.txt", "../a.txt", "x" * 9000 + ".txt"])
def test_a_history_that_names_what_no_file_is_called_undoes_what_stands_before_it(name: str, tmp_path: Path) -> None:
    caption_files.write_caption(tmp_path / "a.png", "one")
    edit = {"edit": 9, "picture": "a.png", "sidecar": name, "before": None, "after": "x"}
    with (tmp_path / caption_files.HISTORY).open("a") as file:
        file.write(json.dumps(edit) + "\n")
    if len(name) < 255:
        assert caption_files.undo(tmp_path) == caption_files.Undone("a.png", None)
    else:
        with pytest.raises(DataError):
            caption_files.undo(tmp_path)
