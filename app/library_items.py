"""What the library holds, each thing as one `Item`: LoRAs, runs, pictures, saved stacks and datasets.

An item's key is what the browser sends back; it is compared with the items that are here and never made into a path.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from app import item_notes, saved_stacks, shared_cards, sheets, views
from app.context import Context, newest_first
from app.item_notes import REJECTED, Note
from app.recipe_index import PictureFacts, RecipeIndex
from app.texts import say, say_num
from app.trash import Trash
from trainer import families, file_names, runs
from trainer.data import caption_files
from trainer.errors import DataError, UserError
from trainer.events import Finished, Step, Validated
from trainer.lora_file import LoraInfo
from trainer.printing import plain

KINDS = {
    "loras": say("word.loras"), "runs": say("library.runs"), "pictures": say("word.pictures"),
    "stacks": say("library.stacks"), "presets": say("library.presets"), "datasets": say("library.datasets"),
}  # fmt: skip
ONE = {
    "loras": say("word.lora"), "runs": say("kind.run"), "pictures": say("word.picture"), "stacks": say("kind.stack"),
    "presets": say("kind.preset"), "datasets": say("word.dataset"),
}  # fmt: skip
BATCH_PICTURES = "batches/"  # how the keys of a batch's pictures begin; their place below the workspace follows
_PICTURE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Item:
    """One thing of the library, in words; texts may hold anything and are not escaped."""

    kind: str
    key: str
    name: str
    facts: str  # one line
    picture: Path | None
    paths: tuple[Path, ...]  # what is moved when it is thrown away
    words: str = ""  # what it is found by, besides name and facts
    note: Note = field(default_factory=Note)


class Shelf:
    """The things of a workspace; safe to ask from many requests."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.index = RecipeIndex(context)
        self.trash = Trash(context.workspace)
        self.notes = context.workspace / "notes"

    def every(self, kind: str) -> list[Item]:
        """The things of a kind, the newest first; none for a kind that is not known."""
        makers: dict[str, Callable[[dict[str, Note]], list[Item]]] = {
            "loras": self._loras, "runs": self._runs, "pictures": self._pictures, "stacks": self._stacks,
            "presets": self._presets, "datasets": self._datasets,
        }  # fmt: skip
        return makers[kind](item_notes.read(self.notes, kind)) if kind in makers else []

    def item(self, kind: str, key: str) -> Item:
        """The thing of that key. Raises: DataError if it isn't here."""
        found = next((item for item in self.every(kind) if item.key == key), None)
        if found is None:
            raise DataError(say("library.gone"))
        return found

    def _loras(self, notes: dict[str, Note]) -> list[Item]:
        drawn = self.index.drawn_with()
        items = []
        for sha256, info in list(self.context.find_loras().items())[::-1]:
            paths = (info.path, *info.copies)
            # A preview of the run that made it, else a picture that it was drawn with.
            preview = next((path for path in map(self._preview_beside, paths) if path), None)
            picture = preview or next(iter(drawn.get(sha256, [])), None)
            words = plain(f"{info.method} {info.title} {sha256}", 400)
            item = Item("loras", sha256, plain(info.name, 120), lora_line(info), picture, paths, words)
            items.append(_noted(item, notes))
        return items

    def _preview_beside(self, path: Path) -> Path | None:
        """The newest preview of the run that a LoRA file lies in."""
        return last_preview(path.parent) if path.parent.parent == self.context.runs else None

    def _runs(self, notes: dict[str, Note]) -> list[Item]:
        states: dict[str, str] = {job.name: job.state for job in self.context.runner.every()}
        items = []
        for run in runs.every(self.context.runs):
            note = notes.get(run.name, Note())
            line = self._run_line(run, states.get(run.name, ""))
            words = f"{run.name} {self.index.run(run).trigger}"
            name = note.title or plain(run.name, 120)
            items.append(Item("runs", run.name, name, line, last_preview(run.folder), (run.folder,), words, note))
        return items

    def _run_line(self, run: runs.Run, state: str) -> str:
        """State, steps, dataset and gain of a run."""
        # A run that was begun here has its job's state; of any other the run itself is asked.
        events = self.context.logs.read(run.events_file)
        step, measured, facts = views.last(events, Step), views.last(events, Validated), self.index.run(run)
        try:
            state = state or run.state()
        except OSError:  # a folder that nothing can be written into, or what is none
            state = say("item.run_unreadable")
        at = step.step if step else 0
        parts = [
            state,
            say("job.step", step=at, all=facts.max_steps) if facts.max_steps > at else say("item.steps", steps=at),
        ]
        parts += [say("item.on", dataset=Path(facts.dataset).name)] if facts.dataset else []
        parts += [say("item.better", gain=measured.gain)] if measured and measured.gain > 0 else []
        return plain(" · ".join(parts), 200)

    def _pictures(self, notes: dict[str, Note]) -> list[Item]:
        """What was drawn in Stack and in batches, the newest, and all that something was said of."""
        own = [path for path in self.context.renders.glob("[!.]*") if path.suffix.lower() in _PICTURE_SUFFIXES]
        noted = [path for path in map(self._batch_picture, notes) if path]
        items = []
        for path in newest_first(list(dict.fromkeys([*own, *self.index.pictures(), *noted]))):
            facts = self.index.picture(path)
            key = picture_key(self.context, path)
            note = notes.get(key, Note())
            batch = "" if path.parent == self.context.renders else path.parent.name
            words = f"{facts.prompt} {' '.join(name for _, name, _ in facts.loras)} {batch} {note.verdict}"
            name = note.title or plain(path.stem, 120)
            # A sheet is thrown away and renamed with its cells.
            cells = sheets.cells_folder(path)
            paths = (path, cells) if facts.seed is None and cells.is_dir() else (path,)
            item = Item("pictures", key, name, picture_line(facts), path, paths, plain(words, 4000))
            items.append(_noted(item, notes))
        return items

    def _batch_picture(self, key: str) -> Path | None:
        """The picture of a batch that goes by this key, if it is here."""
        path = self.context.workspace / key
        is_one = key.startswith(BATCH_PICTURES) and path.suffix.lower() in _PICTURE_SUFFIXES
        hidden = any(part.startswith(".") for part in Path(key).parts)  # and what leads elsewhere
        return path if is_one and not hidden and "\0" not in key else None

    def _stacks(self, notes: dict[str, Note]) -> list[Item]:
        items = []
        for path in saved_stacks.every(self.context):
            try:
                stack = saved_stacks.settings(path)
                names = [plain(lora.name or say("word.a_lora"), 60) for lora in stack.adapters]
                line = (
                    f"{' + '.join(names) or say('item.no_lora')} · {plain(stack.prompt, 80) or say('item.no_prompt')}"
                )
                words = plain(stack.prompt, 4000)
            except UserError:
                line, words = say("item.unreadable"), ""
            picture = saved_stacks.picture(path)
            paths = (path, *([picture] if picture else []))
            item = Item("stacks", path.name, plain(path.stem, 120), line, picture, paths, words)
            items.append(_noted(item, notes))
        return items

    def _presets(self, notes: dict[str, Note]) -> list[Item]:
        """Kept cards, then presets; one that can't be read is passed over."""
        items = []
        for key in shared_cards.every_key():
            with suppress(UserError, OSError):
                kept = shared_cards.of_key(key)
                picture = shared_cards.picture(self.context, kept.card) if kept.card else None
                name = notes.get(key, Note()).title or kept.name
                paths = kept.paths if shared_cards.is_own(key) else ()
                item = Item("presets", key, name, shared_cards.line(kept), picture, paths, f"{key} {kept.name}")
                items.append(_noted(item, notes))
        return items

    def _datasets(self, notes: dict[str, Note]) -> list[Item]:
        items = []
        for name in self.context.dataset_names():
            folder = self.context.datasets / name
            pictures = self.context.pictures(folder)
            line = say_num("item.pictures", len(pictures))
            picture = pictures[0] if pictures else None
            items.append(_noted(Item("datasets", name, plain(name, 120), line, picture, (folder,)), notes))
        return items


