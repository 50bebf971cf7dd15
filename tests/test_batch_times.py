"""Whether pictures are drawn together follows what was measured, and is tried again after a while."""

from __future__ import annotations

from trainer.serving.batch_times import BatchTimes

WHAT = (128, 128, "sum")


def learned(alone_s: float, together_s: float, num_pictures: int) -> BatchTimes:
    times = BatchTimes()
    times.drawn(WHAT, 10, 1, alone_s)
    times.drawn(WHAT, 10, num_pictures, together_s)
    return times


def test_what_takes_longer_together_is_drawn_apart_until_it_is_tried_again() -> None:
    times = learned(alone_s=1.0, together_s=3.0, num_pictures=2)
    avoided = 0
    while times.are_faster_apart(WHAT, 2):
        avoided += 1
        assert avoided < 100
    assert avoided == 32
    times.drawn(WHAT, 10, 2, 1.5)
    assert not times.are_faster_apart(WHAT, 2)


def test_what_is_not_known_or_about_the_same_is_drawn_together() -> None:
    assert not BatchTimes().are_faster_apart(WHAT, 2)
    assert not learned(alone_s=1.0, together_s=2.02, num_pictures=2).are_faster_apart(WHAT, 2)
    times = learned(alone_s=1.0, together_s=9.0, num_pictures=2)
    assert not times.are_faster_apart(WHAT, 3) and not times.are_faster_apart((256, 256, "sum"), 2)


def test_what_does_not_pay_for_more_does_not_for_fewer() -> None:
    times = learned(alone_s=1.0, together_s=5.0, num_pictures=4)
    assert times.are_faster_apart(WHAT, 3) and times.are_faster_apart(WHAT, 2) and not times.are_faster_apart(WHAT, 5)
    times.drawn(WHAT, 10, 2, 1.2)
    assert times.are_faster_apart(WHAT, 3) and not times.are_faster_apart(WHAT, 2)


def test_one_slow_batch_of_several_changes_nothing() -> None:
    times = learned(alone_s=1.0, together_s=1.5, num_pictures=2)
    for seconds in (1.6, 30.0, 1.4):
        times.drawn(WHAT, 10, 2, seconds)
        assert not times.are_faster_apart(WHAT, 2)


def test_batches_of_other_step_counts_are_compared_by_the_step() -> None:
    times = BatchTimes()
    times.drawn(WHAT, 10, 1, 1.0)
    times.drawn(WHAT, 40, 2, 12.0)
    assert times.are_faster_apart(WHAT, 2)
