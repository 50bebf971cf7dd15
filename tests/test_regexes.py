"""No regular expression of ours takes long over a text from outside: 30 KB once froze the page for 13 s.

Every pattern in the source is found and given texts that are made to be slow for it, in the way the source asks it. A
pattern that looks at each character a bounded number of times takes milliseconds; one that starts again at each takes
seconds.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.timing import since
from trainer.config import BatchConfig, parse
from trainer.config.batch import MAX_PICTURES, adapter, check_name, seeds
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError

ROOT = Path(__file__).parents[1]
ASKS = {"search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer"}
PIECES = [
    "a",
    "0",
    " ",
    "_",
    ".",
    "\\",
    "(",
    "<",
    "{",
    '"',
    "a.",
    "a_",
    "1 ",
    "/a",
    "0.",
    "(a",
    "a, ",
    "\n",
    "lora_",
    "a.1.",
    "__a",
    '\\"',
    ":1",
    "-",
]
MORE = [
    "[",
    "=",
    ":",
    "lora.",
    "x.lora_",
    "é",
    "a:",
    "a: ",
    '"a',
    "#",
    "\t",
    "{a|",
    "a-",
    ",",
    "blocks",
    "box ",
    "$$",
    "::",
    "..",
    "a b ",
]
ENDS = ["", "!", "\n\x00"]


def patterns() -> Iterator[tuple[str, str, int, set[str]]]:
    """Where a pattern stands, itself, its flags, and how it is asked; those that are put together while running are not
    among them.
    """
    for path in sorted([*(ROOT / "trainer").rglob("*.py"), *(ROOT / "app").rglob("*.py")]):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            target, call = (node.targets[0], node.value) if isinstance(node, ast.Assign) else (None, node)
            if not (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and ast.unparse(call.func.value) == "re"
                and call.args
            ):
                continue
            if not (isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)) or (
                call.func.attr == "compile"
            ) != isinstance(target, ast.Name):
                continue
            methods = {call.func.attr} & ASKS
            if isinstance(target, ast.Name):
                methods = {
                    method for method in re.findall(rf"\b{target.id}\.(\w{{1,10}})\(", source) if method in ASKS
                } or {"search"}
            flags = next((getattr(re, name) for name in ("DOTALL", "IGNORECASE") if name in ast.unparse(call)), 0)
            yield f"{path.relative_to(ROOT)}:{call.lineno}", call.args[0].value, int(flags), methods


FOUND = list(patterns())


def slowest(pattern: str, flags: int, methods: set[str], length: int, pieces: list[str]) -> tuple[float, str]:
    compiled = re.compile(pattern, flags)
    worst = (0.0, "")
    for piece in pieces:
        for end in ENDS:
            text = (piece * (length // len(piece) + 1))[:length] + end
            for ask in methods:
                start = time.thread_time()
                result = getattr(compiled, ask)(*(("", text) if ask in ("sub", "subn") else (text,)))
                if ask == "finditer":
                    list(result)
                worst = max(worst, (time.thread_time() - start, repr(piece + end)))
    return worst


def test_the_patterns_are_found() -> None:
    assert len(FOUND) > 50 and any("uploads.py" in where for where, *_ in FOUND)


@pytest.mark.parametrize(
    "pattern, flags, ask", [(r".*[/\\]|\.safetensors$", 0, "sub"), (r"(\d+)*x", 0, "search"), (r"\s+$", 0, "search")]
)
def test_a_pattern_that_starts_again_at_each_character_is_caught(pattern: str, flags: int, ask: str) -> None:
    assert slowest(pattern, flags, {ask}, 6000 if "*x" not in pattern else 22, ["a", "0", " "])[0] > 0.1


@pytest.mark.parametrize("where, pattern, flags, methods", FOUND, ids=[where for where, *_ in FOUND])
def test_a_pattern_takes_no_longer_than_its_text(where: str, pattern: str, flags: int, methods: set[str]) -> None:
    for _ in range(3):  # what else the machine does makes a thread slower too
        took, text = slowest(pattern, flags, methods, 8000, PIECES)
        if took < 0.3:
            break
    assert took < 0.3, f"{where} takes {took:.1f} s over 8000 characters of {text}"


@pytest.mark.slow
@pytest.mark.parametrize("where, pattern, flags, methods", FOUND, ids=[where for where, *_ in FOUND])
def test_a_pattern_takes_no_longer_than_a_long_text(where: str, pattern: str, flags: int, methods: set[str]) -> None:
    took, text = slowest(pattern, flags, methods, 40_000, PIECES + MORE)
    assert took < 1, f"{where} takes {took:.1f} s over 40000 characters of {text}"


# The case itself, and what it stands for.


@pytest.mark.parametrize(
    "text",
    [
        "a" * 30_000,
        "a/" * 15_000,
        "\\" * 30_000,
        "\n" * 30_000,
        ":" * 30_000,
        "1" * 30_000,
        "a:" * 15_000,
        ".safetensors" * 3000,
    ],
)
def test_a_long_name_in_a_jobs_file_is_read_at_once(text: str) -> None:
    start = time.thread_time()
    for act in (
        lambda: adapter(text),
        lambda: parse(BatchConfig, {"prompts": ["a"], "stacks": [[text]], "name": text}, "x"),
        lambda: seeds(text),
        lambda: check_name(text),
    ):
        try:
            act()
        except (ConfigError, ValueError) as error:
            assert len(str(error)) < 1500
    assert since(start) < 1


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("loras/fox.safetensors:0.8", ("loras/fox.safetensors", "fox", 0.8)),
        ("C:\\loras\\fox.safetensors", ("C:\\loras\\fox.safetensors", "fox", 1.0)),
        ("fox", ("fox", "fox", 1.0)),
        ("fox.safetensors.safetensors:1", ("fox.safetensors.safetensors", "fox.safetensors", 1.0)),
        ("a/b\\c:-1", ("a/b\\c", "c", -1.0)),
    ],
)  # fmt: skip
def test_a_lora_in_one_line_is_read(text: str, wanted: tuple[str, str, float]) -> None:
    assert tuple(adapter(text).values()) == wanted


def test_a_million_pictures_are_counted_and_refused_before_one_is_made() -> None:
    start = time.thread_time()
    for values in (
        {"prompts": ["a"] * 2000, "weights": [0.1] * 1000, "seeds": [1]},
        {"prompts": ["a"], "seeds": ["0-4294967295"]},
        {"prompts": ["a"], "seeds": ["0-999999", "5"]},
        {"seeds": ["0-4000000000"] * 100_000},
    ):
        with pytest.raises(ConfigError, match=rf"pictures; allowed: up to {MAX_PICTURES}"):
            parse(BatchConfig, values, "x")
    assert since(start) < 3


def test_a_jobs_file_of_thirty_kilobytes_of_one_name_is_read_at_once() -> None:
    text = 'prompts=["a"]\nstacks=[["' + "a" * 30_000 + '"]]\n'
    start = time.thread_time()
    with pytest.raises(ConfigError, match="allowed: up to 4096 characters"):
        parse(BatchConfig, from_toml(text, "x"), "x")
    assert since(start) < 1
