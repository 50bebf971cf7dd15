"""Noise, timesteps and loss in kohya's words -> objective, for noise-predicting and for flow models.

What sd-scripts' scripts for flow models accept and don't read is said to be without effect: there `post_process_loss`
gives the loss back as it was, and noise offset and its kin stand in the function for SD and SDXL alone
(flux_train_network.py, sd3_train_network.py, train_util.py of 0.10.1).
"""

from __future__ import annotations

from trainer.other_trainers.bases import DIFFUSION
from trainer.other_trainers.reading import Reading

_NO_FLOW = "sd-scripts takes it for flow models and reads it nowhere"
_SD_ONLY = (
    "min_snr_gamma", "debiased_estimation_loss", "noise_offset", "multires_noise_iterations", "multires_noise_discount",
    "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss", "noise_offset_random_strength", "adaptive_noise_scale",
    "zero_terminal_snr", "v_parameterization",
)  # fmt: skip
_FLOW_ONLY = (
    "timestep_sampling", "sigmoid_scale", "discrete_flow_shift", "training_shift", "weighting_scheme", "logit_mean",
    "logit_std", "mode_scale", "model_prediction_type", "guidance_scale",
)  # fmt: skip


def put_objective(reading: Reading, sampling: str, shift: float, prediction: str) -> None:
    """Set the objective; the last three are what the tool does where they are left out."""
    _put_loss(reading)
    if reading.settings["family"] in DIFFUSION:
        _put_diffusion(reading)
        for key in _FLOW_ONLY:
            reading.no_effect(key, "only flow models read it")
        return
    for key in _SD_ONLY:
        reading.no_effect(key, _NO_FLOW)
    if reading.settings["family"] == "sd3":
        _put_sd3(reading)
    else:
        put_flow(reading, sampling, shift)
        _check_prediction(reading, prediction)


def _put_loss(reading: Reading) -> None:
    kind = reading.text("loss_type", "l2").lower()
    loss = {"l2": "l2", "huber": "huber", "smooth_l1": "smooth_l1"}.get(kind)
    if loss is None:
        reading.cannot("loss_type", "allowed: l2, huber, smooth_l1; l2 is set")
    reading.put("objective.loss", loss or "l2", "loss_type")
    if loss not in ("huber", "smooth_l1"):
        for key in ("huber_c", "huber_schedule", "huber_scale"):
            reading.no_effect(key, "only a Huber loss reads it")
        return
    delta = reading.number("huber_c", 0.1) * reading.number("huber_scale", 1.0)
    reading.put("objective.huber_delta", delta, "huber_c", "huber_scale")
    why = "sd-scripts' is the pseudo-Huber loss, which bends where ours has its corner, and is twice as large"
    reading.translated("loss_type", f"objective.loss = {loss}", why)
    schedule = reading.text("huber_schedule", "snr")
    if schedule != "constant":
        reading.cannot("huber_schedule", "the corner is the same at every timestep here")
        reading.notes.append(f"the loss's corner is constant here, not by the schedule {schedule[:20]}")
    else:
        reading.no_effect("huber_schedule", "it is constant, as here")


def _put_diffusion(reading: Reading) -> None:
    # Weighting: where both are asked for they multiply there; here only a single weighting counts.
    gamma = reading.number("min_snr_gamma")
    if gamma > 0:
        reading.put("objective.weighting", "min-snr", "min_snr_gamma")
        reading.put("objective.min_snr_gamma", gamma, "min_snr_gamma")
        if reading.flag("debiased_estimation_loss"):
            reading.cannot("debiased_estimation_loss", "one weighting at a time here: min-SNR")
    elif reading.flag("debiased_estimation_loss"):
        reading.put("objective.weighting", "debiased", "debiased_estimation_loss")

    # Noise. Theirs mixes in levels of which the first is as fine as the noise itself; ours counts the others.
    if (offset := reading.number("noise_offset")) > 0:
        reading.put("objective.noise_offset", offset, "noise_offset")
    levels = reading.whole("multires_noise_iterations") - 1
    if levels > 0:
        reading.put(
            "objective.multires_noise",
            min(levels, 16),
            "multires_noise_iterations",
            why="the first of their levels is no coarser than the noise",
        )
        reading.put(
            "objective.multires_discount", reading.number("multires_noise_discount", 0.3), "multires_noise_discount"
        )
    else:
        reading.no_effect("multires_noise_discount", "only multires noise reads it")
    if (gamma := reading.number("ip_noise_gamma")) > 0:
        reading.put("objective.input_perturbation", gamma, "ip_noise_gamma")
    _put_range(reading)
    for key in ("v_parameterization", "zero_terminal_snr"):
        if reading.flag(key):
            reading.notes.append(f"{key}: the base's own files say what it predicts; take a base that is made so")


def _put_range(reading: Reading) -> None:
    low, high = reading.number("min_timestep"), reading.number("max_timestep", 1000) or 1000
    if low > 0:
        reading.put("objective.timesteps_low", low / 1000, "min_timestep")
    if high < 1000:
        reading.put("objective.timesteps_high", high / 1000, "max_timestep")


