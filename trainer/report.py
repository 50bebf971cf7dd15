"""`report.html` of a run: what was trained, how it went, what the held-out pictures say. One file, no script, no network."""

from __future__ import annotations

import base64
from html import escape

from trainer import console
from trainer.events import Event, Finished, Sampled, Step, Validated, Warned
from trainer.runs import Run

_STYLE = """
:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
figure { display: inline-block; margin: 0 .6rem .8rem 0; } figcaption { font-size: 12px; max-width: 128px; } img { display: block; border-radius: 4px; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15rem 1.2rem .15rem 0; } svg { width: 100%; height: auto; } pre { overflow: auto; }
"""
_WIDTH, _HEIGHT = 800, 220


def write(run: Run) -> None:
    """Write the report of what the run's folder holds now."""
    log = run.events()
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        _outcome(log),
        _curve(log),
        _samples(run, log),
        _notes(log),
        f"<h2>Settings</h2><pre>{escape(run.config_file.read_text(encoding='utf-8'))}</pre>",
    ]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(run.name)}</title><style>{_STYLE}</style>"
    page = f"<!doctype html><html lang=en>{head}{''.join(parts)}</html>"
    temporary = run.report_file.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(run.report_file)


def _outcome(log: list[Event]) -> str:
    checks = [event for event in log if isinstance(event, Validated)]
    finished = next((event for event in reversed(log) if isinstance(event, Finished)), None)
    said = (
        f"<p>Finished: {finished.step} steps in {finished.seconds:.0f} s, adapter norm {finished.adapter_norm:.3f}.</p>"
        if finished
        else "<p>Not finished yet.</p>"
    )
    if not checks:
        return said + "<p>No held-out set was given, so nothing says whether it helps on pictures it never saw.</p>"
    best = min(checks, key=lambda event: event.loss)
    rows = "".join(
        f"<tr><td>{event.step}<td>{event.loss:.4f}<td>{event.gain * 100:.1f} %<td>{event.gain_low * 100:.1f} to {event.gain_high * 100:.1f} %"
        f"<td>{event.share_better * 100:.0f} %"
        for event in checks
    )
    alarm = "" if best is checks[-1] else f"<p><b>It was best at step {best.step}:</b> later steps over-train. Set max_steps={best.step}, or add pictures.</p>"
    head = "<table><tr><th>Step<th>Held-out loss<th>Gain<th>95 % interval<th>Pictures better</tr>"
    return f"{said}<h2>Held-out pictures</h2><p>{escape(console.gain(checks[-1]).capitalize())}.</p>{alarm}{head}{rows}</table>"


def _curve(log: list[Event]) -> str:
    steps = [event for event in log if isinstance(event, Step)]
    if len(steps) < 2:
        return ""
    low, high = min(event.loss for event in steps), max(event.loss for event in steps)
    last = steps[-1].step

    def points(pairs: list[tuple[int, float]]) -> str:
        return " ".join(f"{step / last * _WIDTH:.1f},{_HEIGHT - (loss - low) / ((high - low) or 1) * _HEIGHT:.1f}" for step, loss in pairs)

    smooth, average = [], steps[0].loss
    for event in steps:
        average = 0.9 * average + 0.1 * event.loss
        smooth.append((event.step, average))
    raw = points([(event.step, event.loss) for event in steps])
    return (
        f"<h2>Training loss</h2><p>{low:.4f} to {high:.4f}; the dark line is its running mean.</p>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' fill=none stroke=currentColor>"
        f"<polyline points='{raw}' opacity=.25 /><polyline points='{points(smooth)}' stroke-width=2 /></svg>"
    )


def _samples(run: Run, log: list[Event]) -> str:
    figures = []
    for event in log:
        if isinstance(event, Sampled) and (run.folder / event.file).is_file():
            data = base64.b64encode((run.folder / event.file).read_bytes()).decode()
            figures.append(
                f"<figure><img alt='' width=128 src='data:image/png;base64,{data}'><figcaption>step {event.step}: {escape(event.prompt)}</figcaption></figure>"
            )
    return f"<h2>Previews</h2>{''.join(figures)}" if figures else ""


def _notes(log: list[Event]) -> str:
    notes = [f"<li><pre>{escape(event.message)}</pre>" for event in log if isinstance(event, Warned)]
    return f"<h2>Notes</h2><ul>{''.join(notes)}</ul>" if notes else ""
