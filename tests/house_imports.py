"""The house's rules on imports: which way they go, that none goes in a circle, and why any stands in a function."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from parsed import ROOT, imports, ours, running, sources, tree
from safetensors.torch import save_file

HEAVY = {"torch", "diffusers", "transformers", "peft", "gradio", "accelerate", "numpy", "pandas", "PIL"}

OPTIONAL = {"bitsandbytes", "xformers", "resource"}  # extras, and what one system has

# What a plug-in may see of us; config, loop and every other plug-in are closed to it.
PLUGIN_SEES = {
    "trainer.schema",
    "trainer.lazy",
    "trainer.errors",
    "trainer.objective",
    "trainer.deltas",
    "trainer.tiny_parts",
    "trainer.pipelines",
    "trainer.foreign_json",
}
# Lower layers by name, and all they may import of us. Others are held by having no cycles.
LAYERS = {
    "trainer.errors": set(),
    "trainer.printing": set(),
    "trainer.encodings": set(),
    "trainer.foreign_json": set(),
    "trainer.events": {"trainer.errors", "trainer.files"},
    "trainer.lazy": set(),
    "trainer.deltas": {"trainer.lazy"},
    "trainer.contracts": set(),
    "trainer.tiny_parts": {"trainer.lazy"},
    "trainer.pipelines": {"trainer.lazy", "trainer.objective"},
    "trainer.schema": {"trainer.errors"},
    "trainer.objective": {"trainer.errors", "trainer.schema"},
}
CONFIG_SEES = {
    "trainer",
    "trainer.encodings",
    "trainer.families",
    "trainer.families.contract",
    "trainer.methods",
    "trainer.schema",
    "trainer.events",
    "trainer.errors",
    "trainer.printing",
}


def wrong_arrows(name: str, targets: set[str]) -> set[str]:
    """Those of our modules that this one may not import."""
    package, _, plugin = name.rpartition(".")
    if package in ("trainer.methods", "trainer.families", "trainer.render.modes") and plugin:
        return targets - PLUGIN_SEES
    if name.startswith("trainer.config"):
        return {one for one in targets if one not in CONFIG_SEES and not one.startswith("trainer.config.")}
    if name in LAYERS:
        return targets - LAYERS[name]
    if name.startswith("trainer"):
        return {one for one in targets if one.split(".")[0] == "app"}
    if name.startswith("app.") and name not in (
        "app.ui",
        "app.__main__",
    ):  # tabs see no other tab, and what they draw with sees no tab
        return {one for one in targets if one.startswith(("app.tabs", "app.ui", "app.request_guard"))}
    return set()


@pytest.mark.parametrize("name", sources("app", "trainer"))
def test_imports_go_one_way(name: str) -> None:
    assert not (wrong := wrong_arrows(name, ours(name))), f"{name} may not import {sorted(wrong)}"


@pytest.mark.parametrize("name", sources("trainer"))
def test_trainer_is_complete_without_gradio(name: str) -> None:
    assert not [
        one
        for one in imports(tree(sources("trainer")[name]), name, set())
        if one.split(".")[0] in ("gradio", "gradio_client")
    ]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of this graph, or nothing."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        found = next(filter(None, (walk(after, [*path, node]) for after in sorted(graph.get(node, ())))), [])
        done.add(node)
        return found

    return next(filter(None, (walk(node, []) for node in sorted(graph))), [])


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between rooms: `trainer.render.grid` is in the room `trainer.render`."""
    found: dict[str, set[str]] = {}
    for name, targets in graph.items():
        room = ".".join(name.split(".")[:2])
        found[room] = found.get(room, set()) | {".".join(target.split(".")[:2]) for target in targets} - {
            room,
            "trainer",
        }
    return found


