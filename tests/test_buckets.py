"""Buckets: every picture in the plan, near its own shape, within the pixels that were asked for, and none blown up."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import DataConfig, TrainConfig
from trainer.data import Item, buckets
from trainer.errors import ConfigError

SIDES = st.integers(16, 6000)
RESOLUTIONS = st.sampled_from(
    [(128, 16), (256, 8), (256, 16), (448, 8), (512, 8), (520, 8), (768, 16), (1024, 8), (1024, 32), (2048, 64)]
)
CONFIGS = st.builds(
    DataConfig,
    buckets=st.booleans(),
    bucket_step_px=st.sampled_from([0, 0, 64, 128, 192]),
    max_aspect_ratio=st.floats(1, 8),
    max_upscale=st.floats(1, 4),
)


def item(width_px: int, height_px: int, repeats: int = 1) -> Item:
    return Item(Path(f"{width_px}x{height_px}.png"), ("a thing",), "0" * 64, width_px, height_px, repeats)


def config(**values) -> TrainConfig:
    top = {key: values.pop(key) for key in ("resolution_px",) if key in values}
    return TrainConfig(family="sd", base="imprimatura", adapter={"method": "lora"}, data=values, **top)


@given(SIDES, SIDES, RESOLUTIONS, CONFIGS)
@settings(max_examples=400, deadline=None)
def test_a_bucket_keeps_every_bound(width: int, height: int, resolution: tuple[int, int], data: DataConfig) -> None:
    size, multiple = resolution
    bucket = buckets.assign(width, height, size, data, multiple)
    assert bucket[0] % multiple == bucket[1] % multiple == 0 and min(bucket) >= min(2 * multiple, size)
    assert bucket[0] * bucket[1] <= size**2
    assert max(bucket) / min(bucket) <= data.max_aspect_ratio
    assert data.buckets or bucket[0] == bucket[1]
    if buckets.upscale(width, height, bucket) > data.max_upscale:
        assert bucket == (2 * multiple, 2 * multiple), "only the smallest may enlarge more"


@given(
    st.integers(600, 6000),
    st.integers(600, 6000),
    st.sampled_from([(128, 16), (256, 16), (512, 8), (576, 16)]),
    st.floats(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_a_large_picture_gets_the_nearest_shape_of_the_asked_pixels(
    width: int, height: int, resolution: tuple[int, int], ratio: float
) -> None:
    size, multiple = resolution
    data = DataConfig(max_aspect_ratio=ratio)
    step = buckets.step_px(size, data, multiple)
    bucket = buckets.assign(width, height, size, data, multiple)
    assert bucket == (size, size) or (bucket[0] % step == bucket[1] % step == 0)
    assert bucket[0] * bucket[1] >= 0.7 * size**2

    # Against every pair of multiples there is, that can't be made wider.
    def far(shape: tuple[int, int]) -> float:
        return abs(math.log(shape[0] / shape[1]) - math.log(width / height))

    def whole(wide: int, high: int) -> bool:
        longer, shorter = max(wide, high), min(wide, high)
        return longer * shorter <= size**2 and longer / shorter <= ratio and (longer + step) * shorter > size**2

    sides = range(step, size * 3, step)
    everything = [(wide, high) for wide in sides for high in sides if wide != high and whole(wide, high)] + [
        (size, size)
    ]
    assert far(bucket) <= min(map(far, everything)) + 1e-6


@given(
    st.lists(st.builds(item, SIDES, SIDES, st.integers(1, 5)), min_size=1, max_size=12),
    st.lists(st.sampled_from([256, 768]), max_size=2),
)
@settings(max_examples=100, deadline=None)
def test_every_picture_is_in_repeats_times_resolutions_entries(items: list[Item], more: list[int]) -> None:
    wanted = config(resolution_px=512, more_resolutions_px=tuple(more))
    plan = buckets.plan(items, wanted, 8)
    for index, item in enumerate(items):
        assert sum(entry.index == index for entry in plan) == item.repeats * (1 + len(more))
    assert plan == buckets.plan(items, wanted, 8)
    assert [entry.index for entry in plan] == sorted(entry.index for entry in plan)


@pytest.mark.parametrize(
    "size, multiple", [(128, 16), (256, 8), (512, 8), (520, 8), (1000, 8), (1024, 64), (16, 16), (8, 8)]
)
def test_a_square_picture_trains_at_exactly_the_resolution(size: int, multiple: int) -> None:
    assert buckets.assign(4 * size, 4 * size, size, DataConfig(), multiple) == (size, size)


@pytest.mark.parametrize(
    "size, multiple, step, picture, bucket",
    [
        (512, 8, 0, (1500, 1000), (640, 384)),
        (512, 8, 0, (1000, 1500), (384, 640)),
        (1024, 8, 0, (1600, 1200), (1152, 896)),
        (128, 16, 0, (1600, 1200), (144, 112)),
        (128, 16, 0, (3000, 1000), (160, 96)),
        (512, 8, 32, (1500, 1000), (608, 416)),
    ],
)
def test_buckets_of_usual_pictures(
    size: int, multiple: int, step: int, picture: tuple[int, int], bucket: tuple[int, int]
) -> None:
    assert buckets.assign(*picture, size, DataConfig(bucket_step_px=step), multiple) == bucket


def test_a_small_picture_trains_in_a_smaller_bucket() -> None:
    assert buckets.assign(300, 300, 512, DataConfig(max_upscale=1.5), 8) == (448, 448)
    assert buckets.assign(300, 300, 512, DataConfig(max_upscale=2), 8) == (512, 512)


def test_a_picture_smaller_than_the_smallest_bucket_is_in_the_plan_and_named() -> None:
    wanted = config(resolution_px=128, max_upscale=1.5)
    plan = buckets.plan([item(16, 16), item(200, 200)], wanted, 16)
    assert [entry.bucket for entry in plan] == [(32, 32), (128, 128)]
    assert (
        len(notes := buckets.notes(plan, [item(16, 16), item(200, 200)], wanted.data)) == 1
        and "2.0 times" in notes[0]
        and "16x16.png" in notes[0]
    )


def test_the_plan_is_told_as_a_table() -> None:
    items = [item(1024, 1024, 3), item(1600, 1000), item(4000, 1000)]
    plan = buckets.plan(items, config(resolution_px=512), 8)
    assert buckets.num_cropped(plan, items) == 1
    assert buckets.describe(plan, items).splitlines() == [
        "bucket        pictures  an epoch   cut off",
        "512 x 512            1         3   0%",
        "640 x 384            2         2   4% to 58%",
        "3 pictures, shown 5 times an epoch; 1 of them loses more than 10% of the area.",
    ]


def test_an_epoch_without_end_is_refused_before_it_is_made() -> None:
    items = [item(64, 64, 1000)] * 2000
    with pytest.raises(ConfigError, match="make 2000000 pictures an epoch of 2000; allowed: up to 1000000"):
        buckets.plan_at(items, (64,), DataConfig(), 8)
    assert len(buckets.plan_at(items[:10], (64, 128), DataConfig(), 8)) == 20_000
