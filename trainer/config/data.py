"""Settings of what is trained on: folders, captions, buckets, masks, and what keeps the base from forgetting."""

from __future__ import annotations

from typing import Literal

from trainer.schema import SET, Settings, setting

_TAGS = {"captions.shuffle_tags": (True,), "captions.tag_dropout": SET}
_DRAWN = {**_TAGS, "captions.wildcards": (True,), "captions.lines": ("choose",)}  # what makes several of one caption


class DataConfig(Settings):
    # What is trained on, and measured on.
    folder: str = setting(
        "",
        "Dataset",
        "Folder or .zip of pictures with a caption file of the same name each; a zip is unpacked beside itself, once.",
        path="dataset",
    )
    heldout: str = setting(
        "",
        "Held-out set",
        "Folder or .zip of pictures never trained on, to measure what was learned; empty for none.",
        path="dataset",
    )
    trigger: str = setting(
        "",
        "Trigger",
        "Word that calls the adapter; put before captions that lack it. Usual for a character.",
        max_length=80,
        pattern=r"^(\S(.*\S)?)?$",
    )

    # What becomes of a picture and its caption each time.
    caption_dropout: float = setting(
        0.05,
        "Caption dropout",
        "Share of pictures that train without caption, which keeps guidance working; 0-0.1.",
        ge=0,
        le=1,
        advanced=True,
    )
    flip: bool = setting(
        False,
        "Mirror",
        "Show every second picture mirrored; not for faces with a parting, lettering or logos.",
        advanced=True,
    )
    crop: Literal["centre", "random"] = setting(
        "centre",
        "Crop",
        "What is cut off to fit the bucket: equal margins, or one of four random cuts each time.",
        advanced=True,
    )

    # Sizes and shapes.
    buckets: bool = setting(
        True,
        "Buckets",
        "Keep each picture's shape: wide, tall and square ones train apart. Off: all are cropped square.",
        advanced=True,
    )
    bucket_step_px: int = setting(
        0,
        "Bucket step",
        "Sides of buckets are multiples of this; 0 takes 64, an eighth of a resolution below 512, or the family's own "
        "where that is more.",
        ge=0,
        le=512,
        advanced=True,
        only_with={"data.buckets": (True,)},
    )
    max_aspect_ratio: float = setting(
        2.0,
        "Widest shape",
        "Longest side over shortest of a bucket; wider pictures are cropped to it.",
        ge=1,
        le=8,
        advanced=True,
        only_with={"data.buckets": (True,)},
    )
    max_upscale: float = setting(
        1.5,
        "Upscale limit",
        "No picture is enlarged more than this; a smaller one trains in a smaller bucket. 1-2.",
        ge=1,
        le=16,
        advanced=True,
    )
    more_resolutions_px: tuple[int, ...] = setting(
        (),
        "More resolutions",
        "Each picture also trains at these sizes, one a line; helps the adapter work at any size.",
        max_length=4,
        advanced=True,
    )

    # How often a picture is shown, and how much it counts.
    kohya_folders: bool = setting(
        True,
        "Kohya folders",
        "Read a folder named 10_mokka cat as ten repeats, and as the caption of its pictures that have none.",
        advanced=True,
    )
    repeats: tuple[str, ...] = setting(
        (),
        "Repeats",
        "folder=3 shows the pictures of that folder three times an epoch; a line each, * stands for anything.",
        max_length=64,
        advanced=True,
    )
    weights: tuple[str, ...] = setting(
        (),
        "Weights",
        "folder=0.5 counts the pictures of that folder half; a line each, * stands for anything.",
        max_length=64,
        advanced=True,
    )

    # Transparency and masks.
    background: str = setting(
        "#ffffff",
        "Background",
        "Colour that transparent pictures are laid on, as #rrggbb.",
        pattern=r"^#[0-9a-fA-F]{6}$",
        advanced=True,
    )
    mask: Literal["off", "file", "alpha"] = setting(
        "off",
        "Masks",
        "Learn mostly where a mask is white: name.mask.png beside the picture or in the mask folder, or the picture's "
        "own transparency.",
        advanced=True,
    )
    mask_folder: str = setting(
        "",
        "Mask folder",
        "Masks by the pictures' names; empty: name.mask.png beside each picture.",
        advanced=True,
        only_with={"data.mask": ("file",)},
        path="dataset",
    )

    # What keeps the class from changing with the subject.
    regularisation: str = setting(
        "",
        "Regularisation set",
        "Pictures of the class without the trigger, shown as often as the others, so that the class stays what it was.",
        advanced=True,
        path="dataset",
    )
    regularisation_weight: float = setting(
        1.0,
        "Regularisation weight",
        "How much a regularisation picture counts; 0.5-1.",
        gt=0,
        le=10,
        advanced=True,
        only_with={"data.regularisation": SET},
    )
    class_caption: str = setting(
        "",
        "Class",
        "The trigger's everyday word, such as cat: what preservation holds the base to, and a caption for "
        "regularisation pictures without.",
        max_length=200,
        advanced=True,
        only_with={"objective.preservation_weight": SET, "data.regularisation": SET},
    )


class CaptionsConfig(Settings):
    # Around a caption.
    prefix: str = setting("", "Prefix", "Put before every caption.", max_length=500, advanced=True)
    suffix: str = setting("", "Suffix", "Put after every caption.", max_length=500, advanced=True)

    # Tags.
    shuffle_tags: bool = setting(
        False,
        "Shuffle tags",
        "Show comma-separated tags in another order each time; for tag captions, not for sentences.",
        advanced=True,
    )
    tag_dropout: float = setting(
        0.0, "Tag dropout", "Share of tags left out each time; 0-0.2, for tag captions.", ge=0, lt=1, advanced=True
    )
    keep_tags: int = setting(
        1,
        "Keep tags",
        "Tags at the start that are never moved or left out.",
        ge=0,
        le=100,
        advanced=True,
        only_with=_TAGS,
    )
    separator: str = setting(
        ",", "Tag separator", "What stands between tags.", min_length=1, max_length=8, advanced=True, only_with=_TAGS
    )

    # Several wordings of one caption.
    wildcards: bool = setting(
        False, "Wildcards", "Read {red|green} in a caption as one of the two, drawn anew each time.", advanced=True
    )
    lines: Literal["join", "choose"] = setting(
        "join",
        "Caption lines",
        "Lines of a caption file: one text, or several captions of which one is drawn each time.",
        advanced=True,
    )
    variants: int = setting(
        8,
        "Variants",
        "How many shuffled, dropped-out or chosen wordings of a caption are prepared; more is more varied and takes "
        "longer at the start.",
        ge=1,
        le=256,
        advanced=True,
        only_with=_DRAWN,
    )

    # Length.
    long: Literal["cut", "chunk"] = setting(
        "cut",
        "Long captions",
        "A caption longer than the text encoder's window: cut off (and reported), or encoded in chunks where the "
        "family can.",
        advanced=True,
    )
