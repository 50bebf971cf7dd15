"""No module but `trainer.system` asks which operating system it runs on."""

from __future__ import annotations

import ast

import house
import parsed
import pytest

# What only one system has: `signal`'s numbers, a lock's calls, the C library, limits; who asks for a system's name;
# calls and paths of one system.
MODULES = {
    "resource",
    "fcntl",
    "ctypes",
    "signal",
    "msvcrt",
    "winreg",
    "grp",
    "pwd",
    "termios",
    "tty",
    "platform",
    "mmap",
}
NAMES = {
    "sys.platform", "os.name", "os.kill", "os.killpg", "os.setsid", "os.getuid", "os.geteuid", "os.chmod", "os.umask",
    "os.link", "os.symlink", "os.open",
    "os.uname", "os.statvfs", "os.sched_getaffinity", "os.fork", "os.nice", "os.mkfifo", "os.O_RDONLY",
    "subprocess.STARTUPINFO",
}  # fmt: skip
ARGUMENTS = {"start_new_session", "creationflags", "preexec_fn", "process_group", "startupinfo"}
METHODS = {"chmod", "symlink_to", "hardlink_to", "send_signal"}
PLACES = ("/proc/", "/sys/", "/dev/", "/etc/", "/tmp/")


def asks_the_system(module: ast.Module) -> list[str]:
    """What in a module works on some systems only, or asks which one it runs on, one line each."""
    found = []
    for node in ast.walk(module):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [
                f"{where}: imports {name}"
                for name in sorted(house.imported(node))
                if name.split(".")[0] in MODULES or name in NAMES
            ]
        elif isinstance(node, ast.Attribute) and parsed.name_of(node) in NAMES:
            found.append(f"{where}: {parsed.name_of(node)}")
        elif isinstance(node, ast.Call):
            found += [f"{where}: {one.arg}" for one in node.keywords if one.arg in ARGUMENTS]
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                found.append(f"{where}: .{node.func.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(PLACES):
            found.append(f"{where}: {node.value[:40]}")
    return found


@pytest.mark.parametrize("name", sorted(set(parsed.sources("app", "trainer")) - {"trainer.system"}))
def test_no_other_module_asks_which_system_it_runs_on(name: str) -> None:
    assert not (found := asks_the_system(parsed.tree(parsed.sources("app", "trainer")[name]))), (
        f"{name}: {found}; give trainer/system.py a function for it"
    )


@pytest.mark.parametrize(
    "source",
    [
        "import ctypes", "def f():\n    import resource", "from signal import SIGTERM",
        "import sys\nif sys.platform == 'win32': pass", "from os import name",
        "from sys import platform", "import os\nos.link(a, b)", "subprocess.Popen([], start_new_session=True)",
        "subprocess.Popen([], creationflags=1)",
        "folder.chmod(0o755)", "process.send_signal(9)", "Path('/proc/self/status')",
    ],
)  # fmt: skip
def test_the_rule_catches(source: str) -> None:
    assert asks_the_system(ast.parse(source))


def test_the_rule_lets_pass_what_every_system_has() -> None:
    assert not asks_the_system(
        ast.parse(
            "import os, psutil\nos.replace(a, b)\nos.getpid()\nprocess.terminate()\nsubprocess.Popen([])\n'a /proc/ b'"
        )
    )


def test_it_stands_below_everything_else() -> None:
    assert not parsed.ours("trainer.system")
