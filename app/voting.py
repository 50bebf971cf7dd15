"""Votes between pictures of a batch that differ in their LoRAs alone: who plays, what was voted, and who wins.

A candidate is what a picture was drawn with: LoRAs and weights, such as a run's step 300 at 0.8. Two of one prompt and
seed are shown without a name; which two, and which of them stands at the left, follows from the votes so far alone, so
a reload shows the same two again. Votes stand in `votes.jsonl` beside the pictures, which only grows.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from app.recipe_index import PictureFacts, RecipeIndex
from app.texts import say, say_num
from trainer import bradley_terry, file_names, files
from trainer.errors import DataError
from trainer.printing import plain

VOTES = "votes.jsonl"
LEFT, RIGHT, TIE, SKIP, UNDO = "left", "right", "tie", "skip", "undo"
MOST_CANDIDATES, MOST_PICTURES = 60, 2000  # of more there are no votes
_WON = {LEFT: 1.0, RIGHT: 0.0, TIE: 0.5}
_MAX_BYTES, _PATIENCE_S = 32 << 20, 10
_FAR = 200  # votes that nobody gives for one answer


@dataclass(frozen=True)
class Candidate:
    """What pictures were drawn with, and its picture of each scene."""

    key: str
    label: str
    pictures: dict[str, str]  # scene -> the picture's name in the batch


@dataclass(frozen=True)
class Vote:
    """One line of the votes: two candidates' keys, the scene they were shown in, and what was said."""

    left: str
    right: str
    scene: str
    won: str


@dataclass(frozen=True)
class Match:
    """Two candidates who are shown beside each other."""

    left: Candidate
    right: Candidate
    scene: str


@dataclass(frozen=True)
class Contest:
    """The candidates of a batch and the votes on them; `turn` counts the lines ever written."""

    candidates: tuple[Candidate, ...]
    votes: tuple[Vote, ...]
    turn: int

    @cached_property
    def strengths(self) -> bradley_terry.Strengths:
        """As they are told to people."""
        return bradley_terry.sampled(len(self.candidates), self.counted, np.random.default_rng(len(self.votes)))

    @cached_property
    def counted(self) -> list[bradley_terry.Vote]:
        """The votes on candidates who are here."""
        places = {candidate.key: place for place, candidate in enumerate(self.candidates)}
        return [
            (places[vote.left], places[vote.right], _WON[vote.won])
            for vote in self.votes
            if vote.won in _WON and vote.left in places and vote.right in places
        ]

    @property
    def num_votes(self) -> int:
        """Votes that count: who skips says nothing."""
        return sum(vote.won in _WON for vote in self.votes)


# Who plays.


def candidates(index: RecipeIndex, pictures: dict[str, Path]) -> tuple[Candidate, ...]:
    """What the pictures were drawn with, in the order in which it first appears; nothing of more than are voted on."""
    by_key: dict[str, Candidate] = {}
    if len(pictures) > MOST_PICTURES:
        return ()
    for name, path in pictures.items():
        facts = index.picture(path)
        if facts.scene:
            key = _key(facts)
            candidate = by_key.setdefault(key, Candidate(key, _label(facts), {}))
            candidate.pictures.setdefault(facts.scene, name)
    # Those that share no scene with another can't be compared.
    scenes = Counter(scene for candidate in by_key.values() for scene in candidate.pictures)
    playing = [candidate for candidate in by_key.values() if any(scenes[scene] > 1 for scene in candidate.pictures)]
    return tuple(playing) if len(playing) <= MOST_CANDIDATES else ()


def _key(facts: PictureFacts) -> str:
    return " ".join(sorted(f"{sha256[:16]}:{weight:g}" for sha256, _, weight in facts.loras)) or "base"


def _label(facts: PictureFacts) -> str:
    """`step 300 at 0.8`, `fox at 1 + ink at 0.5`, or `no LoRA`."""
    parts = []
    for _, name, weight in facts.loras:
        step = file_names.step_of_lora(name)
        what = say("run.step", step=step) if step is not None else plain(name or say("word.a_lora"), 60)
        parts.append(say("item.at_weight", name=what, weight=weight))
    return " + ".join(parts) or say("vote.no_lora")


