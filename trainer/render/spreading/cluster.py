"""A Ray cluster for the length of a batch: one of this machine's own, or another that is joined.

Imported only once `ray_access` has said how Ray may be used.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from trainer import system
from trainer.errors import RunError
from trainer.render.spreading.actor import RayWorker

_STORE_BYTES = 1 << 30  # of the cluster's memory for files and pictures; Ray puts more on the disk
_OWN = "velatura-ray"
# As the command itself has it, for workers of machines where it wasn't started; nothing is fetched there.
ENVIRONMENT = {name: "1" for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")} | {
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1"
}


@dataclass(frozen=True)
class Layout:
    """How many workers there are to be, and what each takes of its machine."""

    num_workers: int
    num_cpus: int
    num_gpus: int
    threads: int  # of torch in each; 0 for its own choice

    def start(self, quantise: str, limit_bytes: int, folder: str) -> Any:
        """A new worker's handle; it is there when its first call has an answer."""
        actor = ray.remote(
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": ENVIRONMENT},
        )(RayWorker)
        return actor.remote(quantise, self.threads, limit_bytes, folder)


def layout(nodes: list[dict[str, float]], num_workers: int, threads: int) -> Layout:
    """Workers for machines with these resources, as many as were asked for, or 0 for what is usual.

    Usual is one for each GPU, and without GPUs one for each machine. `threads` are torch's on this machine if it is the
    only one, so that a single worker computes to the bit as a batch without Ray does; 0 for a cluster.
    """
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if num_gpus:
        return Layout(num_workers or num_gpus, 1, 1, 0)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise RunError("the Ray cluster has neither GPUs nor processors that a worker could use.")
    num_workers = num_workers or len(cpus)
    threads = threads // num_workers if threads else min(*cpus, sum(cpus) // num_workers, sum(cpus))
    return Layout(num_workers, max(1, threads), 0, max(1, threads))


@contextmanager
def joined(address: str, num_workers: int) -> Iterator[Layout]:
    """The cluster at an address, or a new cluster of this machine, which ends with the body.

    Raises: RunError if there is none.
    """
    with tempfile.TemporaryDirectory(
        prefix=f"{_OWN}-{os.getpid()}-", dir=_short_folder(), ignore_cleanup_errors=True
    ) as own:
        try:
            with system.signals_kept():  # Ray takes SIGTERM for itself
                if address:
                    ray.init(address=address, namespace="velatura", log_to_driver=False, configure_logging=False)
                else:
                    # Ray makes its folder everybody's; the folder around it is the owner's alone.
                    ray.init(
                        address="local",
                        num_cpus=max(system.num_cpus(), num_workers),
                        object_store_memory=_STORE_BYTES,
                        include_dashboard=False,
                        log_to_driver=False,
                        configure_logging=False,
                        _temp_dir=str(Path(own) / "r"),
                    )
        except (ConnectionError, RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
            raise RunError(f"Ray can't be used at {address or 'this machine'}: {str(error)[:400]}") from None
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            yield layout(nodes, num_workers, 0 if address else torch.get_num_threads())
        finally:
            ray.shutdown()


def _short_folder() -> str:
    """Where Ray's sockets go, whose paths may have 107 signs; what killed batches left there is removed."""
    folder = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    for path in folder.glob(f"{_OWN}-*"):
        made_by = re.match(rf"{_OWN}-(\d{{1,9}})-", path.name)
        if made_by and not psutil.pid_exists(int(made_by[1])):
            shutil.rmtree(path, ignore_errors=True)  # another user's stays
    return str(folder)
