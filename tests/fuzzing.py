"""Damage for the fuzz run: texts, bytes and values from good examples, each drawn from one `random.Random` so that a
number can be repeated alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

SIGNS = [
    "\0", "\ufeff", "\u202e", "\u2028", "\u200b", "\u0301", "\ud800", "\udfff", "\x1b[31m", "\r", "\n", "\r\n", "\t",
    "\\", '"', "'", ",", ";", ":", "=", "|",
    "{", "}", "[", "]", "(", ")", "<", ">", "$", "%", "__", "..", "/", "-", "猫", "🦊", "مرحبا", "é", "＝",
]  # fmt: skip
WORDS = [
    "nan", "-inf", "1e999", "1e-999", "-0", "0x1F", "9" * 30, "9" * 5000, "1.7976931348623159e308", "null", "true",
    "None", "{a|b}", "{2$$a|b|c}", "${a=b}",
    "${a}", "__style__", "__*__", "<lora:cat:0.5>", "<lora:cat:1e9>", "(a:1.3)", "[a:b:0.5]", "BREAK", " AND ",
    "../../etc/passwd", "/dev/zero", "C:\\x", "~",
    "con", "mask data:AAAA", "box 0 0 1 1", "Steps: 2, ", "Negative prompt: ", "[" * 3000, "{" * 3000, "(" * 3000,
    "a" * 9000, "é" * 3000, '{"a":' * 2000,
    '"""', "'''", "\\ud83d", "\\u0000", "&#0;", "<script>", "%s%n", "=cmd|x",
]  # fmt: skip
NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    10**40,
    10**400,
    0.5,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
]
ENCODINGS = ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "latin-1", "cp1252", "shift_jis", "utf-7"]
WHOLE = [
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x01\x00",
    b"\x80\x00\x00\x00",
    b"\x00\x00\x3f\xff",
]
DEEP = "<deep>"  # in a value: becomes lists within lists once it is text, deeper than any value could be written


def _span(length: int, chance: random.Random) -> slice:
    start = chance.randint(0, length)
    return slice(start, min(length, start + int(chance.expovariate(1 / 12)) + 1))


def text(seeds: Sequence[str], chance: random.Random, most: int = 6) -> str:
    """One of the texts with up to so many changes; sometimes none, sometimes nothing but signs."""
    if chance.random() < 0.03:
        return "".join(chance.choices(SIGNS + WORDS, k=chance.randint(0, 30)))
    made = chance.choice(seeds)
    for _ in range(chance.randint(0, most)):
        made = _changed(made, seeds, chance)
    return made[:400_000]


def _changed(made: str, seeds: Sequence[str], chance: random.Random) -> str:
    at, kind = _span(len(made), chance), chance.randrange(8)
    if kind == 0:
        return made[: at.start] + made[at.stop :]
    if kind == 1:
        return made[: at.stop] + made[at] * chance.choice([1, 2, 9, 200]) + made[at.stop :]
    if kind == 2:
        return made[: at.start] + chance.choice(SIGNS) * chance.choice([1, 1, 2, 40]) + made[at.start :]
    if kind == 3:
        return made[: at.start] + chance.choice(WORDS) + made[at.stop :]
    if kind == 4:  # a number in place of one
        places = [place for place, sign in enumerate(made[:20_000]) if sign.isdigit()]
        place = chance.choice(places) if places else 0
        return made[:place] + str(chance.choice(NUMBERS[:8] + NUMBERS[9:])) + made[place + 1 :]
    if kind == 5:
        return made[: at.start]
    if kind == 6:
        other = chance.choice(seeds)
        return made[: at.start] + other[chance.randint(0, len(other)) :]
    return (
        made[: at.start]
        + chr(chance.choice([chance.randrange(128), chance.randrange(0x3000), chance.randrange(0x110000)]))
        + made[at.stop :]
    )


def raw(text: str, chance: random.Random) -> bytes:
    """The text as a file: mostly UTF-8, else as another program writes it, and sometimes with its bytes damaged."""
    made = (
        text.encode(chance.choice(ENCODINGS), "replace")
        if chance.random() < 0.2
        else text.encode("utf-8", "surrogatepass")
    )
    return data([made], chance, 3) if chance.random() < 0.25 else made


