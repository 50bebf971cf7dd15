"""Whatever is dropped on the page -> where it belongs, and a sentence on what it is and where it went.

A file is known by its content, never by its name. Each kind goes in by the door it has everywhere else: LoRAs through
`lora_file`, pictures and zips through `uploads`, settings through their config and the gate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app import dataset_sets, dropped_settings, own_bases, pending_imports, recipes, saved_stacks, shared_cards
from app.arrival import Arrival
from app.context import Context
from app.texts import say, say_num
from trainer import card_file, lora_file, single_file, system, unique_names
from trainer.config import StackConfig, parse
from trainer.data import CAPTION_SUFFIXES, archives, uploads
from trainer.data.uploads import safe_stem
from trainer.errors import AdapterError, DataError, ModelError, UserError
from trainer.lora_file import LoraInfo
from trainer.printing import plain, printable, some

MOST_FILES = uploads.MAX_ENTRIES
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ARCHIVES = {
    b"7z\xbc\xaf": say("dropped.archive_7z"), b"Rar!": say("dropped.archive_rar"),
    b"\x1f\x8b": say("dropped.archive_gzip"),
}  # fmt: skip
_TORCH_ENTRY = b"data.pkl"


@dataclass(frozen=True)
class _Set:
    """Pictures without a recipe, and captions: together they are a dataset."""

    pictures: list[Path]
    captions: list[Path]


def take(context: Context, paths: Sequence[Path]) -> list[Arrival]:
    """What each file is and where it went, in their order; pictures for training become one new dataset together."""
    if len(paths) > MOST_FILES:
        return [Arrival("", say("dropped.too_many", num=len(paths), most=MOST_FILES), is_taken=False)]
    arrivals: list[Arrival] = []
    training = _Set([], [])
    stems = Counter(path.stem for path in paths)
    for path in paths:
        try:
            # A text beside a picture of its name is that picture's caption.
            if path.suffix.lower() in CAPTION_SUFFIXES and stems[path.stem] > 1:
                training.captions.append(path)
                continue
            arrival = _one(context, path, training)
        except UserError as error:
            arrival = refused(path, str(error))
        except OSError as error:
            arrival = refused(path, say("dropped.unreadable", reason=error.strerror or error))
        arrivals += [arrival] if arrival else []
    return arrivals + _dataset_of(context, training)


def keep(context: Context, words: Sequence[str]) -> list[Arrival]:
    """Cards and recipes that waited (`pending_imports`), kept, and what became of each.

    Raises: DataError for what is gone.
    """
    arrivals = []
    for word in words:
        path = pending_imports.of(context, word)
        try:
            is_card = card_file.is_card(path)
            arrivals.append(shared_cards.take(context, path) if is_card else dropped_settings.keep_recipe(path))
        except UserError as error:
            arrivals.append(refused(path, str(error)))
        pending_imports.forget(context, word)  # also what was refused
    return arrivals


def refused(path: Path, reason: str) -> Arrival:
    """A file that was not taken; the server's own folders are nobody's business."""
    reason = reason.replace(f"{path.parent}/", "").replace(str(path.parent), "")
    return Arrival(path.name, plain(reason, 1000), is_taken=False)


def _one(context: Context, path: Path, training: _Set) -> Arrival | None:
    """What one file is, by its first bytes; None for a file that is put to `training`."""
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        return refused(path, say("dropped.empty"))
    if card_file.is_card(path):
        return shared_cards.offered(context, path)
    if head.startswith(b"PK\x03\x04"):
        return _zip(context, path)
    if head.startswith(_PICTURES) or head[8:12] == b"WEBP" or head[4:8] == b"ftyp":
        return _picture(context, path, training)
    # A safetensors file: the length of its header in eight bytes, then the header as JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return _safetensors(context, path)
    if head.startswith(b"GGUF") or head.startswith(_PICKLES):
        return refused(path, _unsafe(head))
    if archive := next((what for first, what in _ARCHIVES.items() if head.startswith(first)), ""):
        return refused(path, say("dropped.archive", archive=archive))
    return dropped_settings.take(context, path)


def _unsafe(head: bytes) -> str:
    if head.startswith(b"GGUF"):
        return say("dropped.gguf")
    return say("dropped.pickle")


# LoRAs and models.


def add_lora(context: Context, source: Path, name: str = "") -> LoraInfo:
    """A LoRA, copied into the library once it has been read whole. Raises: AdapterError, also if it is here already."""
    info = lora_file.inspect(source)
    if info.sha256 in context.find_loras():
        raise AdapterError(say("dropped.lora_is_here", file=source.name, name=context.lora(info.sha256).name))
    names = unique_names.numbered(context.loras, safe_stem(name or source.name), ".safetensors")
    unique_names.copied(source, names, context.loras)
    return next(lora for lora in context.find_loras().values() if lora.sha256 == info.sha256)


def _safetensors(context: Context, path: Path) -> Arrival:
    if path.suffix.lower() == ".safetensors":
        return _weights(context, path, path)
    with unique_names.temporary(context.loras, ".safetensors") as named:  # its readers go by the name too
        system.link_or_copy(path, named)
        return _weights(context, named, path)


def _weights(context: Context, source: Path, dropped: Path) -> Arrival:
    """A base or a LoRA, `dropped` under another name than `source`'s if its own is no safetensors file's."""
    try:
        model = single_file.detect(single_file.read_head(source))
    except ModelError:
        return _added(context, source, dropped)
    base, is_here = own_bases.add(context.workspace / "bases", source, dropped.name, model)
    gb = base.stat().st_size / 1e9
    what = say("dropped.base", model=model.title, gb=gb)
    if is_here:
        what = say("dropped.base_is_here", model=model.title, gb=gb)
    where = say("dropped.in_bases", name=plain(base.name, 120))
    return Arrival(dropped.name, what, where, ("base", base.name))


def _added(context: Context, source: Path, dropped: Path) -> Arrival:
    info = lora_file.inspect(source)
    known = context.find_loras().get(info.sha256)
    if known is not None:
        what = say("dropped.this_lora_is_here", name=plain(known.name, 120))
        return Arrival(dropped.name, what, "", ("lora", known.sha256), ("loras", known.sha256))
    added = add_lora(context, source, dropped.name)
    trigger = say("dropped.with_trigger", trigger=plain(added.trigger, 60)) if added.trigger else ""
    kind = say("dropped.for_model", model=added.model) if added.model else ""
    what = say("dropped.lora", kind=kind, trigger=trigger)
    where = say("dropped.in_library", name=plain(added.name, 120))
    return Arrival(dropped.name, what, where, ("lora", added.sha256), ("loras", added.sha256))


# Pictures and sets.


def _picture(context: Context, path: Path, training: _Set) -> Arrival | None:
    """A picture that says what it was made with becomes a saved stack; any other belongs to a dataset."""
    from trainer.render import picture_metadata

    try:
        carried = picture_metadata.read(path)
    except DataError:  # another format, or damaged: the dataset's door says which
        training.pictures.append(path)
        return None
    notes: list[str] = []
    # A stack of ours is kept though LoRAs of it are gone; another tool's is read as far as it can be.
    if carried.recipe is not None:
        stack = parse(StackConfig, carried.recipe, say("where.picture_recipe"))
        here = context.find_loras()
        gone = [plain(lora.name or lora.sha256[:12], 60) for lora in stack.adapters if lora.sha256 not in here]
        notes += [say("dropped.loras_gone", names=some(gone))] if gone else []
    else:
        try:
            stack, notes = recipes.read_picture(context, path)
        except DataError:
            training.pictures.append(path)
            return None
    saved = saved_stacks.save(context, stack, path.stem, path)
    num = len(stack.adapters)
    is_ours = carried.recipe is not None
    what = say_num("dropped.picture_made_here", num) if is_ours else say_num("dropped.picture_of_tool", num)
    where = say("dropped.kept_stack", name=plain(saved.stem, 120))
    return Arrival(path.name, what, " ".join([where, *notes[:6]]), ("stack", saved.name), ("stacks", saved.name))


def _zip(context: Context, path: Path) -> Arrival:
    with path.open("rb") as file:
        # torch writes its pickles as zips.
        if _TORCH_ENTRY in file.read(1 << 12):
            return refused(path, _unsafe(b"PK"))
    folder, report = dataset_sets.filled(context, path.stem, lambda folder: archives.fill(folder, path))
    if folder is None:
        return refused(path, say("dropped.bad_zip", problems=some(report.left_out, " ")))
    return _dataset_arrival(path.name, say_num("dropped.zip", len(report.added)), folder, report)


def _dataset_of(context: Context, training: _Set) -> list[Arrival]:
    """One new dataset of the pictures without a recipe and the captions that came with them."""
    # Captions alone make no dataset.
    if not training.pictures:
        return [refused(path, say("dropped.lone_text")) for path in
                training.captions]  # fmt: skip
    first = training.pictures[0]
    name = first.stem if len(training.pictures) == 1 else "dropped"
    every = [*training.pictures, *training.captions]
    try:
        folder, report = dataset_sets.filled(context, name, lambda folder: uploads.add_pictures(folder, every))
    except UserError as error:
        return [refused(first, str(error))]
    if folder is None:
        return [refused(first, say("dropped.none_opens", problems=some(report.left_out, " ")))]
    label = first.name if len(every) == 1 else say("dropped.files", num=len(every))
    return [_dataset_arrival(label, say_num("dropped.pictures", len(report.added)), folder, report)]


def _dataset_arrival(label: str, what: str, folder: Path, report: uploads.Report) -> Arrival:
    where = say("dropped.new_dataset", name=plain(folder.name, 120))
    if report.left_out:
        where += say("dropped.left_out", num=len(report.left_out), problems=some(report.left_out, " "))
    return Arrival(label, what, printable(where), ("dataset", folder.name), ("datasets", folder.name))
