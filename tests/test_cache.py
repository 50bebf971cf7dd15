"""Entries of the cache: a file that is not what was written is never used, and how many there were is said."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trainer import cache, unique_names

ENTRY = {
    "latents": torch.arange(48.0).reshape(3, 4, 4),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "one": torch.tensor(2),
    "none": torch.zeros(0, 3),
}


def file_of(store: cache.Store, name: str) -> Path:
    return store.folder / name[:2] / f"{name}.safetensors"


def stored(folder: Path) -> tuple[Path, str]:
    """A file of a fresh store and its name."""
    store, name = cache.Store(folder), cache.key("x")
    store.get(name, lambda: ENTRY)
    return file_of(store, name), name


def same(entry: dict[str, torch.Tensor]) -> bool:
    return entry.keys() == ENTRY.keys() and all(
        torch.equal(entry[part], ENTRY[part]) and entry[part].dtype == ENTRY[part].dtype for part in ENTRY
    )


def refuse() -> dict[str, torch.Tensor]:
    raise AssertionError("the entry was there")


def test_an_entry_comes_back_bit_for_bit_and_other_tools_can_open_it(tmp_path: Path) -> None:
    path, name = stored(tmp_path)
    store = cache.Store(tmp_path)
    assert same(store.get(name, refuse)) and same(load_file(path)) and (store.num_computed, store.num_damaged) == (0, 0)


@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_turned_bit_is_found(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    path, name = stored(tmp_path_factory.mktemp("store"))
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    store = cache.Store(path.parents[1])
    assert same(store.get(name, lambda: ENTRY))
    if store.num_damaged:
        assert store.num_computed == 1 and same(load_file(path))


@pytest.mark.slow
def test_every_bit_of_a_file_is_watched(tmp_path: Path) -> None:
    path, name = stored(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            raw = bytearray(whole)
            raw[place] ^= 1 << bit
            path.write_bytes(raw)
            assert same(cache.Store(tmp_path).get(name, lambda: ENTRY))


@pytest.mark.parametrize("raw", [b"", b"\0" * 8, b"x" * 4000, None])
def test_a_file_that_is_none_is_made_anew_and_counted(raw: bytes | None, tmp_path: Path) -> None:
    path, name = stored(tmp_path)
    path.write_bytes(path.read_bytes()[:-1] if raw is None else raw)
    store = cache.Store(tmp_path)
    assert same(store.get(name, lambda: ENTRY)) and (store.num_computed, store.num_damaged) == (1, 1)
    assert same(cache.Store(tmp_path).get(name, refuse))


def test_an_entry_without_a_digest_is_made_anew(tmp_path: Path) -> None:
    path, name = stored(tmp_path)
    save_file({part: tensor + 1 for part, tensor in ENTRY.items()}, path)
    store = cache.Store(tmp_path)
    assert same(store.get(name, lambda: ENTRY)) and store.num_damaged == 1


def test_an_entry_is_compared_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, name = stored(tmp_path)
    store, digests = cache.Store(tmp_path, kept_bytes=0), []
    digest = cache._digest
    monkeypatch.setattr(cache, "_digest", lambda entry: digests.append(1) or digest(entry))
    for _ in range(3):
        store.get(name, refuse)
        store.get(cache.key("other"), lambda: ENTRY)  # so that the first leaves memory
    assert len(digests) == 2  # one of the entry, one of writing the other


def test_a_cache_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = cache.Store(tmp_path / "file")
    assert (
        same(store.get(cache.key("x"), lambda: ENTRY))
        and "can't be written" in store.problem
        and store.num_damaged == 0
    )


def test_a_run_with_turned_bits_ends_as_one_without_and_says_how_many(
    tmp_path: Path, tiny: Path, draw_dots: Callable[..., Path]
) -> None:
    from trainer import session
    from trainer.events import Warned

    sized = [f"base={tiny}", "max_steps=2", "preview_every_steps=0", "resolution_px=32", "batch_size=2"]
    chosen = session.preset_config(
        "imprimatura-style", str(draw_dots(tmp_path / "dots", "a {colour} dot")), None, sized
    )

    def trained(name: str) -> tuple[bytes, list[str]]:
        run, stream = session.start(chosen, tmp_path / "runs", name, None)
        warnings = [event.message for event in stream if isinstance(event, Warned)]
        return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(load_file(run.lora_file).items())), warnings

    clean, warnings = trained("clean")
    assert not any("damaged" in line for line in warnings)
    files = sorted((tmp_path / "runs" / ".cache").rglob("*.safetensors"))
    assert len(files) >= 8
    for path in files[:6]:
        raw = bytearray(path.read_bytes())
        raw[-3] ^= 4
        path.write_bytes(raw)
    again, warnings = trained("again")
    assert again == clean
    assert [line.partition(";")[0] for line in warnings if "damaged" in line] == [
        "6 entries of the cache were damaged and were made anew"
    ]
    assert os.path.isdir(tmp_path / "runs" / "clean")


def test_what_a_killed_process_left_half_written_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path, _ = stored(tmp_path)
    ended = multiprocessing.get_context("spawn").Process(target=int)
    ended.start()
    ended.join()
    mine = unique_names.unfinished()
    left = path.parent / f"{mine.replace(str(os.getpid()), str(ended.pid))}abc"
    kept = [path.parent / name for name in (f"{mine}abc", ".new-elsewhere-1-abc", ".new-abc")]
    for damaged in (left, *kept):
        damaged.write_bytes(b"half")
    cache.Store(tmp_path)
    assert not left.exists() and all(one.exists() for one in (path, *kept))
