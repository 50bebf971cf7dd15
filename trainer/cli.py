"""The `velatura` command. `python -m trainer` is the same.

Nothing heavy is imported at the top: `velatura --help` loads no torch. A UserError prints its message and exits with
status 2; a stopped run exits with 130; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer import (
    dataset_command,
    models_command,
    preset_command,
    preset_parts,
    publish_command,
    retrain_command,
    runs,
)
from trainer.bench import command as bench_command
from trainer.errors import ConfigError, UserError, is_of_a_file
from trainer.lora_tools import command as lora_command
from trainer.render import batch_command, quantised, stack_command
from trainer.serving import command as serve_command

if TYPE_CHECKING:
    from trainer.config import StackConfig, TrainConfig
    from trainer.render.axes import Axis

# Options that several commands have, or whose help is long.
Download = Annotated[bool, typer.Option("--download", help="Fetch the base from the hub if it isn't here.")]
StackFile = Annotated[
    Path | None,
    typer.Option("--stack", metavar="FILE", help="A whole stack as .toml or .json; other options change it."),
]
FromPicture = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="PICTURE",
        help="Draw it again: ours, or one of A1111, Forge, ComfyUI, InvokeAI, Fooocus, SwarmUI.",
    ),
]
PresetName = Annotated[
    str | None, typer.Argument(help="A preset's name, or a path to a .toml, a card or a LoRA of ours.")
]
Like = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Exactly as a card, a LoRA of ours or a run says, on the pictures of --data."),
]
StartFrom = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="SOURCE",
        help="Begin with the weights of a LoRA, a run or one of its checkpoints, by default with its settings; with "
        "--set start.optimizer=true also go on at the checkpoint's step.",
    ),
]
CompareWith = Annotated[
    Path | None,
    typer.Option(metavar="LORA", help="Compare with this older LoRA at the end, on the same held-out pictures."),
]
Extend = Annotated[
    int | None, typer.Option(metavar="STEPS", help="Go on with the run called --name for that many steps more.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_BASE_HELP = "imprimatura, a diffusers folder, a checkpoint file, a name from models list, or a downloaded hub id."
_RENDERS = Path("outputs") / "renders"

app = typer.Typer(
    help="Train LoRAs, stack them, render with them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(dataset_command.app, name="dataset")
app.add_typer(bench_command.app, name="bench")
app.add_typer(stack_command.app, name="stack")
app.add_typer(lora_command.app, name="lora")
app.add_typer(models_command.app, name="models")
app.add_typer(preset_command.app, name="preset")
app.add_typer(serve_command.app, name="serve")
app.command()(batch_command.batch)
app.command()(publish_command.publish)
app.command()(retrain_command.retrain)


def main() -> None:
    """Run the command; what a user can mend prints without a traceback."""
    # Nobody is told what is trained here, and no base brings code of its own.
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
        if not is_of_a_file(error):  # a bug, with its traceback
            raise
        print(
            f"error: {error.filename or 'disk'}: {error.strerror}; make room, or name another place with --out.",
            file=sys.stderr,
        )
        sys.exit(2)


# Training and rendering.


@app.command()
def train(
    preset: PresetName = None,
    data: Annotated[str | None, typer.Option(help="Folder or zip of pictures with a .txt caption each.")] = None,
    heldout: Annotated[
        str | None, typer.Option(help="Folder or zip of pictures to measure on, never trained on.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run and of its LoRA; the dataset folder's name if left out.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as adapter.rank=16; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder that run folders are made in.")] = runs.DEFAULT,
    like: Like = None,
    card: Annotated[
        Path | None, typer.Option(hidden=True, help="The card that the settings are of, to be compared with.")
    ] = None,
    kind: Annotated[str, typer.Option(hidden=True, help="What its pictures teach, as the preset is for.")] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run called --name, or with the newest unfinished one.")
    ] = False,
    from_: StartFrom = None,
    extend: Extend = None,
    compare_with: CompareWith = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
    download: Download = False,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse", help="Measure what the run would take, and find memory settings that fit; train nothing."
        ),
    ] = False,
    memory_gib: Annotated[float | None, typer.Option(help="Fit into this much memory; memory.budget_gib.")] = None,
    once: Annotated[
        bool, typer.Option("--once", hidden=True, help="Rehearse in this process, with the settings as they are.")
    ] = False,
) -> None:
    """Train a LoRA."""
    from trainer import train_command
    from trainer.cards import training_like

    # What is said as options of their own are settings too.
    changes = [*(set_ or []), *([f"memory.budget_gib={memory_gib}"] if memory_gib is not None else [])]
    resume = resume or extend is not None
    wanted: TrainConfig | None
    if like is not None:
        training_like.refuse_beside(preset, resume or from_ is not None)
        wanted, card = training_like.like(like, data, heldout, changes, out)
    else:
        asked = train_command.Asked(preset, data, heldout, changes, from_, extend)
        wanted = train_command.wanted(asked, resume, out, name)
    if not rehearse:
        teaches = next((one for one in preset_parts.KINDS if one == kind), preset_parts.purpose(preset or like or ""))
        beside = train_command.Beside(card, teaches, compare_with)
        train_command.train(wanted, out, name, resume, download, as_json, beside)
    elif once:
        train_command.rehearse_once(train_command.new(wanted, resume), out, download)
    else:
        train_command.rehearse(train_command.new(wanted, resume), out, download, as_json)


@app.command()
def render(
    context: typer.Context,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "",
    base: Annotated[str, typer.Option(help=_BASE_HELP)] = "imprimatura",
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE:WEIGHT", help="A LoRA and its weight; repeatable. FILE:0,0.5,1 makes a grid."),
    ] = None,
    negative: Annotated[str, typer.Option(help="What to keep out.")] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the base's usual if left out.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In pixels; the base's own if left out.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt, 1 is off; the base's usual if left out.")
    ] = None,
    stack_file: StackFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change any setting, such as mode=switch; repeatable."),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Draw a grid over a setting, such as seed=1,2,3; up to three."),
    ] = None,
    strip: Annotated[
        bool, typer.Option("--strip", help="Show what each LoRA does: the base, each alone, all but each, and all.")
    ] = False,
    out: Annotated[Path, typer.Option(help="A .png, .webp or .jpg, or a folder for new names.")] = _RENDERS,
    quantise: Annotated[str, typer.Option(help=quantised.HELP)] = "none",
    from_: FromPicture = None,
    download: Download = False,
) -> None:
    """Render a picture, or a grid of weights, with any number of LoRAs stacked."""
    from trainer.render import command

    # The stack: of a picture, of a file, or of these options.
    if from_ is not None:
        stack, axes = _stack_of_picture(from_, _given(context, ("stack_file",)), out)
    elif stack_file is not None:
        stack, axes = _stack_of_file(stack_file, _given(context)), []
    else:
        options = {"prompt": prompt, "negative_prompt": negative, "seed": seed}
        options |= {key: value for key, value in (("steps", steps), ("guidance_scale", guidance)) if value is not None}
        stack, axes = command.stack(base, lora or [], options, size)

    changed = command.changed(stack, set_ or [])
    grid = [*axes, *map(command.axis, axis or [])]
    print(command.run(changed, grid, out, download, strip, _report, quantised.checked(quantise)))


def _given(context: typer.Context, more: tuple[str, ...] = ()) -> list[str]:
    """The options of a stack, as they are written after `--`, that stand on the command line."""
    names = ("prompt", "base", "lora", "negative", "seed", "steps", "size", "guidance", *more)
    given = [name for name in names if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    return [name.removesuffix("_file") for name in given]


def _stack_of_picture(picture: Path, given: list[str], out: Path) -> tuple[StackConfig, list[Axis]]:
    """The stack that a picture was drawn from, and the axes of its grid. Raises: ConfigError beside other options."""
    from trainer.render import command

    if given:
        raise ConfigError(
            f"--from takes everything from the picture; leave out {', '.join('--' + name for name in given)}."
        )
    return command.from_picture(picture, [Path("outputs"), out if out.is_dir() else out.parent], _report)


def _stack_of_file(file: Path, given: list[str]) -> StackConfig:
    """The stack in a file. Raises: ConfigError beside options that say the same."""
    from trainer.render import command

    if given:
        raise ConfigError(
            f"--stack takes everything from the file; leave out {', '.join('--' + name for name in given)}, or "
            f"change the file's with --set."
        )
    return command.from_file(file)


def _report(text: str) -> None:
    """Print beside the output, which is for other programs."""
    print(text, file=sys.stderr)


# What is here.


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A LoRA file, or a picture of ours.")],
    base: Annotated[
        str,
        typer.Option(
            help="Say whether the LoRA was trained on this base; if left out, the one of the name in its header."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Say what is in a LoRA file, or which stack a picture was made from."""
    # A picture: its stack.
    if file.suffix.lower() in (".png", ".webp", ".jpg", ".jpeg"):
        from trainer.render.command import recipe_of

        print(json.dumps(recipe_of(file), indent=2, ensure_ascii=False))
        return

    # A LoRA file.
    from trainer import base_match, lora_file

    info, warning = lora_file.inspect(file), base_match.at_home(file, base)
    if as_json:
        facts = dataclasses.asdict(info) | {"path": str(file), "warning": warning}
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    print(lora_file.describe(info))
    if warning:
        print(f"\nwarning: {warning}")