def test_nothing_imports_itself_in_a_circle() -> None:
    """Modules by no import, also inside functions and for types alone; rooms by none that runs."""
    modules = sources("app", "trainer")

    def graph(of: Callable[[ast.Module], ast.Module]) -> dict[str, set[str]]:
        return {
            name: imports(of(tree(path)), name, set(modules), path.name == "__init__.py") & set(modules) - {name}
            for name, path in modules.items()
        }

    assert not (found := cycle(graph(lambda parsed: parsed))), " -> ".join(found)
    assert not (found := cycle(rooms(graph(running)))), " -> ".join(found)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["render", "--help"], ["presets"]], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', *sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['velatura', *{arguments!r}]\n"
        "from trainer.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].split() == ["HEAVY"], done.stderr


# Why an import stands in a function.


def deferred(module: ast.AST, name: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and module of each import inside a function; those that may fail, in a `try`, have their reason there."""
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        tried = {id(node) for block in ast.walk(function) if isinstance(block, ast.Try) for node in ast.walk(block)}
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in tried:
                yield from ((node.lineno, target) for target in imports(node, name, modules))


@pytest.fixture(scope="session")
def doors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What is loaded by each of the things that must answer at once."""
    folder = tmp_path_factory.mktemp("doors")
    factors = {"lora_down.weight": torch.ones(1, 8), "lora_up.weight": torch.ones(8, 1), "alpha": torch.tensor(1.0)}
    lora = folder / "x.safetensors"
    save_file({f"lora_unet_mid_block_attentions_0_proj_in.{key}": value for key, value in factors.items()}, lora)
    pictures = ROOT / "app" / "examples" / "red-fox"
    commands = {
        "help": ["--help"],
        "presets": ["presets"],
        "models": ["models", "list"],
        "inspect": ["inspect", str(lora)],
        "check": ["dataset", "check", str(pictures)],
        "wrong setting": ["train", "imprimatura-style", "--data", str(pictures), "--set", "adapter.rank=0"],
        "wrong stack": ["render", "--stack", str(folder / "none.toml")],
    }
    starts = {
        name: f"sys.argv = ['velatura', *{arguments!r}]\nfrom trainer.cli import main\nmain()"
        for name, arguments in commands.items()
    }
    starts["page"] = f"from pathlib import Path\nfrom app import ui\nui.build(Path({str(folder / 'workspace')!r}))"

    def loaded(start: str) -> set[str]:
        listed = folder / f"{abs(hash(start))}.json"
        listing = (
            "import atexit, json, pathlib, sys\n"
            f"write = pathlib.Path({str(listed)!r}).write_text\n"
            "atexit.register(lambda: write(json.dumps(sorted(sys.modules))))\n"
        )
        subprocess.run([sys.executable, "-c", listing + start], cwd=ROOT, capture_output=True, timeout=200)
        return set(json.loads(listed.read_text(encoding="utf-8")))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(starts, pool.map(loaded, starts.values()), strict=True))


def without_reason(name: str, path: Path, doors: dict[str, set[str]]) -> list[str]:
    """Imports in functions that make no start faster: none of them reads this module without the other."""
    modules = set(sources("app", "trainer"))
    return [
        f"{name}, line {line}: {target}"
        for line, target in deferred(tree(path), name, modules)
        if target.split(".")[0] not in OPTIONAL
        and not any(name in loaded and target not in loaded for loaded in doors.values())
    ]


def test_an_import_in_a_function_has_its_reason(doors: dict[str, set[str]]) -> None:
    assert not (
        found := [
            line for name, path in sources("app", "trainer").items() for line in without_reason(name, path, doors)
        ]
    ), "no start is faster for these; import them at the top:\n" + "\n".join(found)


def test_an_import_without_a_reason_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    import torch\n    try:\n        import wandb\n    except ImportError:\n        pass\n"
    )
    assert without_reason("trainer.x", path, {"help": {"trainer.x"}}) == []
    assert without_reason("trainer.x", path, {"help": {"trainer.x", "torch"}}) == ["trainer.x, line 2: torch"]
    assert without_reason("trainer.x", path, {"help": set()}) == ["trainer.x, line 2: torch"]