def next_match(contest: Contest) -> Match | None:
    """The two on whom a vote tells most, in the scene in which they were shown least; None where no two meet."""
    # Chance follows from the number of votes, so that a reload shows the same two.
    players, generator = contest.candidates, np.random.default_rng(len(contest.votes))
    if len(players) < 2:
        return None
    shown = Counter((frozenset((vote.left, vote.right)), vote.scene) for vote in contest.votes)
    skipped = Counter(frozenset((vote.left, vote.right)) for vote in contest.votes if vote.won == SKIP)
    table = bradley_terry.worth(bradley_terry.fit(len(players), contest.counted), generator)
    # Who was skipped with another is shown with others first.
    best: tuple[float, int, int] | None = None
    for first in range(len(players)):
        for second in range(first):
            if players[first].pictures.keys() & players[second].pictures.keys():
                pair = frozenset((players[first].key, players[second].key))
                value = float(table[first, second]) / 4 ** skipped[pair]
                best = max(best or (-1.0, 0, 0), (value, first, second))
    if best is None:
        return None

    # The scene that the two were shown in least, and who stands at the left, by lot.
    one, other = players[best[1]], players[best[2]]
    scenes = [scene for scene in one.pictures if scene in other.pictures]
    times = [shown[frozenset((one.key, other.key)), scene] for scene in scenes]
    least = [scene for scene, count in zip(scenes, times, strict=True) if count == min(times)]
    scene = least[int(generator.integers(len(least)))]
    return Match(one, other, scene) if generator.random() < 0.5 else Match(other, one, scene)


# The votes.


def read(out: Path) -> tuple[tuple[Vote, ...], int]:
    """The votes that stand, and how many lines were ever written; what is no line of ours is passed over."""
    path = out / VOTES
    try:
        lines = path.read_bytes().splitlines() if path.stat().st_size <= _MAX_BYTES else []
    except OSError:
        return (), 0
    votes: list[Vote] = []
    turn = 0
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # torn where the machine went down
            continue
        if isinstance(values, dict) and (vote := _vote(values)):
            turn += 1
            # An undo takes back the last vote that stands; its own line is counted as a turn.
            if vote.won != UNDO:
                votes.append(vote)
            elif votes:
                votes.pop()
    return tuple(votes), turn


def _vote(values: dict[str, Any]) -> Vote | None:
    parts = [values.get(name) for name in ("left", "right", "scene", "won")]
    is_one = all(isinstance(part, str) for part in parts) and parts[3] in (*_WON, SKIP, UNDO)
    return Vote(*map(str, parts)) if is_one else None


def contest(index: RecipeIndex, out: Path, pictures: dict[str, Path]) -> Contest:
    """Who plays in a batch's folder and what was voted so far."""
    return Contest(candidates(index, pictures), *read(out))


def cast(index: RecipeIndex, out: Path, pictures: dict[str, Path], turn: int, won: str) -> Contest:
    """The contest after one more vote on the two that are shown now, or without the last vote.

    Nothing is written where `turn` is past: then it was said of two that are not shown any more. Raises: DataError.
    """
    if won not in (*_WON, SKIP, UNDO):
        raise DataError(say("vote.strange", vote=won[:40], left=LEFT, right=RIGHT, tie=TIE, skip=SKIP, undo=UNDO))
    try:
        with FileLock(str(out / f".{VOTES}.lock"), timeout=_PATIENCE_S):
            # Read again under the lock: another window may have voted on the same two.
            before = contest(index, out, pictures)
            match = next_match(before)
            if before.turn != turn or match is None or won == UNDO and not before.votes:
                return before
            shown = ("", "", "") if won == UNDO else (match.left.key, match.right.key, match.scene)
            line = dict(zip(("left", "right", "scene", "won"), (*shown, won), strict=True)) | {"at": time.time()}
            files.append_lines(out / VOTES, [json.dumps(line)])
    except Timeout:
        raise DataError(say("vote.busy")) from None
    except OSError as error:
        raise DataError(say("vote.unwritable", reason=error.strerror or error)) from None
    return contest(index, out, pictures)


# What is known.


def sentence(contest: Contest) -> str:
    """Who wins, or how many votes more would tell."""
    if len(contest.candidates) < 2:
        return ""
    if not contest.num_votes:
        return say("vote.none_yet", num=len(contest.candidates))
    first, second, distance = bradley_terry.rival(contest.strengths)
    leader, rival = contest.candidates[first].label, contest.candidates[second].label
    if distance >= bradley_terry.Z_95:
        return say("vote.wins", leader=leader, num=contest.num_votes)
    needed = bradley_terry.votes_needed(contest.strengths, first, second)
    if needed > _FAR:
        return say("vote.as_good", leader=leader, rival=rival, far=_FAR)
    num = max(1, round(needed))
    return say_num("vote.leads", num, leader=leader, rival=rival)


def table(contest: Contest) -> list[dict[str, Any]]:
    """The candidates, the strongest first: the share of votes each wins against an average rival, with its interval."""
    counts = Counter(key for vote in contest.votes if vote.won in _WON for key in (vote.left, vote.right))
    strengths = contest.strengths
    rows = []
    for place in np.argsort(-strengths.mean, kind="stable"):
        candidate = contest.candidates[int(place)]
        share, low, high = strengths.against_average(int(place))
        rows.append({"label": candidate.label, "share": share, "low": low, "high": high, "votes": counts[candidate.key],
                     "name": next(iter(candidate.pictures.values()))})  # fmt: skip
    return rows
