"""What a run begins with, by numbers: the machine's product, the pictures' sizes and how they are captioned.

No name and no word of the dataset is in it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import bases, files, system
from trainer.card_file import migrating
from trainer.card_file.contents import CaptionStyle, DatasetFacts, DatasetKind, Line
from trainer.config import DataConfig, TrainConfig
from trainer.data import sources
from trainer.printing import plain
from trainer.schema import Settings

if TYPE_CHECKING:
    from trainer.data import Dataset

FILE = "begins.json"  # in a run's folder
_SQUARE = 1.1  # longer side over shorter, below which a picture counts as square
_MOSTLY = 0.7
_FEW_WORDS, _TAG_WORDS, _FEW_TAGS = 6, 3.0, 3


class RunFacts(Settings):
    """What a run keeps of its beginning."""

    device: Line = ""  # the product: the GPU's or the processor's name
    dataset: DatasetFacts = DatasetFacts()


def of(dataset: Dataset, heldout: Dataset | None, settings: DataConfig) -> DatasetFacts:
    """The facts of a scanned dataset and of what is held out of it; captions as they lie there, without the trigger.

    Raises: UserError as the scan.
    """
    survey = sources.survey(Path(settings.folder), settings, "data.folder")
    texts = {picture.path: picture.text for picture in survey.pictures}
    # Regularisation pictures are counted apart.
    items = [item for item in dataset.items if not item.regular]
    sides = sorted(min(item.width_px, item.height_px) for item in items)
    shapes = Counter(_shape(item.width_px, item.height_px) for item in items)
    masked = sum(item.mask is not None for item in items)
    captions = [texts.get(item.path, item.caption) for item in items]
    return of_captions(captions, settings.trigger).model_copy(
        update={
            "masks": "none" if not masked else "all" if masked == len(items) else "some",
            "num_heldout": len(heldout.items) if heldout else 0,
            "num_regular": len(dataset.items) - len(items),
            "shorter_side_px": (sides[0], int(statistics.median(sides)), sides[-1]) if sides else (),
            **shapes,
        }
    )


def of_captions(captions: Sequence[str], trigger: str) -> DatasetFacts:
    """What captions alone tell: how many they are, how they are written, and how many say the trigger."""
    texts = [_without_trigger(caption, trigger) for caption in captions]
    return DatasetFacts(
        num_pictures=len(captions),
        captions=caption_style(texts),
        caption_words=int(statistics.median([len(text.split()) for text in texts])) if texts else 0,
        has_trigger=_share([_says(caption, trigger) for caption in captions]),
    )


def caption_style(texts: Sequence[str]) -> CaptionStyle:
    """How captions are written, trigger left out: as tags, a few words, or sentences; mixed if there is no majority."""
    counts = Counter(_style(text) for text in texts)
    style, num = counts.most_common(1)[0] if counts else ("none", 1)
    return style if num >= _MOSTLY * max(len(texts), 1) else "mixed"


def _style(text: str) -> CaptionStyle:
    parts = [part.split() for part in text.split(",") if part.strip()]
    if not parts:
        return "none"
    if len(parts) >= _FEW_TAGS and statistics.mean(map(len, parts)) <= _TAG_WORDS and not text.rstrip().endswith("."):
        return "tags"
    return "words" if sum(map(len, parts)) <= _FEW_WORDS else "sentences"


def _shape(width_px: int, height_px: int) -> str:
    if max(width_px, height_px) < _SQUARE * min(width_px, height_px):
        return "square"
    return "wide" if width_px > height_px else "tall"


def _says(caption: str, word: str) -> bool:
    """Whether the caption has the word, as a word."""
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE) is not None


def _without_trigger(caption: str, trigger: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w),?", "", caption, flags=re.IGNORECASE) if trigger else caption


def _share(truths: Sequence[bool]) -> float:
    return round(sum(truths) / len(truths), 3) if truths else 0.0


# Beside a run.


def device_name(device: str) -> str:
    """The product that a device is."""
    if device.startswith("cuda"):
        import torch  # loaded by whoever has such a device

        return plain(torch.cuda.get_device_name(torch.device(device)), 199)
    return plain(system.cpu_name() if device == "cpu" else device, 199)


def begin(folder: Path, config: TrainConfig, dataset: Dataset, heldout: Dataset | None) -> None:
    """Write what a run begins with into its folder."""
    device = device_name(bases.hardware(config.device, "float32")[0])
    keep(folder, RunFacts(device=device, dataset=of(dataset, heldout, config.data)))


def keep(folder: Path, facts: RunFacts) -> None:
    """Write the facts into a run's folder."""
    files.write(folder / FILE, facts.model_dump_json(indent=1).encode())


def teach(folder: Path, kind: DatasetKind) -> None:
    """Have a run's facts say what its pictures teach. Raises: OSError."""
    if facts := kept(folder):
        keep(folder, facts.model_copy(update={"dataset": facts.dataset.model_copy(update={"kind": kind})}))


def kept(folder: Path) -> RunFacts | None:
    """The facts that a run kept; None for a run that has none, or damaged facts."""
    try:
        values = json.loads((folder / FILE).read_bytes())
        if isinstance(values, dict) and isinstance(facts := values.get("dataset"), dict) and "masks" not in facts:
            values["dataset"] = migrating.facts_of_schema_2(facts)  # a run of an older Velatura
        return RunFacts.model_validate(values)
    except (OSError, ValueError, RecursionError):
        return None
