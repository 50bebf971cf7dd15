"""The house test: the rules of the design and style pages, held by the parsed source and the modules themselves.

Budgets have exceptions, each by name with its reason; one that is no longer needed fails too, so the lists only shrink.
`tests/test_house.py` shows that each rule catches what it should.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import re
import sys
import typing
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from parsed import ROOT, functions, name_of, sources, tree

from trainer import families, methods, preset_tiers, presets
from trainer.config import BatchConfig, StackConfig, parse
from trainer.families.contract import Family
from trainer.methods.contract import Method
from trainer.render.modes.contract import Mode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# Budgets, and who may exceed them and why.
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 8
LOOP, LOOP_LINES = "trainer.loop.train", 120  # it reads from top to bottom
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS = {
    "trainer.cli.train": "a command's parameters are its options",
    "trainer.cli.render": "a command's parameters are its options",
    "trainer.render.batch_command.batch": "a command's parameters are its options",
    "trainer.bench.scale_command.scale": "a command's parameters are its options",
    "trainer.lora_tools.command.extract": "a command's parameters are its options",
    "trainer.lora_tools.command.to_plain": "a command's parameters are its options",
    "trainer.preset_command.export": "a command's parameters are its options",
    "trainer.captioning_command.caption": "a command's parameters are its options",
    "trainer.publish_command.publish": "a command's parameters are its options",
    "trainer.retrain_command.retrain": "a command's parameters are its options",
    "trainer.serving.command.serve": "a command's parameters are its options",
}

CATCH_ALL = {"trainer.serving.giving_up": "a server's threads outlast any mistake; it is logged whole, and answered"}

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {
    "eval": "runs text", "exec": "runs text", "torch.load": "unpickles", "os.system": "is a shell",
    "os.popen": "is a shell",
    "subprocess.getoutput": "is a shell", "subprocess.getstatusoutput": "is a shell",
    "gradio.mount_gradio_app": "drops gradio's checks",
    "gr.mount_gradio_app": "drops gradio's checks", "sys.path.insert": "edits the path",
    "sys.path.append": "edits the path",
}  # fmt: skip
SWITCHES = ("shell", "trust_remote_code", "allow_pickle")
NO_NAMES = {"utils", "util", "helpers", "helper", "misc", "manager", "managers", "common"}
CATCHES_ALL = "catches everything without raising again"
CONTRACTS = (Family, Method, Mode)


# (a) Budgets.


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    named = function.args
    everything = [*named.posonlyargs, *named.args, *named.kwonlyargs, *filter(None, (named.vararg, named.kwarg))]
    return sum(one.arg not in ("self", "cls") for one in everything)


def over_budget(
    modules: dict[str, ast.Module], lines: dict[str, int], exceptions: dict[str, dict[str, str]]
) -> list[str]:
    """What exceeds a budget without an exception, and every exception that nothing needs."""
    found: dict[str, dict[str, str]] = {"lines": {}, "function": {}, "parameters": {}}
    for name, module in modules.items():
        if lines[name] > FILE_LINES:
            found["lines"][name] = f"{name} has {lines[name]} lines; a file has {FILE_LINES} at most"
        for dotted, function in functions(name, module):
            length, limit = (
                (function.end_lineno or 0) - function.lineno + 1,
                LOOP_LINES if dotted == LOOP else FUNCTION_LINES,
            )
            if length > limit:
                found["function"][dotted] = f"{dotted} has {length} lines; a function has {limit} at most"
            if (count := num_parameters(function)) > PARAMETERS and not name.startswith("tests"):
                found["parameters"][dotted] = f"{dotted} has {count} parameters; a function has {PARAMETERS} at most"
    excess = [text for kind, ones in found.items() for name, text in ones.items() if name not in exceptions[kind]]
    stale = [
        f"{name} is within the budget now; drop its exception ({kind})"
        for kind, ones in exceptions.items()
        for name in ones
        if name not in found[kind]
    ]
    return excess + stale


def test_budgets() -> None:
    modules = sources("app", "trainer", "tests")
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules.items()}
    exceptions = {"lines": LONG_FILES, "function": LONG_FUNCTIONS, "parameters": MANY_PARAMETERS}
    found = over_budget({name: tree(path) for name, path in modules.items()}, lines, exceptions)
    assert not found, "\n".join(found)


# (b) Plug-ins and presets keep their contracts.


def asked(module: ast.Module) -> list[str]:
    """Where this module asks by `getattr` or `hasattr` for what a contract declares, one line each."""
    names = {field.name for kind in CONTRACTS for field in dataclasses.fields(kind)}
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and name_of(node.func) in ("getattr", "hasattr") and len(node.args) > 1:
            plugin, name = ast.unparse(node.args[0]), node.args[1]
            if (
                isinstance(name, ast.Constant)
                and name.value in names
                or plugin.split(".")[-1] in ("family", "method", "mode")
                or "registry()[" in plugin
            ):
                found.append(
                    f"line {node.lineno}: {ast.unparse(node)}; read it by its name, which the contract declares"
                )
    return found


@pytest.mark.parametrize("name", sources("app", "trainer"))
def test_a_plug_in_is_read_by_name(name: str) -> None:
    assert not (found := asked(tree(sources("app", "trainer")[name]))), "\n".join(found)


@pytest.mark.parametrize("name", methods.registry())
def test_every_target_of_a_method_is_known_to_a_family(name: str) -> None:
    field = methods.registry()[name].Config.model_fields.get("targets")
    known = {target for family in families.registry().values() for target in family.targets}
    assert field is None or set(typing.get_args(field.annotation)) <= known


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("[bst]*/*.toml")), ids=lambda path: path.stem)
def test_preset_loads_and_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = " ".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())).lower()
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)+", path.stem), "<family>-<purpose>"
    if path.parent.name == "train":
        assert tomllib.loads(text)["title"] and (preset_tiers.of(path.stem) or "memory" in head)
        assert all(word in head for word in ("made for", "run")), "the dataset it was made for, and whether it was run"
        presets.load(path.stem, {})
    else:
        assert all(word in head for word in ("slot", "drawn")), (
            "the head says how its slots are filled, and whether it was drawn"
        )
        parse(BatchConfig if path.parent.name == "batch" else StackConfig, tomllib.loads(text), path.stem)


# (c) What is forbidden, and (d) what every module says.


def imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The full names that one statement imports, relative ones without their dots."""
    within = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return {f"{within}{alias.name}" for alias in node.names}


