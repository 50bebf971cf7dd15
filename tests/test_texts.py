"""The page's words are in one file: each is used and filled as it asks, and none stands anywhere else in the code."""

from __future__ import annotations

import ast
import json
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from parsed import ROOT, functions, name_of, sources, tree

from app import scripts, texts, views
from app.job_table import Job
from trainer.events import Failed

SCRIPTS = sorted((ROOT / "app").glob("*.js"))
FILLED = ("say", "say_num")
# Whose words go to the terminal: of the command, and what the server prints.
OF_COMMAND = ("app.__main__", "app.ui.known_bases", "app.ui.open_workspace", "app.ui.serve")
# What is given to these is printed, or reads the trainer's words.
NOT_SHOWN = ("_print", "sys.stdout.write", "re.compile", "re.sub", "re.match")
# What is no text of the page though it reads like one, by the beginning.
NO_TEXTS = {
    "app.run_grid": ("a picture",),  # a prompt, as the next three
    "app.show_me": ("a red apple, ", "mokka, ", "show me"),
    "app.trash": ("no entry of ours", "no id of ours"),  # caught where the journal is read
    "app.job_table": ("unable to open",),  # SQLite's words
    "app.browser_state": ("\0=\0; Path=/",),  # a cookie
    "app.item_changes": ("in the trash: ",),  # by which a note is known
    "app.path_gate": ("mask data:",),  # how a region is written
    "app.kept_fields": ("Invalid file type",),  # Gradio's words
    "app.theme": ("Segoe UI", "Helvetica Neue"),
}
SENTENCE = re.compile(r"[A-Za-z’']+[,;:.]? +[A-Za-z’']{2,}")
CODE = re.compile(
    r"=>|\(\);|^const |!important|^[\w-]+: [^;]+;|^\s*(SELECT|INSERT|UPDATE|CREATE|PRAGMA) |^\w+(, \w+)+$"
    r"|^(default|script|style|img|media|font|connect|worker|frame|object|base|form)-(src|uri|action|ancestors) "
)
SHOWN = re.compile(r'(?:aria-label|title|placeholder|alt)="([^"]*[A-Za-z]{2}[^"]*)"')


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def calls(module: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and name_of(node.func) in FILLED:
            yield node


def asked(call: ast.Call) -> tuple[list[str], set[str]]:
    """The keys that a call names, and the fields that it fills."""
    key, *_ = call.args
    assert isinstance(key, ast.Constant) and isinstance(key.value, str), f"line {call.lineno}: the key is no literal"
    assert all(word.arg for word in call.keywords), f"line {call.lineno}: the values are not named one by one"
    given = {str(word.arg) for word in call.keywords}
    if name_of(call.func) == "say":
        assert len(call.args) == 1, f"line {call.lineno}: values are given by name"
        return [key.value], given
    return [f"{key.value}.one", f"{key.value}.many"], given | {"num"}


def test_each_text_is_filled_as_it_asks_and_all_are_used() -> None:
    used: set[str] = set()
    for name, path in sources("app").items():
        for call in calls(tree(path)) if name != "app.texts" else ():
            keys, given = asked(call)
            assert set(keys) <= set(texts.TEXTS), f"{name}, line {call.lineno}: no text is called {keys}"
            wanted = set().union(*(fields(texts.TEXTS[key]) for key in keys))
            of_pair = {"num"} if len(keys) > 1 else set()  # a pair may leave its number out
            assert wanted | of_pair == given, f"{name}, line {call.lineno}: {keys} asks for {wanted}, is given {given}"
            used |= set(keys)
    used |= {key for path in SCRIPTS for key in scripts.asked(path.read_text(encoding="utf-8"))}
    assert set(texts.TEXTS) == used


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_each_text_of_a_script_is_filled_as_it_asks(path: Path) -> None:
    code = path.read_text(encoding="utf-8")
    for call in re.finditer(r"\bphrase(Num)?\('([\w.]+)'(.*)", code):
        for key in (f"{call[2]}.one", f"{call[2]}.many") if call[1] else (call[2],):
            given = set(re.findall(r"[{,] *(\w+)[:,}]", call[3])) | ({"num"} if call[1] else set())
            plain_fields = set(re.findall(r"\{(\w+)\}", texts.TEXTS[key]))
            assert plain_fields == fields(texts.TEXTS[key]) and plain_fields <= given, (path.name, key, given)


def test_a_text_has_plain_fields_alone() -> None:
    for key, text in texts.TEXTS.items():
        for _, name, spec, _ in string.Formatter().parse(text):
            assert name is None or name.isidentifier() and "{" not in (spec or ""), key


def test_a_script_has_its_texts_in_front() -> None:
    code = scripts.read("batch_vote.js")
    given = json.loads(code.partition("\n")[0].removeprefix("const texts = ").removesuffix(";"))
    assert given == {key: texts.TEXTS[key] for key in scripts.asked(code)} and "vote.votes.many" in given


# What is left in the code.


def pieces(module: ast.AST, name: str) -> Iterator[tuple[int, str]]:
    """Every string of a module that is no docstring and is not printed; a blank stands for a value within it."""
    passed = {
        id(inner)
        for dotted, function in functions(name, module)
        if dotted in OF_COMMAND
        for inner in ast.walk(function)
    }
    passed |= {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and name_of(node.func) in NOT_SHOWN:
            passed |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.keyword) and node.arg == "elem_classes":
            passed |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.JoinedStr):
            passed |= {id(part) for part in node.values}
    for node in ast.walk(module):
        if id(node) in passed or not isinstance(node, ast.Constant | ast.JoinedStr):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in parts)
        if not isinstance(node, ast.Constant) or isinstance(node.value, str):
            yield node.lineno, text


