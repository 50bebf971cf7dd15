"""What was last used, kept up to a number of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cachetools import LRUCache


def kept(most_bytes: int, num_bytes: Callable[[Any], int]) -> LRUCache[Any, Any]:
    """A mapping that drops what was longest unused when there are more bytes than this.

    The newest stays, however large it is alone.
    """
    # cachetools refuses a value that is larger than the whole; here it counts as just as large.
    most = max(most_bytes, 1)
    return LRUCache(most, lambda value: min(max(num_bytes(value), 1), most))
