"""What people do to a dataset's captions and pictures on the page: each is one edit, and says what it changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.context import Context
from app.dataset_gallery import Scene, picture
from app.notices import warn
from app.texts import say, say_num
from trainer.data import caption_edits, caption_files, edits
from trainer.errors import ConfigError, DataError
from trainer.printing import plain, some

_VISIT_CHARS, _MOST_TYPED = 64, 200


@dataclass(frozen=True)
class Operation:
    """An edit of many captions: what its two boxes are called, "" where it has none, and what it makes of a text."""

    first: str
    second: str
    made: Callable[[str, str, str, str], str]  # text, first box, second box, trigger
    wants: str  # what must be filled in: "first", "trigger" or ""


OPERATIONS: dict[str, Operation] = {
    say("edits.replace"): Operation(
        say("edits.find"),
        say("edits.replace_with"),
        lambda text, find, put, _: caption_edits.replaced(text, find, put),
        "first",
    ),
    say("edits.prefix"): Operation(
        say("edits.words_in_front"), "", lambda text, words, _, __: caption_edits.with_prefix(text, words), "first"
    ),
    say("edits.suffix"): Operation(
        say("edits.words_behind"), "", lambda text, words, _, __: caption_edits.with_suffix(text, words), "first"
    ),
    say("edits.remove_tag"): Operation(
        say("edits.tag"), "", lambda text, tag, _, __: caption_edits.without_tag(text, tag), "first"
    ),
    say("edits.sort_tags"): Operation(
        "", "", lambda text, _, __, trigger: caption_edits.sorted_tags(text, trigger), ""
    ),
    say("edits.add_trigger"): Operation(
        "", "", lambda text, _, __, trigger: caption_edits.with_trigger_in_front(text, trigger), "trigger"
    ),
}


# Typing.


def keep(context: Context, opened: object, text: str, visit: str = "", typed: bool = False) -> bool:
    """Write what is in the caption's box if a person put it there; whether anything was written.

    `opened` is the picture that the box belongs to, and its caption as it was opened. What was saved here before, and
    changed by another program since, is not saved a second time. Raises: DataError if it can't be written.
    """
    # A box that nobody typed in is not written: the file may be newer than what stands there.
    name, chosen, shown = (_text(opened, key) for key in ("dataset", "name", "shown"))
    if not chosen or (text.strip() == shown.strip() and not typed):
        return False
    try:
        path = picture(context, name, chosen)
    except DataError:
        warn(say("edits.picture_gone", name=plain(chosen, 80), caption=text[:2000]))
        return False
    folder = context.dataset(name)
    if edits.kept(folder, path, text):
        return False
    return edits.write(folder, say("edits.caption_of", name=path.name), {path: text}, visit[:_VISIT_CHARS]) is not None


def keep_typed(context: Context, typed: object) -> tuple[list[int], list[str]]:
    """Write captions that were typed, as the browser sends them until it hears of each: the numbers of those that
    need not be sent again, and why others were not written.
    """
    done, problems = [], []
    for one in typed[:_MOST_TYPED] if isinstance(typed, list) else []:
        number = one.get("number") if isinstance(one, Mapping) else None
        try:
            keep(context, one, _text(one, "text"), _text(one, "visit"), typed=True)
        except DataError as error:
            problems.append(str(error))
        else:
            done += [number] if type(number) is int else []
    return done, problems


def _text(mapping: object, key: str) -> str:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, str) else ""


# Many captions at once.


def bulk(scene: Scene, names: Sequence[str], operation: str, boxes: tuple[str, str], trigger: str) -> str:
    """Make one edit of all these pictures' captions; what was changed, in words. Raises: DataError, ConfigError."""
    if operation not in OPERATIONS:
        raise ConfigError(say("edits.no_edit", edit=operation[:40], allowed=", ".join(OPERATIONS)))
    wanted, trigger = OPERATIONS[operation], trigger.strip()
    if wanted.wants == "first" and not boxes[0].strip():
        raise ConfigError(say("edits.empty", box=wanted.first))
    if wanted.wants == "trigger" and not trigger:
        raise ConfigError(say("edits.no_trigger"))
    if not names:
        raise DataError(say("edits.none_shown"))
    return _written(scene, names, operation, lambda text: wanted.made(text, *boxes, trigger))


