"""The objective's settings against diffusers, torch and plain formulas."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trainer import loss, objective, schema
from trainer.config import ObjectiveConfig, TrainConfig, parse
from trainer.errors import ConfigError
from trainer.objective import Schedule

ZERO_SNR = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
PLAIN = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
EPSILON, V, FLOW = Schedule("epsilon", PLAIN.alphas_cumprod), Schedule("v", ZERO_SNR.alphas_cumprod), Schedule("flow")
SCHEDULES = pytest.mark.parametrize("schedule", [EPSILON, V, FLOW], ids=["epsilon", "v", "flow"])
LATENTS = torch.zeros(64, 3, 8, 12)


def settings(**values) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(values)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(schedule: Schedule, size: int = 4000, tokens: int = 1024, **values) -> torch.Tensor:
    return loss.draw_timesteps(settings(**values), schedule, size, rng(), tokens)


# With the defaults, nothing changes.


@SCHEDULES
def test_default_draws_are_those_of_the_objective(schedule: Schedule) -> None:
    first, other = rng(3), rng(3)
    assert torch.equal(loss.draw_noise(settings(), LATENTS, first), objective.noise_like(LATENTS, other))
    assert torch.equal(
        loss.draw_timesteps(settings(), schedule, 64, first, 1), objective.sample_timesteps(schedule, 64, other)
    )
    noise = torch.randn(2, 2)
    assert loss.perturb(settings(), noise, first) is noise
    assert torch.equal(first.get_state(), other.get_state())


def test_default_errors_are_squares_that_count_alike() -> None:
    prediction, target = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    assert torch.equal(loss.elements(settings(), prediction, target), (prediction - target).square())
    assert torch.equal(loss.weights(settings(), V, torch.tensor([0, 999])), torch.ones(2))


# Timesteps.


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        (
            {"timesteps": "logit-normal", "timesteps_mean": -0.7, "timesteps_std": 1.3},
            ("logit_normal", -0.7, 1.3, None),
        ),
        ({"timesteps": "sigmoid"}, ("logit_normal", 0.0, 1.0, None)),
        ({"timesteps": "mode", "timesteps_mode_scale": 0.81}, ("mode", None, None, 0.81)),
        ({"timesteps": "uniform", "timesteps_high": 0.9999999}, ("none", None, None, None)),
    ],
    ids=["logit-normal", "sigmoid", "mode", "uniform"],
)
def test_densities_equal_diffusers(values: dict, scheme: tuple) -> None:
    kind, mean, std, scale = scheme
    shares = compute_density_for_timestep_sampling(kind, 4000, mean, std, scale, generator=rng())
    torch.testing.assert_close(draw(FLOW, **values), (1000 * shares).clamp(min=1), rtol=1e-5, atol=1e-3)
    drawn = draw(EPSILON, **values)
    assert drawn.dtype == torch.int64 and (drawn - (1000 * shares).floor()).abs().max() <= 1


@SCHEDULES
def test_logit_normal_with_a_low_mean_trains_detail(schedule: Schedule) -> None:
    low, high = (draw(schedule, timesteps="logit-normal", timesteps_mean=mean).float().mean() for mean in (-1.0, 1.0))
    assert low < 350 and high > 650


@hypothesis_settings(max_examples=60)
@given(
    st.sampled_from(["uniform", "logit-normal", "sigmoid", "mode"]), st.floats(0, 0.999), st.floats(0.001, 1),
    st.sampled_from([EPSILON, V, FLOW]),
    st.sampled_from(["none", "fixed", "resolution"]),
)  # fmt: skip
def test_timesteps_stay_in_their_range(kind: str, low: float, width: float, schedule: Schedule, shift: str) -> None:
    high = min(1.0, low + width)
    drawn = draw(schedule, 500, timesteps=kind, timesteps_low=low, timesteps_high=high, timesteps_std=4, shift=shift)
    assert torch.isfinite(drawn.float()).all() and drawn.shape == (500,)
    if schedule is FLOW:
        assert drawn.min() >= max(1, 1000 * low - 1e-3) and drawn.max() <= max(1, 1000 * high + 1e-3)
    else:
        assert drawn.min() >= 0 and drawn.max() <= 999
        assert drawn.min() >= math.floor(1000 * low) and drawn.max() <= max(math.floor(1000 * low), 1000 * high)


@pytest.mark.parametrize("schedule", [EPSILON, V], ids=["epsilon", "v"])
def test_a_range_is_half_open_and_filled(schedule: Schedule) -> None:
    drawn = draw(schedule, timesteps_low=0.07, timesteps_high=0.1)
    assert sorted(set(drawn.tolist())) == list(range(70, 100))


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_fixed_shift_equals_the_flow_scheduler(factor: float) -> None:
    plain = draw(FLOW, timesteps="sigmoid")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    expected = scheduler._time_shift_exponential(math.log(factor), 1.0, plain / 1000) * 1000
    torch.testing.assert_close(
        draw(FLOW, timesteps="sigmoid", shift="fixed", shift_factor=factor), expected.clamp(min=1), rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 8100])
def test_resolution_shift_equals_that_of_flux(tokens: int) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    plain = draw(FLOW, timesteps="sigmoid")
    expected = scheduler.time_shift(calculate_shift(tokens), 1.0, plain / 1000) * 1000
    torch.testing.assert_close(
        draw(FLOW, tokens=tokens, timesteps="sigmoid", shift="resolution"), expected, rtol=1e-4, atol=1e-2
    )


def test_resolution_shift_takes_the_numbers_of_the_base() -> None:
    qwen = Schedule("flow", shift_at_tokens=((256, 0.5), (8192, 0.9)))
    assert draw(qwen, tokens=4096, shift="resolution").mean() < draw(FLOW, tokens=4096, shift="resolution").mean()


# Noise.


@pytest.mark.parametrize("shape", [(64, 4, 16, 24), (64, 4, 7, 5), (64, 4, 1, 1), (16, 4, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("levels", [1, 8])
def test_multires_noise_has_unit_deviation_in_every_picture(shape: tuple, levels: int) -> None:
    if math.prod(shape[1:]) < 8:
        levels = 1
    noise = loss.draw_noise(settings(multires_noise=levels), torch.zeros(shape), rng())
    assert noise.shape == shape
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(len(noise)))


def test_multires_noise_is_coarser_the_more_levels_it_has() -> None:
    def coarse(**values) -> float:
        return float(
            torch.nn.functional.avg_pool2d(
                loss.draw_noise(settings(**values), torch.zeros(64, 4, 32, 32), rng()), 8
            ).std()
        )

    assert coarse() < coarse(multires_noise=1) < coarse(multires_noise=3)
    assert coarse(multires_noise=6, multires_discount=0.1) < coarse(multires_noise=6, multires_discount=0.8)


def test_multires_noise_is_distributed_as_published() -> None:
    def published(noise: torch.Tensor, iterations: int, discount: float) -> torch.Tensor:
        """https://wandb.ai/johnowhitaker/multires_noise, without its break."""
        for i in range(iterations):
            r = float(torch.rand(())) * 2 + 2
            size = [max(1, int(side / r**i)) for side in noise.shape[-2:]]
            noise = (
                noise
                + torch.nn.functional.interpolate(
                    torch.randn(*noise.shape[:2], *size), noise.shape[-2:], mode="bilinear"
                )
                * discount**i
            )
        return noise / noise.std()

    torch.manual_seed(0)
    theirs = torch.cat([published(torch.randn(64, 4, 32, 32), 4, 0.5) for _ in range(16)])
    ours = torch.cat(
        [
            loss.draw_noise(settings(multires_noise=3, multires_discount=0.5), torch.zeros(64, 4, 32, 32), rng(seed))
            for seed in range(16)
        ]
    )
    for size in (2, 4, 8):
        ours_std, other = (torch.nn.functional.avg_pool2d(noise, size).std() for noise in (ours, theirs))
        torch.testing.assert_close(ours_std, other, rtol=0.03, atol=0)


