"""What is trained on: finding pictures and captions, checking them, cutting them into buckets, wording, order."""

from trainer.data.scanning import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    Dataset,
    Item,
    frame,
    has_trigger,
    load_mask,
    load_pixels,
    open_image,
    scan,
    scan_heldout,
    trigger_spans,
    without_trigger,
)

__all__ = [
    "CAPTION_SUFFIXES", "IMAGE_SUFFIXES", "Dataset", "Item", "frame", "has_trigger", "load_mask", "load_pixels",
    "open_image", "scan", "scan_heldout", "trigger_spans", "without_trigger",
]  # fmt: skip
