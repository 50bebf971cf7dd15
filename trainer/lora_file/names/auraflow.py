"""AuraFlow: joint blocks, then single blocks, in diffusers' names."""

from trainer.lora_file.names.rows import Family, Size, TextEncoder, row, t5

_JOINT, _SINGLE = "joint_transformer_blocks.#", "single_transformer_blocks.#"
_IMAGE = ("to_q", "to_k", "to_v", "to_out.0")  # of attention, the image's layers
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # and the text's
_FEED_FORWARDS = (f"{_JOINT}.ff", f"{_JOINT}.ff_context", f"{_SINGLE}.ff")
_NORMS = (f"{_JOINT}.norm1", f"{_JOINT}.norm1_context", f"{_SINGLE}.norm1")

FAMILY = Family(
    name="auraflow",
    title="AuraFlow",
    component="transformer",
    rows=(
        *(row("", f"{_JOINT}.attn.{part}", "D < D") for part in (*_IMAGE, *_TEXT)),
        *(row("", f"{_SINGLE}.attn.{part}", "D < D") for part in _IMAGE),
        *(row("", f"{block}.linear_{number}", "F < D") for block in _FEED_FORWARDS for number in (1, 2)),
        *(row("", f"{block}.out_projection", "D < F") for block in _FEED_FORWARDS),
        *(row("", f"{norm}.linear", "6D < D") for norm in _NORMS),
        row("", "pos_embed.proj", "D < 16"), row("", "context_embedder", "D < 2048"), row("", "proj_out", "16 < D"),
        row("", "norm_out.linear", "2D < D"),
        row("", "time_step_proj.linear_1", "D < 256"), row("", "time_step_proj.linear_2", "D < D"),
    ),
    sizes=(Size("6.8B", {"D": 3072, "F": 8192}, {"joint_transformer_blocks": 4, "single_transformer_blocks": 32}),),
    texts=(TextEncoder("text_encoder", ("lora_te", "lora_te1"), "pile_t5xl", t5("2048", "2048", "5120")),),
    kohya="diffusers",
    default="diffusers",
    versions=("auraflow",),
    architecture="auraflow/lora",
    base_version="auraflow",
    loader="AuraFlow",
    taken={"transformer.": ("diffusers",)},
)  # fmt: skip
