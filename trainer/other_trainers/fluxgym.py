"""fluxgym: the `train.sh` that it writes, which starts sd-scripts for FLUX, with its `dataset.toml` beside it.

Its one-click rank is 4 at an alpha of 1, which its learning rate of 8e-4 makes up for: both are kept.
"""

from __future__ import annotations

from trainer.other_trainers import sd_scripts
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document

VERSION = "March 2026 (678add2)"


def _recognises(document: Document) -> bool:
    text = document.text.replace("\\", "/")
    is_flux = document.kind == "command" and document.command == "flux_train_network.py"
    return is_flux and "sd-scripts/flux_train_network.py" in text and "models/unet" in text


TOOL = Tool(
    name="fluxgym", turn=60, title="fluxgym", version=VERSION, rows=sd_scripts.TOOL.rows, recognises=_recognises,
    flatten=sd_scripts.TOOL.flatten, read=sd_scripts.TOOL.read,
)  # fmt: skip
