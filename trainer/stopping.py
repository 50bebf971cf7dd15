"""Ctrl-C and SIGTERM as a wish to end: the first lets a run save after its step, the second ends it at once."""

from __future__ import annotations

from types import FrameType

from trainer import system


class StopRequest:
    """Ctrl-C or SIGTERM: the first asks the run to save and end after this step, the second ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._restore = system.on_signals(self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C: whoever presses it doesn't want to wait for the step.
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def restore(self) -> None:
        """Hand the signals back to whoever had them."""
        self._restore()

    def __call__(self) -> bool:
        return self.asked
