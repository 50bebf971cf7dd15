"""docs/files.md says where each kind of LoRA file loads; `python -m tests.test_file_table` writes it anew from the
tables and rules of `where_it_loads`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.deltas import Delta
from trainer.lora_file import names, tool_names, where_it_loads
from trainer.lora_file.names.rows import filled
from trainer.lora_file.reading import Module

PAGE = Path(__file__).parent.parent / "docs" / "files.md"
METHODS = ("lora", "dora", "loha", "lokr", "oft")
HEAD = """# Where a LoRA file loads

One line a kind of file, as `velatura inspect FILE` says it of yours: attention layers of one block, \
in the names that `velatura lora convert`
gives by default and in others that it offers. This page is made by `python -m tests.test_file_table`, \
and a test holds it to the tables.

- **equal**: every module is found, \
and nothing is known that the tool would do otherwise than trained. **wrong**: found, but known to be drawn
  otherwise. **N of M**: the rest is silently lacking. **refused**: nothing loads, or the tool stops.
- **not checked**: nobody ran or read it for this version.
- diffusers: its converters and loaders are run by the tests. ComfyUI and InvokeAI: \
tables that their own code filled (`tests/probe_tools.py`); their
  sums were not compared. A1111, Forge and sd-scripts were read, not run.

"""
_WORDS = {"yes": "equal", "wrong": "wrong", "no": "refused", "not checked": "not checked"}


def kinds(family: names.Family) -> list[tuple[str, str]]:
    """Scheme and method of the files to tell of: every method in the default names, plain LoRAs in the others, DoRA in
    diffusers' too.
    """
    others = [scheme for scheme in ("kohya", "diffusers", "comfyui") if scheme != family.default]
    return (
        [(family.default, method) for method in METHODS]
        + [(scheme, "lora") for scheme in others]
        + ([("diffusers", "dora")] if family.default != "diffusers" else [])
    )


def verdicts(family: names.Family, scheme: str, method: str) -> tuple[where_it_loads.Place, ...]:
    """What `inspect` says of such a file. Only names matter to it, and which tensors there are."""
    paths = [
        path
        for row in family.rows
        for path in row.paths
        if any(word in path for word in (".attn", "attention.")) and ".norm" not in path
    ]
    chosen = {
        f"{family.component}.{filled(path, (0,) * path.count('#'))}": Delta(torch.ones(1, 4), torch.ones(4, 1), 1.0)
        for path in paths
    }
    rules, shapes, targets = tool_names.scheme_of(scheme, family), {}, {}
    for path, update in chosen.items():
        target = names.look_up(family, family.component, path.partition(".")[2])
        assert target
        part = None if len(target.row.paths) == 1 or rules.original else target.part
        module = tool_names.module_name(family, target, part, rules)
        there, _ = names.find(family, module)
        assert there, module
        targets[module], shapes[module] = (
            there,
            Module(update, method, 1.0 if rules.alpha else None, parts(method, rules), {}),
        )
    return where_it_loads.where(names.Named(scheme, family, "", targets, (), ()), shapes)


def parts(method: str, rules: tool_names.Scheme) -> dict[str, torch.Tensor]:
    """The tensors that a run writes for a module, by method and scheme."""
    low = (
        {"lora_down.weight": torch.ones(1, 4), "lora_up.weight": torch.ones(4, 1)}
        if rules.alpha
        else {"lora_A.weight": torch.ones(1, 4)}
    )
    alpha = {"alpha": torch.tensor(1.0)}
    lengths = {"dora_scale": torch.ones(4, 1)} if rules.alpha else {"lora_magnitude_vector": torch.ones(4)}
    return {
        "lora": low | (alpha if rules.alpha else {}), "dora": low | lengths | (alpha if rules.alpha else {}),
        "loha": {"hada_w1_a": torch.ones(4, 1)} | alpha,
        "lokr": {"lokr_w1": torch.ones(2, 2)} | alpha, "oft": {"oft_R.weight": torch.ones(1, 6)},
    }[method]  # fmt: skip


def page() -> str:
    tools = verdicts(names.registry()["sd"], "kohya", "lora")
    lines = [
        "| family | names | method | " + " | ".join(f"{place.tool} {place.version}" for place in tools) + " |",
        "|---" * (3 + len(tools)) + "|",
    ]
    for family in names.registry().values():
        for scheme, method in kinds(family):
            cells = [
                f"{place.loads} of {place.of}" if place.verdict == "partly" else _WORDS[place.verdict]
                for place in verdicts(family, scheme, method)
            ]
            lines.append(f"| {family.title} | {scheme} | {method} | " + " | ".join(cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.test_file_table"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
