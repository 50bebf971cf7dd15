"""A dropped text file: settings of ours, a jobs file, or settings of another tool, told apart by their keys."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w

from app import batches, path_gate, pending_imports, recipes, saved_stacks
from app.arrival import PRESET, Arrival
from app.context import Context
from app.texts import say
from trainer import encodings, presets, unique_names
from trainer.config import BatchConfig, StackConfig, TrainConfig, parse
from trainer.config.parsing import from_json, from_toml
from trainer.data.uploads import safe_stem
from trainer.errors import AdapterError, ConfigError
from trainer.other_trainers import presets_from
from trainer.printing import plain

MAX_BYTES = 8 << 20
_OURS: dict[str, type[TrainConfig] | type[StackConfig] | type[BatchConfig]] = {
    "train": TrainConfig, "stack": StackConfig, "batch": BatchConfig,
}  # fmt: skip


def take(context: Context, path: Path) -> Arrival:
    """What a text file is and where it went. Raises: ConfigError, AdapterError in words for what can't be taken."""
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(say("dropped.too_large", mib=_mib(path)))
    try:
        text = encodings.text(path.read_bytes())
    except ValueError:
        raise ConfigError(say("dropped.unknown")) from None
    # Settings of ours by most of their keys, before another trainer's are looked for.
    values = _table(text, path.name)
    is_ours = values is not None and max(_share(values, TrainConfig), _share(values, StackConfig)) > 0.8
    if not is_ours and (tool := _tool_of(path)):
        return _recipe_offered(context, path, tool)

    # What is left: jobs as lines, a graph of ComfyUI, a table with some keys of ours.
    if values is None:
        return _jobs_lines(context, path, text)
    if _is_graph(values):
        return _kept_text(context, path, text, say("dropped.workflow"))
    kind = _ours(values)
    makers = {"train": _train, "stack": _stack, "batch": _batch}
    if kind not in makers:
        raise ConfigError(say("dropped.unknown_settings"))
    return makers[kind](context, path, values)


def _mib(path: Path) -> int:
    return path.stat().st_size >> 20


def _table(text: str, name: str) -> dict[str, Any] | None:
    """The values of a JSON or TOML text; None for a text that is neither."""
    for read in (from_json, from_toml):
        try:
            values = read(text, name)
        except ConfigError:
            continue
        # One line of jobs is JSON too; a list is one of ComfyUI's nodes or of jobs.
        return values if isinstance(values, dict) and not _is_job(values) else None
    return None


# Whose settings they are.


def _tool_of(path: Path) -> str:
    """The trainer whose recipe this is; "" for none that is known."""
    from trainer.other_trainers import importing  # reads the tables of nine tools

    try:
        return importing.recognised(path)
    except ConfigError:
        return ""


def _recipe_offered(context: Context, path: Path, tool: str) -> Arrival:
    """Another trainer's recipe, which waits to be kept. Raises: ConfigError if it can't be taken over."""
    from trainer.other_trainers import importing

    recipe = importing.read(path)
    told = [say("offer.keys", keys=len(recipe.keys), became=presets_from.in_short(recipe.keys))]
    told += [*(f"{plain(note, 200)}." for note in recipe.notes[:4]), say("offer.nothing_kept")]
    what = say("dropped.recipe", tool=tool)
    return Arrival(path.name, what, " ".join(told), offer=pending_imports.put_by(context, path))


def keep_recipe(path: Path) -> Arrival:
    """Another trainer's recipe, kept as a preset of the user's own. Raises: ConfigError if it can't be taken over."""
    from trainer.other_trainers import importing

    recipe = importing.read(path)
    preset = presets_from.keep(recipe, path).stem
    told = [say("dropped.kept_preset", preset=preset, keys=len(recipe.keys), became=presets_from.in_short(recipe.keys))]
    told += [f"{plain(note, 200)}." for note in recipe.notes[:4]]
    key = f"{PRESET}{preset}"
    what = say("dropped.recipe", tool=recipe.tool)
    return Arrival(path.name, what, " ".join(told), ("preset", key), ("presets", key))


def _share(values: dict[str, Any], model: type[TrainConfig] | type[StackConfig] | type[BatchConfig]) -> float:
    """How much of a table's keys are a model's settings, 0 to 1."""
    return sum(key in model.model_fields or key == "title" for key in values) / len(values) if values else 0.0


def _ours(values: dict[str, Any]) -> str:
    """train, stack or batch, by most of the keys; "" for none."""
    shares = {kind: _share(values, model) for kind, model in _OURS.items()}
    best = max(shares, key=lambda kind: shares[kind])
    return best if shares[best] >= 0.5 else ""


def _is_graph(values: dict[str, Any]) -> bool:
    nodes = list(values.values())
    return ("nodes" in values and "links" in values) or (
        bool(nodes) and all(isinstance(node, dict) and "class_type" in node for node in nodes)
    )


# Settings of ours.


