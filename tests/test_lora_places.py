"""Where a file is said to load: against diffusers' own converters for every family and scheme, and what was measured on
the other tools.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lora_tables
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import plain
from trainer import families, lora_file, presets, session
from trainer.deltas import Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file import names, renaming, tool_names, writing
from trainer.lora_file.names.rows import amounts, filled
from trainer.lora_file.where_it_loads import Place
from trainer.lora_tools import verify
from trainer.lora_tools.convert import convert


def places(path: Path) -> dict[str, Place]:
    return {place.tool: place for place in lora_file.inspect(path).places}


def block(family: names.Family) -> dict[str, Update]:
    """An update of rank 1 for every attention and feed-forward layer of the first blocks, at the size of a published
    model.
    """
    size, generator = family.sizes[0], torch.Generator().manual_seed(0)
    updates: dict[str, Update] = {}
    for row in family.rows:
        for path, outs in zip(row.paths, row.outs, strict=True):
            whole = f"{family.component}.{filled(path, (0,) * path.count('#'))}"
            out, into = amounts(outs, size.values), amounts(row.into, size.values)
            inner = any(
                word in path for word in (".norm1.", ".attn", ".ff", ".feed_forward", "attention.", "to_q", "proj_mlp")
            )
            if (
                inner
                and "conv" not in path
                and ".norm_" not in path
                and not path.startswith("text_fusion")
                and out
                and into
                and whole not in updates
            ):
                updates[whole] = Delta(
                    torch.randn(1, into[0], generator=generator), torch.randn(out[0], 1, generator=generator), 1.0
                )
    return updates


@pytest.mark.parametrize("name", names.registry())
def test_diffusers_verdict_is_what_its_converter_does_in_every_scheme(name: str, tmp_path: Path) -> None:
    family = names.registry()[name]
    updates = block(family)
    assert updates
    for scheme in tool_names.SCHEMES[:-1]:
        spelled = renaming.plain(family, updates, scheme, family.sizes[0].name)
        path = tmp_path / f"{scheme}.safetensors"
        writing.save(
            path, spelled.modules, spelled.metadata | {"ss_base_model_version": family.base_version}, torch.float32
        )
        verdict = places(path)["diffusers"]
        (proof,) = [proof for proof in verify.verify(path) if proof.through == "diffusers' converter"]
        assert proof.holds == (verdict.verdict == "yes"), (scheme, verdict, proof)


def test_diffusers_names_on_sd_are_dead_elsewhere_as_measured(tmp_path: Path) -> None:
    """Measured: 0 of 146 attention modules in ComfyUI, nothing in A1111, InvokeAI and sd-scripts."""
    path = lora_tables.write("sd15_lora_kohya", tmp_path, blocks=2, rank=1)
    kohya = places(path)
    assert {tool: place.verdict for tool, place in kohya.items()} == dict.fromkeys(kohya, "yes")
    convert(path, tmp_path / "peft.safetensors", "diffusers")
    verdicts = places(tmp_path / "peft.safetensors")
    attention = sum(".attn" in module and "lora_A" in module for module in load_file(tmp_path / "peft.safetensors"))
    assert verdicts["diffusers"].verdict == "yes" and verdicts["ComfyUI"].verdict == "partly"
    assert verdicts["ComfyUI"].of - verdicts["ComfyUI"].loads == attention > 50
    assert {verdicts[tool].verdict for tool in ("A1111", "InvokeAI", "kohya")} == {"no"} and "convert" in verdicts[
        "A1111"
    ].why


def _with(
    module_parts: dict[str, tuple[int, ...]],
    folder: Path,
    name: str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
) -> Path:
    save_file(
        {f"{name}.{suffix}": torch.rand(shape) + 0.1 for suffix, shape in module_parts.items()},
        folder / "x.safetensors",
    )
    return folder / "x.safetensors"


def test_methods_that_others_do_not_have_are_told_with_the_way_out(tmp_path: Path) -> None:
    loha = {"hada_w1_a": (1280, 2), "hada_w1_b": (2, 1280), "hada_w2_a": (1280, 2), "hada_w2_b": (2, 1280), "alpha": ()}
    verdicts = places(_with(loha, tmp_path))
    assert (
        verdicts["diffusers"].verdict == "no"
        and "ValueError" in verdicts["diffusers"].why
        and verdicts["kohya"].verdict == "no"
    )
    assert {verdicts[tool].verdict for tool in ("ComfyUI", "A1111", "Forge", "InvokeAI")} == {"yes"}
    low = {"lora_down.weight": (2, 1280), "lora_up.weight": (1280, 2), "alpha": ()}
    verdicts = places(_with({**low, "dora_scale": (1280, 1)}, tmp_path))
    assert {place.verdict for place in verdicts.values()} == {"wrong"} and all(
        "to-plain" in place.why for place in verdicts.values()
    )
    verdicts = places(_with({**low, "dora_scale": (1, 1280)}, tmp_path))
    assert {tool: place.verdict for tool, place in verdicts.items()} == {
        "diffusers": "wrong", "ComfyUI": "yes", "A1111": "yes", "Forge": "yes", "InvokeAI": "yes", "kohya": "wrong",
    }  # fmt: skip


def test_alphas_that_differ_are_wrong_in_diffusers_until_the_file_is_converted(tmp_path: Path) -> None:
    tensors = lora_tables.fill(lora_tables.modules("sd15_lora_kohya", 1), rank=2)
    for number, name in enumerate(sorted(name for name in tensors if name.endswith("alpha"))):
        tensors[name] = torch.tensor(1.0 + number % 2)
    save_file(tensors, tmp_path / "x.safetensors")
    assert places(tmp_path / "x.safetensors")["diffusers"].verdict == "wrong"
    convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "kohya")
    assert places(tmp_path / "y.safetensors")["diffusers"].verdict == "yes"


def test_a_family_that_a_tool_does_not_have_is_said_so(tmp_path: Path) -> None:
    verdicts = places(lora_tables.write("flux_lora_kohya", tmp_path, blocks=1))
    assert verdicts["A1111"].verdict == "no" and "has no LoRAs for FLUX.1" in verdicts["A1111"].why
    assert {verdicts[tool].verdict for tool in ("diffusers", "ComfyUI", "Forge", "InvokeAI", "kohya")} == {"yes"}
    with pytest.raises(AdapterError, match="scheme is 'automatic'; allowed: kohya"):
        convert(tmp_path / "flux_lora_kohya.safetensors", tmp_path / "y.safetensors", "automatic")


# What other tools' own code found, in tables; each of these was once said otherwise.


def file_of(
    family: str, scheme: str, folder: Path, method: str = "lora", keep: Callable[[str], bool] = lambda module: True
) -> Path:
    """A file of one block of a family at its published size, with another method's tensors in place of a LoRA's."""
    own = names.registry()[family]
    kept = [(path, update) for path, update in block(own).items() if keep(path)][:4]
    spelled = renaming.plain(own, dict(kept), scheme, own.sizes[0].name)
    made = {module: other(parts, method) for module, parts in spelled.modules.items()}
    path = folder / f"{family}-{scheme}-{method}.safetensors"
    metadata = {lora_file.RECIPE_KEY: "{}"} if method == "oft" else {}  # ours: which way it turns is known
    writing.save(
        path, made, (metadata or spelled.metadata) | {"ss_base_model_version": own.base_version}, torch.float32
    )
    return path


def other(parts: dict[str, torch.Tensor], method: str) -> dict[str, torch.Tensor]:
    down = next(tensor for suffix, tensor in parts.items() if "down" in suffix or "lora_A" in suffix)
    up = next(tensor for suffix, tensor in parts.items() if "up" in suffix or "lora_B" in suffix)
    out, into = up.shape[0], down.shape[1]
    return {
        "lora": parts,
        "dora": {
            "lora_down.weight": down,
            "lora_up.weight": up,
            "alpha": torch.tensor(1.0),
            "dora_scale": torch.ones(out, 1),
        },
        "loha": {
            "hada_w1_a": up,
            "hada_w1_b": down,
            "hada_w2_a": up.clone(),
            "hada_w2_b": down.clone(),
            "alpha": torch.tensor(1.0),
        },
        "lokr": {
            "lokr_w1": torch.ones(2, 2),
            "lokr_w2_a": torch.ones(out // 2, 1),
            "lokr_w2_b": torch.ones(1, into // 2),
            "alpha": torch.tensor(1.0),
        },
        "oft": {"oft_R.weight": torch.ones(into // 8, 28)},
    }[method]


def attention(path: str) -> bool:
    return any(word in path for word in (".attn", "attention.")) and ".norm" not in path


@pytest.mark.parametrize(
    ("family", "scheme", "method", "tool", "verdict"),
    [
        ("lumina2", "diffusers", "lora", "ComfyUI", "no"),
        ("lumina2", "comfyui", "lora", "ComfyUI", "yes"),
        ("flux2", "diffusers", "loha", "diffusers", "no"),
        ("zimage", "diffusers", "lokr", "diffusers", "no"),
        ("flux2", "diffusers", "lokr", "diffusers", "no"),
        *(
            (family, "diffusers", method, "InvokeAI", "no")
            for family in ("qwen", "zimage", "flux2", "flux")
            for method in ("loha", "lokr")
        ),
        ("flux", "diffusers", "lora", "InvokeAI", "yes"),
        ("sd", "kohya", "lokr", "InvokeAI", "no"),
        ("sd", "kohya", "loha", "InvokeAI", "yes"),
        *((family, "diffusers", "oft", tool, "no") for family in ("sd", "flux") for tool in ("ComfyUI", "InvokeAI")),
        ("sd", "kohya", "oft", "A1111", "no"),
        *(
            (family, "diffusers", "dora", "diffusers", "no")
            for family in ("auraflow", "flux2", "hidream", "lumina2", "qwen", "sana", "sd3", "zimage")
        ),
        ("krea2", "diffusers", "lora", "ComfyUI", "not checked"),
        ("sana", "diffusers", "lora", "ComfyUI", "no"),
        ("chroma", "diffusers", "lora", "ComfyUI", "yes"),
        ("flux2", "diffusers", "lora", "ComfyUI", "yes"),
    ],
)
def test_a_verdict_is_what_the_tools_own_code_does(
    family: str, scheme: str, method: str, tool: str, verdict: str, tmp_path: Path
) -> None:
    place = places(file_of(family, scheme, tmp_path, method, attention))[tool]
    assert place.verdict == verdict, place
    assert place.version and (place.verdict == "yes" or place.why)


def test_advice_leads_to_names_that_load_or_to_a_plain_lora(tmp_path: Path) -> None:
    reason = places(file_of("lumina2", "diffusers", tmp_path, keep=attention))["ComfyUI"].why
    assert "`velatura lora convert --to comfyui`" in reason
    convert(tmp_path / "lumina2-diffusers-lora.safetensors", tmp_path / "y.safetensors", "comfyui")
    assert places(tmp_path / "y.safetensors")["ComfyUI"].verdict == "yes"
    reason = places(file_of("qwen", "diffusers", tmp_path, "oft", attention))["ComfyUI"].why
    assert "to-plain" in reason and "convert" not in reason


@pytest.mark.parametrize(
    ("family", "scheme", "extra"),
    [("flux", "kohya", "lora_te1_text_projection"), ("flux", "diffusers", "transformer.norm_out.linear")],
)
def test_a_module_that_stops_a_tool_stops_it_for_the_whole_file(
    family: str, scheme: str, extra: str, tmp_path: Path
) -> None:
    path = file_of(family, scheme, tmp_path, keep=attention)
    assert places(path)["InvokeAI"].verdict == "yes"
    tensors = load_file(path)
    low = ("lora_down.weight", "lora_up.weight") if scheme == "kohya" else ("lora_A.weight", "lora_B.weight")
    sizes = (768, 768) if "te1" in extra else (3072, 6144)
    tensors |= {f"{extra}.{low[0]}": torch.ones(1, sizes[0]), f"{extra}.{low[1]}": torch.ones(sizes[1], 1)}
    save_file(tensors, path, {"ss_base_model_version": names.registry()[family].base_version})
    place = places(path)["InvokeAI"]
    assert place.verdict == "no" and f"where it has {extra}" in place.why


def test_a_new_word_in_the_file_stops_diffusers_where_it_does(tmp_path: Path) -> None:
    for family, verdict in (("sd", "no"), ("flux", "yes")):
        path = file_of(family, "kohya", tmp_path, keep=attention)
        tensors = load_file(path) | {
            "bundle_emb.mokka.string_to_param.*": torch.ones(1, 768),
            "bundle_emb.mokka.clip_l": torch.ones(1, 768),
        }
        save_file({key: tensor for key, tensor in tensors.items() if not key.endswith("*") or family == "sd"}, path)
        assert places(path)["diffusers"].verdict == verdict, family


# What a run writes, in the tools it is for.


@pytest.fixture
def trained(tmp_path: Path, draw_dots: Callable[..., Path]) -> Callable[..., tuple[Path, Path]]:
    """`trained("flux2", "dora")`: the base's folder and the LoRA file of two steps on that family's tiny model."""

    def train(family: str, method: str) -> tuple[Path, Path]:
        base = families.registry()[family].tiny(tmp_path / family)
        values = {
            "family": family, "base": str(base), "data.folder": str(draw_dots(tmp_path / "dots", "a {colour} dot")),
            "resolution_px": 64, "max_steps": 2,
            "preview_every_steps": 0, "adapter.method": method, "adapter.rank": 2, "adapter.alpha": 2.0,
            "learning_rate": 1e-2, "device": "cpu",
            "preview.guidance_rescale": 0.0,
        }  # fmt: skip
        run, stream = session.start(presets.load(plain.CHARACTER, values), tmp_path, "x", None)
        assert [event.kind for event in stream][-1] == "finished"
        return base, run.lora_file

    return train


@pytest.mark.parametrize("family", ["flux2", "auraflow"])
def test_dora_of_a_transformer_is_the_same_in_diffusers(family: str, trained: Callable[..., tuple[Path, Path]]) -> None:
    """Under LyCORIS' names of its lengths, eight families' loaders raised."""
    base, path = trained(family, "dora")
    assert lora_file.inspect(path).method == "dora" and places(path)["diffusers"].verdict == "yes"
    proofs = [
        proof for proof in verify.verify(path, base) if "diffusers" in proof.through and "names" not in proof.through
    ]
    assert len(proofs) == 2 and proofs[-1].holds, proofs


def test_lumina_is_written_in_the_names_that_comfyui_finds(
    trained: Callable[..., tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lumina = families.registry()["lumina2"]
    assert lumina.named_as(
        SimpleNamespace(transformer=SimpleNamespace(config=SimpleNamespace(hidden_size=2304))), set()
    ) == ("comfyui", "2B")
    as_published = replace(lumina, named_as=lambda pipe, modules: ("comfyui", "2B"))  # whose width a tiny model hasn't
    monkeypatch.setitem(families.registry(), "lumina2", as_published)
    _, path = trained("lumina2", "lora")
    verdicts = places(path)
    assert verdicts["ComfyUI"].verdict == "yes" and all(".attn." not in name for name in load_file(path))
    assert verdicts["diffusers"].verdict == "no" and "convert --to diffusers" in verdicts["diffusers"].why
