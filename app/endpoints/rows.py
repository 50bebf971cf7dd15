"""What endpoints answer with: jobs, LoRAs and files as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app import batches, cards
from app.context import Context
from app.job_table import Job
from app.job_work import TRAINING
from trainer.lora_file import LoraInfo


def job_row(job: Job) -> dict[str, Any]:
    """A job: id, name, kind, state and error."""
    kind = {TRAINING: "training"}.get(job.kind, "batch" if job.kind in batches.KINDS.values() else job.kind)
    return {"id": job.id, "name": job.name, "kind": kind, "state": job.state, "error": job.error}


def lora_row(info: LoraInfo) -> dict[str, Any]:
    """A LoRA: name, sha256, trigger, family, method and rank."""
    return {
        "name": info.name, "sha256": info.sha256, "trigger": info.trigger, "family": info.family,
        "method": info.method, "rank": info.rank,
    }  # fmt: skip


def address(context: Context, path: Path) -> str:
    """Where a file of the workspace is fetched on this server."""
    return fetched_at(context.published(path))


def fetched_at(path: Path) -> str:
    """Where a file of Gradio's own folder is fetched on this server."""
    return f"/{cards.address(path)}"


def addresses(context: Context, paths: list[Path]) -> dict[str, str]:
    """The files that can be read by name, each with its address."""
    return {path.name: fetched_at(Path(public)) for path, public in context.published_of(paths)}
