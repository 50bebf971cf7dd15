"""What a recipe in kohya's words is trained on: captions, buckets, repeats. One dataset's settings hold for all here.

A value stands at a subset, its dataset, in `general`, or among the arguments; the innermost counts. Folders are never
opened, and a preset has none: only that they are there is said.
"""

from __future__ import annotations

from trainer.other_trainers import steps
from trainer.other_trainers.reading import MAX_TEXT_CHARS, Reading, shown

_FIRST = ("datasets[0].subsets[0].", "datasets[0].", "general.", "")
_ARGUMENTS = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
CAPTION_SUFFIXES = (".txt", ".caption", "txt", "caption")


def key_of(reading: Reading, name: str) -> str:
    """The key that says it for the first subset, the innermost; the arguments' own name where none does."""
    for level in _FIRST:
        key = level + (name if level else _ARGUMENTS.get(name, name))
        if reading.has(key):
            return key
    return _ARGUMENTS.get(name, name)


def put_data(reading: Reading) -> tuple[int, bool]:
    """Set captions, shape and buckets; (repeats of a picture, whether there are regularisation pictures)."""
    _put_captions(reading)
    _put_shapes(reading)
    _put_validation(reading)

    # Masks.
    mask = key_of(reading, "alpha_mask")
    if reading.flag(mask):
        reading.put("data.mask", "alpha", mask)
        reading.put("objective.unmasked_weight", 0.0, mask)
    elif reading.flag("masked_loss"):
        reading.cannot("masked_loss", "give the masks with data.mask = file and data.mask_folder")

    # Regularisation.
    twice = _has_regularisation(reading)
    if twice:
        weight = key_of(reading, "prior_loss_weight")
        reading.put("data.regularisation_weight", reading.number(weight, 1.0), weight)

    # Folders and their repeats.
    reading.put("data.kohya_folders", True, "train_data_dir")
    reading.translated(
        "train_data_dir", "", "folders such as 10_name keep their repeats; the folder is given with --data"
    )
    if reading.has("train_data_dir") and reading.whole("max_train_epochs") > 0 and not _subsets(reading):
        reading.notes.append(
            "repeats stand in the names of its folders, such as 10_name: give --pictures with them counted"
        )
    return _repeats(reading), twice


def _put_captions(reading: Reading) -> None:
    # What is said of tags is read only where tags are shuffled or left out.
    shuffle, dropout = key_of(reading, "shuffle_caption"), key_of(reading, "caption_tag_dropout_rate")
    reading.put("captions.shuffle_tags", reading.flag(shuffle), shuffle)
    reading.put("captions.tag_dropout", reading.number(dropout), dropout)
    keep, separator = key_of(reading, "keep_tokens"), key_of(reading, "caption_separator")
    if reading.flag(shuffle) or reading.number(dropout) > 0:
        reading.put("captions.keep_tags", max(0, reading.whole(keep)), keep)
        reading.put("captions.separator", reading.text(separator, ",").strip() or ",", separator)
    else:
        for key in (keep, separator):
            reading.no_effect(key, "no tags are shuffled or left out")
    rate = key_of(reading, "caption_dropout_rate")
    reading.put("data.caption_dropout", reading.number(rate), rate)

    # Texts around a caption, and what is drawn from it.
    for name, setting in (("caption_prefix", "captions.prefix"), ("caption_suffix", "captions.suffix")):
        key = key_of(reading, name)
        if reading.has(key):
            reading.put(setting, reading.text(key), key)
    wildcard = key_of(reading, "enable_wildcard")
    if reading.flag(wildcard):
        reading.put("captions.wildcards", True, wildcard)
        reading.put("captions.lines", "choose", wildcard)
    extension = key_of(reading, "caption_extension")
    if reading.text(extension, ".caption") in CAPTION_SUFFIXES:
        reading.no_effect(extension, "captions are read from .txt, else .caption, here")
    else:
        reading.cannot(extension, "captions are read from .txt, else .caption, here; rename the files")
    length = reading.whole("max_token_length")
    if length > 75:
        reading.put(
            "captions.long", "chunk", "max_token_length", why=f"{length} tokens there; as many as a caption has here"
        )


