"""Every optimizer offered: its options, whether it is usable, and that a resumed one is bitwise one that never
stopped.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from trainer import optim
from trainer.config import TrainConfig
from trainer.errors import ConfigError, RunError
from trainer.optim import optimizers

OURS = ["adamw", "adafactor", "lion", "prodigy", "schedule-free"]
OTHERS = [
    "Prodigy",
    "CAME",
    "AdEMAMix",
    "SOAP",
    "ADOPT",
    "Lion",
    "ScheduleFreeAdamW",
    "StableAdamW",
    "LaProp",
    "EmoFact",
    "Kate",
    "MADGRAD",
    "SPlus",
]
OFFERED: list[dict] = [
    *({"name": name} for name in OURS),
    pytest.param(
        {"name": "adamw8bit"},
        marks=pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes"),
    ),
    {"name": "adafactor", "options": ("beta1=0.9", "scale_parameter=true")},
    {"name": "prodigy", "options": ("slice_p=3", "use_bias_correction=true")},
    {"name": "adamw", "options": ("amsgrad=true", "fused=false")},
    {"name": "schedule-free", "options": ("foreach=false", "r=1")},
    *({"name": "other", "other": other} for other in OTHERS),
    {"name": "other", "other": "AdaFactor", "options": ("relative_step=false",)},
    {"name": "other", "other": "AdaShift", "options": ("keep_num=2",)},
]
NAMES = [str(next(iter(optimizer.values if not isinstance(optimizer, dict) else [optimizer]))) for optimizer in OFFERED]
SHAPES = {
    "unet.a.lora_A.weight": (4, 6), "unet.a.lora_B.weight": (8, 4), "unet.b.lora_A.weight": (4, 3, 3, 3),
    "unet.b.lora_B.weight": (5, 4, 1, 1),
    "unet.c.lora_A.weight": (8, 600), "unet.c.lora_B.weight": (600, 8), "unet.c.magnitude": (7,),
}  # fmt: skip


def configured(learning_rate: float = 1e-2, **optimizer) -> TrainConfig:
    values = {
        "family": "sd",
        "base": "x",
        "adapter": {"method": "lora"},
        "max_steps": 10,
        "learning_rate": learning_rate,
    }
    return TrainConfig.model_validate({**values, "optimizer": {"warmup_steps": 2, **optimizer}})


def fresh() -> dict[str, nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(shape, generator=rng) * (0.0 if "lora_B" in name else 0.1))
        for name, shape in SHAPES.items()
    }


def train(
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    config: TrainConfig,
    steps: range,
    look: bool = False,
) -> None:
    for number in steps:
        optim.set_rate(optimizer, config, number)
        rng = torch.Generator().manual_seed(number)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=rng) * 0.1 + parameter.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if look:
            with optim.evaluation(optimizer):
                pass


def through_files(tensors: dict[str, torch.Tensor], values: dict) -> tuple[dict[str, torch.Tensor], dict]:
    """As a checkpoint writes and reads them."""
    written = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    return load(written), json.loads(json.dumps(values, sort_keys=True, allow_nan=False))


def built(parameters: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    return optim.build(optim.groups(parameters, config), config)


# Complaint #9: resume that is not equivalent.


@pytest.mark.parametrize("chosen", OFFERED, ids=NAMES)
def test_a_resumed_optimizer_is_bitwise_one_that_never_stopped(chosen: dict) -> None:
    rates = {} if "rodigy" in str(chosen) else {"loraplus_ratio": 4.0}
    config = configured(learning_rate=1.0 if "rodigy" in str(chosen) else 1e-2, **chosen, **rates)
    assert not optim.check(config)
    whole = fresh()
    optimizer = built(whole, config)
    train(optimizer, whole, config, range(10))

    # Looked at after every step, stopped at five, and put back into a new one.
    parameters = fresh()
    optimizer = built(parameters, config)
    train(optimizer, parameters, config, range(5), look=True)
    tensors, values = through_files(*optim.state(optimizer))
    parameters = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    optimizer = built(parameters, config)
    optim.load_state(optimizer, tensors, values)
    again, same = through_files(*optim.state(optimizer))
    assert same == values and again.keys() == tensors.keys()
    assert all(
        torch.equal(tensor, tensors[name]) and tensor.dtype == tensors[name].dtype for name, tensor in again.items()
    )
    train(optimizer, parameters, config, range(5, 10), look=True)

    start = fresh()
    for name, trained in whole.items():
        assert torch.isfinite(trained).all() and not torch.equal(trained, start[name]), name
        assert torch.equal(trained, parameters[name]), name


@pytest.mark.parametrize("chosen", OFFERED, ids=NAMES)
def test_rate_and_name_stay_with_their_group(chosen: dict) -> None:
    config = configured(**{**chosen, "block_rates": ("unet.a=0",)})
    optimizer = built(fresh(), config)
    assert [(group["rate"], group["name"], len(group["params"])) for group in optimizer.param_groups] == [
        (1.0, "adapter", 5)
    ]
    assert optim.set_rate(optimizer, config, 0) == optimizer.param_groups[0]["lr"] == 0.005


@pytest.mark.parametrize("name", OURS)
def test_weight_decay_reaches_every_optimizer(name: str) -> None:
    ends = []
    for decay in (0.0, 0.5):
        parameters, config = (
            fresh(),
            configured(name=name, weight_decay=decay, options=("d0=0.1",) if name == "prodigy" else ()),
        )
        train(built(parameters, config), parameters, config, range(3))
        ends.append(parameters["unet.a.lora_A.weight"])
    assert not torch.equal(*ends)


def test_state_taken_within_evaluation_comes_back_as_it_was() -> None:
    parameters, config = fresh(), configured(name="schedule-free")
    optimizer = built(parameters, config)
    train(optimizer, parameters, config, range(3))
    with optim.evaluation(optimizer):
        inside = through_files(*optim.state(optimizer))
    outside = through_files(*optim.state(optimizer))
    assert all(torch.equal(tensor, inside[0][name]) for name, tensor in outside[0].items())
    other = built(fresh(), config)
    optim.load_state(other, *inside)
    assert through_files(*optim.state(other))[1] == inside[1] != outside[1]


def test_a_tensor_that_parameters_share_is_kept_once_and_shared_again() -> None:
    config, parameters = configured(), fresh()
    optimizer = built(parameters, config)
    shared, odd = torch.arange(6.0), torch.randn(3, 5, dtype=torch.float64).T
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "map": shared,
            "odd": odd,
            "int8": torch.ones(2, dtype=torch.uint8),
            "step": torch.tensor(3.0),
            "inf": float("-inf"),
        }
    tensors, values = through_files(*optim.state(optimizer))
    assert len(tensors) == 2 + 2 * len(parameters)
    other = built(parameters, config)
    optim.load_state(other, tensors, values)
    states = list(other.state.values())
    assert (
        states[0]["map"] is states[1]["map"]
        and states[0]["odd"].stride() == odd.stride()
        and states[0]["odd"].dtype == torch.float64
    )
    assert (
        states[0]["step"].shape == () and states[0]["int8"].dtype == torch.uint8 and states[0]["inf"] == float("-inf")
    )


@pytest.mark.parametrize(
    "damage",
    ["other optimizer", "other parameters", "tensor lost", "tensor added", "value lost", "nonsense", "attribute"],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage: str) -> None:
    parameters, config = fresh(), configured()
    optimizer = built(parameters, config)
    train(optimizer, parameters, config, range(2))
    tensors, values = through_files(*optim.state(optimizer))
    if damage == "other optimizer":
        optimizer = built(parameters, configured(name="schedule-free"))
    elif damage == "other parameters":
        del parameters["unet.c.magnitude"]
        optimizer = built(parameters, config)
    elif damage == "tensor lost":
        tensors.popitem()
    elif damage == "tensor added":
        tensors["more"] = torch.zeros(1)
    elif damage == "value lost":
        del values["state"]
    elif damage == "nonsense":
        values["groups"] = [7, None]
    else:
        values["attributes"] = {"dict": [["step", 1]]}
    before = through_files(*optim.state(optimizer))
    with pytest.raises(RunError, match="optimizer"):
        optim.load_state(optimizer, tensors, values)
    after = through_files(*optim.state(optimizer))
    assert before[1] == after[1] and all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())


# Options.


def test_options_reach_the_optimizer() -> None:
    optimizer = built(fresh(), configured(options=("betas=(0.8, 0.95)", "eps = 1e-6", "amsgrad=True")))
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"], optimizer.defaults["amsgrad"]) == (
        (0.8, 0.95),
        1e-6,
        True,
    )
    assert optimizers.choose(
        configured(name="prodigy", options=("growth_rate=1e999", "beta3=none", "slice_p=11")).optimizer
    ).arguments == {"growth_rate": float("inf"), "beta3": None, "slice_p": 11}


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("adamw", "bats=(0.9, 0.99)", ["bats", "did you mean betas?", "amsgrad"]),
        ("adamw", "betas=0.9", ["betas=0.9", "a tuple", "(0.9, 0.999)"]),
        ("adamw", "betas=(0.9,)", ["a tuple of 2"]),
        ("adamw", "eps='small'", ["eps='small'", "a number"]),
        ("adamw", "amsgrad=1", ["amsgrad=1", "true or false"]),
        ("adamw", "eps=true", ["a number"]),
        ("adamw", "betas", ["'betas'", "key=value"]),
        ("adamw", "lr=3", ["set learning_rate"]),
        ("adamw", "maximize=true", ["unlearn"]),
        ("schedule-free", "warmup_steps=3", ["set optimizer.warmup_steps"]),
        ("adamw", "eps=__import__('os').getcwd()", ["allowed as a value"]),
        ("adamw", "eps={'a': 1}", ["allowed as a value"]),
        ("adamw", "betas=(0.9, 7)", ["AdamW with betas=(0.9, 7)", "Invalid beta"]),
        ("adafactor", "relative_step=true", ["relative_step=True"]),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(name: str, option: str, words: list[str]) -> None:
    (problem,) = optim.check(configured(name=name, options=(option,)))
    assert all(part in problem for part in words), problem
    with pytest.raises(ConfigError):
        built(fresh(), configured(name=name, options=(option,)))


def test_all_wrong_options_are_named_at_once() -> None:
    assert len(optim.check(configured(options=("zz=1", "eps='x'", "amsgrad=3", "eps=1", "eps=2")))) == 4


@hypothesis_settings(max_examples=300)
@given(
    st.one_of(
        st.text(max_size=300),
        st.from_regex(r"(eps|betas|amsgrad|__class__)=[\[\]\(\){}'\"0-9a-z_.,:*+ -]{0,60}", fullmatch=True),
        st.integers(0, 400).map(lambda depth: "eps=" + "(" * depth),
        st.integers(0, 300).map(lambda size: "eps=" + "9" * size),
    )
)  # fmt: skip
def test_any_text_as_an_option_is_read_or_refused_in_words(line: str) -> None:
    try:
        choice = optimizers.choose(configured().optimizer.model_copy(update={"options": (line,)}))
    except ConfigError as error:
        assert "optimizer.options" in str(error)
    else:
        assert set(choice.arguments) <= {"fused", "eps", "betas", "amsgrad", "foreach"}


# What can't be used, and how that is said.


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("Muon", "use_muon"), ("AdamMini", "named_parameters"), ("SophiaH", "does not require grad"),
        ("AliG", "closure"), ("BSAM", "num_data"),
        ("ScalableShampoo", "PreConditioner"), ("Kron", "random numbers"), ("A2Grad", "a rate of its own"),
        ("ApolloDQN", "a rate of its own"),
        ("AdaFactor", "a rate of its own"), ("Ranger21", "num_iterations"), ("Lookahead", "wraps"),
        ("Prodgy", "did you mean Prodigy"),
        ("adamw", "did you mean AdamW"), ("os", "doesn't have"),
    ],
)  # fmt: skip
def test_an_optimizer_a_run_could_not_rely_on_is_refused_with_the_reason(other: str, reason: str) -> None:
    (problem,) = optim.check(configured(name="other", other=other))
    assert other in problem and reason in problem


@pytest.mark.parametrize("other", ["Prodigy", "DAdaptAdam"])
def test_rates_by_group_are_refused_where_one_rate_rules_all(other: str) -> None:
    assert not optim.check(configured(name="other", other=other))
    assert "one rate for all" in optim.check(configured(name="other", other=other, loraplus_ratio=4))[0]


def test_an_optimizer_that_cannot_take_these_shapes_is_refused_before_the_first_step() -> None:
    config = configured(name="other", other="SpectralSphere")
    with pytest.raises(ConfigError, match="SpectralSphere only supports 2D"):
        built(fresh(), config)


@pytest.mark.parametrize("chosen", [{"ema_decay": 0.9}, {"max_weight_norm": 1.0}], ids=str)
def test_what_would_work_against_an_averaging_optimizer_is_refused(chosen: dict) -> None:
    (problem,) = optim.check(configured(name="schedule-free", **chosen))
    assert f"optimizer.{next(iter(chosen))}" in problem


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("adamw8bit", "bitsandbytes", "gpu"),
        ("lion", "pytorch_optimizer", "optim"),
        ("prodigy", "prodigyopt", "optim"),
        ("schedule-free", "schedulefree", "optim"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (problem,) = optim.check(configured(name=name))
    assert module in problem and f"pip install 'velatura[{extra}]'" in problem


def test_trying_an_optimizer_out_leaves_random_states_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state(), random.getstate()
    optim.check(configured(name="other", other="Kron"))
    optim.check(configured(name="prodigy", options=("d_coef=2",)))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert not capsys.readouterr().out  # prodigyopt prints on being built