def test_noise_offset_gives_each_picture_and_channel_a_mean() -> None:
    latents = torch.zeros(256, 4, 8, 8)
    plain, offset = (loss.draw_noise(settings(noise_offset=value), latents, rng()) for value in (0.0, 0.5))
    means = offset - plain
    torch.testing.assert_close(means, means[:, :, :1, :1].expand_as(means), rtol=0, atol=1e-6)
    assert abs(float(means[:, :, 0, 0].std()) - 0.5) < 0.03


def test_input_perturbation_adds_its_share_of_other_noise() -> None:
    noise = torch.randn(64, 4, 8, 8)
    added = loss.perturb(settings(input_perturbation=0.1), noise, rng()) - noise
    torch.testing.assert_close(added, 0.1 * torch.randn(noise.shape, generator=rng()), rtol=1e-4, atol=1e-6)


def test_noise_has_the_dtype_of_the_latents_and_the_same_values_in_each() -> None:
    values = {"multires_noise": 3, "noise_offset": 0.1}
    full, half = (
        loss.draw_noise(settings(**values), LATENTS.to(dtype), rng()) for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.bfloat16 and torch.equal(full.bfloat16(), half)


# Errors.


@pytest.mark.parametrize("delta", [0.05, 0.1, 1.0, 3.0])
def test_huber_and_smooth_l1_are_the_standard_ones(delta: float) -> None:
    prediction, target = torch.randn(8, 4, 8, 8, dtype=torch.bfloat16), torch.randn(8, 4, 8, 8)
    error = (prediction.float() - target).abs()
    huber = torch.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta))
    elements = loss.elements(settings(loss="huber", huber_delta=delta), prediction, target)
    assert elements.dtype == torch.float32
    torch.testing.assert_close(elements, huber)
    torch.testing.assert_close(
        loss.elements(settings(loss="smooth_l1", huber_delta=delta), prediction, target), huber / delta
    )


