"""The network of a recipe in kohya's words (`network_module`, `network_dim`, `network_args`) -> adapter.

sd-scripts, its graphical front-ends, musubi-tuner and the header of a LoRA say it alike. The layers are the same ones:
where ours would adapt more of them than the tool does, the others are frozen by `optimizer.block_rates`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer.other_trainers.reading import Reading

FULL_LOKR, MOST_RANK = 10_000, 256  # a rank that means the whole matrix in LyCORIS; the highest here
_UNFINISHED = {
    "full": "the whole model",
    "glora": "GLoRA",
    "ia3": "IA^3",
    "boft": "BOFT",
    "dylora": "DyLoRA",
    "tlora": "T-LoRA",
}
RATES_BY_BLOCK = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_CONVOLUTIONS = ("conv1", "conv2", "samplers")  # the 3x3 convolutions of a UNet, in our paths
_DOUBLE, _SINGLE = "transformer/transformer_blocks.", "single_transformer_blocks."


@dataclass(frozen=True)
class Network:
    """What the keys of a network mean for our adapter."""

    method: str
    modules: str  # which layers the tool adapts: "transformer", "convolutions", "attention", "linear"


def module_of(reading: Reading) -> str:
    """The network module's own name, such as `lora_flux`; "lora" where none is named."""
    return reading.text("network_module", "networks.lora").strip().lower() or "networks.lora"


def put_network(reading: Reading, default_rank: int = 4) -> None:
    """Set method, rank, alpha, layers, dropouts and LoRA+ from the network's keys."""
    family = reading.settings["family"]
    network = _network(reading)
    reading.put("adapter.method", network.method, "network_module", "network_args.algo", "network_args.dora_wd")
    if network.method == "oft":
        reading.put(
            "adapter.block_size",
            reading.whole("network_args.block_size", reading.whole("network_dim", 32)),
            "network_dim",
        )
        reading.no_effect("network_alpha", "a rotation has no alpha")
        _put_layers(reading, network, family)
        return

    # Rank and alpha: what is left out is the tool's default, and alpha 1 at rank 32 is a scale of 1 / 32.
    rank = max(1, reading.whole("network_dim", default_rank))
    alpha = reading.number("network_alpha", 1.0) or float(rank)
    if network.method == "lokr" and (rank >= FULL_LOKR or reading.flag("network_args.full_matrix")):
        reading.put(
            "adapter.rank",
            MOST_RANK,
            "network_dim",
            "network_args.full_matrix",
            why="the whole matrix, which is as much as this rank is here",
        )
        reading.put("adapter.alpha", float(MOST_RANK), "network_alpha", why="a whole matrix is unscaled there")
    else:
        reading.put("adapter.rank", rank, "network_dim")
        reading.put("adapter.alpha", alpha, "network_alpha")
    _put_layers(reading, network, family)
    _put_dropout(reading, network)
    _put_extras(reading, network)


def _network(reading: Reading) -> Network:
    module = module_of(reading)
    last = module.rpartition(".")[2]
    algorithm = reading.text("network_args.algo", "").strip("\"' ").lower()

    # LyCORIS: the algorithm is the method.
    if module.startswith("lycoris"):
        algorithm = algorithm or "lora"
        if algorithm in _UNFINISHED:
            reading.cannot("network_args.algo", f"{_UNFINISHED[algorithm]} is no method here; plain LoRA is set")
        decomposed = reading.flag("network_args.dora_wd")
        method = {"loha": "loha", "lokr": "lokr", "diag-oft": "oft"}.get(algorithm, "dora" if decomposed else "lora")
        if decomposed and method in ("loha", "lokr"):
            reading.cannot("network_args.dora_wd", f"{method} has no weight decomposition here")
        return Network(method, _preset_modules(reading))

    # sd-scripts' own modules.
    if last in ("loha", "lokr"):
        return Network(last, "transformer")
    if last.startswith("oft"):
        return Network("oft", "attention")
    if last in ("dylora", "lora_fa"):
        reading.cannot("network_module", f"{last} is no method here; plain LoRA is set")
    by_block = any(reading.has(f"network_args.{key}") for key in ("block_dims", *RATES_BY_BLOCK))
    convolves = reading.whole("network_args.conv_dim") > 0 or (by_block and reading.has("network_args.conv_block_dims"))
    return Network("lora", "convolutions" if convolves else "transformer")


