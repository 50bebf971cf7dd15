"""A LoRA file under another scheme's names: the same update of every layer, read back and compared before it counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.errors import AdapterError
from trainer.lora_file import renaming
from trainer.lora_tools.opening import TOLERANCE, Opened, open_file, write
from trainer.lora_tools.verify import worst_difference


@dataclass(frozen=True)
class Converted:
    """What was written, and the largest relative difference of a layer's update."""

    path: Path
    scheme: str
    before: int  # modules
    after: int
    error: float


def convert(file: Path, out: Path, scheme: str = "default", dtype: str = "keep") -> Converted:
    """Write `file` under the names of `scheme`; "default" are those that most tools of its family read.

    Raises: AdapterError.
    """
    source = open_file(file)
    family = source.family()
    chosen = family.default if scheme == "default" else scheme
    spelled = renaming.spell(source.known, source.modules, chosen)
    write(out, spelled, source, dtype, {"verb": "convert", "from": source.sha256, "scheme": chosen})
    error = checked(source, out)
    return Converted(out, chosen, len(source.modules), len(spelled.modules), error)


def checked(source: Opened, out: Path) -> float:
    """The largest relative difference between two files' updates of a layer.

    Raises: AdapterError if it is more than rounding; the written file is then removed.
    """
    written = open_file(out)
    error = worst_difference(source, written)
    allowed = TOLERANCE[str(written.dtype()).removeprefix("torch.")]
    if error > allowed:
        out.unlink()
        raise AdapterError(
            f"{out.name} differs from {source.path.name} by {error:.1e} in a layer; allowed: {allowed:.0e}. Nothing "
            f"was written."
        )
    return error
