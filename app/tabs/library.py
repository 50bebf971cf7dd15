"""Library: the LoRAs and runs that are here, and what the LoRAs' headers say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from app import leftovers, views
from app.context import Context, Refresh
from app.notices import mended, tell
from trainer import base_match, runs, unique_names
from trainer.data.uploads import safe_stem
from trainer.errors import AdapterError
from trainer.events import Finished, Step, Validated
from trainer.printing import plain

if TYPE_CHECKING:
    from trainer.lora_file import LoraInfo

TITLE = "Library"
ORDER = 50
_LORA_HEADS = ["name", "method", "rank", "alpha", "modules", "size", "trigger", "base", "hash"]
_DEEPEST = 32
_RUN_HEADS = ["run", "state", "steps", "held-out gain", "adapter norm"]


def lora_rows(found: dict[str, LoraInfo]) -> list[list[str]]:
    """The table of LoRAs, newest first; all text, since headers may hold anything."""
    return [
        [
            plain(info.name, 120), plain(info.method, 60), str(info.rank), f"{info.alpha:g}" if isinstance(info.alpha, (int, float)) else "",
            str(info.num_modules),
            f"{info.size_bytes / 2**20:.1f} MiB", _short(info.trigger), _short(info.base), info.sha256[:12],
        ]
        for info in list(found.values())[::-1]
    ]  # fmt: skip


def _short(said: object) -> str:
    """What a header says, as one cell; a header of another tool may hold anything."""
    return "" if said is None else plain(said, 60)


def run_rows(context: Context) -> list[list[str]]:
    """The table of runs, newest first; a job's state is its row's, any other run's is read from its folder."""
    states: dict[str, str] = {job.name: job.state for job in context.runner.every()}
    rows = []
    for run in runs.every(context.runs):
        events = context.logs.read(run.events_file)
        step, measured, done = views.last(events, Step), views.last(events, Validated), views.last(events, Finished)
        try:
            state = states.get(run.name) or run.state()
        except OSError:  # a folder that nothing can be written into, or what is none
            state = "unreadable"
        rows.append(
            [plain(run.name), state, str(step.step if step else 0), f"{measured.gain:.1%}" if measured else "", f"{done.adapter_norm:.2f}" if done else ""]
        )
    return rows


def add_lora(context: Context, source: Path) -> LoraInfo:
    """Copy an uploaded LoRA into the workspace once it has been read whole. Raises: AdapterError."""
    from trainer import lora_file

    info = lora_file.inspect(source)
    if info.sha256 in context.find_loras():
        raise AdapterError(f"{source.name} is here already, as {context.lora(info.sha256).name}.")
    unique_names.copied(source, unique_names.numbered(context.loras, safe_stem(source.name), ".safetensors"), context.loras)
    return next(one for one in context.find_loras().values() if one.sha256 == info.sha256)


def details(info: LoraInfo) -> dict[str, Any]:
    """What a LoRA says of itself, for the JSON view."""
    said: dict[str, Any] = {
        "name": info.name, "file": info.path.name, "sha256": info.sha256, "family": info.family, "base": info.base, "trigger": info.trigger,
        "title": info.title, "method": info.method, "rank": info.rank, "alpha": info.alpha, "modules": info.num_modules,
        "norm": info.norm if info.norm is None else round(info.norm, 4),
        "parameters": info.num_parameters, "recipe": info.recipe, "metadata": info.metadata,
    } | ({"warning": warned} if (warned := base_match.at_home(info.path)) else {})  # fmt: skip
    return dict(_shown(said))


def _shown(value: Any, depth: int = 0) -> Any:
    """The same with every text as it may be shown, and no deeper than anybody reads: a header holds anything."""
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {plain(key): _shown(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(one, depth + 1) for one in value]
    return plain(value, 100_000) if isinstance(value, str) else value


def build(context: Context) -> Refresh:
    """Draw the tab."""
    with gr.Row(equal_height=False, elem_classes="halves"):
        with gr.Column(scale=5, min_width=320):
            loras = gr.Dataframe(
                headers=_LORA_HEADS,
                datatype="str",
                type="array",
                interactive=False,
                label="LoRAs: click one to see what is in it",
                max_height=320,
                elem_id="loras",
                buttons=[],
                show_search="none",
                column_widths=[160, 70, 60, 60, 80, 90, 110, 130, 130],
            )
            upload = gr.File(file_types=[".safetensors"], label="Drop a LoRA (.safetensors) to add it", height=150, elem_id="lora-file")
            table = gr.Dataframe(headers=_RUN_HEADS, datatype="str", type="array", interactive=False, label="Runs", max_height=320, elem_id="runs", buttons=[])
        with gr.Column(scale=3, min_width=300):
            download = gr.DownloadButton("Download", interactive=False, elem_id="download-lora")
            metadata = gr.JSON(label="What the file says", elem_id="lora-details", max_height=640)

    @mended
    def open_tab() -> dict[Any, Any]:
        return {loras: lora_rows(context.find_loras()), table: run_rows(context)}

    @mended
    def pick(event: gr.SelectData) -> Any:
        digest = str((event.row_value or [""])[-1])
        info = next((one for sha256, one in context.known_loras().items() if digest and sha256.startswith(digest)), None)
        if info is None:
            return gr.skip()
        return {
            metadata: details(info),
            download: gr.update(value=str(context.published(info.path)), label=f"Download {plain(info.path.name, 120)}", interactive=True),
        }

    @mended
    def add(file: str | None) -> Any:
        if not file:
            return gr.skip()
        try:
            info = add_lora(context, Path(file))
        finally:
            leftovers.taken(context, [file])
        tell(f"{info.name} is in the library.")
        return {upload: None, loras: lora_rows(context.find_loras()), metadata: details(info)}

    loras.select(pick, None, [metadata, download], api_visibility="private", show_progress="hidden")
    upload.upload(add, upload, [upload, loras, metadata], api_visibility="private")
    return Refresh(open_tab, [], [loras, table], on_load=False)
