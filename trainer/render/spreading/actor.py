"""The worker as an actor of Ray, which brings it the content of files from the cluster's memory.

Imported only once `ray_access` has said how Ray may be used.
"""

from __future__ import annotations

from typing import Any

import ray

from trainer.render.spreading import messages
from trainer.render.spreading.worker import Worker


class RayWorker(Worker):
    """A worker in a process that Ray started."""

    def draw_sent(self, request: messages.Request, contents: dict[str, Any]) -> messages.Answer:
        """The chunk's pictures; `contents` are references to files by their sha256, fetched only where they lack."""
        return self.draw(request, lambda sha256: bytes(ray.get(contents[sha256])))