def _noted(item: Item, notes: dict[str, Note]) -> Item:
    note = notes.get(item.key)
    if note is None:
        return item
    return Item(item.kind, item.key, item.name, item.facts, item.picture, item.paths, item.words, note)


def picture_key(context: Context, path: Path) -> str:
    """What a picture goes by: its name, and one of a batch by its place below the workspace."""
    return path.name if path.parent == context.renders else path.relative_to(context.workspace).as_posix()


def wanted(items: list[Item], search: str, least_rating: int) -> list[Item]:
    """Those that hold every word that is searched for and are rated at least so; rejected ones where that is a word."""
    parts = search[:200].casefold().split()
    items = [item for item in items if item.note.verdict != REJECTED or REJECTED in parts]

    def has_all(item: Item) -> bool:
        text = f"{item.name} {item.facts} {item.words} {item.note.text}".casefold()
        return all(part in text for part in parts)

    return [item for item in items if item.note.rating >= least_rating and has_all(item)]


def last_preview(folder: Path) -> Path | None:
    """The newest preview of a run: the first prompt's at the last step."""
    steps: dict[str, list[Path]] = {}
    for path in folder.glob(f"{file_names.PREVIEWS}/step-*.png"):
        steps.setdefault(path.name.rsplit("-", 1)[0], []).append(path)
    return min(steps[max(steps)]) if steps else None


def family_title(name: str | None) -> str:
    """A family as people call it."""
    family = families.registry().get(name or "")
    return family.title if family else plain(name or "", 60)


def lora_line(info: LoraInfo) -> str:
    """Trigger, family, base and steps of a LoRA; a header of another tool may hold anything."""
    parts = [say("item.trigger", trigger=plain(info.trigger, 60)) if info.trigger else "", family_title(info.family)]
    parts += [plain(Path(str(info.base)).name, 60) if info.base else ""]
    recipe = info.recipe.get("config") if isinstance(info.recipe, dict) else None
    steps = info.metadata.get("ss_steps") or (recipe.get("max_steps") if isinstance(recipe, dict) else None)
    parts += [say("item.steps", steps=plain(steps, 12)) if steps else ""]
    return " · ".join(part for part in parts if part) or say("item.says_nothing")


def picture_line(facts: PictureFacts) -> str:
    """Prompt and LoRAs of a picture."""
    loras = " + ".join(f"{plain(name, 40)} {weight:g}" for _, name, weight in facts.loras)
    parts = [plain(facts.prompt, 80), loras, say("item.seed", seed=facts.seed) if facts.seed is not None else ""]
    return " · ".join(part for part in parts if part) or say("item.sheet")


def captioned(context: Context, folder: Path) -> int:
    """How many pictures of a dataset have a caption."""
    num = 0
    for path in context.pictures(folder):
        try:
            num += bool(caption_files.read_caption(path))
        except DataError:
            continue
    return num


def finished(context: Context, run: runs.Run) -> Finished | None:
    """How a run ended, if it did."""
    return views.last(context.logs.read(run.events_file), Finished)