@app.command()
def preview(
    run: Annotated[
        str, typer.Argument(help="A run that is being trained: its folder, or its name below outputs/runs.")
    ],
) -> None:
    """Have a training draw its previews now, after the step that it is at."""
    from trainer import preview_request

    preview_request.ask(runs.named(run))
    print("the previews are drawn after this step; nothing else about the run changes.")


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Show this preset whole.")] = None, as_json: AsJson = False
) -> None:
    """List the presets, or show one with all its settings."""
    preset_command.list_(as_json) if name is None else preset_command.show(name, as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing and how to get it."""
    from trainer.doctor import describe, diagnose

    diagnosis = diagnose()
    print(json.dumps(dataclasses.asdict(diagnosis), indent=2) if as_json else describe(diagnosis))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the two runs and the contact sheet.")] = Path("outputs"),
) -> None:
    """Train a style and a character on the samples, stack them, and write a contact sheet."""
    from trainer.demo import run

    print(run(out))


@app.command(
    name="app", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def app_(context: typer.Context) -> None:
    """Open the web UI (`velatura app --help` lists its options)."""
    # Gradio's page is another package, which the trainer doesn't import; it is run as `python -m app` would be.
    sys.argv = ["velatura app", *context.args]
    runpy.run_module("app", run_name="__main__", alter_sys=False)
