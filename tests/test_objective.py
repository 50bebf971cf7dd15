"""Noising and targets against diffusers' own schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import objective
from trainer.objective import Schedule

torch.manual_seed(0)
LATENTS, NOISE = torch.randn(8, 4, 6, 6), torch.randn(8, 4, 6, 6)
TIMESTEPS = torch.tensor([0, 1, 10, 250, 500, 750, 998, 999])
ZERO_SNR = DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    rescale_betas_zero_snr=True,
    prediction_type="v_prediction",
)
PLAIN = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.mark.parametrize("scheduler", [ZERO_SNR, PLAIN], ids=["zero terminal SNR", "SD 1.5"])
def test_noised_latents_equal_diffusers(scheduler) -> None:
    schedule = Schedule("v", scheduler.alphas_cumprod)
    torch.testing.assert_close(
        objective.add_noise(schedule, LATENTS, NOISE, TIMESTEPS),
        scheduler.add_noise(LATENTS, NOISE, TIMESTEPS),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("scheduler", [ZERO_SNR, PLAIN], ids=["zero terminal SNR", "SD 1.5"])
def test_v_target_equals_diffusers_velocity(scheduler) -> None:
    schedule = Schedule("v", scheduler.alphas_cumprod)
    torch.testing.assert_close(
        objective.target(schedule, LATENTS, NOISE, TIMESTEPS),
        scheduler.get_velocity(LATENTS, NOISE, TIMESTEPS),
        rtol=1e-5,
        atol=1e-6,
    )


def test_epsilon_target_is_the_noise() -> None:
    assert torch.equal(objective.target(Schedule("epsilon", PLAIN.alphas_cumprod), LATENTS, NOISE, TIMESTEPS), NOISE)


def test_flow_noising_equals_diffusers_and_target_is_its_derivative() -> None:
    scheduler, schedule = FlowMatchEulerDiscreteScheduler(), Schedule("flow")
    timesteps = torch.tensor([1, 2, 10, 250, 500, 750, 999, 1000])
    noised = objective.add_noise(schedule, LATENTS, NOISE, timesteps)
    torch.testing.assert_close(noised, scheduler.scale_noise(LATENTS, timesteps.float(), NOISE), rtol=1e-5, atol=1e-6)
    step = (objective.add_noise(schedule, LATENTS, NOISE, timesteps - 1) - noised) / -(1 / 1000)
    torch.testing.assert_close(objective.target(schedule, LATENTS, NOISE, timesteps), step, rtol=1e-3, atol=5e-3)


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**7))
@settings(max_examples=50)
def test_a_draw_depends_on_seed_stream_and_index_alone(seed: int, index: int) -> None:
    first = torch.rand(3, generator=objective.generator(seed, "noise", index))
    torch.rand(7)
    assert torch.equal(first, torch.rand(3, generator=objective.generator(seed, "noise", index)))
    assert not torch.equal(first, torch.rand(3, generator=objective.generator(seed, "noise", index + 1)))
    assert not torch.equal(first, torch.rand(3, generator=objective.generator(seed, "order", index)))


@pytest.mark.parametrize(("kind", "low", "high"), [("v", 0, 999), ("flow", 1, 1000)])
def test_timesteps_cover_the_schedule_uniformly(kind, low: int, high: int) -> None:
    schedule = Schedule(kind, None if kind == "flow" else PLAIN.alphas_cumprod)
    drawn = objective.sample_timesteps(schedule, 50_000, objective.generator(0, "x", 0))
    assert drawn.min() == low and drawn.max() == high
    assert abs(float(drawn.float().mean()) - (low + high) / 2) < 5
