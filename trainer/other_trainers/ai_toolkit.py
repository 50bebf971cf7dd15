"""ai-toolkit (ostris): its job config as YAML or JSON, of which the first trainer counts.

Its alpha is 1 where a config says none. With `gradient_accumulation_steps` it counts batches as steps. A schedule is
torch's own class: `linear` rises from a third, and `cosine_with_restarts` has one cycle.
"""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError
from trainer.other_trainers import ai_toolkit_training, bases, documents, previews, steps
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading, shown
from trainer.other_trainers.tables import groups, prefixed

VERSION = "August 2026 (27a03a9)"
PREFIX = "config.process[]."
_GROUPS = groups("ai_toolkit")
ROWS = {
    **prefixed(_GROUPS["process"], PREFIX),
    **{key: row for name in ("network", "save", "sample", "train", "model")
       for key, row in prefixed(_GROUPS[name], f"{PREFIX}{name}.").items()},
    **prefixed(_GROUPS["datasets"], f"{PREFIX}datasets[]."),
    **_GROUPS["job"],
}  # fmt: skip
_FIRST = PREFIX.replace("[]", "[0]")
_FLAGS = {
    "is_xl": "sdxl", "is_v3": "sd3", "is_flux": "flux", "is_lumina2": "lumina2", "is_pixart": "pixart",
    "is_pixart_sigma": "pixart", "is_auraflow": "auraflow", "is_v2": "sd",
}  # fmt: skip
FAMILIES = {
    "sd1": "sd", "sd15": "sd", "sd2": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "flux2": "flux2dev",
    "flux2_klein_4b": "flux2", "flux2_klein_9b": "flux2", "chroma": "chroma", "qwen_image": "qwen", "zimage": "zimage",
    "lumina2": "lumina2", "hidream": "hidream", "pixart": "pixart", "pixart_sigma": "pixart", "auraflow": "auraflow",
}  # fmt: skip
_DTYPES = {
    "fp32": "float32", "float32": "float32", "float": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16",
    "fp16": "float16", "float16": "float16",
}  # fmt: skip


def _recognises(document: Document) -> bool:
    return document.kind in ("yaml", "json") and bool(_processes(document.values))


def _processes(values: Any) -> list[dict[str, Any]]:
    config = values.get("config") if isinstance(values, dict) and "job" in values else None
    process = config.get("process") if isinstance(config, dict) else None
    return [entry for entry in process if isinstance(entry, dict)] if isinstance(process, list) else []


def _read(reading: Reading) -> None:
    # The first trainer's keys without what they all begin with.
    reading.seen, reading.origin = {}, {}
    for key, value in reading.values.items():
        if key.startswith(_FIRST):
            short = key[len(_FIRST) :]
            reading.seen[short], reading.origin[short] = value, key

    # Its name, and whether such a job can be trained here.
    if any(key.startswith("config.process[1]") for key in reading.values):
        reading.notes.append("the config has several trainers; the first is read")
    name = reading.values.get("config.name")
    reading.name = name[:80] if isinstance(name, str) else ""
    reading.marks["config.name"] = ("translated", "the preset's name", "")
    kind = reading.text("type", "sd_trainer")
    if kind not in ("sd_trainer", "diffusion_trainer", "ui_trainer"):
        raise ConfigError(
            f"{reading.document.path.name} is a job {shown(kind)} of ai-toolkit, which isn't trained here; allowed: "
            f"sd_trainer."
        )

    # The family and its base first: what follows depends on them.
    bases.put_base(
        reading,
        _family(reading),
        "model.name_or_path",
        family_keys=("model.arch", *(f"model.{flag}" for flag in _FLAGS)),
    )
    # Each reads what those before it set: layers the rank, the optimizer the rate and the steps.
    _put_steps(reading)
    _put_data(reading)
    ai_toolkit_training.put_adapter(reading)
    ai_toolkit_training.put_layers(reading)
    ai_toolkit_training.put_rates(reading)
    ai_toolkit_training.put_optimizer(reading)
    ai_toolkit_training.put_objective(reading)
    ai_toolkit_training.put_timesteps(reading)
    _put_running(reading)
    _put_previews(reading)


