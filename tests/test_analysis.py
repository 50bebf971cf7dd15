"""The conflict map against dense sums and overlaps known by construction."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import AdapterChoice
from trainer.deltas import Delta, Update
from trainer.errors import AdapterError, UserError
from trainer.render import analysis, heatmap, modes, overlap
from trainer.render.modes.contract import all_act

ONE, TWO = "unet.down_blocks.0.attentions.0.to_q", "unet.up_blocks.1.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"
BASE = {ONE: torch.ones(12, 9), TWO: torch.ones(6, 5, 3, 3), TEXT: torch.ones(8, 8)}


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low(seed: int, path: str = ONE, rank: int = 2, scale: float = 0.5) -> Delta:
    out, *into = BASE[path].shape
    return Delta(numbers(rank, *into, seed=seed), numbers(out, rank, *[1] * (len(into) - 1), seed=seed + 1000), scale)


def adapter(updates: dict[str, Update], weight: float = 1.0, **settings) -> overlap.Loaded:
    return overlap.weigh(AdapterChoice(name="x", weight=weight, **settings), updates, BASE)


def report(*adapters: overlap.Loaded) -> analysis.Analysis:
    return analysis.analyse(list(adapters), BASE)


def flat(loaded: overlap.Loaded) -> torch.Tensor:
    """The whole weighted update, dense, as one vector."""
    return torch.cat(
        [
            (loaded.factors[path] * loaded.updates[path].dense(base.double(), torch.float64)).flatten()
            if path in loaded.updates
            else torch.zeros(base.numel()).double()
            for path, base in BASE.items()
        ]
    )


def test_energies_cosines_and_sums_are_those_of_the_dense_updates() -> None:
    first = adapter({ONE: low(1), TWO: low(2, TWO, 3), TEXT: low(3, TEXT)}, 0.7, text_weight=-0.4, blocks=("OUT=0.5",))
    second = adapter({ONE: low(4, rank=4), TWO: low(5, TWO, 1)}, -1.3)
    three = adapter({TEXT: low(6, TEXT, 8)}, 0.2)
    result, vectors = report(first, second, three), [flat(each) for each in (first, second, three)]
    assert first.factors == {ONE: 0.7, TWO: 0.35, TEXT: -0.4}
    for read, vector in zip(result.adapters, vectors, strict=True):
        assert read.total.energy == pytest.approx(float(vector.square().sum()), rel=1e-5)
        assert math.fsum(place.energy for place in read.blocks.values()) == pytest.approx(read.total.energy)
    for pair in result.pairs:
        a, b = (vectors[number] for number in pair.numbers)
        assert pair.total.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-5, abs=1e-9)
    assert result.total.energy == pytest.approx(float(sum(vectors).square().sum()), rel=1e-5)
    strongest = max(float(vector.norm()) for vector in vectors)
    assert result.total.ratio == pytest.approx(float(sum(vectors).norm()) / strongest, rel=1e-5)
    assert result.adapters[2].total.relative == pytest.approx(float(vectors[2].norm()) / 8, rel=1e-5)
    assert list(result.blocks) == ["IN0", "OUT1", "text_encoder"] and not result.not_analysed


def in_shared_plane(angle: float, turn: float, seed: int = 0) -> tuple[Delta, Delta]:
    """Two rank-1 updates whose outputs are `angle` apart and whose inputs `turn`."""
    out, into = (torch.linalg.qr(numbers(size, 2, seed=seed + size))[0] for size in (12, 9))
    tilted = [side @ torch.tensor([math.cos(by), math.sin(by)]) for side, by in ((out, angle), (into, turn))]
    return Delta(into[:, :1].T, out[:, :1], 2.0), Delta(tilted[1][None], tilted[0][:, None], 0.5)


@pytest.mark.parametrize(
    ("angle", "turn"), [(0.0, 0.0), (0.3, 0.9), (math.pi / 3, 0.0), (math.pi / 2, 0.2), (2.5, 0.4)]
)
def test_rank_one_updates_at_known_angles_meet_as_much_as_the_angles_say(angle: float, turn: float) -> None:
    meeting = report(*(adapter({ONE: delta}) for delta in in_shared_plane(angle, turn))).pairs[0].total
    assert meeting.cosine == pytest.approx(math.cos(angle) * math.cos(turn), abs=1e-6)
    assert meeting.overlap == pytest.approx(abs(meeting.cosine), abs=1e-6)
    assert meeting.writes == pytest.approx(math.cos(angle) ** 2, abs=1e-6)
    assert meeting.reads == pytest.approx(math.cos(turn) ** 2, abs=1e-6)


def test_updates_in_the_same_spaces_overlap_wholly_whatever_they_do_there() -> None:
    out, into = (torch.linalg.qr(numbers(size, 4))[0] for size in (12, 9))
    first = adapter({ONE: Delta(into[:, :2].T, out[:, :2], 1.0)})
    turned = adapter({ONE: Delta(torch.tensor([[0.0, 3.0], [-3.0, 0.0]]) @ into[:, :2].T, out[:, :2], 1.0)})
    half = adapter(
        {ONE: Delta(torch.cat([into[:, :1], into[:, 2:3]], 1).T, torch.cat([out[:, :1], out[:, 2:3]], 1), 1.0)}
    )
    elsewhere = adapter({ONE: Delta(into[:, 2:].T, out[:, :2], 1.0)})
    meetings = [report(first, other).pairs[0].total for other in (turned, half, elsewhere)]
    assert [meeting.overlap for meeting in meetings] == pytest.approx([1.0, math.sqrt(0.5), 0.0], abs=1e-6)
    assert [meeting.cosine for meeting in meetings] == pytest.approx([0.0, 0.5, 0.0], abs=1e-6)
    assert (meetings[2].writes, meetings[2].reads) == pytest.approx((1.0, 0.0), abs=1e-6)


def test_chance_is_what_random_spaces_give() -> None:
    shape = {ONE: torch.zeros(300, 200)}
    many = [
        overlap.weigh(AdapterChoice(), {ONE: Delta(numbers(6, 200, seed=n), numbers(300, 6, seed=n + 50), 1.0)}, shape)
        for n in range(8)
    ]
    meetings = [pair.total for pair in analysis.analyse(many, shape).pairs]
    assert all(meeting.chance == pytest.approx(6 / math.sqrt(300 * 200)) for meeting in meetings)
    assert sum(meeting.overlap / meeting.chance for meeting in meetings) / len(meetings) == pytest.approx(1, rel=0.1)


def test_pairs_and_layers_are_ranked_by_what_they_can_change() -> None:
    near = [{ONE: delta, TWO: low(9 + seed, TWO)} for seed, delta in enumerate(in_shared_plane(0.1, 0.1))]
    far = {ONE: in_shared_plane(1.5, 1.5, seed=7)[1]}
    stack = [adapter(near[0], 0.1), adapter(far, 1.0), adapter(near[1], 4.0, enabled=True)]
    result = report(*stack)
    assert result.pairs[0].numbers == (0, 2) and list(result.layers) == sorted(
        result.layers, key=lambda path: -result.layers[path]
    )
    interferences = [pair.total.interference for pair in result.pairs]
    assert interferences == sorted(interferences, reverse=True)
    for pair in result.pairs:
        assert pair.total.interference == pytest.approx(sum(meeting.interference for meeting in pair.layers.values()))
    # What is off or at weight 0 interferes with nothing.
    quiet = report(adapter(near[0], 0.1), adapter(near[1], 0.0), adapter(near[1], enabled=False))
    assert [pair.total.interference for pair in quiet.pairs] == [0, 0, 0] and quiet.total.ratio == 1


def test_the_order_of_adapters_changes_only_the_order() -> None:
    several = [adapter({ONE: low(seed, rank=1 + seed), TWO: low(seed, TWO)}, 0.3 * seed - 1) for seed in range(4)]
    first, other = report(*several), report(*several[::-1])
    assert first.total.energy == pytest.approx(other.total.energy, rel=1e-12) and list(first.layers) == list(
        other.layers
    )
    turned = {tuple(sorted(3 - number for number in pair.numbers)): pair for pair in other.pairs}
    for pair in first.pairs:
        assert dataclasses.astuple(pair.total) == pytest.approx(
            dataclasses.astuple(turned[pair.numbers].total), rel=1e-9
        )


@pytest.mark.parametrize("others", [False, True])
def test_other_methods_are_made_dense_where_the_base_is_known_and_named_where_not(others: bool) -> None:
    from trainer.methods import dora, loha

    parts = {
        "hada_w1_a": numbers(12, 2),
        "hada_w1_b": numbers(2, 9),
        "hada_w2_a": numbers(12, 2, seed=1),
        "hada_w2_b": numbers(2, 9, seed=1),
    }
    odd = adapter(
        {ONE: loha.from_file(parts, 2.0)}
        if others
        else {ONE: dora.Turned(low(5), BASE[ONE].norm(dim=1, keepdim=True) * 1.1)},
        0.5,
    )
    plain, third = adapter({ONE: low(1), TWO: low(2, TWO)}), adapter({ONE: low(3)})
    result = report(odd, plain, third)
    a, b = flat(odd), flat(plain)
    assert next(pair for pair in result.pairs if pair.numbers == (0, 1)).total.cosine == pytest.approx(
        float(a @ b / a.norm() / b.norm()), rel=1e-4
    )
    both = next(pair for pair in result.pairs if pair.numbers == (1, 2)).total
    assert dataclasses.astuple(both)[:-1] == pytest.approx(
        dataclasses.astuple(report(plain, third).pairs[0].total)[:-1]
    )
    without = analysis.analyse([odd, plain, third], {})
    assert (
        without.not_analysed == [f"{ONE} of x"]
        and without.adapters[0].total.energy == 0
        and without.adapters[1].total.relative is None
    )


_HOSTILE = st.sampled_from([0.0, 1e-30, 1e-8, 1.0, -3.0, 1e8, 1e30])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ONE, TWO]), st.integers(1, 12), _HOSTILE, _HOSTILE, st.integers(0, 3), st.booleans()
        ),
        min_size=1,
        max_size=4,
    ),
    st.floats(-2, 2).map(lambda weight: round(weight, 3)),
)
@settings(max_examples=150, deadline=None)
def test_no_update_brings_the_report_down_and_its_numbers_keep_their_bounds(drawn: list[tuple], weight: float) -> None:
    stack = []
    for path, rank, down, up, seed, flat_rank in drawn:
        delta = low(seed, path, rank)
        sides = [delta.down * down, delta.up * up]
        if flat_rank:  # every direction the same
            sides = [sides[0][:1].expand_as(sides[0]), sides[1][:, :1].expand_as(sides[1])]
        stack.append(adapter({path: Delta(sides[0].clone(), sides[1].clone(), 1.0)}, weight))
    result = report(*stack)
    for pair in result.pairs:
        for meeting in [pair.total, *pair.blocks.values(), *pair.layers.values()]:
            assert all(map(math.isfinite, dataclasses.astuple(meeting)))
            assert (
                -1 <= meeting.cosine <= 1
                and 0 <= meeting.chance <= 1
                and all(0 <= share <= 1 for share in (meeting.overlap, meeting.writes, meeting.reads))
            )
            assert meeting.overlap >= abs(meeting.cosine) - 1e-4
    assert all(place.energy >= 0 and math.isfinite(place.ratio) for place in [result.total, *result.blocks.values()])
    proposed = analysis.balance(result)
    assert 0 < proposed.factor <= 1 and proposed.balanced <= proposed.strongest * (1 + 1e-9)
    heatmap.draw(result)


def test_numbers_too_large_to_square_are_refused_by_name() -> None:
    huge = Delta(torch.full((1, 9), 1e200, dtype=torch.float64), torch.full((12, 1), 1e200, dtype=torch.float64), 1.0)
    with pytest.raises(AdapterError, match=f"{ONE} of x has numbers too large"):
        report(adapter({ONE: huge}))


def test_balance_keeps_proportions_and_meets_the_strongest_exactly() -> None:
    first, second = {ONE: low(1), TWO: low(2, TWO)}, {ONE: low(1, scale=0.3), TWO: low(5, TWO)}
    result = report(adapter(first, 1.2), adapter(second, 0.9))
    proposed = analysis.balance(result)
    assert proposed.factor < 1 and proposed.weights == pytest.approx([1.2 * proposed.factor, 0.9 * proposed.factor])
    after = report(adapter(first, proposed.weights[0]), adapter(second, proposed.weights[1]))
    assert after.total.energy == pytest.approx(result.total.strongest) == pytest.approx(proposed.balanced)
    undoing = analysis.balance(report(adapter(first), adapter(first, -0.9)))
    assert undoing.factor == 1 and "stay" in undoing.reason
    assert analysis.balance(report(adapter(first, 0.0))).weights == [0.0]


@pytest.mark.parametrize(
    ("weights", "verdict"),
    [
        ((1.0,), "no burn"),
        ((1.0, 1.0), "likely to burn"),
        ((1.0, 0.3), "look at the pictures"),
        ((1.0, -0.9), "undo each other"),
        ((0.0,), "nothing acts"),
    ],
)
def test_the_verdict_says_it_in_words(weights: tuple[float, ...], verdict: str) -> None:
    assert verdict in report(*(adapter({ONE: low(1)}, weight) for weight in weights)).verdict


def test_the_heatmap_is_legible_whatever_the_stack() -> None:
    alone = heatmap.draw(report(adapter({ONE: low(1)})))
    assert alone.width >= 640
    many = [
        overlap.weigh(AdapterChoice(name="a\nname " * 30), {ONE: low(seed), TWO: low(seed, TWO)}, BASE)
        for seed in range(12)
    ]
    picture = heatmap.draw(analysis.analyse(many, BASE))
    assert picture.width < 3200 and picture.height < 1200 and len(picture.convert("P").getcolors(256)) > 20


def test_what_acts_apart_in_time_or_place_does_not_meet() -> None:
    early, late = AdapterChoice(schedule="steps 0:1 0.5:0"), AdapterChoice(schedule="steps 0:0 0.5:1")
    left, right = AdapterChoice(region="box 0 0 0.5 1"), AdapterChoice(region="box 0.5 0 1 1")
    whole, half = AdapterChoice(), AdapterChoice(schedule="linear 1 0")

    def acting(*adapters: AdapterChoice, mode: str = "sum") -> list[list[float]]:
        return overlap.acting(list(adapters), mode, 20, (8, 8)).tolist()

    assert acting(whole, whole) == [[1, 1], [1, 1]]
    assert acting(early, late) == [[0.5, 0], [0, 0.5]] and acting(left, right) == [[0.5, 0], [0, 0.5]]
    assert acting(left, whole) == [[0.5, 0.5], [0.5, 1]] and acting(left, early)[0][1] == 0.25
    assert acting(whole, whole, mode="switch") == [[0.5, 0], [0, 0.5]]
    assert acting(early, whole, mode="switch") == [[0.25, 0], [0, 0.5]]
    assert acting(whole, half)[0][1] == pytest.approx(0.5, abs=1e-6) and acting(half, half)[0][0] > 1 / 3


def test_the_map_asks_the_mode_itself_when_each_acts() -> None:
    """Twelve steps in turns of five: the first acts in 0-4 and 10-11, the second in 5-9; what isn't there takes no
    turn.
    """
    cat, dog = (AdapterChoice(name=name, sha256=name[0] * 64) for name in ("aa", "bb"))
    first, off = (
        cat.model_copy(update={"schedule": "steps 0:1 0.4:0"}),
        cat.model_copy(update={"weight": 0.0, "sha256": "c" * 64}),
    )

    def acting(*adapters: AdapterChoice, mode: str = "switch", num_steps: int = 12) -> list[float]:
        meetings = overlap.acting(list(adapters), mode, num_steps, (8, 8))
        assert not (meetings - meetings.diag().diag()).any() or mode == "regions"
        return (meetings.diag() * num_steps).tolist()

    assert acting(cat, dog) == pytest.approx([7, 5]) and acting(first, dog) == pytest.approx([5, 5])
    assert acting(cat, off, dog) == pytest.approx([7, 0, 5]) and acting(
        off, off.model_copy(update={"enabled": False})
    ) == [0, 0]
    assert acting(cat, dog, num_steps=3) == pytest.approx([2, 1])
    assert acting(cat, dog, mode="regions", num_steps=10) == pytest.approx([8, 8])  # the first fifth runs without
    twice = overlap.acting([cat, cat], "switch", 12, (8, 8))
    assert twice.tolist() == [[1, 1], [1, 1]]  # one file twice is one that takes turns with nobody
    with pytest.raises(UserError, match="mode is 'both'; allowed: composite"):
        overlap.acting([cat, dog], "both", 12, (8, 8))


@pytest.mark.parametrize(
    "name", [name for name, mode in modes.registry().items() if mode.only_acting or mode.acting is not all_act]
)
@pytest.mark.parametrize(("num", "num_steps"), [(2, 25), (3, 25), (4, 11), (2, 1)])
def test_a_mode_that_says_when_adapters_act_goes_by_it(name: str, num: int, num_steps: int) -> None:
    mode, seen = modes.registry()[name], []
    for step in range(num_steps):
        mode.predict(seen.append, num, step, num_steps)
    assert seen == [mode.acting(num, step, num_steps) for step in range(num_steps)]
