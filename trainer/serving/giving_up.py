"""Says of a picture that it won't be drawn: nobody waits for it, it is too late, the server ends, or we made a mistake.

Whoever draws does it by these, whether here or on other machines.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trainer.serving import api_error
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.metrics import Metrics
from trainer.serving.orders import Wanted, late


@contextmanager
def outlasted(pictures: Sequence[Wanted], metrics: Metrics, log: Log) -> Iterator[None]:
    """Whatever mistake of ours the body raises is logged and answered for these pictures; its thread goes on.

    A thread that ended would end the server for everybody.
    """
    try:
        yield
    except Exception as error:
        say_fault(error, pictures, metrics, log)


def drop_unwanted(line: Line, metrics: Metrics, is_ending: bool) -> None:
    """Take out of the line what nobody waits for, and what came too late."""
    for picture in line.drop(lambda picture: picture.order.is_cancelled or picture.order.is_late):
        give_up(picture, metrics, is_ending)


def close(line: Line, is_ending: bool) -> None:
    """Empty the line and let nothing wait any more: at the end, or because what draws has died."""
    for picture in line.close():
        picture.fail(api_error.draining() if is_ending else api_error.cannot_draw())


def give_up(picture: Wanted, metrics: Metrics, is_ending: bool) -> None:
    """Say why a picture isn't drawn that nobody waits for, that is too late, or that the end came before."""
    order = picture.order
    reason = "deadline" if order.is_late else "client gone" if order.is_cancelled else "server ends"
    metrics.dropped.labels(reason).inc()
    picture.fail(api_error.draining() if is_ending else late())


def say_fault(error: BaseException, pictures: Sequence[Wanted], metrics: Metrics, log: Log) -> None:
    """Log a mistake of ours, and answer those that it befell."""
    trace = "".join(traceback.format_exception(error))[-4000:]
    request_id = pictures[0].order.request_id if pictures else ""
    log.write("fault", request=request_id, error=type(error).__name__, trace=trace)
    for picture in pictures:
        metrics.dropped.labels("fault").inc()
        picture.fail(api_error.broken(picture.order.request_id))
