"""All that differs between operating systems; no other module asks which system it runs on (`tests/test_system.py`).

Most artists are on Windows, and most of our machines are not. Each function therefore takes what it decides on as an
argument, `platform` as in `sys.platform`, so that either branch is tested on either system. Locks are `filelock`'s and
processes `psutil`'s, which know the systems themselves; psutil is imported where it is needed, since every command
starts through this file.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform as machine
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

WINDOWS, MAC = "win32", "darwin"
_PROC = Path("/proc")


# Processes.

# What a program is asked to end by; Windows can send only the second, which is Ctrl-Break.
ENDING = ("SIGTERM", "SIGBREAK")
STOPPING = ("SIGINT", *ENDING)  # and Ctrl-C
_CTRL_BREAK, _NEW_GROUP = 1, 0x200  # CTRL_BREAK_EVENT and CREATE_NEW_PROCESS_GROUP, which Python names on Windows only
_BY_CTRL_C, _NO_MEMORY, _NO_COMMIT = 0xC000013A, 0xC0000017, 0xC000012D  # of ntstatus.h


def on_signals(
    handler: Callable[[int, FrameType | None], object], names: tuple[str, ...] = STOPPING
) -> Callable[[], None]:
    """Have these signals call `handler`, those that the system knows; what is given back undoes it.

    Raises: ValueError outside the main thread, which alone gets signals.
    """
    # SIGBREAK is known on Windows only.
    before = {
        number: signal.signal(number, handler)
        for number in (getattr(signal, name, None) for name in names)
        if number is not None
    }

    def restore() -> None:
        for number, earlier in before.items():
            signal.signal(number, earlier)

    return restore


@contextmanager
def signals_kept(names: tuple[str, ...] = STOPPING) -> Iterator[None]:
    """For the body, a library may set handlers of these signals; afterwards they are as before.

    Raises: ValueError outside the main thread.
    """
    numbers = [number for number in (getattr(signal, name, None) for name in names) if number is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def own_group(platform: str = sys.platform) -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a child that `ask_to_end` reaches and Ctrl-C in this terminal does not."""
    return {"creationflags": _NEW_GROUP} if platform == WINDOWS else {"start_new_session": True}


def text_as_utf8(platform: str = sys.platform) -> dict[str, str]:
    """What a child's environment needs to write in UTF-8, where Windows' default is the country's code page."""
    return {"PYTHONUTF8": "1"} if platform == WINDOWS else {}


def ask_to_end(process: psutil.Process, platform: str = sys.platform) -> None:
    """Ask a child of `own_group` to end by itself. Raises: psutil.NoSuchProcess.

    Windows' Ctrl-Break reaches only processes of this console. If the server has been started again in another window,
    there is no way to ask the child; it is ended at once and goes on from its last checkpoint.
    """
    import psutil

    if platform != WINDOWS:
        process.send_signal(signal.SIGTERM)
        return
    try:
        process.send_signal(_CTRL_BREAK)
    except (OSError, SystemError, psutil.AccessDenied):  # another console; SystemError: Python before 3.13
        process.terminate()


def was_asked_to_end(code: int, platform: str = sys.platform) -> bool:
    """True if a process with this exit code ended because it was asked to."""
    return code & 0xFFFFFFFF == _BY_CTRL_C if platform == WINDOWS else code == -signal.SIGTERM


def was_ended_by_system(code: int, platform: str = sys.platform) -> bool:
    """True for the exit code of a process that the system killed, or to which it gave no more memory."""
    return code & 0xFFFFFFFF in (_NO_MEMORY, _NO_COMMIT) if platform == WINDOWS else code in (-9, 137)


# Files.

# By Windows for its devices, in either case.
_PORTS = [f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)]
RESERVED = {"con", "prn", "aux", "nul", *_PORTS}
_PATIENCE_S = 2.0  # for whoever reads a file that is to be replaced
# What the system answers where a disk has no hard links, or not between these two places.
_NOT_SUPPORTED = (getattr(errno, "ENOTSUP", 95), getattr(errno, "EOPNOTSUPP", 95))
_NO_LINKS = {errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EXDEV, *_NOT_SUPPORTED}


