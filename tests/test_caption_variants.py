"""Wordings of a caption: shuffled, thinned out and drawn from, always parts of what was written, always the same for a
seed.
"""

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import since
from trainer.config.data import CaptionsConfig
from trainer.data import caption_variants

TAG = st.text(st.characters(categories=("L", "N"), include_characters="_-"), min_size=1, max_size=6)
TAGS = st.lists(TAG, min_size=1, max_size=12)
SEEDS = st.integers(0, 2**32 - 1)


def test_a_caption_is_left_as_it_is_unless_something_is_asked_for() -> None:
    captions = ("  a {red|green} cat,, sitting |\nin two lines ",)
    assert caption_variants.variants(captions, CaptionsConfig(), 1) == list(captions)


@given(TAGS, SEEDS, st.integers(0, 4), st.sampled_from([",", "|", " ; "]))
@settings(max_examples=150, deadline=None)
def test_shuffled_tags_are_the_same_tags_with_the_kept_ones_first(
    tags: list[str], seed: int, keep: int, separator: str
) -> None:
    config = CaptionsConfig(shuffle_tags=True, keep_tags=keep, separator=separator)
    variants = caption_variants.variants((separator.join(tags),), config, seed)
    assert len(variants) == config.variants
    for text in variants:
        assert Counter(caption_variants.tags(text, separator)) == Counter(tags)
        assert caption_variants.tags(text, separator)[:keep] == tags[:keep]
    assert variants == caption_variants.variants((separator.join(tags),), config, seed)


@given(TAGS, SEEDS, st.integers(0, 4), st.floats(0.01, 0.99), st.booleans())
@settings(max_examples=150, deadline=None)
def test_dropped_tags_are_never_the_kept_ones_and_never_all(
    tags: list[str], seed: int, keep: int, share: float, shuffle: bool
) -> None:
    config = CaptionsConfig(tag_dropout=share, keep_tags=keep, shuffle_tags=shuffle)
    for text in caption_variants.variants((", ".join(tags),), config, seed):
        kept = caption_variants.tags(text, ",")
        assert kept and kept[:keep] == tags[:keep] and not Counter(kept) - Counter(tags)
        assert shuffle or text == ", ".join(tag for tag in _subsequence(tags, kept))


def _subsequence(tags: list[str], kept: list[str]) -> list[str]:
    """`found`, if its order is that of `tags`."""
    rest = iter(tags)
    assert all(tag in rest for tag in kept)
    return kept


def test_about_the_asked_share_of_tags_is_dropped() -> None:
    tags = [f"tag{number}" for number in range(50)]
    variants = caption_variants.variants(
        (", ".join(tags),), CaptionsConfig(tag_dropout=0.2, keep_tags=0, variants=100), 3
    )
    assert 0.17 < 1 - sum(len(caption_variants.tags(text, ",")) for text in variants) / (50 * len(variants)) < 0.23


def test_wildcards_give_each_combination_and_nothing_else() -> None:
    config = CaptionsConfig(wildcards=True, variants=256)
    variants = caption_variants.variants(("a {red|green|dark {blue|grey}} cat {sitting|}",), config, 0)
    colours = ("red", "green", "dark blue", "dark grey")
    assert set(variants) == {f"a {colour} cat{pose}" for colour in colours for pose in (" sitting", "")}


@pytest.mark.parametrize("text", ["a {cat", "a } cat | dog", "{{{", "a {cat} sits", "}{", "{|", "|}", "{a|b", "[a|b]"])
def test_braces_without_partner_or_bar_are_literal(text: str) -> None:
    assert caption_variants.variants((text,), CaptionsConfig(wildcards=True), 0) == [text]


def test_a_wildcard_in_broken_braces_is_still_one() -> None:
    assert set(caption_variants.variants(("{ x {a|b} y",), CaptionsConfig(wildcards=True), 0)) == {"{ x a y", "{ x b y"}


@given(st.text("{}|ab,", max_size=60), SEEDS)
@settings(max_examples=300, deadline=None)
def test_any_braces_give_parts_of_the_text(text: str, seed: int) -> None:
    for variant in caption_variants.variants(
        (text,), CaptionsConfig(wildcards=True, shuffle_tags=True, tag_dropout=0.1), seed
    ):
        assert len(variant) <= 2 * len(text) and not Counter(variant.replace(" ", "")) - Counter(text)


@pytest.mark.parametrize(
    "text",
    [
        "{" * 60_000,
        "{a|" * 20_000,
        "{a|b}" * 12_000,
        "|" * 60_000,
        "{" + "|" * 60_000,
        "{a|{b|" * 50 + "}" * 60_000,
        "a," * 30_000,
    ],
)
def test_hostile_captions_take_no_time(text: str) -> None:
    start = time.thread_time()
    variants = caption_variants.variants((text,), CaptionsConfig(wildcards=True, shuffle_tags=True), 0)
    assert all(len(variant) <= 2 * len(text) for variant in variants) and since(start) < 2


def test_several_captions_take_turns() -> None:
    lines = ("a cat", "an animal", "a pet")
    assert sorted(caption_variants.variants(lines, CaptionsConfig(lines="choose", variants=3), 5)) == sorted(lines)
    assert sorted(
        Counter(caption_variants.variants(lines, CaptionsConfig(lines="choose", variants=8), 5)).values()
    ) == [2, 3, 3]


def test_a_wording_drawn_twice_counts_twice_so_that_dropout_is_as_strong_as_it_says() -> None:
    variants = caption_variants.variants(("a, b",), CaptionsConfig(tag_dropout=0.1, keep_tags=1, variants=256), 0)
    assert 0.05 < variants.count("a") / 256 < 0.15


def test_another_seed_and_another_caption_draw_otherwise() -> None:
    config = CaptionsConfig(shuffle_tags=True, keep_tags=0, variants=1)
    tags = [f"tag{number}" for number in range(20)]
    text = ", ".join(tags)
    assert caption_variants.variants((text,), config, 1) != caption_variants.variants((text,), config, 2)
    order = [tags.index(tag) for tag in caption_variants.tags(caption_variants.variants((text,), config, 1)[0], ",")]
    other = [f"TAG{number}" for number in range(20)]
    assert [
        other.index(tag)
        for tag in caption_variants.tags(caption_variants.variants((", ".join(other),), config, 1)[0], ",")
    ] != order


def test_a_settled_caption_has_its_wildcards_resolved_and_its_tags_in_order() -> None:
    config = CaptionsConfig(wildcards=True, shuffle_tags=True, tag_dropout=0.9, lines="choose")
    assert caption_variants.settled(("{a|a} cat, sitting, red", "another"), config, 0) == "a cat, sitting, red"