def forbidden(module: ast.Module) -> list[str]:
    """What in this module is dangerous or hides errors, one line each."""
    found = []
    for node in ast.walk(module):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            full = imported(node)
            roots = {name.split(".")[0] for name in full}
            found += [f"{where}: imports {name}" for name in sorted(roots & PICKLES | full & set(CALLS))]
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            if name in CALLS:
                found.append(f"{where}: {name} {CALLS[name]}")
            if isinstance(node.func, ast.Attribute) and node.func.attr == "extractall":
                found.append(f"{where}: extractall writes wherever the archive says")
            if name.split(".")[-1] == "suppress" and {"Exception", "BaseException"} & set(map(name_of, node.args)):
                found.append(f"{where}: suppresses everything")
            off = (ast.Constant(False).value, None)
            found += [
                f"{where}: {one.arg} is not False" for one in node.keywords
                if one.arg in SWITCHES and not (isinstance(one.value, ast.Constant) and one.value.value in off)
            ]  # fmt: skip
        elif isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(kind is None or name_of(kind) in ("Exception", "BaseException") for kind in kinds)
            if broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                found.append(f"{where}: {CATCHES_ALL}")
    return found


@pytest.mark.parametrize("name", sources("app", "trainer"))
def test_nothing_forbidden(name: str) -> None:
    found = forbidden(tree(sources("app", "trainer")[name]))
    broad = [line for line in found if line.endswith(CATCHES_ALL)]
    assert (name in CATCH_ALL) == bool(broad), broad
    assert not (others := [line for line in found if line not in broad]), "\n".join(others)


@pytest.mark.parametrize("name", sources("app", "trainer", "tests"))
def test_module_is_named_for_its_idea_and_says_what_it_is_for(name: str) -> None:
    assert not set(name.split(".")[-1].split("_")) & NO_NAMES
    assert (
        name.split(".")[-1].startswith("_")
        and not name.endswith("__")
        or ast.get_docstring(tree(sources("app", "trainer", "tests")[name]))
    )


# Packaging.


@functools.cache
def pyproject() -> dict[str, typing.Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed() -> None:
    there = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for root in ("app", "trainer")
        for path in (ROOT / root).rglob("__init__.py")
    }
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == there | {"presets"}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_every_requirement_is_pinned_once_within_its_range(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    pins: dict[str, list[str]] = {}
    for pin in map(Requirement, lines):
        if pin.marker is None or pin.marker.evaluate(environment):
            pins.setdefault(pin.name, []).append(str(pin.specifier).removeprefix("=="))
    project = pyproject()["project"]
    wanted = [
        Requirement(line) for line in project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    ]
    for one in wanted:
        if one.marker is None or one.marker.evaluate(environment):
            assert len(pins.get(one.name, [])) == 1 and one.specifier.contains(pins[one.name][0]), (
                f"{one} is pinned to {pins.get(one.name)}"
            )
