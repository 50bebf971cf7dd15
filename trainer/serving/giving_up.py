"""Says of a picture that it won't be drawn: nobody waits for it, it is too late, the server ends, or we made a mistake.

Whoever draws does it by these, whether here or on other machines.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from trainer.serving import api_error
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.metrics import Metrics
from trainer.serving.wanted import Wanted, late

# What drawing may raise but for what a user can mend; all of it is told of in the log.
FAULTS = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, MemoryError,
    AssertionError,
)  # fmt: skip


def drop_unwanted(line: Line, metrics: Metrics, is_ending: bool) -> None:
    """Take out of the line what nobody waits for, and what came too late."""
    for picture in line.drop(lambda picture: picture.order.is_cancelled or picture.order.is_late):
        give_up(picture, metrics, is_ending)


def drop_rest(line: Line, is_ending: bool) -> None:
    """Empty the line once nothing is drawn any more: at the end, or because what draws has died."""
    for picture in line.drop(lambda picture: True):
        picture.fail(api_error.draining() if is_ending else api_error.broken(picture.order.request_id))


def give_up(picture: Wanted, metrics: Metrics, is_ending: bool) -> None:
    """Say why a picture isn't drawn that nobody waits for, that is too late, or that the end came before."""
    reason = "client gone" if picture.order.is_cancelled else "server ends" if is_ending else "deadline"
    metrics.dropped.labels(reason).inc()
    if not picture.order.is_cancelled:
        picture.fail(api_error.draining() if is_ending else late())


def say_fault(error: BaseException, pictures: Sequence[Wanted], metrics: Metrics, log: Log) -> None:
    """Log a mistake of ours, and answer those that it befell."""
    trace = "".join(traceback.format_exception(error))[-4000:]
    request_id = pictures[0].order.request_id if pictures else ""
    log.write("fault", request=request_id, error=type(error).__name__, trace=trace)
    for picture in pictures:
        metrics.dropped.labels("fault").inc()
        picture.fail(api_error.broken(picture.order.request_id))
