"""The `velatura` command. `python -m trainer` is the same.

Nothing heavy is imported at the top: `velatura --help` loads no torch. A UserError prints its message and exits with
status 2; a stopped run exits with 130; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer import dataset_command, models_command, runs
from trainer.bench import command as bench_command
from trainer.errors import ConfigError, UserError
from trainer.lora_tools import command as lora_command
from trainer.render import batch_command, quantised, stack_command

if TYPE_CHECKING:
    from trainer.config import TrainConfig

app = typer.Typer(help="Train LoRAs, stack them, render with them.", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(dataset_command.app, name="dataset")
app.add_typer(bench_command.app, name="bench")
app.add_typer(stack_command.app, name="stack")
app.add_typer(lora_command.app, name="lora")
app.add_typer(models_command.app, name="models")
app.command()(batch_command.batch)


def main() -> None:
    """Run the command; what a user can mend prints without a traceback."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        print(f"error: {error.filename or 'disk'}: {error.strerror}; make room, or name another place with --out.", file=sys.stderr)
        sys.exit(2)


@app.command()
def train(
    preset: Annotated[str | None, typer.Argument(help="A preset's name, or a path to a .toml or to a LoRA of ours.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder or zip of pictures with a .txt caption each.")] = None,
    heldout: Annotated[str | None, typer.Option(help="Folder or zip of pictures to measure on, never trained on.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run and of its LoRA; the dataset folder's name if left out.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as adapter.rank=16; repeatable.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that run folders are made in.")] = runs.DEFAULT,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run called --name, or with the newest unfinished one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch the base from the hub if it isn't here.")] = False,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Measure what the run would take, and find memory settings that fit; train nothing.")] = False,
    memory_gib: Annotated[float | None, typer.Option(help="Fit into this much memory; the setting memory.budget_gib.")] = None,
    once: Annotated[bool, typer.Option("--once", hidden=True, help="Rehearse in this process, with the settings as they are.")] = False,
) -> None:
    """Train a LoRA."""
    from trainer import console, distributed, session
    from trainer.events import Stopped, Warned

    if preset is None and not resume:
        from trainer import presets

        raise ConfigError(f"no preset was named; allowed: {', '.join(presets.names())}, or a path to a .toml or to a LoRA of ours.")
    if preset is None and (set_ or data or heldout or memory_gib is not None):
        raise ConfigError("--resume without a preset goes on with the run's own; leave out --set, --data, --heldout and --memory-gib, or name the preset.")
    changes = [*(set_ or []), *([f"memory.budget_gib={memory_gib}"] if memory_gib is not None else [])]
    wanted = session.preset_config(preset, data, heldout, changes) if preset is not None else None
    if rehearse:
        if wanted is None or resume:
            raise ConfigError("--rehearse measures a new run; name a preset, and leave out --resume.")
        _rehearse(wanted, out, download, as_json, once)
        return
    ours = distributed.enter()
    run = session.choose(out, name, wanted, ours) if resume else None
    if run and ours.share(run.state() if ours.first else "") == "finished":
        if ours.first:
            print(f"run {run.name} is finished: {run.lora_file}")
        return
    config = run.config() if run else wanted
    assert config is not None
    run, stream = session.start(config, out, name, run, download, ours)
    if not ours.first:
        deque(stream, maxlen=0)
        return
    last = console.show_json(stream) if as_json else console.show(stream, run.folder)
    if isinstance(last, Stopped | Warned):
        sys.exit(130)


def _rehearse(config: TrainConfig, out: Path, download: bool, as_json: bool, once: bool) -> None:
    """Print what a run would take; exits with status 3 if nothing fits into the memory there is."""
    from trainer.rehearsal import fitting, measuring

    if once:
        print(fitting.once(config, out, download))
        return
    for found in fitting.fit(config, out, download):
        if isinstance(found, measuring.Rehearsal):
            print(measuring.to_json(found) if as_json else measuring.describe(found))
            sys.exit(0 if found.fits else 3)
        elif not as_json:
            print(f"tried{''.join(f' {setting}' for setting in found.settings) or ' as it is'}: {found.message}")