def usable_name(name: str, platform: str = sys.platform) -> str:
    """A file or folder name that this system takes: Windows keeps some for its devices, whatever ending follows."""
    return f"{name}_" if platform == WINDOWS and name.split(".")[0].strip().lower() in RESERVED else name


def sync_folder(folder: Path, platform: str = sys.platform) -> None:
    """Have the names in a folder outlast a power cut. Windows can't open folders; its renames are journalled."""
    if platform == WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path, platform: str = sys.platform) -> None:
    """Give a file or folder the name of another, which it replaces. Raises: OSError.

    Windows refuses that while any program has the other open, be it the page or a scanner for viruses; most have done
    within a moment.
    """
    # Asked again for a while, on Windows alone.
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if platform != WINDOWS or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def link(source: Path, target: Path, platform: str = sys.platform) -> bool:
    """Give a file a second name; False where there are no hard links.

    Raises: FileExistsError if the name is taken, OSError.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        # EINVAL is what Python makes of Windows' answer on exFAT.
        if error.errno in _NO_LINKS or (platform == WINDOWS and error.errno == errno.EINVAL):
            return False
        raise
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that is never written into a second name, or copy it where there are no links. Raises: OSError."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def let_others_read(folder: Path, platform: str = sys.platform) -> None:
    """Let others look into a folder that was made for its owner alone.

    Windows' rights are no modes, and come from the folder above.
    """
    if platform != WINDOWS:
        folder.chmod(0o755)


def let_owner_alone_read(folder: Path, platform: str = sys.platform) -> None:
    """Let nobody else look into a folder. Raises: OSError.

    On Windows it stays as the folder above has it, which in a user's own folders is the same.
    """
    if platform != WINDOWS:
        folder.chmod(0o700)


def looks_like_a_path(text: str, platform: str = sys.platform) -> bool:
    """True for what can't be the hub's name of a model, `owner/name`, and must be meant as a path."""
    return text.startswith(("/", ".", "~")) or (platform == WINDOWS and ("\\" in text or text[1:2] == ":"))


def allow_open_files() -> None:
    """Have this process open as many files and connections as the system lets it, where that can be said."""
    if find_spec("resource") is None:
        return
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # macOS names a limit that it doesn't take
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


# Memory.

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def _glibc(name: str, platform: str) -> Any:
    """The C library's function of this name on Linux; None elsewhere, and where the library hasn't it (musl)."""
    return getattr(ctypes.CDLL(None), name, None) if platform.startswith("linux") else None


def keep_freed(platform: str = sys.platform) -> bool:
    """Have glibc keep freed memory for the next step; True if it does. Other C libraries do so anyway.

    To map every activation anew takes a fifth of a large base's step. It is a choice of the whole process, so a run
    makes it where the process is there for the run alone. `give_back_freed` still gives pages back, but not addresses:
    where those are limited, nothing is kept, or a step too large once would leave no room for a smaller step.
    """
    mallopt = _glibc("mallopt", platform)
    if mallopt is None or addresses_are_limited():
        return False
    if not mallopt(_MMAP_THRESHOLD, 1 << 30):
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes before 2.35
    mallopt(_TRIM_THRESHOLD, -1)
    return True


def give_back_freed(platform: str = sys.platform) -> None:
    """Hand freed memory that glibc keeps back to the system: 0.25 GiB after quantising 222 million parameters."""
    if trim := _glibc("malloc_trim", platform):
        trim(0)


def drop_pages(address: int, size_bytes: int, platform: str = sys.platform) -> None:
    """Take the whole pages in this range out of memory, on Linux only.

    What stood there is lost, or read anew if it is a file's.
    """
    # Only pages that lie wholly within: up to the next page's beginning, and whole pages from there.
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (address + size_bytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if size > 0 and (madvise := _glibc("madvise", platform)):
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def addresses_are_limited(promised: Path = _PROC / "sys/vm/overcommit_memory") -> bool:
    """True under `ulimit -v`, and where Linux promises no more memory than it has (vm.overcommit_memory 2)."""
    if find_spec("resource") is None:
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY or (
        promised.exists() and promised.read_text().strip() == "2"
    )


def peak_resident_bytes(status: Path = _PROC / "self/status", platform: str = sys.platform) -> int:
    """The most memory this process has held since `reset_peak`, where the system can measure anew; else ever."""
    if status.exists():  # getrusage counts what the parent held before this program was started
        return int(status.read_text().partition("VmHWM:")[2].split(None, 1)[0]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", 0) or _peak_by_getrusage(platform) or info.rss)


def _peak_by_getrusage(platform: str) -> int:
    """The most memory held ever, as Unix says it; 0 where there is no getrusage."""
    if find_spec("resource") is None:
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform == MAC else peak * 1024)  # macOS counts bytes, Linux KiB


def reset_peak(clear: Path = _PROC / "self/clear_refs") -> None:
    """Measure the peak from here on, where the system can."""
    try:
        with clear.open("w") as file:
            file.write("5")
    except OSError:
        return


def memory_bytes(group: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """`(total, free)`, of the container where that sets a limit: its kernel kills at that, not at the host's."""
    import psutil

    # The machine's; then the container's limit, if cgroup 2 has any.
    host = psutil.virtual_memory()
    try:
        total = int((group / "memory.max").read_text())  # "max" where there is no limit
        free = total - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return host.total, host.available
    return min(total, host.total), max(0, min(free, host.available))