def with_trigger(scene: Scene, names: Sequence[str], trigger: str) -> str:
    """Put the trigger in front of these captions; what was changed, in words. Raises: DataError, ConfigError."""
    return bulk(scene, names, say("edits.add_trigger"), ("", ""), trigger)


def repair(scene: Scene, names: Sequence[str]) -> str:
    """Write captions anew that are not UTF-8, read as Western European text. Raises: DataError."""
    bad = {name: repaired(scene, name) for name in names if name in scene.refusals}
    texts = {scene.pictures[name]: text for name, text in bad.items() if text}
    edits.write(scene.folder, say("edits.repair"), texts)
    return say("edits.repaired", num=len(texts), names=len(names))


def repaired(scene: Scene, name: str) -> str:
    """The text of a caption that can't be read, as far as it can be guessed."""
    path = scene.pictures[name].with_suffix(".txt")
    path = path if path.is_file() else path.with_suffix(".caption")
    try:
        with path.open("rb") as file:
            return file.read(caption_files.MAX_CAPTION_BYTES // 4).decode("cp1252", "replace").replace("\0", "").strip()
    except OSError:
        return ""


def _written(scene: Scene, names: Sequence[str], what: str, made: Callable[[str], str]) -> str:
    """Captions that can't be read are passed over: what they say would be lost."""
    known = [name for name in names if name in scene.pictures and name not in scene.refusals]
    texts = {scene.pictures[name]: made(scene.captions[name]) for name in known}
    changed = {path: text for path, text in texts.items() if text != scene.captions[_below(scene, path)]}
    if not changed:
        raise DataError(say("edits.nothing_changed", edit=what, num=len(known)))
    edits.write(scene.folder, what, changed)
    return say("edits.changed", edit=what, changed=len(changed), num=len(known))


def _below(scene: Scene, path: Path) -> str:
    return path.relative_to(scene.folder).as_posix()


# Pictures.


def discard(scene: Scene, names: Sequence[str]) -> str:
    """Put pictures into the trash; what was done, in words. Raises: DataError."""
    foreign = {name: scene.folder / name for name in scene.foreign}
    paths = [path for name in dict.fromkeys(names) if (path := scene.pictures.get(name) or foreign.get(name))]
    if not paths:
        raise DataError(say("edits.none_marked"))
    edits.discard(scene.folder, paths)
    return say_num("edits.in_trash", len(paths))


def restore(scene: Scene, names: Sequence[str]) -> str:
    """Take pictures out of the trash; what was done, in words. Raises: DataError."""
    edit = edits.restore(scene.folder, names)
    return say_num("edits.restored", edit.num_pictures)


def undo(context: Context, name: str | None, chosen: str, number: int | None) -> str:
    """Take back one edit, the last if none is named; what was done, in words. Raises: DataError."""
    folder = context.dataset(name)
    undone = edits.undo(folder, number)
    if undone is None and number is None:
        # Captions that came with an upload are logged folder by folder.
        older = caption_files.undo(picture(context, name, chosen).parent if chosen else folder)
        if older:
            return say("edits.undone_caption", name=plain(older.picture, 120))
    if undone is None:
        raise DataError(say("edits.nothing_to_undo"))
    if undone.left:
        warn(say("edits.left", names=some(undone.left)))
    what, num = plain(undone.edit.what, 120), undone.edit.num_pictures
    return say("edits.undone_many", edit=what, num=num) if num > 1 else say("edits.undone_one", edit=what)
