"""What is done with cards: made of runs and presets, told of, compared, kept, held against your own pictures.

The file itself, how it is packed and read, is `trainer.card_file`.
"""

from __future__ import annotations