def _preset_modules(reading: Reading) -> str:
    """The layers of a LyCORIS preset."""
    preset = reading.text("network_args.preset", "full").strip("\"' ").lower()
    known = {
        "full": "convolutions", "full-lin": "linear", "attn-mlp": "transformer", "attn-only": "attention",
        "unet-transformer-only": "transformer", "unet-only": "convolutions",
    }  # fmt: skip
    if preset not in known:
        reading.cannot(
            "network_args.preset", f"its layers aren't known here; those of attn-mlp are set; known: {', '.join(known)}"
        )
    return known.get(preset, "transformer")


def _put_layers(reading: Reading, network: Network, family: str) -> None:
    if family not in ("sd", "sdxl"):
        _put_transformer_layers(reading, network, family)
        return

    # A UNet: kohya's transformers have projections before and behind their blocks, which `attention-ff` lacks.
    keys = ("network_module", "network_args.conv_dim", "network_args.preset")
    if network.modules == "attention" or network.method == "oft":
        reading.put("adapter.targets", "attention", *keys)
    elif network.modules == "linear":
        reading.put("adapter.targets", "linear", *keys)
    elif network.modules == "transformer":
        reading.put("adapter.targets", "linear" if family == "sdxl" else "all", *keys)
        frozen = ["resnets.=0"] if family == "sdxl" else ["resnets.=0", "samplers.=0"]
        reading.put("optimizer.block_rates", frozen, *keys)
        if family == "sd" and network.method != "oft":
            reading.put("adapter.block_ranks", ["resnets.=1", "samplers.=1"], *keys)  # frozen, so as small as can be
    else:
        reading.put("adapter.targets", "all", *keys)
        _put_convolution_ranks(reading)


def _put_convolution_ranks(reading: Reading) -> None:
    """Ranks of the 3x3 convolutions where they differ; ours keep the one scale."""
    rank, alpha = reading.settings["adapter.rank"], reading.settings["adapter.alpha"]
    conv_rank = reading.whole("network_args.conv_dim", rank)
    if not reading.has("network_args.conv_dim") and module_of(reading).startswith("lycoris"):
        conv_rank = rank
    if conv_rank != rank and 1 <= conv_rank <= MOST_RANK:
        reading.put("adapter.block_ranks", [f"{part}={conv_rank}" for part in _CONVOLUTIONS], "network_args.conv_dim")
    if reading.settings["adapter.method"] == "lokr" and rank == MOST_RANK:
        reading.no_effect("network_args.conv_alpha", "a whole matrix is unscaled there")
        return

    # Left out, the alpha of convolutions is 1 in sd-scripts and that of the other layers in LyCORIS.
    default = alpha if module_of(reading).startswith("lycoris") else 1.0
    conv_alpha = reading.number("network_args.conv_alpha", default) or float(conv_rank)
    if conv_rank > 0 and abs(conv_alpha / conv_rank - alpha / rank) > 1e-9:
        why = f"convolutions have the scale {alpha / rank:g} of the other layers here, not {conv_alpha / conv_rank:g}"
        reading.cannot("network_args.conv_alpha", why)
        reading.notes.append(why)
    else:
        reading.no_effect("network_args.conv_alpha", "convolutions have the scale of the other layers, as here")


def _put_transformer_layers(reading: Reading, network: Network, family: str) -> None:
    """All linear layers of the blocks, as kohya's networks for transformers adapt, less those given no rank."""
    modulation = [
        f"network_args.{key}"
        for key in ("img_mod_dim", "txt_mod_dim", "single_mod_dim", "x_mod_dim", "context_mod_dim")
    ]
    feed_forward = [f"network_args.{key}" for key in ("x_mlp_dim", "context_mlp_dim")]
    without = [key for key in modulation if reading.has(key) and reading.whole(key) == 0]
    narrow = [key for key in feed_forward if reading.has(key) and reading.whole(key) == 0]

    # FLUX's and SD3's modulation is adapted too, unless it is given the rank 0.
    if network.modules == "attention" or (family == "sd3" and len(narrow) == 2):
        targets = "attention"
    elif family in ("flux", "sd3") and not without:
        targets = "linear"
    else:
        targets = "attention-ff"
    reading.put("adapter.targets", targets, "network_module", "network_args.preset", *without, *narrow)
    for key in (*modulation, *feed_forward, "network_args.img_mlp_dim", "network_args.txt_mlp_dim"):
        if reading.whole(key) > 0:
            reading.cannot(key, "parts of a block have no rank of their own here")
    if family in ("flux", "sd3"):
        reading.put("adapter.targets", targets, "network_args.split_qkv")
        if not reading.flag("network_args.split_qkv"):
            reading.notes.append(
                "query, key and value share one factor there; here each has its own, as with split_qkv"
            )
    if family in ("flux", "chroma"):
        _put_blocks(reading)