@pytest.mark.parametrize(
    ("scheduler", "kind"), [(PLAIN, "epsilon"), (PLAIN, "v"), (ZERO_SNR, "v"), (ZERO_SNR, "epsilon")]
)
def test_weights_equal_those_from_the_snr_of_diffusers(scheduler, kind) -> None:
    schedule, timesteps = Schedule(kind, scheduler.alphas_cumprod), torch.arange(0, 999)
    snr = compute_snr(scheduler, timesteps)
    capped = torch.minimum(snr, torch.tensor(5.0))
    expected = {
        "min-snr": capped / snr if kind == "epsilon" else capped / (snr + 1),
        "debiased": (1 / snr.sqrt()).clamp(max=1 / math.sqrt(loss.MIN_SNR))
        if kind == "epsilon"
        else 1 / (snr + 1).sqrt(),
        "snr": snr,
    }
    for name, weights in expected.items():
        torch.testing.assert_close(
            loss.weights(settings(weighting=name), schedule, timesteps), weights, rtol=2e-3, atol=1e-7
        )


@pytest.mark.parametrize(
    ("kind", "weighting", "limit"),
    [
        ("epsilon", "min-snr", 1.0),
        ("v", "min-snr", 0.0),
        ("epsilon", "debiased", 1 / math.sqrt(loss.MIN_SNR)),
        ("v", "debiased", 1.0),
        ("v", "snr", 0.0),
    ],
)
def test_zero_terminal_snr_has_a_finite_weight(kind, weighting: str, limit: float) -> None:
    assert ZERO_SNR.alphas_cumprod[999] == 0
    weights = loss.weights(settings(weighting=weighting), Schedule(kind, ZERO_SNR.alphas_cumprod), torch.tensor([999]))
    torch.testing.assert_close(weights, torch.tensor([limit]))


def test_debiased_weights_are_as_much_as_an_error_grows_in_the_picture() -> None:
    noise, latents, timesteps = torch.randn(20, 4, 4, 4), torch.randn(20, 4, 4, 4), torch.arange(0, 1000, 50)
    a = PLAIN.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    noised, error = a.sqrt() * latents + (1 - a).sqrt() * noise, 1e-2
    from_epsilon = (noised - (1 - a).sqrt() * (noise + error)) / a.sqrt() - latents
    velocity = a.sqrt() * noise - (1 - a).sqrt() * latents
    from_v = a.sqrt() * noised - (1 - a).sqrt() * (velocity + error) - latents
    for kind, grown in (("epsilon", from_epsilon), ("v", from_v)):
        weights = loss.weights(settings(weighting="debiased"), Schedule(kind, PLAIN.alphas_cumprod), timesteps)  # type: ignore[arg-type]
        torch.testing.assert_close(weights, grown.abs().flatten(1).mean(1) / error, rtol=1e-2, atol=1e-3)


def test_weighting_by_snr_is_refused_for_a_flow_base() -> None:
    with pytest.raises(ConfigError, match="objective.weighting is 'min-snr'.*flow"):
        loss.weights(settings(weighting="min-snr"), FLOW, torch.tensor([500.0]))