def _family(reading: Reading) -> str:
    if reading.asked_family:
        return reading.asked_family
    architecture, version = reading.text("model.arch").lower().partition(":")[::2]
    # The architecture counts before the flags; where neither stands, the base's name decides.
    flagged = [family for flag, family in _FLAGS.items() if reading.flag(f"model.{flag}")]
    family = FAMILIES.get(architecture, "") if architecture else next(iter(flagged), "")
    if not architecture and not flagged:
        family = bases.family_of(reading.text("model.name_or_path")) or "sd"
    # Models that edit pictures go under the same names.
    if not family or "edit" in architecture + version or "kontext" in architecture:
        raise ConfigError(f"{bases.cannot_train(reading, architecture or reading.text('model.name_or_path'))}.")
    return family


def _put_steps(reading: Reading) -> None:
    # Both kinds of accumulation multiply; with the second, a step of its count is one batch.
    inner = max(1, reading.whole("train.gradient_accumulation", 1))
    outer = max(1, reading.whole("train.gradient_accumulation_steps", 1))
    reading.put("batch_size", max(1, reading.whole("train.batch_size", 1)), "train.batch_size")
    reading.put("accumulation", inner * outer, "train.gradient_accumulation", "train.gradient_accumulation_steps")
    count = reading.whole("train.steps", 1000) // outer
    how = f"it counts batches as steps, {outer} of which are one here" if outer > 1 else ""
    steps.put_steps(reading, count, how, "train.steps")
    reading.no_effect("datasets[0].num_repeats", "the steps are said; it only makes an epoch longer")