def gpu_spills(platform: str = sys.platform) -> bool:
    """True where the driver moves memory to the CPU's once the GPU's is full, instead of refusing, as Windows' does."""
    return platform == WINDOWS


# The machine.


# Asked here alone, so that a test can pretend another machine.


def host() -> str:
    """This machine's name in the network."""
    return machine.node()


def name_and_version() -> str:
    """The operating system and its version, as one word."""
    return machine.platform()


def processor() -> str:
    """The processor, as far as Python knows it; at least its architecture."""
    return machine.processor() or machine.machine()


def cpu_name(cpuinfo: Path = _PROC / "cpuinfo") -> str:
    """The processor's name as Linux has it, else what Python knows."""
    return _cpuinfo(cpuinfo, "model name", "Model") or processor()


def cpu_flags(cpuinfo: Path = _PROC / "cpuinfo") -> list[str]:
    """What the processor can do, in Linux's words; nothing on other systems."""
    return _cpuinfo(cpuinfo, "flags", "Features").split()


def _cpuinfo(path: Path, *keys: str) -> str:
    """The first of these lines of /proc/cpuinfo, or nothing where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next(
        (value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() in keys), ""
    )


def quoted(text: str, platform: str = sys.platform) -> str:
    """A word for a command line that a person copies; Windows' cmd knows no single quotes."""
    return f'"{text}"' if platform == WINDOWS else f"'{text}'"


def checkout_command(target: str, platform: str = sys.platform) -> str:
    """The command for a checkout's environment or page: the Makefile's target, or Windows' one script."""
    return "start.bat" if platform == WINDOWS else f"make {target}"


def num_cpus() -> int:
    """How many processors this process may use; macOS and Windows don't say, and have all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpp_compilers(platform: str = sys.platform) -> tuple[str, ...]:
    """The names of the C++ compilers that torch looks for."""
    return ("cl",) if platform == WINDOWS else ("g++", "clang++", "c++")


def c_compilers(platform: str = sys.platform) -> tuple[str, ...]:
    """The names of the C compilers that Triton looks for; none where it brings its own."""
    return () if platform == WINDOWS else ("gcc", "clang")


def may_have_gpu(devices: Path = Path("/dev"), platform: str = sys.platform) -> bool:
    """False where there is surely no GPU with memory of its own for torch: nothing is loaded to know it."""
    return platform == WINDOWS or any((devices / name).exists() for name in ("nvidiactl", "kfd", "dxg"))