def test_without_a_mask_a_picture_counts_by_its_mean() -> None:
    elements = torch.rand(3, 4, 5, 6)
    torch.testing.assert_close(loss.per_picture(elements, None, 0.1), elements.mean((1, 2, 3)))
    torch.testing.assert_close(loss.per_picture(elements, torch.ones(3, 1, 5, 6), 0.1), elements.mean((1, 2, 3)))


def test_a_small_mask_is_not_a_small_loss() -> None:
    elements, mask = torch.ones(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[0, 0, 0, 0], mask[1] = 1, 0.5
    torch.testing.assert_close(loss.per_picture(elements, mask, 0.0), torch.ones(2))


def test_a_mask_weighs_inside_against_outside() -> None:
    elements, mask = torch.zeros(1, 2, 1, 4), torch.tensor([[[[1.0, 0.0, 0.0, 0.5]]]])
    elements[..., 0], elements[..., 3] = 1.0, 2.0
    expected = (1.0 * 1 + 0.55 * 2) / (1 + 0.1 + 0.1 + 0.55)
    torch.testing.assert_close(loss.per_picture(elements, mask, 0.1), torch.tensor([expected]))


def test_an_empty_mask_is_no_nan() -> None:
    elements = torch.rand(1, 2, 3, 3, requires_grad=True)
    total = loss.per_picture(elements, torch.zeros(1, 1, 3, 3), 0.0)
    total.sum().backward()
    assert total.item() == 0 and torch.isfinite(elements.grad).all()


# What users of other trainers complain about (notes/trainers.md, section 2, #7): settings that are taken and do
# nothing.


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_snr_gamma", 0), ("huber_delta", 0), ("timesteps_std", 0), ("shift_factor", 0), ("multires_discount", 0)],
)
def test_a_value_that_would_zero_the_loss_or_the_draw_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        settings(**{name: value})


@pytest.mark.parametrize("values", [{"weighting": "min-snr"}, {"noise_offset": 0.05}, {"multires_noise": 6}], ids=str)
def test_settings_without_effect_on_a_flow_base_are_refused_not_ignored(values: dict) -> None:
    config = parse(
        TrainConfig, {"family": "sd", "base": "x", "adapter": {"method": "lora"}, "objective": values}, "a test"
    )
    assert not schema.unread(config, {"prediction": ("epsilon",)})
    (problem,) = schema.unread(config, {"prediction": ("flow",)})
    assert f"objective.{next(iter(values))}" in problem and "nothing would read it" in problem


def test_a_shift_is_refused_for_a_base_that_is_not_flow() -> None:
    with pytest.raises(ConfigError, match="objective.shift is 'fixed', but nothing would read it"):
        parse(
            TrainConfig,
            {"family": "sd", "base": "x", "adapter": {"method": "lora"}, "objective": {"shift": "fixed"}},
            "a test",
        )


SETTINGS = [
    {"loss": "huber"}, {"loss": "smooth_l1"}, {"loss": "huber", "huber_delta": 1.0}, {"weighting": "min-snr"},
    {"weighting": "min-snr", "min_snr_gamma": 1.0},
    {"weighting": "debiased"}, {"weighting": "snr"}, {"noise_offset": 0.1}, {"multires_noise": 1},
    {"multires_noise": 4},
    {"multires_noise": 4, "multires_discount": 0.8}, {"input_perturbation": 0.1}, {"timesteps": "logit-normal"},
    {"timesteps": "mode"},
    {"timesteps": "logit-normal", "timesteps_mean": 1.0}, {"timesteps": "logit-normal", "timesteps_std": 2.0},
    {"timesteps": "mode", "timesteps_mode_scale": 0.5},
    {"timesteps_low": 0.3}, {"timesteps_high": 0.7}, {"shift": "fixed"}, {"shift": "fixed", "shift_factor": 1.5},
    {"shift": "resolution"},
]  # fmt: skip


def test_every_setting_changes_what_is_learned_from() -> None:
    def outcome(values: dict) -> str:
        config, schedule = settings(**values), FLOW if "shift" in values else EPSILON
        generator = rng()
        noise = loss.draw_noise(config, LATENTS, generator)
        timesteps = loss.draw_timesteps(config, schedule, len(LATENTS), generator, 384)
        errors = loss.elements(config, loss.perturb(config, noise, generator), torch.zeros_like(noise))
        return str([timesteps.tolist(), (loss.weights(config, schedule, timesteps) * errors.mean((1, 2, 3))).tolist()])

    outcomes = [outcome(values) for values in [{}, *SETTINGS]]
    assert len(set(outcomes)) == len(outcomes)
