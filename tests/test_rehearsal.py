"""A dry run measures what the run will take, finds memory settings that fit, and leaves nothing behind but the
cache.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests import plain
from trainer import presets, session
from trainer.errors import ConfigError
from trainer.events import Finished
from trainer.memory import ladder
from trainer.rehearsal import fitting, measuring
from trainer.rehearsal.describing import describe
from trainer.rehearsal.result import Rehearsal, Shape, Try, from_json, to_json

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four square ones and two wide ones: two buckets."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        Image.new("RGB", (40, 40) if number < 4 else (64, 32), (40 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a colour")
    return folder


@pytest.fixture
def config(tiny: Path, pictures: Path):
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 10, "batch_size": 2, "accumulation": 2,
        "checkpoint_every_steps": 4, "preview_every_steps": 5,
        "preview.steps": 1, "preview.prompts": ["a dot"], "validate_every_steps": 5, "validation.leave_out": 1,
        "data.folder": str(pictures), "adapter.rank": 4,
        "optimizer.warmup_steps": 3,
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values)


@pytest.fixture
def measured() -> Rehearsal:
    """What might have been measured."""
    return Rehearsal(
        device="cpu", dtype="float32", max_steps=100, shapes=[Shape(64, 64, 8, 2, 0.5), Shape(96, 32, 1, 1, 0.4)],
        step_s=0.5, start_s=4.0, caching_s=9.0,
        num_cached=18, preview_s=2.0, num_previews=3, validation_s=5.0, num_validations=2, checkpoint_s=0.1,
        num_checkpoints=4, export_s=1.0, num_folds=0,
        eta_s=72.4, peak_bytes=3 << 30, peaks={"loading": 1 << 30, "training": 3 << 30}, free_bytes=8 << 30,
        checkpoint_bytes=1 << 20, disk_bytes=5 << 20,
        cache_bytes=7 << 20, free_disk_bytes=9 << 30,
        memory={"quantise": "none", "micro_batch": 0, "gradient_checkpointing": False},
    )  # fmt: skip


def test_a_rehearsal_measures_every_bucket_a_look_and_a_save(config, tmp_path: Path) -> None:
    measured = measuring.measure(config, tmp_path / "runs")
    assert sorted((shape.width_px, shape.height_px) for shape in measured.shapes) == [(32, 32), (40, 24)]
    assert sum(shape.num_pictures for shape in measured.shapes) == 5 and all(
        shape.batch_s > 0 for shape in measured.shapes
    )
    assert measured.step_s > 2 * min(shape.batch_s for shape in measured.shapes)  # two batches a step
    assert (measured.num_previews, measured.num_validations, measured.num_checkpoints) == (3, 2, 3)
    assert (
        min(measured.preview_s, measured.validation_s, measured.checkpoint_s, measured.export_s, measured.caching_s) > 0
    )
    assert measured.eta_s > 10 * measured.step_s and measured.peak_bytes >= max(measured.peaks.values()) > 10 << 20
    assert 0 < measured.checkpoint_bytes < measured.disk_bytes < 50 << 20
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".cache"]


def test_what_it_encoded_the_run_finds(config, tmp_path: Path) -> None:
    measured = measuring.measure(config, tmp_path)
    _, stream = session.start(config, tmp_path, "x", None)
    cached = next(event for event in stream if event.kind == "cached")
    assert measured.num_cached == cached.num_entries and cached.num_computed == 0
    stream.close()


def test_the_whole_run_is_its_steps_its_looks_and_its_files(measured: Rehearsal) -> None:
    assert measuring._with_eta(measured).eta_s == pytest.approx(4 + 100 * 0.5 + 4 * 0.1 + 3 * 2 + 2 * 5 + 2 * 1)
    folded = dataclasses.replace(measured, num_folds=2)
    assert measuring._with_eta(folded).eta_s == pytest.approx(72.4 + 2 * (4 + 50.4 + 1))


def test_a_rehearsal_comes_back_from_json(measured: Rehearsal) -> None:
    measured = dataclasses.replace(measured, tried=[Try(["memory.micro_batch=1"], 5, "5 bytes, more than 4")])
    assert from_json(to_json(measured)) == measured


def test_a_rehearsal_says_everything_in_words(measured: Rehearsal) -> None:
    text = describe(
        dataclasses.replace(
            measured, budget_bytes=4 << 30, settings=["memory.micro_batch=1"], warnings=["mind the step"]
        )
    )
    for part in (
        "64x64",
        "96x32",
        "0.500 s",
        "1 min 12 s",
        "3.0 GiB",
        "while training",
        "5 MiB",
        "float32",
        "quantise none",
        "mind the step",
        "4.0 GiB",
    ):
        assert part in text
    assert text.endswith("--set memory.micro_batch=1")
    assert "nothing fits into 2.0 GiB" in describe(dataclasses.replace(measured, budget_bytes=2 << 30, fits=False))
    assert "the disk has less free" in describe(dataclasses.replace(measured, free_disk_bytes=1))


def patched(monkeypatch: pytest.MonkeyPatch, measured: Rehearsal, taken) -> list:
    """Tries that hold `taken(settings)` bytes, or run out where that is None; the settings of each, as they come."""
    memories = []

    def attempt(config, *_):
        memories.append(config.memory)
        peak = taken(config.memory)
        return "it ran out" if peak is None else dataclasses.replace(measured, peak_bytes=peak)

    monkeypatch.setattr(fitting, "_try", attempt)
    return memories


def budgeted(config, gib: float):
    return config.model_copy(update={"memory": config.memory.model_copy(update={"budget_gib": gib})})


def test_rungs_are_climbed_until_it_fits(
    config, measured: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories = patched(
        monkeypatch,
        measured,
        lambda now: None if not now.micro_batch else 3 << 30 if not now.gradient_checkpointing else 1 << 30,
    )
    *tried, last = fitting.fit(budgeted(config, 2), tmp_path)
    assert [bool(one.peak_bytes) for one in tried] == [
        False,
        True,
    ] and "it ran out; next: pictures at once: 1" in tried[0].message
    assert last.fits and last.budget_bytes == 2 << 30 and len(memories) == 3
    assert last.settings == ["memory.gradient_checkpointing=true", "memory.micro_batch=1"]
    chosen = presets.parse_overrides(last.settings)
    assert chosen == {"memory.gradient_checkpointing": True, "memory.micro_batch": 1}


def test_a_base_in_8_bits_is_taken_where_it_fits_and_is_clearly_faster_than_fetching_blocks(
    config, measured: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: a base of 6 GiB that must fit into 4."""
    monkeypatch.setattr(fitting.bases, "hardware", lambda *_: ("cuda", None))
    monkeypatch.setattr(ladder, "check", lambda config: [])
    takes = {("none", "blocks"): (2, 0.9), ("int8", "encoders"): (3.5, 0.5), ("fp8", "encoders"): (3.5, 0.45)}

    def attempt(tried, *_):
        gib, seconds = takes.get((tried.memory.quantise, tried.memory.offload), (7, 0.4))
        peaks = {**measured.peaks, "loading": (1 if tried.memory.offload == "blocks" else 6) << 30}
        return dataclasses.replace(measured, peak_bytes=int(gib * 2**30), step_s=seconds, peaks=peaks)

    monkeypatch.setattr(fitting, "_try", attempt)
    *_, last = fitting.fit(budgeted(config, 4), tmp_path)
    assert (
        last.fits
        and last.step_s == 0.5
        and "memory.quantise=int8" in last.settings
        and "memory.offload=encoders" in last.settings
    )
    takes["int8", "encoders"] = takes["fp8", "encoders"] = (5, 0.2)
    *_, last = fitting.fit(budgeted(config, 4), tmp_path)
    assert (
        last.step_s == 0.9
        and "memory.offload=blocks" in last.settings
        and not any("quantise" in line for line in last.settings)
    )


