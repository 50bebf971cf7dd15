"""`start.sh` and `start.bat`: the environment made once as the Makefile makes it, then the page; refusals in plain
words.

`start.sh` runs here with a Python that only writes down what it is asked. `start.bat` can't, so it is read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="needs a shell of POSIX")
OPENS = "-m trainer app --open"
INSTALLS = [
    "-m pip install --disable-pip-version-check -c constraints.txt setuptools",
    "-m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation -e .[dev]",
]

# A Python that makes environments of itself; what it can't say it asks the real one.
_PYTHON = """#!/bin/sh
echo "$*" >>"$ASKED"
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip") exit "${PIP_ENDS:-0}" ;;
"-m trainer") ;;
*) exec "$REAL" "$@" ;;
esac
"""
_OLD = """#!/bin/sh
if [ "$1" = --version ]; then echo "Python 3.9.18"; else exit 1; fi
"""


class Checkout:
    """A copy of the files that `start.sh` reads, in a folder with blanks, and a PATH of nothing but what is
    put there.
    """

    def __init__(self, parent: Path) -> None:
        self.folder, self.path, self.asked = parent / "a folder's copy", parent / "bin", parent / "asked"
        self.folder.mkdir()
        self.path.mkdir()
        for name in ("start.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        for name in ("sh", "dirname", "find", "rm", "mkdir", "cp"):
            (self.path / name).symlink_to(str(shutil.which(name)))

    def python(self, name: str, text: str = _PYTHON) -> None:
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def start(self, *options: str, **more: str) -> tuple[int, str, list[str]]:
        """How it ended, what it said, and what Python was asked for, checks left out."""
        self.asked.unlink(missing_ok=True)
        environment = {"PATH": str(self.path), "ASKED": str(self.asked), "REAL": sys.executable, **more}
        command = [str(self.folder / "start.sh"), *options]
        done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=60)
        lines = self.asked.read_text().splitlines() if self.asked.exists() else []
        return done.returncode, done.stdout + done.stderr, [line for line in lines if not line.startswith("-c ")]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@POSIX
def test_the_first_start_makes_the_environment_and_the_second_only_opens_the_page(checkout: Checkout) -> None:
    checkout.python("python3")
    assert checkout.start() == (
        0,
        "Making the environment, once. Most of it is torch, which takes some minutes to download.\n",
        ["-m venv .venv", *INSTALLS, OPENS],
    )
    assert sorted(path.name for path in (checkout.folder / ".venv").glob(".*")) == [".stamp"]
    assert checkout.start("--port", "7861") == (0, "", [f"{OPENS} --port 7861"])


@POSIX
def test_other_versions_are_installed_when_they_are_asked_for(checkout: Checkout) -> None:
    checkout.python("python3")
    checkout.start()
    stamp = (checkout.folder / ".venv" / ".stamp").stat().st_mtime
    os.utime(checkout.folder / "constraints.txt", (stamp + 9, stamp + 9))
    assert checkout.start()[2] == ["-m venv .venv", *INSTALLS, OPENS]


@POSIX
def test_an_install_that_was_cut_off_is_made_afresh(checkout: Checkout) -> None:
    checkout.python("python3")
    code, output, asked_pip = checkout.start(PIP_ENDS="1")
    assert (code, asked_pip) == (
        1,
        ["-m venv .venv", INSTALLS[0]],
    ) and "The next start makes the environment afresh." in output
    (checkout.folder / ".venv" / "half").touch()
    code, output, asked_pip = checkout.start()
    assert (code, asked_pip) == (0, ["-m venv .venv", *INSTALLS, OPENS]) and output.startswith(
        "The last install was cut off; starting afresh."
    )
    assert not (checkout.folder / ".venv" / "half").exists()


@POSIX
def test_pip_is_given_what_is_asked_for(checkout: Checkout) -> None:
    checkout.python("python3")
    commands = checkout.start(PIP_ARGS="--extra-index-url https://example.invalid/cpu")[2]
    assert commands[1:3] == [
        line.replace(" -c ", " --extra-index-url https://example.invalid/cpu -c ", 1) for line in INSTALLS
    ]


@POSIX
def test_a_newer_python_is_found_beside_an_old_one(checkout: Checkout) -> None:
    checkout.python("python3", _OLD)
    checkout.python("python3.11")
    assert checkout.start()[0] == 0


@POSIX
@pytest.mark.parametrize("names", [[], ["python3", "python"]], ids=["none", "old ones"])
def test_without_a_python_it_says_what_to_install(checkout: Checkout, names: list[str]) -> None:
    for name in names:
        checkout.python(name, _OLD)
    code, output, commands = checkout.start()
    assert (code, commands) == (
        1,
        [],
    ) and "Velatura needs Python 3.10 or newer, and there is none here. Install it from" in output
    assert not (checkout.folder / ".venv").exists()


@POSIX
def test_a_python_that_is_named_is_the_one(checkout: Checkout) -> None:
    checkout.python("python3")
    checkout.python("old", _OLD)
    checkout.python("mine")
    assert "Velatura needs Python 3.10 or newer; 'old' is Python 3.9.18." in checkout.start(PYTHON="old")[1]
    assert "There is no 'nowhere' here." in checkout.start(PYTHON="nowhere")[1]
    (checkout.path / "python3").unlink()
    assert checkout.start(PYTHON=str(checkout.path / "mine"))[0] == 0


@POSIX
def test_a_python_without_venv_says_what_to_install(checkout: Checkout) -> None:
    checkout.python("python3", _PYTHON.replace("case", 'if [ "$2" = "import ensurepip, venv" ]; then exit 1; fi\ncase'))
    code, output, commands = checkout.start()
    assert (code, commands) == (
        1,
        [],
    ) and "python3 can't make virtual environments. Debian and Ubuntu: apt-get install python3-venv" in output


@POSIX
def test_how_the_page_ends_is_how_it_ends(checkout: Checkout) -> None:
    checkout.python("python3", _PYTHON.replace('"-m trainer") ;;', '"-m trainer") exit 7 ;;'))
    assert checkout.start()[0] == 7


# `start.bat`, read.


@pytest.fixture(scope="module")
def batch() -> str:
    return (ROOT / "start.bat").read_bytes().decode("ascii")


def test_its_lines_end_as_cmd_needs_them(batch: str) -> None:
    """With other ends cmd misses labels; git keeps these, and those of start.sh."""
    assert batch.count("\n") == batch.count("\r\n") == len(batch.splitlines())
    assert (ROOT / ".gitattributes").read_text().splitlines()[1:] == ["*.bat text eol=crlf", "*.sh text eol=lf"]
    assert b"\r" not in (ROOT / "start.sh").read_bytes()


def _pip(text: str) -> list[str]:
    """Each line that installs, without the names of variables and quotes."""
    lines = re.findall(r"-m pip install .*", text)
    return [
        re.sub(r" \|\|.*| &&.*| \$\(PIP_ARGS\)| %PIP_ARGS%| \$\{PIP_ARGS:-\}|[\"']|\r", "", line).strip()
        for line in lines
    ]


def test_all_three_install_the_same(batch: str) -> None:
    assert _pip(batch) == _pip((ROOT / "start.sh").read_text()) == _pip((ROOT / "Makefile").read_text()) == INSTALLS
    for text in (batch, (ROOT / "start.sh").read_text(), (ROOT / "Makefile").read_text()):
        assert "sys.exit(sys.version_info < (3, 10))" in text and ".begun" in text and ".stamp" in text
        assert text.count("PIP_ARGS") >= 2


def test_its_labels_are_there_and_end(batch: str) -> None:
    labels = re.findall(r"^:(\w+)", batch, re.MULTILINE)
    assert set(re.findall(r"(?:goto |call :)(\w+)", batch)) | {"make"} == set(labels) and len(labels) == len(
        set(labels)
    )
    assert batch.rstrip().endswith("exit /b 1") and not re.search(
        r"^[^\"]*\($", batch, re.MULTILINE
    )  # a block would be read before it is run


def test_its_steps_come_in_this_order(batch: str) -> None:
    steps = [
        r'cd /d "%~dp0"',
        r'if not exist ".venv\.stamp" goto make',
        "py -%%v",
        r"%FOUND% -m venv",
        r'type nul > ".venv\.begun"',
        INSTALLS[0][:14],
    ]
    steps += [r'del ".venv\.begun"', r'type nul > ".venv\.stamp"', f"{OPENS} %*"]
    places = [batch.index(step) for step in steps]
    assert places == sorted(places)


def test_its_paths_are_quoted(batch: str) -> None:
    code = "\n".join(line for line in batch.splitlines() if not line.startswith(("rem", "echo")))
    outside = re.sub(r'"[^"]*"', "", code)
    assert "\\" not in outside and "%BIN%" not in outside and ".venv" not in outside and "%~dp0" not in outside


def test_it_knows_an_environment_of_other_versions(batch: str, tmp_path: Path) -> None:
    (code,) = re.findall(r'-c "(import os.*?)" && goto open', batch)
    (tmp_path / ".venv").mkdir()
    for at, name in enumerate(("pyproject.toml", "constraints.txt", ".venv/.stamp")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
    os.utime(tmp_path / "pyproject.toml", (9, 9))
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 1