@app.command()
def render(
    context: typer.Context,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "",
    base: Annotated[
        str, typer.Option(help="imprimatura, a diffusers folder, a checkpoint file, a name from models list, or a downloaded hub id.")
    ] = "imprimatura",
    lora: Annotated[list[str] | None, typer.Option(metavar="FILE:WEIGHT", help="A LoRA and its weight; repeatable. FILE:0,0.5,1 makes a grid.")] = None,
    negative: Annotated[str, typer.Option(help="What to keep out.")] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the base's usual if left out.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In pixels; the base's own if left out.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt, 1 is off; the base's usual if left out.")] = None,
    stack_file: Annotated[Path | None, typer.Option("--stack", metavar="FILE", help="A whole stack as .toml or .json; other options change it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change any setting, such as mode=switch; repeatable.")] = None,
    axis: Annotated[list[str] | None, typer.Option(metavar="KEY=V1,V2", help="Draw a grid over a setting, such as seed=1,2,3; up to three.")] = None,
    strip: Annotated[bool, typer.Option("--strip", help="Show what each LoRA does: the base, each alone, all but each, and all.")] = False,
    out: Annotated[Path, typer.Option(help="A .png, .webp or .jpg, or a folder for new names.")] = Path("outputs") / "renders",
    quantise: Annotated[str, typer.Option(help=quantised.HELP)] = "none",
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="PICTURE", help="Draw it again: ours, or one of A1111, Forge, ComfyUI, InvokeAI, Fooocus, SwarmUI."),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the base from the hub if it isn't here.")] = False,
) -> None:
    """Render a picture, or a grid of weights, with any number of LoRAs stacked."""
    from trainer.render import command

    options = {"prompt": prompt, "negative_prompt": negative, "seed": seed}
    options |= {key: value for key, value in (("steps", steps), ("guidance_scale", guidance)) if value is not None}
    names = ("prompt", "base", "lora", "negative", "seed", "steps", "size", "guidance")
    given = [name for name in names if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if from_ is not None:
        if given := [*given, *(["stack"] if stack_file else [])]:
            raise ConfigError(f"--from takes everything from the picture; leave out {', '.join('--' + name for name in given)}.")
        stack, axes = command.again(from_, [Path("outputs"), out if out.is_dir() else out.parent], lambda text: print(text, file=sys.stderr))
    elif stack_file is not None:
        if given:
            raise ConfigError(f"--stack takes everything from the file; leave out {', '.join('--' + name for name in given)}, or change the file's with --set.")
        stack, axes = command.from_file(stack_file), []
    else:
        stack, axes = command.stack(base, lora or [], options, size)
    changed = command.changed(stack, set_ or [])
    grid = [*axes, *map(command.axis, axis or [])]
    print(command.run(changed, grid, out, download, strip, lambda text: print(text, file=sys.stderr), quantised.checked(quantise)))


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file, or a picture of ours.")],
    base: Annotated[str, typer.Option(help="Say whether the LoRA was trained on this base; if left out, the one of the name in its header.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in a LoRA file, or which stack a picture was made from."""
    if file.suffix.lower() in (".png", ".webp", ".jpg", ".jpeg"):
        from trainer.render.command import recipe_of

        print(json.dumps(recipe_of(file), indent=2, ensure_ascii=False))
        return
    import dataclasses

    from trainer import base_match, lora_file

    info, warning = lora_file.inspect(file), base_match.at_home(file, base)
    if as_json:
        print(json.dumps(dataclasses.asdict(info) | {"path": str(file), "warning": warning}, indent=2, ensure_ascii=False))
        return
    print(lora_file.describe(info))
    if warning:
        print(f"\nwarning: {warning}")


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Show this preset whole.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the presets, or show one with all its settings."""
    import tomli_w

    from trainer import presets as store

    if name is not None:
        values = store.load(name, {}).model_dump(mode="json")
        print(json.dumps(values, indent=2) if as_json else tomli_w.dumps(values))
        return
    titles = {preset: store.title(preset) for preset in store.names()}
    print(json.dumps(titles, indent=2) if as_json else "\n".join(f"{preset:<28}{title}" for preset, title in titles.items()))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine can do, what is missing and how to get it."""
    import dataclasses

    from trainer import doctor as surgery

    found = surgery.diagnose()
    print(json.dumps(dataclasses.asdict(found), indent=2) if as_json else surgery.describe(found))


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for the two runs and the contact sheet.")] = Path("outputs")) -> None:
    """Train a style and a character on the samples, stack them, and write a contact sheet."""
    from trainer import demo as show

    print(show.run(out))


@app.command(name="app", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def app_(context: typer.Context) -> None:
    """Open the web UI (`velatura app --help` lists its options)."""
    sys.argv = ["velatura app", *context.args]
    runpy.run_module("app", run_name="__main__", alter_sys=False)
