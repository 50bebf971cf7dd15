"""The ComfyUI graph: sound links, one graph in two forms, found where ComfyUI looks for it."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.config import AdapterChoice, StackConfig
from trainer.render import comfy, picture_metadata, samplers

# Inputs that are links, by ComfyUI's own INPUT_TYPES, in their order; then the widgets, as the page shows them.
NODES: dict[str, tuple[list[tuple[str, str]], list[str]]] = {
    "CheckpointLoaderSimple": ([], ["ckpt_name"]),
    "LoraLoader": ([("model", "MODEL"), ("clip", "CLIP")], ["lora_name", "strength_model", "strength_clip"]),
    "RescaleCFG": ([("model", "MODEL")], ["multiplier"]),
    "CLIPTextEncode": ([("clip", "CLIP")], ["text"]),
    "EmptyLatentImage": ([], ["width", "height", "batch_size"]),
    "KSampler": (
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")],
        ["seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
    ),
    "VAEDecode": ([("samples", "LATENT"), ("vae", "VAE")], []),
    "SaveImage": ([("images", "IMAGE")], ["filename_prefix"]),
    "Note": ([], ["text"]),
}


def stack(num: int = 2, **values: Any) -> StackConfig:
    adapters = tuple(
        AdapterChoice(
            name=f"a{number}", sha256="ab" * 32, weight=0.5 + number / 10, text_weight=0.25 if number else None
        )
        for number in range(num)
    )
    return StackConfig(**{"prompt": "a fox", "negative_prompt": "blur", "adapters": adapters, "seed": 7, **values})


@pytest.mark.parametrize("num", [0, 1, 3])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_every_link_joins_an_output_and_an_input_of_its_type(num: int, rescale: float) -> None:
    _, workflow = comfy.graphs(stack(num, guidance_rescale=rescale), "base", "ddim")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) and max(nodes) == workflow["last_node_id"]
    assert [link[0] for link in workflow["links"]] == list(range(1, workflow["last_link_id"] + 1))
    for number, source, slot, target, place, kind in workflow["links"]:
        given, taken = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert given["type"] == taken["type"] == kind and number in given["links"] and taken["link"] == number
    assert sum(len(output["links"]) for node in nodes.values() for output in node["outputs"]) == len(workflow["links"])
    for node in nodes.values():
        inputs, widgets = NODES[node["type"]]
        assert [(entry["name"], entry["type"]) for entry in node["inputs"]] == inputs and all(
            entry["link"] for entry in node["inputs"]
        )
        assert len(node["widgets_values"]) == len(widgets)
    assert sorted(node["order"] for node in nodes.values()) == list(range(len(nodes)))
    assert {"links", "groups", "config", "extra", "version"} <= set(workflow) and workflow["version"] == 0.4
    assert any(node["type"] == "RescaleCFG" for node in nodes.values()) == (rescale > 0)


def test_what_a_lora_named_in_the_prompt_leaves_behind_is_not_in_the_graph() -> None:
    prompt, workflow = comfy.graphs(stack(1, prompt=" a fox ", negative_prompt=" blur"), "base", "ddim")
    for texts in (
        [node["inputs"]["text"] for node in prompt.values() if node["class_type"] == "CLIPTextEncode"],
        [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "CLIPTextEncode"],
    ):
        assert texts == ["a fox", "blur"]


def test_both_forms_are_one_graph() -> None:
    prompt, workflow = comfy.graphs(stack(3), "base", "ddim")
    links = {link[0]: link for link in workflow["links"]}
    again = {}
    for node in workflow["nodes"]:
        if node["type"] == "Note":
            continue
        widgets = dict(zip(NODES[node["type"]][1], node["widgets_values"], strict=True))
        widgets.pop("control_after_generate", None)
        joined = {entry["name"]: [str(links[entry["link"]][1]), links[entry["link"]][2]] for entry in node["inputs"]}
        again[str(node["id"])] = {"class_type": node["type"], "inputs": {**widgets, **joined}}
    assert again == {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in prompt.items()}


def test_the_chain_says_the_stack() -> None:
    off = AdapterChoice(name="off", enabled=False)
    made = stack(2, guidance_rescale=0.0, sampler="dpm++_2m_karras")
    prompt, _ = comfy.graphs(made.model_copy(update={"adapters": (*made.adapters, off)}), "base", "ddim")

    def inputs(number: str) -> dict[str, Any]:
        return prompt[number]["inputs"]

    end = next(number for number, node in prompt.items() if node["class_type"] == "SaveImage")
    sampler = inputs(inputs(inputs(end)["images"][0])["samples"][0])
    assert (sampler["seed"], sampler["steps"], sampler["cfg"], sampler["sampler_name"], sampler["scheduler"]) == (
        7,
        25,
        3.0,
        "dpmpp_2m",
        "karras",
    )
    last = inputs(sampler["model"][0])
    first = inputs(last["model"][0])
    assert (last["lora_name"], last["strength_model"], last["strength_clip"]) == ("a1.safetensors", 0.6, 0.25)
    assert (first["lora_name"], first["strength_model"], first["strength_clip"]) == ("a0.safetensors", 0.5, 0.5)
    assert (
        inputs(first["model"][0]) == {"ckpt_name": "base.safetensors"}
        and prompt[first["model"][0]]["class_type"] == "CheckpointLoaderSimple"
    )
    assert (
        inputs(sampler["positive"][0]) == {"text": "a fox", "clip": [sampler["model"][0], 1]}
        and inputs(sampler["negative"][0])["text"] == "blur"
    )
    latents = inputs(sampler["latent_image"][0])
    assert (latents["width"], latents["height"]) == (128, 128)


def test_every_sampler_is_translated_and_what_is_not_is_in_the_note() -> None:
    assert set(comfy.SAMPLERS) == set(samplers.SAMPLERS)
    assert "Sampler PNDM has no counterpart here" in comfy.note(stack(), "PNDM") and "counterpart" not in comfy.note(
        stack(), "ddim"
    )


def test_what_a_graph_cannot_say_is_in_its_note() -> None:
    adapter = AdapterChoice(name="cat", schedule="linear 1 0", blocks=("OUT=0.5",), region="box 0 0 0.5 1")
    made = stack(2, mode="switch")
    _, workflow = comfy.graphs(made.model_copy(update={"adapters": (*made.adapters, adapter)}), "base", "ddim")
    (note,) = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "Note"]
    assert "mode switch" in note and "cat: blocks OUT=0.5, schedule linear 1 0, region box 0 0 0.5 1" in note
    assert "Not in this graph" not in comfy.note(stack(), "ddim")


def comfys_webp(raw: bytes) -> dict[str, str]:
    """What ComfyUI's page finds in a WebP (src/scripts/pnginfo.ts, getWebpMetadata): ASCII tags of the first directory,
    `key:value`.
    """
    offset, tags = 12, {}
    while offset < len(raw):
        length = struct.unpack("<I", raw[offset + 4 : offset + 8])[0]
        if raw[offset : offset + 4] == b"EXIF":
            exif = raw[offset + 8 : offset + 8 + length]
            order = "<" if exif[:2] == b"II" else ">"
            start = struct.unpack(f"{order}I", exif[4:8])[0]
            for number in range(struct.unpack(f"{order}H", exif[start : start + 2])[0]):
                _, kind, count, place = struct.unpack(
                    f"{order}HHII", exif[start + 2 + 12 * number : start + 14 + 12 * number]
                )
                if kind == 2:
                    key, _, value = exif[place : place + count - 1].decode().partition(":")
                    tags[key] = value
        offset += 8 + length + length % 2
    return tags


def test_png_and_webp_carry_the_graph_where_comfyui_looks(tmp_path: Path) -> None:
    made = stack(1, prompt="a „blue“ fox")
    picture = picture_metadata.Picture(Image.new("RGB", (16, 16)), made, "base", "ab" * 32, "EulerDiscrete")
    with Image.open(picture_metadata.save(picture, tmp_path / "x.png")) as opened:
        graphs = [{key: opened.info[key] for key in ("prompt", "workflow")}]
    graphs.append(comfys_webp(picture_metadata.save(picture, tmp_path / "x.webp").read_bytes()))
    for texts in graphs:
        prompt, workflow = json.loads(texts["prompt"]), json.loads(texts["workflow"])
        assert (prompt, workflow) == comfy.graphs(made, "base", "euler")
