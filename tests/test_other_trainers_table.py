"""`docs/other_trainers.md`, tool x key x what becomes of it: `python -m tests.test_other_trainers_table` writes it."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.other_trainers.contract import Tool
from trainer.other_trainers.importing import tools
from trainer.other_trainers.rows import Row

PAGE = Path(__file__).parents[1] / "docs" / "other_trainers.md"
HEAD = """# Recipes of other trainers

`velatura preset import FILE` makes a preset of another trainer's recipe. It says of each key what became of it
before it keeps anything, and in a terminal it asks; `--dry-run` keeps nothing, `--pictures N` is for a recipe that
counts epochs:

- *taken*: the value is ours as it is;
- *translated*: it became one or more of our settings;
- *no effect*: it changes nothing of what is trained, there or here;
- *can't be*: there is no such setting here, and why.

What a recipe leaves out is set to what its tool does by itself. Below is what becomes of each key in general; in one
recipe it may depend on the others, as with keys that a tool takes and reads nowhere for some families. A key that ends
with `*` stands for all that begin so; `[]` is any place in a list. This page is written by
`python -m tests.test_other_trainers_table`.

`velatura preset export NAME --to TOOL --out FILE` goes the other way and names what can't be said there. TOOL is kohya,
onetrainer, ai-toolkit, diffusers, musubi-tuner, simpletuner or diffusion-pipe; the last three get a second file beside
it, for the dataset. What is written of every preset was read by the tools' own code: the parsers of sd-scripts 0.10.1
(48d368f), of musubi-tuner (30c658c, its dataset files too) and of diffusers' scripts (58eb52c), OneTrainer's
`TrainConfig` (23df383), ai-toolkit's config classes (27a03a91). Their arguments are kept in
`tests/other_trainers/scripts.json`, and every export is held against them. SimpleTuner and diffusion-pipe: not checked.

Layers that a tool chooses by regular expressions become texts of their paths (`adapter.only_layers` and
`adapter.without_layers`), where the expression is made of texts, any text, numbers and alternatives; else the key says
that it can't be. Rates by block are `optimizer.block_rates`, ranks by block `adapter.block_ranks`. All blocks have the
one scale alpha / rank here; a block's own alpha is a rate of its `lora_B`, which is the same update but for weight
decay and the limit of a gradient's length.
"""


def page() -> str:
    """The page as it should be."""
    return HEAD + "".join(_section(tool) for tool in tools() if tool.name != "fluxgym") + (
        "\n## fluxgym\n\nIts `train.sh` starts sd-scripts, whose keys these are.\n"
    )  # fmt: skip


def _section(tool: Tool) -> str:
    lines = [
        f"\n## {tool.title}\n",
        f"Keys and defaults as of {tool.version}.\n",
        "| keys | | becomes |",
        "|---|---|---|",
    ]
    alike: dict[tuple[str, str], list[str]] = {}
    for key, row in tool.rows.items():
        alike.setdefault((row.status, _becomes(row)), []).append(key)
    for (status, becomes), keys in alike.items():
        lines.append(f"| {', '.join(f'`{key}`' for key in keys)} | {status} | {becomes} |")
    return "\n".join(lines) + "\n"


def _becomes(row: Row) -> str:
    if row.became:
        return ", ".join(f"`{setting}`" for setting in row.became.split(", "))
    return row.why


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.test_other_trainers_table"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE} has {len(page().splitlines())} lines")
    sys.exit(0)