def _put_data(reading: Reading) -> None:
    # Sizes: the largest is the resolution, up to four smaller sizes are trained beside it.
    first = "datasets[0]."
    sizes = _sizes(reading, f"{first}resolution")
    reading.put("resolution_px", sizes[-1], f"{first}resolution")
    if more := sizes[:-1][-4:]:
        reading.put("data.more_resolutions_px", more, f"{first}resolution")

    # Buckets, which never enlarge a picture there.
    square = reading.flag(f"{first}square_crop")
    reading.put(
        "data.buckets", reading.flag(f"{first}buckets", True) and not square, f"{first}buckets", f"{first}square_crop"
    )
    if reading.settings["data.buckets"]:
        reading.put("data.max_aspect_ratio", 8.0)
        multiple = 16 if reading.settings["family"] not in ("sd", "sdxl") else 8
        step = max(multiple, reading.whole(f"{first}bucket_tolerance", 64) // multiple * multiple)
        reading.put("data.bucket_step_px", step, f"{first}bucket_tolerance")
    reading.put("data.max_upscale", 1.0)

    # What is drawn anew at each step.
    reading.put("data.flip", reading.flag(f"{first}flip_x"), f"{first}flip_x")
    reading.put("data.crop", "random" if reading.flag(f"{first}random_crop") else "centre", f"{first}random_crop")

    # Captions.
    trigger = "trigger_word" if reading.has("trigger_word") else f"{first}trigger_word"
    if reading.text(trigger).strip():
        reading.put("data.trigger", reading.text(trigger).strip(), trigger)
    rates = [reading.number(f"{first}caption_dropout_rate"), reading.number("train.prompt_dropout_prob")]
    reading.put("data.caption_dropout", max(rates), f"{first}caption_dropout_rate", "train.prompt_dropout_prob")
    shuffle, dropped = reading.flag(f"{first}shuffle_tokens"), reading.number(f"{first}token_dropout_rate")
    reading.put("captions.shuffle_tags", shuffle, f"{first}shuffle_tokens")
    reading.put("captions.tag_dropout", dropped, f"{first}token_dropout_rate")
    if shuffle or dropped > 0:
        reading.put("captions.keep_tags", max(0, reading.whole(f"{first}keep_tokens")), f"{first}keep_tokens")
    if reading.text(f"{first}caption_ext", "txt").lstrip(".") not in ("txt", "caption"):
        reading.cannot(f"{first}caption_ext", "captions are read from .txt, else .caption, here; rename the files")
    else:
        reading.no_effect(f"{first}caption_ext", "captions are read from .txt, else .caption, here")

    # Masks: the alpha channel counts before a folder of masks.
    if reading.flag(f"{first}alpha_mask") or reading.has(f"{first}mask_path"):
        kind, key = ("alpha", "alpha_mask") if reading.flag(f"{first}alpha_mask") else ("file", "mask_path")
        reading.put("data.mask", kind, first + key)
        reading.put("objective.unmasked_weight", reading.number(f"{first}mask_min_value"), f"{first}mask_min_value")


def _sizes(reading: Reading, key: str) -> list[int]:
    """The training sizes, the largest last."""
    value = reading.seen.get(key)
    multiple = 32 if reading.settings["family"] == "sana" else 16
    sizes = set()
    for entry in value[:8] if isinstance(value, list) else [value]:
        if isinstance(entry, int | float) and 16 <= entry <= 8192:
            sizes.add(max(64, min(4096, round(entry / multiple) * multiple)))
        elif entry is not None:
            reading.cannot(key, f"it is {shown(value)}; allowed: sizes in pixels")
    return sorted(sizes) or [512]


def _put_running(reading: Reading) -> None:
    # Seed and dtypes.
    seed_key = "training_seed"
    reading.put("seed", max(0, reading.whole(seed_key, 0)), seed_key)
    for key, setting, default in (("train.dtype", "dtype", "fp32"), ("save.dtype", "save_dtype", "float16")):
        name = reading.text(key, default).lower()
        if name not in _DTYPES:
            reading.cannot(key, f"allowed: {', '.join(_DTYPES)}")
        reading.put(setting, _DTYPES.get(name, _DTYPES[default]), key)
    reading.no_effect("model.dtype", "the base has the dtype it is computed with")
    if reading.text("device", "cuda").startswith("cpu"):
        reading.put("device", "cpu", "device")

    # Memory.
    reading.put(
        "memory.gradient_checkpointing",
        reading.flag("train.gradient_checkpointing", True),
        "train.gradient_checkpointing",
    )
    if reading.flag("model.quantize") and reading.settings["adapter.method"] == "lora":
        kind = reading.text("model.qtype", "qfloat8").lower()
        # What is neither int8 nor fp8 becomes nf4, and the report says that it may have been smaller.
        ours = "int8" if "int8" in kind else "fp8" if "float8" in kind or "fp8" in kind else "nf4"
        reading.put("memory.quantise", ours, "model.quantize", "model.qtype")
        if ours == "nf4":
            reading.cannot("model.qtype", "nf4 is the smallest here")
    elif reading.flag("model.quantize"):
        reading.cannot("model.quantize", "a quantised base is for plain LoRA here")
    else:
        reading.no_effect("model.qtype", "the base isn't quantised")
    if reading.flag("model.layer_offloading"):
        reading.put("memory.offload", "blocks", "model.layer_offloading", why="all blocks take turns here (GPU only)")
    if reading.flag("model.compile") or reading.flag("model.block_compile"):
        reading.put("memory.compile", "blocks", "model.compile", "model.block_compile")

    # Checkpoints.
    steps.put_every(reading, "checkpoint_every_steps", reading.whole("save.save_every", 1000), "save.save_every")
    reading.put(
        "keep_checkpoints",
        min(1000, max(1, reading.whole("save.max_step_saves_to_keep", 5))),
        "save.max_step_saves_to_keep",
    )


def _put_previews(reading: Reading) -> None:
    every = 0 if reading.flag("train.disable_sampling") else reading.whole("sample.sample_every", 100)
    reading.put("preview_every_steps", max(0, every), "sample.sample_every", "train.disable_sampling")

    # Prompts stand in a list of texts, or in a table for each sample; both are taken.
    places = sorted({key.partition("]")[0] for key in reading.seen if key.startswith("sample.samples[")})[:64]
    prompts = reading.texts("sample.prompts") if isinstance(reading.seen.get("sample.prompts"), list) else []
    prompts += [reading.text(f"{place}].prompt") for place in places]
    trigger = str(reading.settings.get("data.trigger", ""))
    texts = [prompt.replace("[trigger]", trigger) for prompt in prompts]
    previews.put_prompts(
        reading,
        texts,
        *(
            ["sample.prompts"]
            if reading.has("sample.prompts")
            else [f"{place}].prompt" for place in places[:1]] or ["sample.prompts"]
        ),
    )

    # How previews are drawn.
    for key, setting in (("seed", "preview.seed"), ("sample_steps", "preview.steps")):
        if reading.has(f"sample.{key}"):
            reading.put(setting, max(0, reading.whole(f"sample.{key}")), f"sample.{key}")
    if reading.settings["family"] in bases.DIFFUSION and reading.has("sample.guidance_rescale"):
        reading.put("preview.guidance_rescale", reading.number("sample.guidance_rescale"), "sample.guidance_rescale")
    if reading.has("sample.guidance_scale"):
        reading.put("preview.guidance_scale", reading.number("sample.guidance_scale"), "sample.guidance_scale")


TOOL = Tool(
    name="ai-toolkit", turn=40, title="ai-toolkit", version=VERSION, rows=ROWS, recognises=_recognises,
    flatten=lambda document: documents.flatten(document.values), read=_read,
)  # fmt: skip