def data(seeds: Sequence[bytes], chance: random.Random, most: int = 6) -> bytes:
    """One of the files with up to so many changes of its bytes."""
    made = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(0, most)):
        at, kind = _span(len(made), chance), chance.randrange(8)
        if kind == 0:
            del made[at]
        elif kind == 1:
            made[at.stop : at.stop] = bytes(made[at]) * chance.choice([1, 2, 50])
        elif kind == 2:
            made[at.start : at.start] = chance.randbytes(chance.choice([1, 2, 4, 30]))
        elif kind == 3:
            made[at.start : at.start + 4] = chance.choice(WHOLE)
        elif kind == 4:
            other = chance.choice(seeds)
            made[at.start :] = other[chance.randint(0, len(other)) :]
        elif kind == 5 and chance.random() < 0.3:
            del made[at.start :]
        elif made:
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8) if kind == 6 else chance.randrange(256)
    return bytes(made[: 4 << 20])


def value(chance: random.Random, keys: Sequence[str], depth: int = 0) -> Any:
    """Anything that JSON can say."""
    kind = chance.randrange(10 if depth < 3 else 7)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.choice(NUMBERS)
    if kind == 2:
        return chance.choice(WORDS)
    if kind == 3:
        return "".join(chance.choices(SIGNS, k=chance.randint(0, 6)))
    if kind == 4:
        return chance.choice(keys)
    if kind == 5:
        return chance.choice([[], {}, "", "x" * 9000, 7, 0.75, DEEP, [[]], [None], {"": ""}])
    if kind == 6:
        return chance.randint(-10, 2000)
    if kind == 7:
        return {chance.choice([*keys, *SIGNS]): value(chance, keys, depth + 1) for _ in range(chance.randint(0, 4))}
    return [value(chance, keys, depth + 1) for _ in range(chance.randint(0, 4))]


def broken(values: Any, chance: random.Random, keys: Sequence[str] = ("x",)) -> Any:
    """A copy of the values with up to four places changed, taken out or added."""
    made = json.loads(json.dumps(values))
    known = [*keys, *(made if isinstance(made, dict) else ())]
    for _ in range(chance.randint(0, 4)):
        place: Any = made
        while isinstance(place, dict | list) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or chance.random() < 0.3:
                _put(place, key, chance, known)
                break
            place = place[key]
    return made


def _put(place: Any, key: Any, chance: random.Random, known: list[str]) -> None:
    kind = chance.random()
    if kind < 0.15:
        del place[key]
    elif kind < 0.3 and isinstance(place, dict):
        place[chance.choice([*known, *SIGNS])] = value(chance, known)
    elif kind < 0.4 and isinstance(place, dict):
        place[chance.choice(list(place))] = place[key]
    elif kind < 0.5 and isinstance(place[key], str):
        place[key] = text([place[key]], chance, 3)
    else:
        place[key] = value(chance, known)


def as_json(values: Any, chance: random.Random) -> str:
    """The values as JSON, deep where they say so, and sometimes with its text damaged."""
    deep = "[" * 6000 + ("]" * 6000 if chance.random() < 0.5 else "")
    json_text = json.dumps(values, ensure_ascii=chance.random() < 0.5).replace(f'"{DEEP}"', deep)
    return text([json_text], chance, 3) if chance.random() < 0.25 else json_text


def as_toml(values: Any, chance: random.Random) -> str:
    """The values as TOML, where they can be, else a part of them; and sometimes with its text damaged."""
    import tomli_w

    toml_text = ""
    for key, value in values.items() if isinstance(values, dict) else ():
        try:
            toml_text += tomli_w.dumps({key: value}) if not isinstance(value, dict) else ""
        except (TypeError, ValueError, AttributeError, OverflowError):
            continue
    for key, value in values.items() if isinstance(values, dict) else ():
        try:
            toml_text += tomli_w.dumps({key: value}) if isinstance(value, dict) else ""
        except (TypeError, ValueError, AttributeError, OverflowError):
            continue
    toml_text = toml_text.replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)
    return text([toml_text], chance, 3) if chance.random() < 0.3 else toml_text


def as_rows(seeds: Sequence[Sequence[str]], chance: random.Random) -> str:
    """Rows as CSV with cells changed, moved and left out."""
    rows = [list(row) for row in seeds]
    for _ in range(chance.randint(0, 5)):
        row = chance.choice(rows)
        if row and chance.random() < 0.7:
            row[chance.randrange(len(row))] = text([*row, *WORDS], chance, 2)
        elif chance.random() < 0.5:
            row.append(chance.choice(WORDS))
        else:
            rows.insert(chance.randint(0, len(rows)), list(chance.choice(rows)))
    import csv
    import io

    file = io.StringIO()
    csv.writer(
        file, quoting=chance.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), lineterminator=chance.choice(["\r\n", "\n"])
    ).writerows(rows)
    return text([file.getvalue()], chance, 3) if chance.random() < 0.3 else file.getvalue()
