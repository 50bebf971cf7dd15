"""The stack that a training's LoRA is first seen in: its best step at full weight on its own base, asked for by its
trigger.
"""

from __future__ import annotations

from app import path_gate, run_steps
from app.context import Context
from app.texts import say
from trainer import lora_file, runs
from trainer.config import StackConfig, TrainConfig, parse
from trainer.errors import DataError


def of_run(context: Context, key: str) -> StackConfig:
    """The stack of `fox/best.safetensors`, as this server may draw it. Raises: UserError if it isn't here any more."""
    name, _, file = key.partition("/")
    # The key comes from a browser: it is compared with what is here and never made a path.
    run = next((run for run in runs.every(context.runs) if run.name == name), None)
    path = next((path for path in run.folder.glob("*.safetensors") if path.name == file), None) if run else None
    if run is None or path is None:
        raise DataError(say("library.gone"))
    config, info = run.config(), lora_file.inspect(path)
    run_steps.take(context, path, info.sha256)
    # As its previews were drawn, but for the prompt, which has the trigger.
    values = {
        "base": config.base,
        "family": config.family,
        "prompt": _prompt(config),
        "width_px": config.resolution_px,
        "height_px": config.resolution_px,
        "steps": config.preview.steps,
        "guidance_scale": config.preview.guidance_scale,
        "guidance_rescale": config.preview.guidance_rescale,
        "adapters": [{"sha256": info.sha256, "name": context.lora_name(path), "weight": 1.0}],
    }
    return path_gate.checked(context, parse(StackConfig, values, say("where.stack")))


def with_trigger(prompt: str, trigger: str) -> str:
    """The prompt with the trigger in front, unless it holds it."""
    if not trigger or trigger.lower() in prompt.lower():
        return prompt
    return f"{trigger}, {prompt}" if prompt.strip() else trigger


def trigger_of(context: Context, key: str) -> str:
    """The trigger of the run that a key names; "" for none."""
    return runs.Run(context.runs / key.partition("/")[0]).config().data.trigger


def _prompt(config: TrainConfig) -> str:
    return with_trigger(next(iter(config.preview.prompts), ""), config.data.trigger)