def labels(module: ast.AST) -> Iterator[tuple[int, str]]:
    """What components are called, of one word too."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            named = [word.value for word in node.keywords if word.arg in ("label", "info", "placeholder")]
            if name_of(node.func).endswith((".Button", "Button", ".Accordion", ".Tab")):
                named += node.args[:1]
            for value in named:
                if (
                    isinstance(value, ast.Constant)
                    and isinstance(value.value, str)
                    and re.search("[A-Za-z]", value.value)
                ):
                    yield value.lineno, value.value


def left(module: ast.AST, name: str) -> list[str]:
    """The words of the page that stand in this module."""
    found = [f"line {line}: {text}" for line, text in labels(module)]
    for line, text in pieces(module, name):
        if CODE.search(text) or text.startswith(NO_TEXTS.get(name, ("\1",))):
            continue
        words = [*SHOWN.findall(text), re.sub(r"<[^>]*>", "\0", text)] if "<" in text or '="' in text else [text]
        shown = [part for part in SHOWN.findall(text)]
        found += [f"line {line}: {part}" for part in {*shown, *words} if part in shown or SENTENCE.search(part)]
    return found


@pytest.mark.parametrize("name", [name for name in sources("app") if name not in OF_COMMAND])
def test_no_text_stands_in_the_code(name: str) -> None:
    assert not (found := left(tree(sources("app")[name]), name)), "\n".join(found)


def test_each_exception_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    known, modules = dict(NO_TEXTS), sources("app")
    monkeypatch.setattr(sys.modules[__name__], "NO_TEXTS", {})
    for name, starts in known.items():
        found = left(tree(modules[name]), name)
        assert all(any(f": {start}" in line for line in found) for start in starts), (name, found)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_text_stands_in_a_script(path: Path) -> None:
    code = re.sub(r"(?m)(^|\s)//.*", "", path.read_text(encoding="utf-8"))
    strings = [re.sub(r"\$\{.*?\}", "\0", one) for one in re.findall(r"'[^'\n]*'|`[^`]*`", code)]
    # What has a sign of these is a class, a selector or a setting's value.
    found = [
        one
        for one in strings
        if SENTENCE.search(one) and not re.search(r"[-#\[=>]|^'(\.|seen |chip |button|steps|linear)", one)
    ]
    found += re.findall(r"(?:'aria-label'|textContent =|title:|hint:|use:|\.title =),? '[^']*[A-Za-z][^']*'", code)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "x = 'no picture is chosen'",
        "def f():\n    return f'{x} is not here'",
        "html = '<p class=\"a b\">Nothing yet</p>'",
        "html = f'<p aria-label=\"Close\">{x}</p>'",
        "gr.Button('Stop')",
        "gr.Textbox(x, label='Name')",
    ],
)
def test_a_text_in_the_code_is_found(source: str) -> None:
    assert len(left(ast.parse(source), "app.x")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "'''A docstring of words.'''",
        "x = '<p class=\"one two\">'",
        "gr.Row(elem_classes='wide halves')",
        "x = re.compile('(no picture is chosen)')",
        "x = 'SELECT name FROM job'",
        "x = '() => document.querySelector(a button)'",
        "_print('jobs can not go on')",
        "gr.Button(say('train.start'))",
    ],
)
def test_what_is_no_text_is_let_through(source: str) -> None:
    assert left(ast.parse(source), "app.x") == []


# Values.


@pytest.mark.parametrize("value", ["{0}", "{num} {message!r}", "{", "}}", "{{x}}", "{0.__class__}"])
def test_a_value_with_braces_is_shown_as_it_is(value: str) -> None:
    job = Job(1, "train", "fox", "", "failed", None, None, 0, 0, 0.0, None, None, "")
    assert views.messages(job, [Failed("RunError", value)]) == f"failed: {value}"
