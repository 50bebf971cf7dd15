"""What Pillow raises for damaged pictures, found by fuzzing its formats: one list for all who open any from outside."""

from __future__ import annotations

import struct
import zlib

from trainer.lazy import Image

# RuntimeError is the codecs' of AVIF and HEIC.
_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, MemoryError, struct.error, zlib.error, TypeError, LookupError,
    ArithmeticError, RuntimeError, AttributeError,
)  # fmt: skip


def errors() -> tuple[type[Exception], ...]:
    """For `except`, which asks only when something was raised; Pillow's own error is not known before Pillow is."""
    return (*_ERRORS, Image.DecompressionBombError)
