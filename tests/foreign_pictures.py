"""Pictures as other tools write them: texts made by their own rules, put where their own code puts them.

A1111 1.10 (modules/processing.py create_infotext, modules/images.py save_image_with_geninfo), Forge, ComfyUI 0.8
(nodes.py SaveImage, comfy_extras SaveAnimatedWEBP), InvokeAI 6 (image_files_disk.py, CoreMetadataInvocation), Fooocus
2.5 (modules/meta_parser.py, private_logger.py), SwarmUI (T2IParamInput.cs, ImageFile.cs).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

USER_COMMENT, MAKER_NOTE, MODEL, MAKE, EXIF = 0x9286, 0x927C, 0x0110, 0x010F, 0x8769
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


def picture() -> Image.Image:
    return Image.new("RGB", (64, 64), "grey")


def png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key.replace("__", "-"), text)
    picture().save(path, "PNG", pnginfo=info)
    return path


def a1111(path: Path, text: str) -> Path:
    """PNG `parameters`; else UserComment inside the Exif directory, big-endian UTF-16 as piexif dumps it."""
    if path.suffix == ".png":
        return png(path, parameters=text)
    exif = Image.Exif()
    exif.get_ifd(EXIF)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    picture().save(path, FORMATS[path.suffix], exif=exif)
    return path


def fooocus(path: Path, text: str, scheme: str) -> Path:
    """PNG `parameters` and `fooocus_scheme`; else UserComment and MakerNote as text beside the picture's own tags."""
    if path.suffix == ".png":
        return png(path, parameters=text, fooocus_scheme=scheme)
    exif = Image.Exif()
    exif[USER_COMMENT], exif[0x0131], exif[MAKER_NOTE] = text, "Fooocus v2.5.5", scheme
    picture().save(path, FORMATS[path.suffix], exif=exif)
    return path


def swarmui(path: Path, values: dict[str, Any]) -> Path:
    """PNG `parameters`; else UserComment as ImageSharp encodes a text: UNICODE, little-endian."""
    text = json.dumps(values, indent=2)
    if path.suffix == ".png":
        return png(path, parameters=text)
    exif = Image.Exif()
    exif.get_ifd(EXIF)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-le")
    picture().save(path, FORMATS[path.suffix], exif=exif)
    return path


def comfyui(path: Path, prompt: dict[str, Any] | None = None, workflow: dict[str, Any] | None = None) -> Path:
    """PNG `prompt` and `workflow`; WebP Model `prompt:...` and Make `workflow:...`."""
    texts = {key: json.dumps(value) for key, value in (("prompt", prompt), ("workflow", workflow)) if value is not None}
    if path.suffix == ".png":
        return png(path, **texts)
    exif = Image.Exif()
    for key, tag in (("prompt", MODEL), ("workflow", MAKE)):
        if key in texts:
            exif[tag] = f"{key}:{texts[key]}"
    picture().save(path, FORMATS[path.suffix], exif=exif)
    return path


def invokeai(path: Path, values: dict[str, Any]) -> Path:
    return png(path, invokeai_metadata=json.dumps(values), invokeai_graph=json.dumps({"nodes": {}}))


INVOKEAI: dict[str, Any] = {
    "app_version": "6.9.0",
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a watermill at dusk",
    "negative_prompt": "blurry",
    "width": 512,
    "height": 640,
    "seed": 77,
    "rand_device": "cpu",
    "cfg_scale": 6.5,
    "cfg_rescale_multiplier": 0.0,
    "steps": 22,
    "scheduler": "dpmpp_2m_k",
    "seamless_x": False,
    "model": {"key": "k1", "hash": "blake3:0123", "name": "meadow", "base": "sdxl", "type": "main"},
    "loras": [
        {"model": {"key": "k2", "hash": "blake3:4567", "name": "cat", "base": "sdxl", "type": "lora"}, "weight": 0.75}
    ],
    "hrf_enabled": True,
    "controlnets": [{"control_model": {"name": "canny"}, "control_weight": 1.0}],
    "vae": {"name": "v"},
}


def fooocus_values(digest: str) -> dict[str, Any]:
    """As FooocusMetadataParser.to_string sorts them; a LoRA's hash is the first ten digits of the whole file's."""
    return dict(
        sorted(
            {
                "prompt": "a watermill at dusk",
                "negative_prompt": "blurry",
                "styles": "['Fooocus V2', 'Fooocus Sharp']",
                "performance": "Speed",
                "steps": 22,
                "resolution": "(512, 640)",
                "guidance_scale": 6.5,
                "sharpness": 2.0,
                "adm_guidance": "(1.5, 0.8, 0.3)",
                "base_model": "meadow",
                "base_model_hash": "0123456789",
                "refiner_model": "None",
                "sampler": "dpmpp_2m",
                "scheduler": "karras",
                "vae": "Default (model)",
                "seed": "77",
                "lora_combined_1": "cat : 0.75",
                "loras": [["cat", 0.75, digest]],
                "full_prompt": ["cinematic still, a watermill at dusk"],
                "full_negative_prompt": ["blurry, low"],
                "metadata_scheme": "fooocus",
                "version": "Fooocus v2.5.5",
            }.items()
        )
    )


def fooocus_text(digest: str) -> str:
    """As A1111MetadataParser.to_string writes it."""
    return (
        "cinematic still, a watermill at dusk\nNegative prompt: blurry, low\nSteps: 22, Sampler: DPM++ 2M Karras, "
        "Seed: 77, Size: 512x640, "
        "CFG scale: 6.5, Sharpness: 2.0, "
        'ADM Guidance: "(1.5, 0.8, 0.3)", Model: meadow, Model hash: 0123456789, Performance: Speed, Scheduler: '
        "karras, VAE: Default (model), "
        f'Raw prompt: a watermill at dusk, Raw negative prompt: blurry, Lora hashes: "cat: {digest}", Lora weights: '
        f'"cat: 0.75", Version: Fooocus v2.5.5'
    )