def _put_shapes(reading: Reading) -> None:
    # The size; further datasets of another size are trained as well.
    key = key_of(reading, "resolution")
    width, height = size_of(reading, key, 512)
    size = round((width * height) ** 0.5)
    reading.put("resolution_px", _multiple(reading, size), key)
    others = [
        place
        for place in reading.seen
        if place.startswith("datasets[") and place.endswith("].resolution") and place != key
    ]
    sizes = {
        _multiple(reading, round((pair[0] * pair[1]) ** 0.5))
        for pair in (size_of(reading, place, size) for place in others[:4])
    }
    if more := sorted(sizes - {reading.settings["resolution_px"]}):
        reading.put("data.more_resolutions_px", more, *others, why="every picture trains at every size here")

    # Buckets: kohya bounds their sides, here it is the ratio of the sides.
    buckets, step = key_of(reading, "enable_bucket"), key_of(reading, "bucket_reso_steps")
    low, high = key_of(reading, "min_bucket_reso"), key_of(reading, "max_bucket_reso")
    upscale = key_of(reading, "bucket_no_upscale")
    reading.put("data.buckets", reading.flag(buckets), buckets)
    if reading.flag(buckets):
        family_step = 16 if reading.settings["family"] not in ("sd", "sdxl") else 8
        wanted = max(1, reading.whole(step, 64))
        reading.put("data.bucket_step_px", max(family_step, wanted - wanted % family_step), step)
        if reading.flag(upscale):
            ratio = 8.0
            for place in (low, high):
                reading.no_effect(place, "bucket_no_upscale takes buckets of any side")
        else:
            # The longest side over the shortest, of buckets with this area.
            largest, smallest = max(1, reading.whole(high, 1024)), max(1, reading.whole(low, 256))
            ratio = min(largest, size * size / smallest) / smallest
        reading.put("data.max_aspect_ratio", round(min(8.0, max(1.0, ratio)), 4), low, high)
        reading.put("data.max_upscale", 1.0 if reading.flag(upscale) else 16.0, upscale)
    else:
        reading.put("data.max_upscale", 16.0, upscale)
        for place in (step, low, high, upscale):
            reading.no_effect(place, "there are no buckets")

    # What is drawn anew at each step.
    flip, crop = key_of(reading, "flip_aug"), key_of(reading, "random_crop")
    reading.put("data.flip", reading.flag(flip), flip)
    reading.put("data.crop", "random" if reading.flag(crop) else "centre", crop)


def size_of(reading: Reading, key: str, default: int) -> tuple[int, int]:
    """Width and height: 1024, "1024", "1024,768" or [1024, 768]."""
    value = reading.seen.get(key)
    if isinstance(value, list):
        parts = value[:2]
    elif isinstance(value, str):
        parts = list(value[:MAX_TEXT_CHARS].replace("x", ",").split(",")[:2])
    else:
        parts = [value]
    try:
        sizes = [min(8192, max(8, int(float(part)))) for part in parts if part not in (None, "")]
    except (TypeError, ValueError, OverflowError):
        reading.cannot(key, f"it is {shown(value)}; allowed: a size or two in pixels")
        sizes = []
    if not sizes:
        return default, default
    return sizes[0], sizes[-1]


def _multiple(reading: Reading, size: int) -> int:
    """The nearest size that the family takes."""
    multiple = 32 if reading.settings["family"] == "sana" else 8 if reading.settings["family"] in ("sd", "sdxl") else 16
    return max(multiple * 4, min(4096, round(size / multiple) * multiple))


def _put_validation(reading: Reading) -> None:
    key = key_of(reading, "validation_split")
    share = reading.number(key)
    if share > 0:
        count = max(1, round(min(share, 0.9) * (reading.pictures or steps.ASSUMED_PICTURES)))
        reading.put("validation.leave_out", count, key, why="that share of the pictures")


def _subsets(reading: Reading) -> list[str]:
    """The places of all subsets: `datasets[0].subsets[1].`"""
    places = {key.rpartition(".")[0] for key in reading.seen if key.startswith("datasets[") and ".subsets[" in key}
    return sorted(places)[:64]


def _has_regularisation(reading: Reading) -> bool:
    flagged = [place for place in _subsets(reading) if reading.flag(f"{place}.is_reg")]
    for place in flagged:
        reading.cannot(f"{place}.is_reg", "give those pictures with data.regularisation; the steps count them")
    if reading.has("reg_data_dir"):
        reading.cannot("reg_data_dir", "give those pictures with data.regularisation; the steps count them")
    return bool(flagged) or reading.has("reg_data_dir")


def _repeats(reading: Reading) -> int:
    """How often a picture is shown in an epoch; where subsets differ, on average, as their sizes aren't known."""
    places = [place for place in _subsets(reading) if not reading.flag(f"{place}.is_reg")]
    fallback = max(1, reading.whole(key_of(reading, "num_repeats"), 1))
    counts = [max(1, reading.whole(f"{place}.num_repeats", fallback)) for place in places]
    if not counts:
        return fallback

    # Where repeats differ they are settings by folder, as far as folders have names.
    lines = []
    for place, count in zip(places, counts, strict=True):
        folder = reading.text(f"{place}.image_dir").replace("\\", "/").rstrip("/").rpartition("/")[2]
        if len(set(counts)) > 1 and folder and "=" not in folder:
            lines.append(f"{folder}={count}")
            reading.put("data.repeats", lines[:64], f"{place}.num_repeats")
        else:
            reading.translated(f"{place}.num_repeats", "max_steps", "it counts in the steps")
    return max(1, round(sum(counts) / len(counts)))
