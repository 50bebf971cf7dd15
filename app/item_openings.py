"""What a thing of the Library is opened as, and what the button for that says."""

from __future__ import annotations

from app.texts import say

# What `Open` opens, by kind, and what its button says.
OPENS = {
    "loras": ("lora", say("library.use_in_stack")), "runs": ("run", say("library.open_in_train")),
    "pictures": ("picture", say("button.open_in_stack")), "stacks": ("stack", say("button.open_in_stack")),
    "datasets": ("dataset", say("library.open_in_dataset")), "presets": ("preset", say("library.train_like_this")),
}  # fmt: skip
SOURCES = ("loras", "runs")  # kinds that a training can go on from
# What the button says, by what is opened.
BUTTONS = {
    "lora": say("library.use_in_stack"), "stack": say("button.open_in_stack"), "picture": say("button.open_in_stack"),
    "config": say("library.open_in_train"), "jobs": say("library.open_in_batch"),
    "dataset": say("library.open_in_dataset"), "run": say("library.open_in_train"),
    "preset": say("library.train_like_this"), "card-stack": say("library.render_like_this"),
    "base": say("library.open_in_train"),
}  # fmt: skip
