"""Every kind of file and text from outside, damaged 20,000 times: each is read or refused in words, within a second, in
bounded memory.

`python -m tests.test_fuzz --count 20000` runs every kind in a process of its own and prints a line of JSON for each;
`--kind prompts --number 77` repeats one case. What number n of a kind is depends on nothing else, so that a number in a
report is enough to find it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests import doors_setup
from tests.doors import KINDS
from tests.doors_setup import Call, Case
from trainer.errors import UserError

LONGEST_S, MOST_MB, MOST_CHARS, QUICK = 1.0, 1024, 2000, 200
_HANGS_S, _MOST_FAULTS = 30, 10


class Hangs(BaseException):
    """It took far longer than anything may."""


def judged(calls: list[Call]) -> bool:
    """Whether the first of them, a kind's own reader, read it; what any refuses is refused in words.

    Raises: AssertionError, and whatever a reader should not have.
    """
    is_read = True
    for number, call in enumerate(calls):
        try:
            result = call()
        except UserError as error:
            is_read, text = is_read and number > 0, str(error)
            assert 0 < len(text) < MOST_CHARS, f"a message of {len(text)} characters: {text[:200]!r}"
            assert all(line.isprintable() for line in text.split("\n")), (
                f"a message that can't be printed: {text[:300]!r}"
            )
        else:
            if isinstance(result, str):
                result.encode()
    return is_read


def taken(kind: str, case: Case, number: int) -> tuple[bool, float]:
    """Whether a case was read, and the processor's seconds it took; one that seems slow counts as fast as it is at the
    second try.
    """
    seconds = []
    while not seconds or (seconds[-1] > LONGEST_S and len(seconds) < 2):
        calls = case(random.Random(f"{kind}-{number}"))
        start = time.process_time()
        is_read = judged(calls)
        seconds.append(time.process_time() - start)
    return is_read, min(seconds)


def fuzzed(kind: str, room: Path, numbers: range) -> dict[str, Any]:
    """What came of these cases of a kind, the first faults among it."""
    report: dict[str, Any] = {
        "kind": kind,
        "count": len(numbers),
        "read": 0,
        "refused": 0,
        "slowest_s": 0.0,
        "slowest": 0,
        "faults": [],
    }
    case, before = KINDS[kind](room), peak_mb()
    signal.signal(signal.SIGALRM, _hang)
    for number in numbers:
        signal.alarm(_HANGS_S)
        try:
            is_read, seconds = taken(kind, case, number)
        except (Exception, Hangs) as error:
            report["faults"].append(f"{kind} {number}: {_brief(error)}")
            if len(report["faults"]) >= _MOST_FAULTS:
                break
            continue
        finally:
            signal.alarm(0)
        report["read" if is_read else "refused"] += 1
        if seconds > report["slowest_s"]:
            report |= {"slowest_s": round(seconds, 3), "slowest": number}
        if seconds > LONGEST_S:
            report["faults"].append(f"{kind} {number}: it took {seconds:.1f} s")
    return report | {"start_mb": before, "peak_mb": peak_mb()}


def peak_mb() -> int:
    """The most memory that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (10 if sys.platform != "darwin" else 20)


def _hang(*_: object) -> None:
    raise Hangs


def _brief(error: BaseException) -> str:
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][-4:]
    return f"{type(error).__name__}: {str(error)[:300]} ({' '.join(places)})"


def in_a_process(kind: str, count: int) -> dict[str, Any]:
    """The same in a process of its own, whose memory is nobody else's."""
    command = [sys.executable, "-m", "tests.test_fuzz", "--kind", kind, "--count", str(count), "--here"]
    done = subprocess.run(command, cwd=doors_setup.PRESETS.parent, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        return dict(json.loads(lines[-1]))
    return {"kind": kind, "faults": [f"{kind} ended with {done.returncode}: {done.stderr[-2000:]}"]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_two_hundred_damaged_ones_are_read_or_refused_in_words(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    report = fuzzed(kind, tmp_path, range(QUICK))
    assert not report["faults"], "\n".join(report["faults"])
    assert report["read"], f"some are good enough: {report}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_thousand_damaged_ones_are_read_or_refused_in_words(kind: str) -> None:
    report = in_a_process(kind, 20_000)
    print(json.dumps(report))
    assert not report["faults"], "\n".join(report["faults"])
    assert report["peak_mb"] < MOST_MB


def main() -> int:
    """Run what is asked for; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, help="one kind; all without")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--number", type=int, help="one case alone, with its traceback")
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VELATURA_HOME"] = str(Path(folder) / "home")
        if options.number is not None:
            print(taken(options.kind, KINDS[options.kind](Path(folder)), options.number))
            return 0
        if options.here:
            print(json.dumps(report := fuzzed(options.kind, Path(folder), range(options.count))))
            return bool(report["faults"])
    status = 0
    for kind in [options.kind] if options.kind else KINDS:
        print(json.dumps(report := in_a_process(kind, options.count)), flush=True)
        status |= bool(report["faults"])
    return status


if __name__ == "__main__":
    sys.exit(main())