def _put_blocks(reading: Reading) -> None:
    """Freeze the blocks that `train_blocks` and the lists of indices leave out."""
    lines: list[str] = []
    blocks = reading.text("network_args.train_blocks", "all").lower()
    if blocks == "single":
        lines.append(f"{_DOUBLE}=0")
    elif blocks == "double":
        lines.append(f"{_SINGLE}=0")
    # FLUX has 19 double and 38 single blocks.
    for key, prefix, count in (
        ("train_double_block_indices", _DOUBLE, 19),
        ("train_single_block_indices", _SINGLE, 38),
    ):
        text = reading.text(f"network_args.{key}", "all").strip("\"' ")
        chosen = _indices(text, count)
        if chosen is None:
            reading.cannot(f"network_args.{key}", "it is no list of numbers and ranges, such as 0-5,8")
        elif len(chosen) < count:
            lines += [f"{prefix}{index}.=0" for index in range(count) if index not in chosen]
    for key, line in (("img_mlp_dim", ".ff.=0"), ("txt_mlp_dim", ".ff_context.=0")):
        if reading.has(f"network_args.{key}") and reading.whole(f"network_args.{key}") == 0:
            lines.append(line)
            reading.translated(f"network_args.{key}", f"optimizer.block_rates: {line}")
    if lines:
        keys = [
            f"network_args.{key}"
            for key in ("train_blocks", "train_double_block_indices", "train_single_block_indices")
        ]
        reading.put("optimizer.block_rates", lines[:64], *(key for key in keys if reading.has(key)))


def _indices(text: str, count: int) -> set[int] | None:
    if text in ("all", ""):
        return set(range(count))
    if text == "none":
        return set()
    chosen: set[int] = set()
    for part in text[:400].split(","):
        match = re.fullmatch(r"\s*(\d{1,3})\s*(?:-\s*(\d{1,3})\s*)?", part)
        if not match:
            return None
        chosen |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return {index for index in chosen if index < count}


def _put_dropout(reading: Reading, network: Network) -> None:
    if network.method in ("loha", "lokr"):  # the share of whole layers, which others call module dropout
        reading.put("adapter.dropout", reading.number("network_args.module_dropout"), "network_args.module_dropout")
        if reading.number("network_dropout"):
            reading.cannot("network_dropout", f"{network.method} leaves out whole layers alone here")
        return
    reading.put("adapter.dropout", reading.number("network_dropout"), "network_dropout")
    if reading.number("network_args.module_dropout"):
        reading.cannot(
            "network_args.module_dropout", f"{network.method} leaves out a layer's inputs alone here, not whole layers"
        )


def _put_extras(reading: Reading, network: Network) -> None:
    if network.method == "lora" and reading.flag("network_args.rs_lora"):
        reading.put("adapter.rank_stabilised", True, "network_args.rs_lora")
    if network.method == "lokr":
        reading.put("adapter.factor", reading.whole("network_args.factor", -1), "network_args.factor")
        reading.put(
            "adapter.decompose_both", reading.flag("network_args.decompose_both"), "network_args.decompose_both"
        )

    # LoRA+ has one ratio for all parts here.
    ratio = reading.number("network_args.loraplus_lr_ratio")
    unet, text = (reading.number(f"network_args.loraplus_{part}_lr_ratio", ratio) for part in ("unet", "text_encoder"))
    if unet or text:
        reading.put(
            "optimizer.loraplus_ratio",
            unet or text,
            "network_args.loraplus_lr_ratio",
            "network_args.loraplus_unet_lr_ratio",
        )
        if text != unet:
            reading.cannot(
                "network_args.loraplus_text_encoder_lr_ratio", "all parts have one ratio here: the denoiser's"
            )
