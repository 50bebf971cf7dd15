"""The source as parsed trees, for the rules of the house."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


@functools.cache
def sources(*roots: str) -> dict[str, Path]:
    """`{"trainer.methods.lora": path}` of every module below these folders of the repository."""
    found = {}
    for path in sorted(path for root in roots for path in (ROOT / root).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(node: ast.AST) -> str:
    """`torch.load` of the expression `torch.load`; nothing for other expressions."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imports(module: ast.AST, name: str, modules: set[str], is_package: bool = False) -> set[str]:
    """Full names of the modules imported anywhere in this tree; `from trainer import schema` is `trainer.schema`."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".") if is_package else name.split(".")[:-1]
            up = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            members = {f"{base}.{alias.name}" for alias in node.names} & modules
            found |= members if len(members) == len(node.names) else members | {base}
    return found


def running(module: ast.Module) -> ast.Module:
    """The part of a module that ever runs: nothing under `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            return node.orelse if "TYPE_CHECKING" in name_of(node.test) else node

    return Strip().visit(ast.parse(ast.unparse(module)))


def ours(name: str) -> set[str]:
    """What of the repository this module imports, anywhere in it."""
    path, modules = sources("app", "trainer")[name], set(sources("app", "trainer"))
    found = imports(tree(path), name, modules, path.name == "__init__.py")
    return {one for one in found if one.split(".")[0] in ("app", "trainer")}


def functions(name: str, module: ast.AST) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a module, nested ones too, by dotted name."""
    for node in ast.iter_child_nodes(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name}.{node.name}", node
        below = (
            f"{name}.{node.name}" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else name
        )
        yield from functions(below, node)
