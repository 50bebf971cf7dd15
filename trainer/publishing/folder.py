"""The folder of a published run, its card among it, written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trainer import data, files, system, unique_names
from trainer.card_file import bundle
from trainer.cards import making
from trainer.cards.making import Wishes
from trainer.cards.sources import Source
from trainer.printing import plain
from trainer.publishing import civitai, model_card
from trainer.publishing.facts import Facts

_TAGS_KEY = "ss_tag_frequency"


@dataclass(frozen=True)
class Published:
    """A folder, and what its files tell of the dataset."""

    path: Path
    facts: Facts
    tells: tuple[str, ...]

    @property
    def files(self) -> dict[str, int]:
        """Its files by name from the folder, with their sizes in bytes."""
        found = sorted(path for path in self.path.rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in found}


def write(facts: Facts, parent: Path, repo: str = "") -> Published:
    """A new folder `parent/name`, or `name-2` and so on where it is taken. Raises: OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    # What an attempt that was cut off left behind.
    unique_names.sweep(parent)
    unnamed = Path(tempfile.mkdtemp(prefix=unique_names.unfinished(), dir=parent))
    # A folder of tempfile's is its owner's alone.
    system.let_others_read(unnamed)
    try:
        images = _images(facts, unnamed)
        shutil.copyfile(facts.lora.path, unnamed / f"{facts.file_name}.safetensors")
        card = model_card.text(facts, images, repo or f"OWNER/{facts.file_name}")
        files.write_synced(unnamed / "README.md", card.encode("utf-8", "replace"))
        files.write_synced(unnamed / "civitai.txt", civitai.text(facts, images).encode("utf-8", "replace"))
        files.write_synced(unnamed / f"{facts.file_name}{bundle.SUFFIX}", _shared_card(facts, repo))
        place = unique_names.put(unnamed, unique_names.numbered(parent, facts.name, ""))
    # Ctrl-C too: nothing half-made stays.
    except BaseException:
        shutil.rmtree(unnamed, ignore_errors=True)
        raise
    return Published(place, facts, _tells(facts))


def _shared_card(facts: Facts, repo: str) -> bytes:
    """The run's `.velatura` card, by which others train as it was trained."""
    source = Source("run", facts.name, facts.config, facts.run.folder)
    wishes = Wishes(
        title=_line(facts.title), author=_line(facts.author), licence=_line(facts.licence.id),
        note=plain(facts.note, 4000), source_url=f"https://huggingface.co/{repo}" if repo else "", with_samples=True,
    )  # fmt: skip
    return making.make(source, wishes).raw


def _line(text: str) -> str:
    """A text as one line of a card."""
    return plain(" ".join(text.split()), 150)


def _images(facts: Facts, folder: Path) -> list[str]:
    """The samples as PNG files that carry nothing but their pixels."""
    names = []
    for number, sample in enumerate(facts.samples, 1):
        name = f"image-{number}.png"
        data.open_image(sample.path).save(folder / name, "PNG")
        names.append(name)
    return names


def _tells(facts: Facts) -> tuple[str, ...]:
    """What the files say of the run and the dataset, in sentences."""
    header, told = facts.lora.metadata, []
    # A header may hold anything.
    try:
        tags = json.loads(header.get(_TAGS_KEY, "{}"))
        kinds = {str(kind): len(counts) for kind, counts in tags.items()}
    except (ValueError, AttributeError, TypeError, RecursionError):
        kinds = {}
    # In kohya's way a folder is called 10_name, the number being its repeats.
    for kind, num in kinds.items():
        told.append(f"the dataset's folder is called {kind.partition('_')[2] or kind!r}, and {num} of its tags")
    if facts.trigger:
        told.append(f"the trigger words {facts.trigger!r}")
    told.insert(0, f"the title {facts.title!r}, by which its files are called too")
    told.append("all settings of the training, places by their last names only")
    return tuple(told)