def _train(context: Context, path: Path, values: dict[str, Any]) -> Arrival:
    given = {key: value for key, value in values.items() if key != "title"}
    config = parse(TrainConfig, given, plain(path.name, 80))
    context.base(config.base)
    folder = context.workspace / "recipes"
    with unique_names.temporary(folder, ".tmp") as unnamed:
        presets.save(config, unnamed)
        saved = unique_names.put(unnamed, unique_names.numbered(folder, safe_stem(path.name), ".toml"))
    where = say("dropped.kept_settings", name=plain(saved.stem, 120))
    return Arrival(path.name, say("dropped.settings"), where, ("config", saved.name))


def _stack(context: Context, path: Path, values: dict[str, Any]) -> Arrival:
    stack = parse(StackConfig, values, plain(path.name, 80))
    try:
        stack = path_gate.checked(context, stack)
        note = ""
    except AdapterError as error:  # it can be put by until its LoRAs come
        note = f" {error}"
    saved = saved_stacks.save(context, stack, path.stem)
    where = say("dropped.in_library_but", name=plain(saved.stem, 120), note=plain(note, 400))
    return Arrival(path.name, say("dropped.stack"), where, ("stack", saved.name), ("stacks", saved.name))


# Jobs.


def _batch(context: Context, path: Path, values: dict[str, Any]) -> Arrival:
    parse(BatchConfig, values, plain(path.name, 80))
    return _jobs(context, path, _toml(values), ".toml")


def _toml(values: dict[str, Any]) -> str:
    """A table as TOML."""
    return tomli_w.dumps({key: value for key, value in values.items() if value is not None})


def _jobs_lines(context: Context, path: Path, text: str) -> Arrival:
    """A CSV with a prompt column, or JSON objects, one a line."""
    from trainer.render import jobs_file

    # JSON objects become the rows of a CSV.
    rows = _objects(text)
    if rows:
        columns = [column for column in jobs_file.COLUMNS if any(column in row for row in rows)]
        strange = {key for row in rows for key in row} - set(jobs_file.COLUMNS)
        if strange:
            raise ConfigError(
                say("dropped.no_column", column=plain(sorted(strange)[0], 60), allowed=", ".join(jobs_file.COLUMNS))
            )
        written = io.StringIO()
        writer = csv.DictWriter(written, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        return _jobs(context, path, written.getvalue(), ".csv")

    # Anything else must say in its first line that it has prompts.
    first = next((line for line in text.splitlines() if line.strip()), "")
    cells = {cell.strip().strip('"').lower() for cell in first.replace(";", ",").replace("\t", ",").split(",")}
    if "prompt" not in cells:
        return _text_of_picture(context, path, text)
    return _jobs(context, path, text, ".csv")


def _text_of_picture(context: Context, path: Path, text: str) -> Arrival:
    """The text that A1111 and others write about a picture, as a saved stack. Raises: ConfigError for any other."""
    from trainer.render import opening

    if not opening.looks_like_infotext(text):
        raise ConfigError(say("dropped.unknown_text"))
    return _kept_text(context, path, text, say("dropped.picture_text"))


def _kept_text(context: Context, path: Path, text: str, what: str) -> Arrival:
    """A text that a stack is read from, as a saved stack. Raises: DataError for one that none can be read from."""
    stack, notes = recipes.read_text(context, text)
    saved = saved_stacks.save(context, stack, path.stem)
    where = say("dropped.kept_stack", name=plain(saved.stem, 120))
    told = " ".join([where, *(plain(note, 400) for note in notes[:6])])
    return Arrival(path.name, what, told, ("stack", saved.name), ("stacks", saved.name))


def _objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a text, one a line or in a list; [] if it is anything else."""
    try:
        values = list(_lines(text)) if not text.lstrip().startswith("[") else json.loads(text)
    except (ValueError, RecursionError):
        return []
    are_jobs = isinstance(values, list) and values and all(_is_job(value) for value in values)
    return values if are_jobs else []


def _lines(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        if line.strip():
            yield json.loads(line)


def _is_job(value: Any) -> bool:
    """Whether a JSON object is a row of a jobs file: plain values, a prompt among them, and not a whole stack."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("prompt"), str)
        and not any(isinstance(inner, dict | list) for inner in value.values())
        and not (value.keys() & {"version", "adapters", "width_px", "negative_prompt"})
    )


def _jobs(context: Context, path: Path, text: str, suffix: str) -> Arrival:
    """A jobs file that the Batch tab would take. Raises: ConfigError, AdapterError in its words."""
    with tempfile.TemporaryDirectory() as room:
        tried = Path(room) / f"{safe_stem(path.name)}{suffix}"
        tried.write_text(text, encoding="utf-8", newline="")
        # Read as the Batch tab will read it, before it is kept.
        batches.uploaded(context, tried)
        saved = unique_names.copied(
            tried, unique_names.numbered(context.workspace / "jobs", tried.stem, suffix), context.workspace / "jobs"
        )
    num = max(len([line for line in text.splitlines() if line.strip()]) - 1, 1)
    what = say("dropped.jobs_rows", num=num) if suffix == ".csv" and num > 1 else say("dropped.jobs")
    where = say("dropped.kept_jobs", name=plain(saved.stem, 120))
    return Arrival(path.name, what, where, ("jobs", saved.name))
