"""What was last used is kept, up to a number of bytes."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from trainer import last_used


def by_hand(kept: OrderedDict[int, int], key: int, size: int, most: int) -> None:
    """Use or put in, then drop what was longest unused while there is too much and more than one."""
    kept.setdefault(key, size)
    kept.move_to_end(key)
    while len(kept) > 1 and sum(kept.values()) > most:
        kept.popitem(last=False)


@pytest.mark.parametrize("most", [0, 1, 10, 30])
def test_it_keeps_and_drops_what_a_list_by_hand_does(most: int) -> None:
    draw, kept, wanted = random.Random(0), last_used.kept(most, lambda size: size), OrderedDict[int, int]()
    for _ in range(2000):
        key = draw.randrange(12)
        size = 3 * key + 1  # some larger than the whole
        if key in kept:
            assert kept[key] == size
        else:
            kept[key] = size
        by_hand(wanted, key, size, most)
        assert set(kept) == set(wanted)
