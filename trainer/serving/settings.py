"""What a server was started with: its limits, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "localhost")
EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class ServeSettings:
    """Limits of one server; times are in seconds, sizes in bytes."""

    base: str  # what a request means that names none
    workspace: Path  # its runs, loras and stacks are offered, and `serve` in it is the server's own folder
    host: str = "127.0.0.1"
    port: int = 8000
    hosts: tuple[str, ...] = ()  # other names that it is asked by, as in the Host header
    public_url: str = ""  # where `url` results lie, if not where the server was asked
    keys: Path | None = None
    mixed_batches: bool = True
    batch_pictures: int = 16  # drawn together at most
    window_s: float = 0.01  # how long a batch waits for others
    queue_pictures: int = 2000
    deadline_s: float = 600.0
    drain_s: float = 120.0
    max_steps: int = 150
    max_pixels: int = 1 << 22
    kept_bytes: int = 4 << 30  # adapters in memory
    pinned: tuple[str, ...] = ()  # LoRAs that always stay in memory, by name
    results_bytes: int = 256 << 20  # pictures that are kept for `url` results
    results_s: float = 3600.0
    uploads: bool = False
    upload_bytes: int = 512 << 20  # of one LoRA
    log_prompts: bool = False
    more_bases: tuple[str, ...] = ()  # that requests may name besides; for replicas only

    @property
    def bases(self) -> tuple[str, ...]:
        """All bases that are served."""
        return (self.base, *self.more_bases)

    @property
    def folder(self) -> Path:
        """What the server writes: keys, uploads, and how many pictures each key had today."""
        return self.workspace / "serve"

    @property
    def uploads_folder(self) -> Path:
        """A folder for each key that uploaded LoRAs."""
        return self.folder / "uploads"

    @property
    def stacks_folder(self) -> Path:
        """Stacks that the page saved."""
        return self.workspace / "stacks"
