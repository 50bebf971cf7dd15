"""Which LoRA a name means: its own first, then the only one that differs in folder, ending, case or header alias, else
an error that names them.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import lora_file
from trainer.config import StackConfig
from trainer.errors import AdapterError, UserError
from trainer.lora_file import LoraInfo
from trainer.render import a1111_text, lora_lookup, prompting


def info(path: str, digest: str, alias: str = "", copies: tuple[str, ...] = ()) -> LoraInfo:
    metadata = {"ss_output_name": alias} if alias else {}
    place, others = Path(f"/loras/{path}.safetensors"), tuple(Path(f"/loras/{copy}.safetensors") for copy in copies)
    return LoraInfo(
        path=place, name=place.stem, sha256=digest * 64, family=None, base=None, method="lora", rank=4, alpha=4.0,
        num_modules=1, num_parameters=1,
        size_bytes=1, norm=1.0, trigger="", title=place.stem, metadata=metadata, recipe=None, embeddings={},
        copies=others,
    )  # fmt: skip


LIBRARY = [
    info("fox", "a"), info("sub/Fox", "b"), info("styles/ink", "c"), info("people/ink", "d"),
    info("renamed", "e", alias="Noto_Style"),
    info("cat (1)", "f", copies=("cat",)), info("Big.v2", "9"), info("a, b: c", "8"), info("dog", "7", alias="hound"),
    info("Hound", "6"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        # exact before loose
        ("fox", "a"), ("Fox", "b"), ("sub/Fox", "b"), ("sub\\Fox.safetensors", "b"), ("fox.safetensors", "a"),
        ("styles/ink", "c"), ("people/ink.safetensors", "d"), ("RENAMED", "e"), ("other/renamed.pt", "e"),
        ("Noto_Style", "e"), ("noto_style", "e"), ("styles/noto_style.safetensors", "e"),
        ("cat", "f"), ("cat (1)", "f"), ("CAT", "f"), ("big.V2", "9"), ("Big.v2.safetensors", "9"), ("a b c", "8"),
        ("Hound", "6"), ("dog", "7"),
    ],
)  # fmt: skip
def test_a_name_means_the_file_of_that_name_or_the_only_one_like_it(name: str, digest: str) -> None:
    assert lora_lookup.one(name, LIBRARY, "the prompt").sha256 == digest * 64


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ink", (("could be ink (styles/ink.safetensors, hash cccccccccccc), ink "
            "(people/ink.safetensors"), "with its folder")),
        ("FOX", ("fox (loras/fox.safetensors", "Fox (sub/Fox.safetensors")),
        ("HOUND", ("dog (", "Hound (")),
        ("wolf", ("isn't here; allowed: one of Big.v2, Fox, Hound", "the prompt names the LoRA 'wolf'")),
        ("fo", ("isn't here",)), ("", ("isn't here",)), ("/etc/passwd", ("isn't here",)),
        (".safetensors", ("isn't here",)),
    ],
)  # fmt: skip
def test_a_name_that_decides_nothing_is_refused_with_what_it_could_be(name: str, says: tuple[str, ...]) -> None:
    with pytest.raises(AdapterError) as refused:
        lora_lookup.one(name, LIBRARY, "the prompt")
    assert all(part in str(refused.value) for part in says)


def test_a_name_never_touches_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("stat", "exists", "is_file", "open", "resolve"):
        monkeypatch.setattr(Path, call, lambda *args, **kwargs: pytest.fail("a name was taken for a path"))
    assert lora_lookup.matches("/etc/passwd", LIBRARY) == lora_lookup.matches("\0", LIBRARY) == []


def small(path: Path, seed: int = 0, **metadata: str) -> Path:
    """A LoRA file of one layer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = torch.Generator().manual_seed(seed)
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{module}.lora_down.weight": torch.randn(2, 8, generator=rng),
        f"{module}.lora_up.weight": torch.randn(8, 2, generator=rng),
    }
    save_file(tensors | {f"{module}.alpha": torch.tensor(2.0)}, path, metadata=metadata or None)
    return path


def test_a_copy_hides_no_name(tmp_path: Path) -> None:
    fox = small(tmp_path / "fox.safetensors")
    (tmp_path / "fox (1).safetensors").write_bytes(fox.read_bytes())
    library = lora_file.library([tmp_path])
    assert len(library) == 1
    for name in ("fox", "fox (1)", "FOX"):
        resolved = prompting.without_tags(StackConfig(prompt=f"a <lora:{name}:0.5>"), None, lambda: library)
        assert (
            load_file(resolved.adapters[0].file).keys() == load_file(fox).keys() and resolved.adapters[0].name == name
        )


@pytest.mark.parametrize(
    "stem",
    [
        "my__style__v1",
        "__style__",
        "my{a|b}",
        "${c=red}",
        "x, y",
        "Fox (1)",
        "a=b",
        "naïve 猫",
        "[a|b]",
        "one AND two",
        "{2$$a|b}",
    ],
)
def test_our_own_text_pasted_back_names_the_same_file(stem: str, tmp_path: Path) -> None:
    """Whatever a LoRA is called: our infotext as the prompt gives the same LoRA, weight and words."""
    path = small(tmp_path / f"{stem}.safetensors")
    library = lora_file.library([tmp_path])
    (digest,) = library
    first = StackConfig(prompt="a fox", adapters=({"file": str(path), "name": stem, "sha256": digest, "weight": 0.8},))
    pasted = a1111_text.infotext(first, "imprimatura", "0" * 64, "DDIM").split("\n")[0]
    again = prompting.without_tags(StackConfig(prompt=pasted), tmp_path, lambda: library)
    assert (again.prompt, [(adapter.file, adapter.weight) for adapter in again.adapters]) == (
        "a fox",
        [(str(path), 0.8)],
    )


def test_the_command_says_which_files_a_name_could_mean(run_velatura: Callable[..., object], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        small(tmp_path / "outputs" / folder / "ink.safetensors", seed=len(folder) + ord(folder[0]))
    result = run_velatura("render", "--prompt", "a <lora:ink:1>", "--out", tmp_path / "x.png")
    assert (
        result.returncode == 2
        and "could be ink (one/ink.safetensors" in result.stderr
        and "ink (two/ink.safetensors" in result.stderr
    )  # type: ignore[attr-defined]


def test_hostile_names_are_refused_in_words() -> None:
    for name in ("/" * 300, "\\" * 300, "." * 300, "x" * 300, "\u202e", "猫" * 100, "a\0b"):
        try:
            lora_lookup.one(name, LIBRARY, "the prompt")
        except UserError as error:
            assert len(str(error)) < 600
