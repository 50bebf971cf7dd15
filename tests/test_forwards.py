"""A module's forward, replaced by several who know nothing of each other."""

from __future__ import annotations

import ast
import copy
import itertools
from functools import partial

import parsed
import pytest
import torch
from torch import nn

from trainer import forwards


def tripled(below: forwards.Forward) -> forwards.Forward:
    return lambda x: 3 * below(x)


def raised(below: forwards.Forward) -> forwards.Forward:
    return lambda x: below(x) + 5


def squared(below: forwards.Forward) -> forwards.Forward:
    return lambda x: below(x) ** 2


LAYERS = {"tripled": tripled, "raised": raised, "squared": squared}


@pytest.fixture()
def module() -> nn.Linear:
    return nn.Linear(3, 2)


@pytest.fixture()
def x() -> torch.Tensor:
    return torch.randn(4, 3)


def by_hand(module: nn.Module, x: torch.Tensor, names: list[str]) -> torch.Tensor:
    """What the class's own forward gives, with these layers over it, the innermost first."""
    forward = partial(type(module).forward, module)
    for name in names:
        forward = LAYERS[name](forward)
    return forward(x)


@pytest.mark.parametrize("order", list(itertools.permutations(LAYERS)))
def test_layers_are_taken_away_in_any_order_and_leave_no_trace(
    module: nn.Linear, x: torch.Tensor, order: tuple[str, ...]
) -> None:
    before = dict(vars(module))
    for name, layer in LAYERS.items():
        forwards.wrap(module, name, layer)
    left = list(LAYERS)
    assert torch.equal(module(x), by_hand(module, x, left))
    for name in order:
        forwards.unwrap(module, name)
        left.remove(name)
        assert torch.equal(module(x), by_hand(module, x, left))
    assert dict(vars(module)) == before


def test_a_layer_laid_again_is_replaced_where_it_lies(module: nn.Linear, x: torch.Tensor) -> None:
    forwards.wrap(module, "lower", tripled)
    forwards.wrap(module, "upper", squared)
    forwards.wrap(module, "lower", raised)
    assert torch.equal(module(x), by_hand(module, x, ["raised", "squared"]))


def test_an_exception_inside_takes_only_the_inner_layer_away(module: nn.Linear, x: torch.Tensor) -> None:
    with forwards.wrapped(module, tripled):
        with pytest.raises(ZeroDivisionError), forwards.wrapped(module, squared):
            raise ZeroDivisionError
        assert torch.equal(module(x), by_hand(module, x, ["tripled"]))
    assert "forward" not in vars(module)


def test_a_layer_that_cannot_be_made_changes_nothing(module: nn.Linear, x: torch.Tensor) -> None:
    def broken(below: forwards.Forward) -> forwards.Forward:
        raise ZeroDivisionError

    before = dict(vars(module))
    with pytest.raises(ZeroDivisionError), forwards.wrapped(module, broken):
        pass
    assert dict(vars(module)) == before


def test_the_same_layer_twice_is_two_layers(module: nn.Linear, x: torch.Tensor) -> None:
    with forwards.wrapped(module, tripled), forwards.wrapped(module, tripled):
        assert torch.equal(module(x), by_hand(module, x, ["tripled", "tripled"]))


def test_what_a_library_put_there_before_comes_back_itself(module: nn.Linear, x: torch.Tensor) -> None:
    vars(module)["forward"] = theirs = tripled(module.forward)
    with forwards.wrapped(module, squared):
        assert torch.equal(module(x), by_hand(module, x, ["tripled", "squared"]))
    assert vars(module)["forward"] is theirs


def test_what_a_library_puts_in_our_place_stays(module: nn.Linear, x: torch.Tensor) -> None:
    with forwards.wrapped(module, squared):
        vars(module)["forward"] = theirs = tripled(
            partial(nn.Linear.forward, module)
        )  # as accelerate's offloading does after a picture
    assert vars(module)["forward"] is theirs
    with forwards.wrapped(module, raised):
        assert torch.equal(module(x), by_hand(module, x, ["tripled", "raised"]))
    assert vars(module)["forward"] is theirs


def test_a_layer_without_place_is_nothing_to_take_away(module: nn.Linear) -> None:
    before = dict(vars(module))
    forwards.unwrap(module, "squared")
    assert dict(vars(module)) == before


def test_a_deep_copy_takes_layers_away_from_itself_alone(module: nn.Linear, x: torch.Tensor) -> None:
    forwards.wrap(module, "tripled", tripled)
    forwards.wrap(module, "squared", squared)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    nn.init.zeros_(twin.weight)
    forwards.unwrap(twin, "squared")
    assert torch.equal(twin(x), by_hand(twin, x, ["tripled"])) and torch.equal(
        module(x), by_hand(module, x, ["tripled", "squared"])
    )
    forwards.unwrap(twin, "tripled")
    assert torch.equal(twin(x), nn.functional.linear(x, twin.weight, twin.bias)) and "forward" not in vars(twin)


def test_blocks_of_one_kind_share_a_compiled_program_beneath_and_above_other_layers(x: torch.Tensor) -> None:
    torch._dynamo.reset()
    programs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> forwards.Forward:
        programs.append(graph)
        return graph.forward

    blocks = [nn.Linear(3, 2) for _ in range(3)]
    for block in blocks:
        forwards.wrap(block, "compiled", partial(torch.compile, backend=backend))
        with forwards.wrapped(block, tripled):
            assert torch.equal(block(x), by_hand(block, x, ["tripled"]))
        assert torch.equal(block(x), by_hand(block, x, []))
    assert len(programs) == 1
    torch._dynamo.reset()


def assigned(module: ast.Module) -> list[int]:
    """Lines on which a forward is put on an instance or taken from it, in any spelling."""
    lines = []
    for node in ast.walk(module):
        targets = (
            node.targets
            if isinstance(node, ast.Assign | ast.Delete)
            else [node.target]
            if isinstance(node, ast.AugAssign | ast.AnnAssign)
            else []
        )
        places = [part for target in targets for part in ast.walk(target)]
        named = any(isinstance(place, ast.Attribute) and place.attr == "forward" for place in places)
        keyed = any(
            isinstance(place, ast.Subscript)
            and isinstance(place.slice, ast.Constant)
            and place.slice.value == "forward"
            for place in places
        )
        called = isinstance(node, ast.Call) and any(
            isinstance(argument, ast.Constant) and argument.value == "forward" for argument in node.args
        )
        if named or keyed or called:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "source",
    [
        "x.forward = f",
        "x.y.forward: F = f",
        "vars(x)['forward'] = f",
        "a, x.forward = f",
        "del x.forward",
        "vars(x).pop('forward', None)",
        "setattr(x, 'forward', f)",
        "x.__dict__['forward'] = f",
        "delattr(x, 'forward')",
    ],
)
def test_an_assigned_forward_is_seen(source: str) -> None:
    assert assigned(ast.parse(source)) == [1]


@pytest.mark.parametrize(
    "source",
    ["class M:\n    def forward(self, x): return x", "y = x.forward(1)", "forward = x.forward", "z = {'forward': 1}"],
)
def test_a_forward_that_is_only_read_or_defined_is_let_through(source: str) -> None:
    assert assigned(ast.parse(source)) == []


@pytest.mark.parametrize("name", sorted(set(parsed.sources("trainer")) - {"trainer.forwards"}))
def test_nobody_else_replaces_a_forward(name: str) -> None:
    assert not (lines := assigned(parsed.tree(parsed.sources("trainer")[name]))), (
        f"{name}, lines {lines}: trainer/forwards.py replaces forwards"
    )
