"""Which pictures each step sees: every one once an epoch, one shape a batch, the same whenever it is asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import plain
from trainer import presets
from trainer.data import Item
from trainer.data.buckets import Entry
from trainer.data.order import Order

SHAPES = ((64, 64), (96, 64), (64, 96))


def order(batch_size: int, buckets: list[int], regular: int = 0, **data: object) -> Order:
    items = [
        Item(Path(f"{number}.png"), ("x",), "", 64, 64, regular=number < regular) for number in range(len(buckets))
    ]
    overrides = {"batch_size": batch_size, "data.folder": "x"} | {f"data.{key}": value for key, value in data.items()}
    config = presets.load(plain.STYLE, overrides)
    return Order(
        config, [Entry(index, SHAPES[bucket]) for index, bucket in enumerate(buckets)], items, [3] * len(items)
    )


@given(st.integers(1, 9), st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_picture_is_seen_once_an_epoch_in_batches_of_one_shape(
    batch_size: int, buckets: list[int], epoch: int
) -> None:
    made = order(batch_size, buckets)
    batches = [made.batch(epoch * made.num_batches + place) for place in range(made.num_batches)]
    assert Counter(sample.picture for batch in batches for sample in batch) == Counter(range(len(buckets)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size and len({sample.bucket for sample in batch}) == 1
    sizes = Counter((batch[0].bucket, len(batch)) for batch in batches)
    for bucket in {bucket for bucket, _ in sizes}:
        own = [size for index, size in sizes if index == bucket]
        assert max(own) - min(own) <= 1, "dealt out evenly"


@given(st.integers(1, 4), st.lists(st.integers(0, 2), min_size=2, max_size=30), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_regularisation_pictures_are_shown_about_as_often_as_the_others(
    batch_size: int, buckets: list[int], regular: int
) -> None:
    regular = min(regular, len(buckets) - 1)
    made = order(batch_size, buckets, regular)
    own = len(buckets) - regular
    seen: Counter[int] = Counter()
    for number in range(made.num_batches * 6):
        seen.update(sample.picture for sample in made.batch(number))
    assert all(seen[picture] == 6 for picture in range(regular, len(buckets)))
    assert abs(sum(seen[picture] for picture in range(regular)) - 6 * own) <= 6 * 3, "rounded in each of three shapes"
    for shape in set(buckets[:regular]):
        times = [seen[picture] for picture in range(regular) if buckets[picture] == shape]
        assert max(times) - min(times) <= 1, "they take turns within their shape"
        assert sum(times) >= 6, "each shape shows at least one an epoch"


def test_a_step_is_the_same_whenever_it_is_asked_and_others_differ() -> None:
    first, second = order(2, [0] * 9), order(2, [0] * 9)
    late = [second.batch(number) for number in reversed(range(20))]
    assert [first.batch(number) for number in range(20)] == late[::-1]
    assert first.batch(0) != first.batch(first.num_batches)


def test_captions_are_dropped_and_pictures_mirrored_and_cut_as_often_as_asked() -> None:
    made = order(8, [0] * 40, flip=True, caption_dropout=0.25, crop="random")
    samples = [sample for number in range(250) for sample in made.batch(number)]
    assert sum(sample.wording is None for sample in samples) / len(samples) == pytest.approx(0.25, abs=0.03)
    assert sum(sample.mirrored for sample in samples) / len(samples) == pytest.approx(0.5, abs=0.04)
    assert {sample.cut for sample in samples} == {1, 2, 3, 4} and {sample.wording for sample in samples} == {
        None,
        0,
        1,
        2,
    }


def test_accumulation_takes_the_next_batches() -> None:
    made = order(2, [0] * 9)
    twice = Order(
        made.config.model_copy(update={"accumulation": 3}),
        made.entries,
        [Item(Path("x"), ("x",), "", 1, 1)] * 9,
        [3] * 9,
    )
    assert [number for number, _ in twice.step(2)] == [6, 7, 8]
    assert [samples for _, samples in twice.step(0)] == [made.batch(number) for number in range(3)]
