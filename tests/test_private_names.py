"""What libraries keep for themselves is used in one place each, where a comment says why there is no other way."""

from __future__ import annotations

import ast
import functools

import parsed
import pytest

OWNERS = {
    "_execution_device": "trainer.pipelines",
    "_gradient_checkpointing_func": "trainer.families.chroma",
    "_force_inference_output": "trainer.families.hidream",
    "_hf_peft_config_loaded": "trainer.adapter",
    "lora_variant": "trainer.memory.fused_lora",
    "_foreach_copy_": "trainer.render.folding",
}
NOWHERE = (
    "_callback_tensor_inputs",
    "_foreach_mul_",
    "_old_forward",
    "_hf_hook",
    "_modules",
    "_parameters",
    "_buffers",
)


@functools.cache
def all_users() -> dict[str, set[str]]:
    """Of each name that stands in our code as an attribute or as a text, the modules."""
    found: dict[str, set[str]] = {}
    for module, path in parsed.sources("trainer", "app").items():
        for node in ast.walk(parsed.tree(path)):
            name = getattr(node, "attr", None) or (node.value if isinstance(node, ast.Constant) else None)
            if isinstance(name, str):
                found.setdefault(name, set()).add(module)
    return found


def users(name: str) -> set[str]:
    return all_users().get(name, set())


@pytest.mark.parametrize("name", OWNERS)
def test_a_private_name_has_one_owner(name: str) -> None:
    assert users(name) == {OWNERS[name]}


@pytest.mark.parametrize("name", NOWHERE)
def test_a_private_name_with_a_public_one_beside_it_is_not_used(name: str) -> None:
    assert not users(name)
