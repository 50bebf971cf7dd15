"""Which tests take long, as measured: `tests/slow.txt`, a line each. `conftest.py` marks them `slow`, so that the fast
suite stays below eight minutes on two cores; `make test-all` runs them too.

    .venv/bin/python -m pytest -m "not gpu" --junitxml=all.xml -n 2 --dist loadfile   # an hour
    .venv/bin/python -m tests.slow all.xml

A test that is marked by hand needs no line. `KEPT` are those that are fast tests however long they take: each is the
only one that goes its way through the whole program.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

FILE = Path(__file__).with_suffix(".txt")
LONG_S = 4.0
KEPT = {"tests/test_resume.py::test_broken_off_anywhere_and_resumed_is_unbroken[adamw]"}


def listed() -> set[str]:
    """The ids of the tests that take long."""
    return {line.split(" ", 1)[1] for line in FILE.read_text(encoding="utf-8").splitlines()}


def measured(report: Path) -> dict[str, float]:
    """Seconds that each test took, by its id, from one of pytest's JUnit reports."""
    taken = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        taken[f"{file}::{case.attrib['name']}"] = float(case.attrib["time"])
    return taken


def main(report: Path) -> None:
    """Write the list anew."""
    long = {name: seconds for name, seconds in measured(report).items() if seconds >= LONG_S and name not in KEPT}
    FILE.write_text("".join(f"{seconds:.0f} {name}\n" for name, seconds in sorted(long.items())), encoding="utf-8")
    print(f"{len(long)} tests take {LONG_S:.0f} s or longer, {sum(long.values()):.0f} s in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
