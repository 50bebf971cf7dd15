"""What a run's log says to do differently next time: rules of thumb over events, each with the figures it rests on.

Pure, so that the report, the page and a test ask the same. A rule speaks only where the log gives it reason to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from trainer.config import TrainConfig
from trainer.events import Adjusted, Event, Failed, Finished, Folded, Overtrained, Sampled, Started, Stopped, Validated

COPY = 0.97  # `trainer.data.likeness.COPY`, which can't be imported without torch
_LITTLE = 0.01  # gain below which next to nothing was learned
_RISING = 0.05  # share of the gain that the last measurement added: still rising
_BY_HEART = 2.0, 0.1  # gain on training pictures over the held-out gain: as a factor, and at least so much more
_LARGE_DRIFT = 0.3  # rule of thumb: neutral prompts then visibly change
_SMALL_SET, _FIFTH = 15, 5  # pictures; up to so many, folds waste less than a held-out set
_LIMIT_STEPS = 1_000_000
_E = TypeVar("_E")


@dataclass(frozen=True)
class Advice:
    """A sentence, and the settings by dotted name that it says to change."""

    text: str
    settings: dict[str, Any] = field(default_factory=dict)


def advice(events: list[Event], config: TrainConfig | None) -> list[Advice]:
    """What to change, the most pressing first; none where there is nothing to say.

    `config` is the run's, None where it can't be read.
    """
    rules = [
        _ending(events),
        _memory(events),
        _copies(events),
        _measuring(events, config),
        _learning(events, config),
        _length(events, config),
        _by_heart(events, config),
        _drift(events, config),
    ]
    return [rule for rule in rules if rule]


def is_copy(event: Sampled) -> bool:
    """Whether a preview looks like a copy of a training picture."""
    return event.nearest is not None and event.nearest >= COPY


def _of(events: list[Event], kind: type[_E]) -> list[_E]:
    return [event for event in events if isinstance(event, kind)]


def _ending(events: list[Event]) -> Advice | None:
    end = next((event for event in reversed(events) if isinstance(event, Finished | Stopped | Failed)), None)
    if isinstance(end, Stopped):
        return Advice(f"Go on: it was stopped after step {end.step} and can be resumed from there.")
    if isinstance(end, Failed):
        return Advice("Mend what made it fail, then resume it: it goes on from its last checkpoint.")
    return None


def _memory(events: list[Event]) -> Advice | None:
    """The settings that the out-of-memory ladder ended with, to be set from the start."""
    adjusted = _of(events, Adjusted)
    if not adjusted:
        return None
    # The last value of each setting; a log of an older version has the words alone.
    settings = dict(setting.split("=", 1) for event in adjusted for setting in event.settings if "=" in setting)
    named = ", ".join(f"{key}={value}" for key, value in settings.items()) or "; ".join(
        event.message for event in adjusted
    )
    return Advice(f"Set these from the start, so that no step is lost to memory running out: {named}.", settings)


def _copies(events: list[Event]) -> Advice | None:
    """Previews that look like a training picture; not at step 0, where nothing was learned yet."""
    copies = [
        event
        for event in _of(events, Sampled)
        if event.nearest is not None and event.nearest >= COPY and event.step > 0
    ]
    if not copies:
        return None
    first = min(copies, key=lambda event: event.step)
    named = f" ({first.nearest_picture})" if first.nearest_picture else ""
    return Advice(
        f"Look at the previews from step {first.step} on: one looks like a copy of a training picture{named}. "
        f"Fewer steps, or more pictures, keep it from that."
    )


def _measuring(events: list[Event], config: TrainConfig | None) -> Advice | None:
    """Without any held-out picture nothing else can be judged."""
    started = _of(events, Started)
    judged = [event for event in events if isinstance(event, Validated | Folded)]
    if not started or judged or started[-1].num_heldout or (config is not None and config.validation.folds):
        return None
    pictures = started[-1].num_pictures
    if pictures <= _SMALL_SET:
        setting, value = "validation.folds", min(5, max(2, pictures // 3))
        why = f"which finds the best step without losing one of the {pictures} pictures"
    else:
        setting, value = "validation.leave_out", pictures // _FIFTH
        why = f"which holds out a fifth of the {pictures} pictures"
    return Advice(
        f"Measure it: nothing says whether it helps on pictures it never saw, nor which step is best. Set "
        f"{setting}={value}, {why}.",
        {setting: value},
    )


def _learning(events: list[Event], config: TrainConfig | None) -> Advice | None:
    """Too fast, if even the best measurement is below the base; too little, if it is hardly above."""
    measured = _of(events, Validated)
    if not measured:
        return None
    best = max(measured, key=lambda event: event.gain)
    rate = config.learning_rate if config else None
    # Even the best measurement is below the base, and surely so.
    if best.gain_high < 0:
        suggestion = f"learning_rate={rate / 3:.2g}" if rate else "a lower learning_rate"
        return Advice(
            f"Learn more gently: the held-out loss only rose above the base's. Try {suggestion}, and see that "
            f"the captions fit the pictures.",
            _rate(rate, 1 / 3),
        )
    if best.gain < _LITTLE or best.gain_low <= 0:
        suggestion = f"learning_rate={min(rate * 3, 1.0):.2g}" if rate else "a higher learning_rate"
        doubt = "" if best.gain < _LITTLE else ", and the interval still holds zero"
        fell = f"the held-out loss fell by {best.gain * 100:.1f} % at best{doubt}"
        return Advice(f"Learn more: {fell}. Try {suggestion}, or more steps.", _rate(rate, 3))
    return None


def _rate(rate: float | None, factor: float) -> dict[str, Any]:
    """The learning rate times the factor, as it is written in a sentence."""
    return {"learning_rate": float(f"{min(rate * factor, 1.0):.2g}")} if rate else {}


def _length(events: list[Event], config: TrainConfig | None) -> Advice | None:
    """Too long, too short, or neither."""
    measured, alarms = _of(events, Validated), _of(events, Overtrained)
    if alarms:
        best = max(alarms[-1].best_step, 1)
        rank = getattr(config.adapter, "rank", 0) if config else 0
        smaller = f"adapter.rank={rank // 2}" if rank > 1 else "a lower rank"
        return Advice(
            f"Train shorter: max_steps={best} is where the held-out loss was lowest. To learn longer, use more "
            f"pictures or {smaller}.",
            {"max_steps": best},
        )

    # Too short only if the last measurement is the best, and still clearly better than that before it.
    if len(measured) < 2:
        return None
    before, last = measured[-2:]
    if last.gain < max(event.gain for event in measured) or last.gain < _LITTLE or last.gain_low <= 0:
        return None
    added = last.gain - before.gain
    if added < _RISING * last.gain:
        return None
    longer = min(2 * last.step, _LIMIT_STEPS)
    return Advice(
        f"Train longer: the last measurement still added {added * 100:.1f} % of gain. Try max_steps={longer}.",
        {"max_steps": longer},
    )


def _by_heart(events: list[Event], config: TrainConfig | None) -> Advice | None:
    """Much more gain on training pictures than on held-out pictures."""
    measured = _of(events, Validated)
    if not measured or measured[-1].train_gain is None:
        return None
    last, own = measured[-1], measured[-1].train_gain
    # Both by the margin and by the factor: of next to no gain, twice as much is nothing.
    if own < max(last.gain, 0.0) + _BY_HEART[1] or own < _BY_HEART[0] * last.gain:
        return None
    has_dropout = config is not None and "dropout" in type(config.adapter).model_fields
    ways = ["fewer steps", *(["adapter.dropout=0.1"] if has_dropout else []), "more varied pictures"]
    return Advice(
        f"Keep it from learning by heart: the gain is {own * 100:.1f} % on training pictures and "
        f"{last.gain * 100:.1f} % on pictures it never saw. {', '.join(ways[:-1]).capitalize()} or {ways[-1]} narrow "
        "that.",
        {"adapter.dropout": 0.1} if has_dropout else {},
    )


def _drift(events: list[Event], config: TrainConfig | None) -> Advice | None:
    """The base was moved on prompts that have nothing to do with the dataset."""
    drifts = [event.drift for event in _of(events, Validated) if event.drift is not None]
    if not drifts or drifts[-1] < _LARGE_DRIFT:
        return None
    opening = f"Hold the base: its predictions on neutral prompts moved by {drifts[-1] * 100:.0f} %."
    if config is not None and (config.objective.preservation_weight or config.data.regularisation):
        return Advice(f"{opening} Raise the weight of what preserves it, or lower the learning rate.")
    return Advice(
        f"{opening} objective.preservation_weight=0.5 with data.class_caption, or a folder in data.regularisation, "
        f"keeps it nearer."
    )
