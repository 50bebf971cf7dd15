"""What differs between systems: each branch by its inputs, on whichever system the tests run."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from trainer import processes, system

SYSTEMS = ["linux", "darwin", "win32"]
POSIX = pytest.mark.skipif(os.name == "nt", reason="asks POSIX itself")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux itself")


# Processes.


@POSIX
def test_every_signal_that_asks_to_stop_is_heard_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' Ctrl-Break too, which is another signal here."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    before, heard = [signal.getsignal(number) for number in numbers], []
    restore = system.on_signals(lambda number, frame: heard.append(number))
    for number in numbers:
        signal.raise_signal(number)
    restore()
    assert heard == numbers and [signal.getsignal(number) for number in numbers] == before


def test_a_signal_that_the_system_has_not_is_left_out() -> None:
    restore = system.on_signals(lambda number, frame: None, ("SIGNONE",))
    restore()


def test_a_child_gets_a_group_of_its_own() -> None:
    assert system.own_group("linux") == system.own_group("darwin") == {"start_new_session": True}
    assert system.own_group("win32") == {"creationflags": 0x200}


@POSIX
def test_a_child_of_its_own_group_ends_when_it_is_asked() -> None:
    code = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('up', "
        "flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **system.own_group()) as child:
        assert child.stdout and child.stdout.readline() and os.getpgid(child.pid) == child.pid != os.getpgid(0)
        system.ask_to_end(psutil.Process(child.pid))
        assert child.wait(30) == 7


class _Windows:
    """A process there, which only Ctrl-Break and `terminate` reach."""

    def __init__(self, fails: BaseException | None) -> None:
        self.fails = fails
        self.done: list[object] = []

    def send_signal(self, number: int) -> None:
        self.done.append(number)
        if self.fails:
            raise self.fails

    def terminate(self) -> None:
        self.done.append("terminate")


@pytest.mark.parametrize(
    ("fails", "done"),
    [
        (None, [1]),
        (OSError(errno.EINVAL, "no such console"), [1, "terminate"]),
        (SystemError("returned a result with an exception set"), [1, "terminate"]),
        (psutil.AccessDenied(7), [1, "terminate"]),
    ],
    ids=["here", "another console", "old Python", "denied"],
)
def test_on_windows_a_process_is_asked_by_ctrl_break_and_ended_where_that_does_not_reach(
    fails: BaseException | None, done: list[object]
) -> None:
    process = _Windows(fails)
    system.ask_to_end(process, "win32")  # type: ignore[arg-type]
    assert process.done == done


def test_a_process_that_is_gone_is_said_to_be() -> None:
    with pytest.raises(psutil.NoSuchProcess):
        system.ask_to_end(_Windows(psutil.NoSuchProcess(7)), "win32")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "platform", "is_asked", "by_system"),
    [
        (-15, "linux", True, False), (-9, "linux", False, True), (137, "darwin", False, True),
        (0, "linux", False, False), (1, "linux", False, False),
        (0xC000013A, "win32", True, False), (0xC000013A - 2**32, "win32", True, False),
        (0xC0000017, "win32", False, True), (1, "win32", False, False),
        (-15, "win32", False, False), (0xC000013A, "linux", False, False),
    ],
)  # fmt: skip
def test_how_a_process_ended_is_read_from_its_exit_code(
    code: int, platform: str, is_asked: bool, by_system: bool
) -> None:
    assert (system.was_asked_to_end(code, platform), system.was_ended_by_system(code, platform)) == (
        is_asked,
        by_system,
    )


def test_a_number_is_the_same_process_only_with_its_time_and_its_mark() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env=os.environ | {"MARK": "7"}
    ) as child:
        began = processes.began_s(child.pid)
        deadline = time.monotonic() + 10
        while processes.same_process(child.pid, began, ("MARK", "7")) is None and time.monotonic() < deadline:
            time.sleep(0.05)  # between fork and exec the environment is still the parent's
        assert processes.same_process(child.pid, began, ("MARK", "7")) == psutil.Process(child.pid)
        assert processes.same_process(child.pid, began, ("MARK", "8")) is None
        assert processes.same_process(child.pid, began - 60, ("MARK", "7")) is None
        child.kill()
    assert processes.same_process(child.pid, began, ("MARK", "7")) is None
    assert (
        processes.same_process(-1, began, ("MARK", "7")) is None is processes.same_process(2**70, began, ("MARK", "7"))
    )


def test_only_on_windows_a_child_must_be_told_to_write_utf8() -> None:
    assert [system.text_as_utf8(platform) for platform in SYSTEMS] == [{}, {}, {"PYTHONUTF8": "1"}]


# Files.


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("con", "con_"),
        ("Aux", "Aux_"),
        ("nul.txt", "nul.txt_"),
        ("com1", "com1_"),
        ("com10", "com10"),
        ("cone", "cone"),
    ],
)
def test_windows_keeps_names_for_its_devices(name: str, there: str) -> None:
    assert [system.usable_name(name, platform) for platform in SYSTEMS] == [name, name, there]


def test_a_folder_is_synced_where_folders_can_be_opened(tmp_path: Path) -> None:
    system.sync_folder(tmp_path, "linux")
    system.sync_folder(tmp_path / "none", "win32")
    with pytest.raises(FileNotFoundError):
        system.sync_folder(tmp_path / "none", "linux")


def test_on_windows_a_file_that_is_open_elsewhere_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        tries.append(target)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "the process cannot access the file")
        real(source, target)

    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        system.replace(tmp_path / "a", tmp_path / "b", "linux")
    system.replace(tmp_path / "a", tmp_path / "b", "win32")
    assert len(tries) == 3 and (tmp_path / "b").read_text() == "a"
    monkeypatch.setattr(system, "_PATIENCE_S", 0.0)
    tries.clear()
    with pytest.raises(PermissionError):
        system.replace(tmp_path / "b", tmp_path / "c", "win32")


def test_a_second_name_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    assert system.link(tmp_path / "a", tmp_path / "b") and (tmp_path / "b").samefile(tmp_path / "a")
    with pytest.raises(FileExistsError):
        system.link(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        system.link(tmp_path / "none", tmp_path / "c")


@pytest.mark.parametrize(
    ("code", "lacks"),
    [(errno.EPERM, SYSTEMS), (errno.EXDEV, SYSTEMS), (errno.EINVAL, ["win32"]), (errno.EACCES, []), (errno.ENOSPC, [])],
    ids=["vfat on Linux", "another disk", "exFAT on Windows", "closed", "full"],
)
def test_a_file_system_without_links_is_known_by_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, lacks: list[str]
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(os, "link", refuse)
    for platform in SYSTEMS:
        if platform in lacks:
            assert not system.link(tmp_path / "a", tmp_path / "b", platform)
        else:
            with pytest.raises(OSError, match=os.strerror(code)):
                system.link(tmp_path / "a", tmp_path / "b", platform)
    system.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "a" and not (tmp_path / "b").samefile(tmp_path / "a")


@POSIX
def test_a_folders_readers_are_chosen_where_modes_are_rights(tmp_path: Path) -> None:
    for platform, others, owner in zip(SYSTEMS, (0o755, 0o755, 0o711), (0o700, 0o700, 0o711), strict=True):
        for act, wanted in ((system.let_others_read, others), (system.let_owner_alone_read, owner)):
            tmp_path.chmod(0o711)
            act(tmp_path, platform)
            assert stat.S_IMODE(tmp_path.stat().st_mode) == wanted


def test_a_path_is_told_from_a_name_of_the_hub() -> None:
    for text in ("/a", "./a", "~/a"):
        assert all(system.looks_like_a_path(text, platform) for platform in SYSTEMS)
    for text in (r"C:\a", "d:/a", r"models\a", r"\\server\a"):
        assert [system.looks_like_a_path(text, platform) for platform in SYSTEMS] == [False, False, True]
    assert not any(system.looks_like_a_path("owner/name", platform) for platform in SYSTEMS)


# Memory.


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_only_linux_is_asked_for_its_c_library(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the C library was opened"))
    assert not system.keep_freed(platform)
    system.give_back_freed(platform)
    system.drop_pages(0, 1 << 20, platform)


def test_a_c_library_without_these_functions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # as musl's
    assert not system.keep_freed("linux")
    system.give_back_freed("linux")


def test_freed_memory_is_kept_unless_addresses_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    old = SimpleNamespace(
        mallopt=lambda name, value: bool(calls.append((name, value)) or value < 1 << 30)
    )  # glibc before 2.35
    monkeypatch.setattr(ctypes, "CDLL", lambda name: old)
    monkeypatch.setattr(system, "addresses_are_limited", lambda: False)
    assert system.keep_freed("linux") and calls == [(-3, 1 << 30), (-3, 32 << 20), (-1, -1)]
    monkeypatch.setattr(system, "addresses_are_limited", lambda: True)
    assert not system.keep_freed("linux") and len(calls) == 3


def test_addresses_are_limited_where_linux_promises_no_more_than_it_has(tmp_path: Path) -> None:
    promised = tmp_path / "overcommit_memory"
    before = system.addresses_are_limited(promised)
    promised.write_text("0\n")
    assert system.addresses_are_limited(promised) == before
    promised.write_text("2\n")
    assert system.addresses_are_limited(promised)


@LINUX
def test_only_whole_pages_within_the_range_are_dropped() -> None:
    import mmap

    with mmap.mmap(-1, 3 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held[:] = b"a" * len(held)
        view = ctypes.c_char.from_buffer(held)
        system.drop_pages(ctypes.addressof(view) + 1, 2 * mmap.PAGESIZE)
        del view
        assert [held[at * mmap.PAGESIZE] for at in range(3)] == [ord("a"), 0, ord("a")]


def test_the_peak_is_read_where_each_system_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t 7 kB\n")
    assert system.peak_resident_bytes(tmp_path / "status") == 7 << 10
    none = tmp_path / "none"
    if os.name != "nt":  # kilobytes on Linux, bytes on a Mac
        assert system.peak_resident_bytes(none, "linux") == 1024 * system.peak_resident_bytes(none, "darwin") > 1 << 20
    monkeypatch.setattr(
        psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=5, peak_wset=6))
    )
    assert system.peak_resident_bytes(none, "win32") == 6
    monkeypatch.setattr(system, "find_spec", lambda name: None)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=5)))
    assert system.peak_resident_bytes(none, "win32") == 5


def test_the_peak_begins_anew_where_the_system_can(tmp_path: Path) -> None:
    system.reset_peak(tmp_path / "clear_refs")
    assert (tmp_path / "clear_refs").read_text() == "5"
    system.reset_peak(tmp_path / "none" / "clear_refs")


def test_a_containers_memory_counts_before_the_machines(tmp_path: Path) -> None:
    host = psutil.virtual_memory()
    assert system.memory_bytes(tmp_path)[0] == host.total
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert system.memory_bytes(tmp_path) == (1000, 600)
    (tmp_path / "memory.max").write_text("max\n")
    assert system.memory_bytes(tmp_path)[0] == host.total


# The machine.


def test_the_processor_is_named_as_the_system_can(tmp_path: Path) -> None:
    (tmp_path / "x86").write_text("processor\t: 0\nmodel name\t: A Chip @ 2 GHz\nflags\t\t: fpu avx2\n")
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd\n\nModel\t\t: A Board\n")
    assert (system.cpu_name(tmp_path / "x86"), system.cpu_flags(tmp_path / "x86")) == (
        "A Chip @ 2 GHz",
        ["fpu", "avx2"],
    )
    assert (system.cpu_name(tmp_path / "arm"), system.cpu_flags(tmp_path / "arm")) == ("A Board", ["fp", "asimd"])
    assert system.cpu_name(tmp_path / "none") == system.processor() and system.cpu_flags(tmp_path / "none") == []


def test_processors_are_counted_on_systems_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= system.num_cpus() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert system.num_cpus() == os.cpu_count()


def test_what_a_person_copies_into_a_command_line_suits_it() -> None:
    assert [system.quoted("a b", platform) for platform in SYSTEMS] == ["'a b'", "'a b'", '"a b"']
    assert [system.checkout_command("app", platform) for platform in SYSTEMS] == ["make app", "make app", "start.bat"]


def test_what_else_windows_does_otherwise() -> None:
    assert [system.gpu_spills(platform) for platform in SYSTEMS] == [False, False, True]
    assert [system.cpp_compilers(platform)[0] for platform in SYSTEMS] == ["g++", "g++", "cl"]


def test_a_machine_that_has_no_gpu_is_known_without_asking_torch(tmp_path: Path) -> None:
    assert [system.may_have_gpu(tmp_path, platform) for platform in SYSTEMS] == [False, False, True]
    (tmp_path / "nvidiactl").touch()
    assert all(system.may_have_gpu(tmp_path, platform) for platform in SYSTEMS)
