"""A1111's prompt editing, alternation and AND, and weights with a comma, are refused by name; brackets that only weigh
stay.
"""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import since
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.render import prompt_editing, prompting


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a [fox:cat:0.5]", "[fox:cat:0.5], by which A1111 changes the prompt at a step"),
        ("[fox:0.5]", "[fox:0.5], by which A1111 changes"),
        ("[fox::0.5]", "[fox::0.5], by which A1111 changes"),
        ("[fox:cat:10]", "changes the prompt at a step"),
        ("[fox:cat: .5 ]", "changes the prompt at a step"),
        ("[fox:cat:0,5]", "changes the prompt at a step"),
        ("[a (fox:1.2):[cat]:0.25]", "changes the prompt at a step"),
        ("((a][:b:c [d:3]", "changes the prompt at a step"),  # of A1111's own doctest
        ("[fox|cat]", "[fox|cat], by which A1111 alternates"),
        ("[fox|(cat:1.1)|dog] x", "alternates at every step"),
        ("a fox AND a cat", "AND, by which A1111 mixes two prompts"),
        ("a fox AND a cat :0.5", "AND, by which A1111 mixes two prompts"),
        ("(cup:1,3)", "(cup:1,3), whose weight is written with a comma; allowed: a point, (cup:1.3)."),
        ("a (red cup: ,5 )", "allowed: a point, (red cup:.5)."),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(prompt: str, says: str) -> None:
    for field, name in (("prompt", "prompt"), ("negative_prompt", "negative prompt")):
        with pytest.raises(ConfigError) as refused:
            prompting.without_tags(StackConfig(**{field: prompt}), None, dict)
        assert f"the {name} has {says}" in str(refused.value) if says[0] in "[(A" else says in str(refused.value)
        assert "allowed:" in str(refused.value)


@pytest.mark.parametrize(
    "prompt",
    [
        "a [fox]", "[[fox]], (cat)", "(fox:1.3) [cat:dog]", "[note: a fox]", r"\[a|b\]", r"\[a:b:0.5\]", "a | b",
        "a: 0.5", "a band AND_1 ANDES and",
        r"salt \AND pepper",         "(a:b)", "(a:1.1.1) b:2) (c:)", "16:9, 4:3", "(fox, cat)", "(fox:1.3, cat)",
        "a BREAK b", "[a", "a:0.5]", "(a|b)", "",
    ],
)  # fmt: skip
def test_brackets_that_weigh_and_escapes_stay(prompt: str) -> None:
    assert prompting.without_tags(StackConfig(prompt=prompt), None, dict).prompt == prompt


def test_where_weights_are_not_read_words_stay_words() -> None:
    assert prompt_editing.problems("a sign that says SALT AND PEPPER, (9:1,5)", reads_weights=False) == []
    assert len(prompt_editing.problems("[a|b] [c:d:0.5]", reads_weights=False)) == 2
    assert (
        prompting.without_tags(StackConfig(family="flux", prompt="SALT AND PEPPER"), None, dict).prompt
        == "SALT AND PEPPER"
    )


def test_many_are_named_a_few_at_a_time() -> None:
    with pytest.raises(ConfigError, match="and 35 more") as refused:
        prompt_editing.check({"prompt": "[a|b] " * 40})
    assert str(refused.value).count("alternates") == 5


def test_what_trigger_words_bring_is_never_refused_later() -> None:
    words = prompting.split_triggers("mokka, [a|b], x AND y, (cup:1, a [fox:0.5], salt")
    prompt = prompting.with_triggers("a cat", words)
    assert (
        words == ["mokka", "(cup:1", "salt"]
        and prompting.without_tags(StackConfig(prompt=prompt), None, dict).prompt == prompt
    )


@given(st.lists(st.sampled_from([*"()[]:|\\,.a1 ", "AND", "0.5", "1,3"]), max_size=200).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_prompt_is_looked_through(prompt: str) -> None:
    assert all("allowed: " in problem for problem in prompt_editing.problems(prompt))
    if not any(sign in prompt for sign in "[(") and "AND" not in prompt:
        assert prompt_editing.problems(prompt) == []


@pytest.mark.parametrize(
    "piece", ["[", "(", "[a|", "[a:", "(]", "[)", "([", ":", "[a:0.5", "]", ")", "(((]]]", "AND ", "[a|b]"]
)
def test_long_prompts_take_no_time(piece: str) -> None:
    start, rng = time.thread_time(), random.Random(0)
    prompt_editing.problems((piece * 8000)[:8000])
    prompt_editing.problems("".join(rng.choice("([])|:a1") for _ in range(8000)))
    assert since(start) < 1