def swarmui_values(digest: str) -> dict[str, Any]:
    return {
        "sui_image_params": {
            "prompt": "a watermill at dusk",
            "negativeprompt": "blurry",
            "model": "SDXL/meadow",
            "images": 1,
            "seed": 77,
            "steps": 22,
            "cfgscale": 6.5,
            "aspectratio": "Custom",
            "width": 512,
            "height": 640,
            "sampler": "dpmpp_2m",
            "scheduler": "karras",
            "loras": ["sub/cat"],
            "loraweights": ["0.75"],
            "refinermethod": "PostApply",
            "controlnetstrength": 1.0,
            "swarm_version": "0.9.7.0",
        },
        "sui_extra_data": {"date": "2026-11-27", "generation_time": "1.00 sec"},
        "sui_models": [
            {"name": "SDXL/meadow.safetensors", "param": "model", "hash": "0x" + "12" * 32},
            {"name": "sub/cat.safetensors", "param": "loras", "hash": f"0x{digest}"},
        ],
    }


def comfyui_prompt() -> dict[str, Any]:
    """Base, two LoRAs, two prompts, a seed of its own node, one pass, a second over a larger picture."""
    lora = {"lora_name": "sub/cat.safetensors", "strength_model": 0.75, "strength_clip": 0.5}
    prompts = {"positive": ["12", 0], "negative": ["12", 1]}
    first = {"seed": ["14", 0], "steps": 22, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    second = {"seed": 5, "steps": 9, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    return {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "SDXL/meadow.safetensors"}},
        "10": {"class_type": "LoraLoader", "inputs": {**lora, "model": ["4", 0], "clip": ["4", 1]}},
        "11": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"lora_name": "gone.safetensors", "strength_model": 1.0, "model": ["10", 0]},
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a watermill at dusk", "clip": ["10", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["10", 1]}},
        "12": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {"strength": 1.0, "positive": ["6", 0], "negative": ["7", 0], "control_net": ["13", 0]},
        },
        "13": {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "canny.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
        "14": {"class_type": "PrimitiveInt", "inputs": {"value": 77}},
        "3": {
            "class_type": "KSampler",
            "inputs": {**first, "denoise": 1.0, "model": ["11", 0], **prompts, "latent_image": ["5", 0]},
        },
        "15": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 1024, "height": 1280}},
        "16": {
            "class_type": "KSampler",
            "inputs": {**second, "denoise": 0.5, "model": ["11", 0], **prompts, "latent_image": ["15", 0]},
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["16", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    }


def comfyui_workflow() -> dict[str, Any]:
    """The page's form, version 0.4: one LoRA, one muted and one bypassed, FLUX's guidance and custom sampling."""

    def node(number: int, kind: str, inputs: dict[str, int], values: list[Any], mode: int = 0) -> dict[str, Any]:
        return {
            "id": number,
            "type": kind,
            "mode": mode,
            "inputs": [{"name": name, "type": "*", "link": link} for name, link in inputs.items()],
            "widgets_values": values,
        }

    return {
        "last_node_id": 20,
        "version": 0.4,
        "nodes": [
            node(1, "UNETLoader", {}, ["meadow.safetensors", "default"]),
            node(2, "LoraLoaderModelOnly", {"model": 1}, ["cat.safetensors", 0.75]),
            node(3, "LoraLoaderModelOnly", {"model": 2}, ["off.safetensors", 1.0], mode=4),
            node(4, "CLIPTextEncode", {}, ["a watermill at dusk"]),
            node(5, "FluxGuidance", {"conditioning": 3}, [3.5]),
            node(6, "BasicGuider", {"model": 4, "conditioning": 5}, []),
            node(7, "RandomNoise", {}, [77, "fixed"]),
            node(8, "KSamplerSelect", {}, ["euler"]),
            node(9, "BasicScheduler", {"model": 10}, ["simple", 22, 1.0]),
            node(10, "EmptySD3LatentImage", {}, [512, 640, 1]),
            node(
                11,
                "SamplerCustomAdvanced",
                {"noise": 6, "guider": 7, "sampler": 8, "sigmas": 9, "latent_image": 11},
                [],
            ),
            node(12, "VAEDecode", {"samples": 12}, []),
            node(13, "SaveImage", {"images": 13}, ["x"]),
            node(14, "LoraLoaderModelOnly", {}, ["muted.safetensors", 1.0], mode=2),
        ],
        "links": [
            [1, 1, 0, 2, 0, "MODEL"],
            [2, 2, 0, 3, 0, "MODEL"],
            [3, 4, 0, 5, 0, "CONDITIONING"],
            [4, 3, 0, 6, 0, "MODEL"],
            [5, 5, 0, 6, 1, "CONDITIONING"],
            [6, 7, 0, 11, 0, "NOISE"],
            [7, 6, 0, 11, 1, "GUIDER"],
            [8, 8, 0, 11, 2, "SAMPLER"],
            [9, 9, 0, 11, 3, "SIGMAS"],
            [10, 3, 0, 9, 0, "MODEL"],
            [11, 10, 0, 11, 4, "LATENT"],
            [12, 11, 0, 12, 0, "LATENT"],
            [13, 12, 0, 13, 0, "IMAGE"],
        ],
    }