def test_nothing_fits_is_said(config, measured: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "has_nf4", lambda: False)
    memories = patched(monkeypatch, measured, lambda now: 3 << 30)
    *_, last = fitting.fit(budgeted(config, 2), tmp_path)
    assert not last.fits and memories[-1].quantise == "int8"
    memories.clear()
    *_, last = fitting.fit(budgeted(config, 0.5), tmp_path)
    assert not last.fits and len(memories) == 1  # loading alone takes more
    patched(monkeypatch, measured, lambda now: None)
    with pytest.raises(ConfigError, match="memory ran out with every memory setting"):
        list(fitting.fit(config, tmp_path))


def test_without_a_budget_a_cpu_takes_what_it_takes(
    config, measured: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched(monkeypatch, measured, lambda now: 900 << 30)
    (only,) = fitting.fit(config, tmp_path)
    assert only.fits and not only.budget_bytes and not only.settings


def test_a_try_that_runs_out_says_so_in_json(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_):
        raise MemoryError("no room\nat all")

    monkeypatch.setattr(measuring, "measure", measure)
    assert json.loads(fitting.once(config, tmp_path, False)) == {"shortage": "no room"}


def test_the_command_rehearses_and_prints_json(run_velatura, config, tmp_path: Path) -> None:
    presets.save(config, tmp_path / "x.toml")
    done = run_velatura(
        "train", tmp_path / "x.toml", "--rehearse", "--json", "--memory-gib", "600", "--out", tmp_path / "runs"
    )
    assert done.returncode == 0, done.stderr
    measured = from_json(done.stdout.splitlines()[-1])
    assert measured.fits and measured.budget_bytes == 600 << 30 and not list((tmp_path / "runs").rglob("config.toml"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--resume", "--rehearse"], "--rehearse"), (["x.toml", "--rehearse", "--data", "nowhere"], "nowhere")],
)
def test_what_cannot_be_rehearsed_is_said(
    run_velatura, config, tmp_path: Path, arguments: list[str], said: str
) -> None:
    presets.save(config, tmp_path / "x.toml")
    done = run_velatura("train", *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_rehearsal_that_is_stopped_leaves_nothing(config, tmp_path: Path) -> None:
    presets.save(
        config.model_copy(update={"preview": config.preview.model_copy(update={"steps": 200})}), tmp_path / "x.toml"
    )
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [
        sys.executable,
        "-m",
        "trainer",
        "train",
        str(tmp_path / "x.toml"),
        "--rehearse",
        "--out",
        str(tmp_path / "runs"),
    ]
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 240  # other files train beside this one
    while not list(temporary.glob("*/velatura-rehearsal-*")) and time.monotonic() < until and child.poll() is None:
        time.sleep(0.02)
    assert list(temporary.glob("*/velatura-rehearsal-*"))
    child.send_signal(signal.SIGTERM)
    assert child.wait(120) == 130
    assert not list(temporary.glob("velatura-*"))


@pytest.mark.slow
def test_what_it_foretells_comes_true(run_velatura, examples: Path, tmp_path: Path) -> None:
    folders = ["--data", examples / "outline-style" / "train", "--heldout", examples / "outline-style" / "heldout"]
    settings = [f"--set={name}_every_steps=20" for name in ("preview", "checkpoint", "validate")]
    command = ["train", plain.STYLE, *folders, *settings, "--set=max_steps=40", "--out", tmp_path, "--json"]
    foretold = from_json(run_velatura(*command, "--rehearse").stdout.splitlines()[-1])
    done = run_velatura(*command)
    taken = json.loads(done.stdout.splitlines()[-1])
    assert taken["event"] == Finished.kind
    assert 1 / 1.6 < foretold.eta_s / taken["seconds"] < 1.6
    assert 0.6 < foretold.peak_bytes / taken["peak_memory_bytes"] < 1.6
