"""Votes between pictures: strengths against simulated voters of known strengths, who plays next, and the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from app import voting
from app.recipe_index import PictureFacts
from app.voting import Candidate, Contest, Vote
from trainer import bradley_terry
from trainer.errors import DataError


def simulated(true: np.ndarray, num_votes: int, generator: np.random.Generator, asks: bool) -> list[bradley_terry.Vote]:
    """What voters of these strengths voted, on pairs that are asked for or drawn by chance."""
    votes: list[bradley_terry.Vote] = []
    for number in range(num_votes):
        if asks:
            table = bradley_terry.worth(bradley_terry.fit(len(true), votes), np.random.default_rng(number))
            first, second = map(int, np.unravel_index(table.argmax(), table.shape))
        else:
            first, second = map(int, generator.choice(len(true), 2, replace=False))
        wins = generator.random() < 1 / (1 + np.exp(true[second] - true[first]))
        votes.append((first, second, float(wins)))
    return votes


@pytest.mark.parametrize("asks", [False, True])
def test_the_interval_of_a_difference_holds_the_truth_in_95_of_100(asks: bool) -> None:
    covered = []
    for seed in range(60):
        generator = np.random.default_rng(1000 + seed)
        true = generator.normal(0, bradley_terry.PRIOR_SD, 4)
        strengths = bradley_terry.sampled(4, simulated(true, 30, generator, asks), generator)
        for first in range(4):
            share = 1 / (1 + np.exp(true.mean() - true[first]))
            _, low, high = strengths.against_average(first)
            covered.append(low <= share <= high)
            for second in range(first):
                distance, variance = strengths.difference(first, second)
                covered.append(abs(distance - true[first] + true[second]) <= bradley_terry.Z_95 * variance**0.5)
    assert 0.91 <= np.mean(covered) <= 0.985, np.mean(covered)


def test_draws_of_the_posterior_are_those_of_its_integral() -> None:
    votes = [(0, 1, 1.0), (0, 1, 1.0), (0, 1, 0.5)]
    strengths = bradley_terry.sampled(2, votes, np.random.default_rng(0))
    axis = np.linspace(-9, 9, 401)
    first, second = np.meshgrid(axis, axis, indexing="ij")
    logs = 2.5 * (first - second) - 3 * np.logaddexp(0, first - second)
    density = np.exp(logs - (first**2 + second**2) / (2 * bradley_terry.PRIOR_SD**2))
    density /= density.sum()
    mean = (density * (first - second)).sum()
    variance = (density * (first - second - mean) ** 2).sum()
    distance = strengths.difference(0, 1)
    assert distance == pytest.approx((mean, variance), rel=0.12)


def test_asking_finds_the_best_more_often_than_chance_does() -> None:
    true = np.array([1.6, 0.6, 0.4, 0.2, 0.0, -0.4, -0.8, -1.2, -1.6, -2.0])
    found = {asks: sum(
        int(bradley_terry.fit(10, simulated(true, 45, np.random.default_rng(seed), asks)).mean.argmax()) == 0
        for seed in range(40)
    ) for asks in (False, True)}  # fmt: skip
    assert found[True] > found[False] and found[True] >= 24, found


def test_the_mode_is_what_an_optimizer_of_the_posterior_finds() -> None:
    from scipy.optimize import minimize

    votes = [(0, 1, 1.0), (0, 1, 1.0), (1, 2, 0.5), (2, 0, 0.0), (3, 0, 1.0)]

    def loss(strengths: np.ndarray) -> float:
        logs = [
            won * np.log1p(np.exp(strengths[second] - strengths[first]))
            + (1 - won) * np.log1p(np.exp(strengths[first] - strengths[second]))
            for first, second, won in votes
        ]
        return float(sum(logs) + (strengths**2).sum() / (2 * bradley_terry.PRIOR_SD**2))

    np.testing.assert_allclose(bradley_terry.fit(4, votes).mean, minimize(loss, np.zeros(4), tol=1e-12).x, atol=1e-4)


def test_the_votes_that_are_said_to_be_needed_are_enough() -> None:
    votes = [(0, 1, float(number % 10 < 7)) for number in range(20)]
    strengths = bradley_terry.fit(2, votes)
    needed = bradley_terry.votes_needed(strengths, 0, 1)
    assert 0 < needed < 60
    more = votes + [(0, 1, float(number % 10 < 7)) for number in range(2 * round(needed))]
    distance, variance = bradley_terry.fit(2, more).difference(0, 1)
    assert distance / variance**0.5 >= bradley_terry.Z_95
    assert bradley_terry.votes_needed(bradley_terry.fit(2, []), 0, 1) > 1e6  # equal as they are, none would do


# Who plays.


class Index:
    """Facts of pictures by name, as a recipe index has them."""

    def __init__(self, facts: dict[str, PictureFacts]) -> None:
        self.facts = facts

    def picture(self, path: Path) -> PictureFacts:
        return self.facts.get(path.name, PictureFacts())


def grid(steps: Sequence[int] = (100, 300, 400), scenes: Sequence[str] = ("s1", "s2")) -> tuple[Index, dict[str, Path]]:
    facts = {
        f"{step}-{scene}.png": PictureFacts(
            "a cat", 1, "b", ((f"{step:04d}" * 16, f"cat-step-{step:06d}", 0.8),), scene
        )
        for step in steps
        for scene in scenes
    }
    return Index(facts), {name: Path(name) for name in facts}


def test_two_of_one_scene_play_unlabelled_on_either_side_and_the_same_again_after_a_reload(tmp_path: Path) -> None:
    index, pictures = grid()
    sides = []
    for _ in range(40):
        contest = voting.contest(index, tmp_path, pictures)
        match = voting.next_match(contest)
        assert match and match == voting.next_match(voting.contest(index, tmp_path, pictures))
        assert match.left != match.right and match.scene in match.left.pictures and match.scene in match.right.pictures
        sides.append(match.left.label < match.right.label)
        stronger = "left" if match.left.label > match.right.label else "right"
        voting.cast(index, tmp_path, pictures, contest.turn, stronger)
    assert 8 <= sum(sides) <= 32
    contest = voting.contest(index, tmp_path, pictures)
    assert voting.sentence(contest) == "step 400 at 0.8 wins: with 40 votes it is told from every other."
    rows = voting.table(contest)
    assert [row["label"] for row in rows] == ["step 400 at 0.8", "step 300 at 0.8", "step 100 at 0.8"]
    assert all(0 <= row["low"] <= row["share"] <= row["high"] <= 1 for row in rows)


def test_few_votes_say_how_many_more_would_tell(tmp_path: Path) -> None:
    index, pictures = grid()
    assert voting.sentence(voting.contest(index, tmp_path, pictures)) == "No vote yet: 3 to choose from."
    contest = voting.contest(index, tmp_path, pictures)
    for _ in range(4):
        match = voting.next_match(contest)
        assert match
        won = "left" if match.left.label > match.right.label else "right"
        contest = voting.cast(index, tmp_path, pictures, contest.turn, won)
    words = voting.sentence(contest)
    assert words.startswith("step 400 at 0.8 leads; about ") and " more votes would tell it from step 300" in words
    ties = voting.Contest(contest.candidates, tuple(
        Vote(one.key, other.key, "s1", "tie") for one in contest.candidates for other in contest.candidates
        if one != other), 6)  # fmt: skip
    assert "more than 200 votes would be needed" in voting.sentence(ties)


def test_ties_count_as_half_skips_as_nothing_and_undo_takes_the_last_back(tmp_path: Path) -> None:
    index, pictures = grid()
    contest = voting.contest(index, tmp_path, pictures)
    first = voting.next_match(contest)
    for won in ("left", "skip", "tie", "undo", "undo", "undo", "undo"):
        contest = voting.cast(index, tmp_path, pictures, contest.turn, won)
    assert contest.votes == () and contest.turn == 6  # the last undo had nothing to take back
    assert voting.next_match(contest) == first
    lines = [line for line in (tmp_path / voting.VOTES).read_text().splitlines() if line]
    assert len(lines) == 6 and contest.num_votes == 0
    contest = voting.cast(index, tmp_path, pictures, contest.turn, "skip")
    assert contest.num_votes == 0 and first
    second = voting.next_match(contest)  # who was skipped with another meets somebody else
    assert second and {second.left.key, second.right.key} != {first.left.key, first.right.key}


def test_a_vote_on_two_that_are_not_shown_any_more_is_not_counted(tmp_path: Path) -> None:
    index, pictures = grid()
    voting.cast(index, tmp_path, pictures, 0, "left")
    for turn in (0, -1, 2, 10**30):  # another tab was first; or a browser sends what it likes
        assert len(voting.cast(index, tmp_path, pictures, turn, "right").votes) == 1
    with pytest.raises(DataError, match="allowed: left, right, tie, skip, undo"):
        voting.cast(index, tmp_path, pictures, 1, "<img src=x>")


@pytest.mark.parametrize(
    "line",
    ['{"left": "a"', "[" * 100_000, '{"left": 1, "right": 2, "scene": 3, "won": "left"}', "null", '"x"', "\ufffd\x00",
     '{"left": "a", "right": "b", "scene": "s", "won": "everything"}'],
)  # fmt: skip
def test_a_torn_or_edited_file_of_votes_loses_no_other_vote(tmp_path: Path, line: str) -> None:
    index, pictures = grid()
    voting.cast(index, tmp_path, pictures, 0, "left")
    with (tmp_path / voting.VOTES).open("a") as file:
        file.write(line)  # no end of line: the machine went down
    contest = voting.cast(index, tmp_path, pictures, 1, "right")
    assert [vote.won for vote in contest.votes] == ["left", "right"] and contest.turn == 2
    gone = json.dumps({"left": "gone", "right": "b", "scene": "s", "won": "left"})
    (tmp_path / voting.VOTES).write_text(gone)
    assert voting.table(voting.contest(index, tmp_path, pictures))[0]["votes"] == 0


def test_what_cannot_be_compared_does_not_play() -> None:
    index, pictures = grid(steps=(100,))
    assert voting.next_match(Contest(voting.candidates(index, pictures), (), 0)) is None
    index, pictures = grid()
    index.facts["100-s1.png"] = PictureFacts()  # a picture of another tool
    index.facts["alone.png"] = PictureFacts("x", 1, "b", (("f" * 64, "fox", 1.0),), "s9")
    players = voting.candidates(index, pictures | {"alone.png": Path("alone.png")})
    assert [len(player.pictures) for player in players] == [1, 2, 2]
    assert voting.candidates(*grid(steps=range(61))) == ()  # too many for anybody to vote on
    assert voting.next_match(Contest((), (), 0)) is None and voting.sentence(Contest((), (), 0)) == ""
    apart = (Candidate("a", "a", {"s1": "x"}), Candidate("b", "b", {"s2": "y"}))
    assert voting.next_match(Contest(apart, (), 0)) is None
