"""One file to share: a `.velatura` card, a zip of TOML and small pictures.

It holds the settings of a training without any place, who says so, what a run of them showed, and the hashes of base
and LoRAs. It is data only: nothing in it is run, no address in it is opened, and where somebody's pictures lie or what
they are called is not in it. `docs/sharing.md` says how it is laid out, for whoever writes a reader.
"""

from trainer.card_file.bundle import SUFFIX, is_card
from trainer.card_file.contents import (
    BaseOrigin,
    Card,
    DatasetFacts,
    Evidence,
    HeldoutPoint,
    LoraOrigin,
    Recommendation,
)
from trainer.card_file.contents import Sample as Sample
from trainer.card_file.reading import Opened, opened, packed, read

__all__ = [
    "SUFFIX", "BaseOrigin", "Card", "DatasetFacts", "Evidence", "HeldoutPoint", "LoraOrigin", "Opened",
    "Recommendation", "Sample", "is_card", "opened", "packed", "read",
]  # fmt: skip