def _put_sd3(reading: Reading) -> None:
    _put_density(reading, "uniform", falling=False)
    shift = reading.number("training_shift", 1.0)
    if shift != 1:
        reading.put("objective.shift", "fixed", "training_shift")
        reading.put("objective.shift_factor", shift, "training_shift")
    _put_range(reading)
    for key in (
        "timestep_sampling",
        "sigmoid_scale",
        "discrete_flow_shift",
        "model_prediction_type",
        "guidance_scale",
        "ip_noise_gamma",
    ):
        reading.no_effect(key, "the script for SD3 doesn't read it")


def put_flow(reading: Reading, sampling: str, shift: float) -> None:
    """Timesteps of a flow model: by a sampling of their own, or drawn from a scheduler's list by density."""
    # How timesteps are drawn.
    how = reading.text("timestep_sampling", sampling).lower()
    scale = reading.number("sigmoid_scale", 1.0)
    factor = reading.number("discrete_flow_shift", shift)
    if how in ("sigmoid", "shift", "flux_shift", "qwen_shift", "flux2_shift"):
        if scale == 1:
            reading.put("objective.timesteps", "sigmoid", "timestep_sampling")
        else:
            reading.put("objective.timesteps", "logit-normal", "timestep_sampling")
            reading.put("objective.timesteps_std", scale, "sigmoid_scale")
        for key in ("logit_mean", "logit_std", "mode_scale"):
            reading.no_effect(key, f"timestep_sampling = {how} doesn't read it")
    elif how in ("uniform", "nextdit_shift"):
        reading.put("objective.timesteps", "uniform", "timestep_sampling")
        reading.no_effect("sigmoid_scale", "uniform timesteps don't read it")
    elif how == "sigma":
        _put_density(reading, "uniform", falling=True)
        reading.no_effect("sigmoid_scale", "timestep_sampling = sigma doesn't read it")
    else:
        reading.cannot("timestep_sampling", "no such density here; sigmoid is set")
        reading.put("objective.timesteps", "sigmoid")
    if how not in ("sigma",) and reading.text("weighting_scheme", "uniform") not in ("none", "uniform"):
        reading.no_effect("weighting_scheme", f"timestep_sampling = {how[:20]} doesn't read it")

    # The shift.
    if how in ("flux_shift", "qwen_shift", "flux2_shift", "nextdit_shift"):
        reading.put("objective.shift", "resolution", "timestep_sampling")
        reading.no_effect("discrete_flow_shift", f"{how} finds the shift by the picture's size")
    elif how in ("shift", "sigma") and factor != 1:
        reading.put("objective.shift", "fixed", "timestep_sampling", "discrete_flow_shift")
        reading.put("objective.shift_factor", factor, "discrete_flow_shift")
    else:
        reading.no_effect(
            "discrete_flow_shift", f"timestep_sampling = {how[:20]} has no shift" if factor != 1 else "1 is none"
        )

    # Noise, and a range that is read nowhere.
    if (gamma := reading.number("ip_noise_gamma")) > 0:
        reading.put("objective.input_perturbation", gamma, "ip_noise_gamma")
    for key in ("min_timestep", "max_timestep"):
        reading.no_effect(key, _NO_FLOW)


def _put_density(reading: Reading, default: str, falling: bool) -> None:
    """diffusers' densities; looked up in a falling list of timesteps a larger number is cleaner, so the mean turns."""
    scheme = reading.text("weighting_scheme", default).lower()
    if scheme == "logit_normal":
        mean, std = reading.number("logit_mean"), reading.number("logit_std", 1.0)
        reading.put("objective.timesteps", "logit-normal", "weighting_scheme")
        reading.put("objective.timesteps_mean", -mean if falling else mean, "logit_mean")
        reading.put("objective.timesteps_std", std, "logit_std")
    elif scheme == "mode":
        reading.put("objective.timesteps", "mode", "weighting_scheme")
        reading.put("objective.timesteps_mode_scale", reading.number("mode_scale", 1.29), "mode_scale")
    else:
        reading.put("objective.timesteps", "uniform", "weighting_scheme")
        if scheme in ("sigma_sqrt", "cosmap"):
            reading.cannot(
                "weighting_scheme",
                "noise levels of a flow model count alike here; choose which are trained by objective.timesteps",
            )
    for key in {"logit_mean", "logit_std"} if scheme != "logit_normal" else {"mode_scale"}:
        reading.no_effect(key, f"weighting_scheme = {scheme[:20]} doesn't read it")


def _check_prediction(reading: Reading, default: str) -> None:
    kind = reading.text("model_prediction_type", default)
    if kind == "raw":
        reading.no_effect("model_prediction_type", "raw, as here")
    elif reading.has("model_prediction_type"):
        reading.cannot("model_prediction_type", "the loss is on the model's own prediction here, which is raw there")
    elif default != "raw":
        reading.notes.append(
            f"model_prediction_type is left out, which is {default} there; the loss here is that of raw"
        )

    # The guidance of a distilled base.
    guidance = reading.number("guidance_scale", 3.5)
    if guidance != 1 and reading.settings["family"] == "flux":
        reading.cannot("guidance_scale", "a distilled base is trained at guidance 1 here")
    else:
        reading.no_effect("guidance_scale", "1, as here")
