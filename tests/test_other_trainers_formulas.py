"""What an imported recipe trains against the other tool's own formula, not against our importer's way back."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.optimization import Adafactor

from trainer import loss, objective, presets
from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError
from trainer.other_trainers import bases, documents, importing, kohya_out, recipes_out
from trainer.other_trainers.contract import Imported

FLOW = objective.Schedule("flow", 1000)


def imported(tmp_path: Path, text: str, **options: Any) -> Imported:
    path = tmp_path / "recipe"
    path.write_text(text)
    return importing.read(path, **options)


def ai_toolkit(tmp_path: Path, **train: Any) -> Imported:
    process = {
        "type": "sd_trainer", "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
        "train": {"steps": 10, "lr": 1e-4, **train}, "model": {"arch": "qwen_image", "name_or_path": "Qwen/Qwen-Image"},
    }  # fmt: skip
    return imported(tmp_path, json.dumps({"job": "extension", "config": {"name": "x", "process": [process]}}))


def config_of(recipe: Imported) -> TrainConfig:
    return parse(TrainConfig, recipe.settings, "test")


def marks(recipe: Imported) -> dict[str, tuple[str, str]]:
    return {key.key.rpartition("].")[2]: (key.status, key.why) for key in recipe.keys}


def drawn(config: TrainConfig) -> torch.Tensor:
    return loss.draw_timesteps(config.objective, FLOW, 20_000, torch.Generator().manual_seed(0), 4096).float()


def places(timesteps: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """ai-toolkit's draw: a place at random, looked up in a falling list of timesteps (BaseSDTrainProcess.py)."""
    index = torch.randint(first, last, (20_000,), generator=torch.Generator().manual_seed(1))
    return timesteps[index]


@pytest.mark.parametrize(("first", "last"), [(0, 500), (500, 999), (200, 700), (0, 999)])
def test_ai_toolkits_range_of_linear_timesteps_is_trained(first: int, last: int, tmp_path: Path) -> None:
    recipe = ai_toolkit(tmp_path, timestep_type="linear", min_denoising_steps=first, max_denoising_steps=last)
    ours, theirs = drawn(config_of(recipe)), places(torch.linspace(1000, 1, 1000), first, last)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert abs(ours.quantile(share) - theirs.quantile(share)) < 12


@pytest.mark.parametrize(("first", "last"), [(0, 500), (500, 999), (200, 700)])
def test_ai_toolkits_range_of_sigmoid_timesteps_begins_and_ends_there(first: int, last: int, tmp_path: Path) -> None:
    recipe = ai_toolkit(tmp_path, timestep_type="sigmoid", min_denoising_steps=first, max_denoising_steps=last)
    many = torch.sigmoid(torch.randn((1000, 400), generator=torch.Generator().manual_seed(2)))
    listed = ((1 - many) * 1000).sort(dim=0, descending=True).values.mean(dim=1)
    ours, theirs = config_of(recipe).objective, places(listed, first, last)
    # The ends of a list of a thousand draws are its last ones, so they are held to less.
    assert abs(1000 * ours.timesteps_low - theirs.min()) < 60 and abs(1000 * ours.timesteps_high - theirs.max()) < 60
    status, why = marks(recipe)["train.max_denoising_steps"]
    assert status == "translated" and "about alike" in why


@pytest.mark.parametrize("timesteps", ["uniform", "sigmoid"])
def test_a_range_comes_back_from_ai_toolkit(timesteps: str, tmp_path: Path) -> None:
    recipe = ai_toolkit(tmp_path, timestep_type="linear" if timesteps == "uniform" else timesteps)
    values = recipe.settings | {"objective": {"timesteps": timesteps, "timesteps_low": 0.4, "timesteps_high": 0.8}}
    written = recipes_out.write(parse(TrainConfig, values, "test"), "ai-toolkit")
    back = imported(tmp_path, written.text).settings["objective"]
    assert math.isclose(back["timesteps_low"], 0.4, abs_tol=2e-3)
    assert math.isclose(back["timesteps_high"], 0.8, abs_tol=2e-3)


def test_ai_toolkits_prodigy_trains_at_the_rate_of_its_groups(tmp_path: Path) -> None:
    # It hands the class 1.0, but the LoRA's parameters come in groups with a rate of their own, which counts.
    group = {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1e-4}
    assert torch.optim.AdamW([group], lr=1.0).param_groups[0]["lr"] == 1e-4
    recipe = ai_toolkit(tmp_path, optimizer="prodigy", unet_lr=5e-5, text_encoder_lr=1e-6)
    assert recipe.settings["learning_rate"] == 1e-4
    assert any("prints that prodigy has a rate of 1" in note for note in recipe.notes)
    for key in ("train.unet_lr", "train.text_encoder_lr"):
        assert marks(recipe)[key][0] == "no effect"


@pytest.mark.parametrize("name", ["adam", "adamw", "adamw8bit", "prodigy"])
def test_ai_toolkits_eps_is_carried(name: str, tmp_path: Path) -> None:
    recipe = ai_toolkit(tmp_path, optimizer=name)
    assert recipe.settings["optimizer"]["options"] == ["eps=1e-06"]
    assert any("eps=1e-06" in key.became for key in recipe.left_out)


def simpletuner(tmp_path: Path, **values: Any) -> Imported:
    base = {"model_family": "sdxl", "model_type": "lora", "lora_rank": 4, "learning_rate": 1e-4, "max_train_steps": 9}
    return imported(tmp_path, json.dumps(base | values), pictures=4)


@pytest.mark.parametrize(
    ("name", "options", "decay"),
    [
        ("adamw_bf16", ["eps=1e-06"], 0.01),
        ("optimi-adamw", ["betas=(0.9, 0.99)", "eps=1e-06"], 0.0),
        ("optimi-lion", [], 0.0),
    ],
)
def test_simpletuners_own_arguments_of_a_class_are_carried(
    name: str, options: list[str], decay: float, tmp_path: Path
) -> None:
    recipe = simpletuner(tmp_path, optimizer=name, adam_weight_decay=0.5)
    assert recipe.settings["optimizer"].get("options", []) == options
    assert recipe.settings["optimizer"]["weight_decay"] == decay
    assert marks(recipe)["adam_weight_decay"][0] == "no effect"


SD_SCRIPTS = "accelerate launch sdxl_train_network.py --network_module=networks.lora --network_dim=4 --unet_lr=1e-3 {}"
MUSUBI = "accelerate launch zimage_train_network.py --network_module=networks.lora_zimage --learning_rate=1e-3 {}"


@pytest.mark.parametrize("command", [SD_SCRIPTS, MUSUBI])
@pytest.mark.parametrize("arguments", ["", "--optimizer_args warmup_init=True relative_step=False"])
def test_adafactor_that_finds_its_rate_says_that_the_rate_cant_be(command: str, arguments: str, tmp_path: Path) -> None:
    text = command.format(f"--optimizer_type=Adafactor --lr_scheduler=cosine {arguments}")
    recipe = imported(tmp_path, text)
    key = "unet_lr" if command == SD_SCRIPTS else "learning_rate"
    status, why = marks(recipe)[key]
    assert status == "can't be" and "relative_step" in why
    assert recipe.settings["learning_rate"] == 1e-4 and recipe.settings["optimizer"]["schedule"] == "constant"
    assert any("the learning rate is a guess" in note for note in recipe.notes)

    # What Adafactor makes of the rate there: nothing.
    parameter = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = Adafactor([parameter], lr=None, relative_step=True)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is None


def test_adafactor_with_a_rate_of_its_own_keeps_it(tmp_path: Path) -> None:
    off = "--optimizer_type=adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False"
    recipe = imported(tmp_path, SD_SCRIPTS.format(off))
    assert recipe.settings["learning_rate"] == 1e-3 and marks(recipe)["unet_lr"][0] == "translated"
    scaled = imported(tmp_path, SD_SCRIPTS.format("--optimizer_type=adafactor --optimizer_args relative_step=False"))
    assert scaled.settings["learning_rate"] == 1e-4 and "size of the weights" in marks(scaled)["unet_lr"][1]


def test_adafactor_in_a_header_and_in_kohyas_gui_says_so_too(tmp_path: Path) -> None:
    values = {"LoRA_type": "Standard", "network_dim": 8, "optimizer": "Adafactor", "learning_rate": 1e-3, "sdxl": True}
    recipe = imported(tmp_path, json.dumps(values))
    assert marks(recipe)["learning_rate"][0] == "can't be" and recipe.settings["learning_rate"] == 1e-4


# Lumina, by sd-scripts' own script for it (lumina_train_util.py, get_noisy_model_input_and_timesteps).


LUMINA = "accelerate launch lumina_train_network.py --network_module=networks.lora_lumina --network_dim=4 {}"


def lumina_draw(how: str, tokens: int) -> torch.Tensor:
    """Sigmas as that script draws them with its defaults."""
    rng = torch.Generator().manual_seed(3)
    if how == "shift":
        sigmas = torch.randn(20_000, generator=rng).sigmoid()
        return 6.0 * sigmas / (1 + 5.0 * sigmas)
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    sigmas = torch.rand(20_000, generator=rng).clamp(min=1e-7)
    return math.exp(mu) / (math.exp(mu) + (1 / sigmas - 1))


@pytest.mark.parametrize(("argument", "how"), [("", "shift"), ("--timestep_sampling=nextdit_shift", "nextdit_shift")])
def test_luminas_timesteps_are_those_of_its_own_script(argument: str, how: str, tmp_path: Path) -> None:
    recipe = imported(tmp_path, LUMINA.format(argument))
    ours, theirs = drawn(config_of(recipe)) / 1000, lumina_draw(how, 4096)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert abs(ours.quantile(share) - theirs.quantile(share)) < 0.015
    assert not any("model_prediction_type" in note for note in recipe.notes)  # raw there, as here


# Commands as documentation has them.


def test_a_command_whose_options_stand_on_lines_of_their_own_is_read_whole(tmp_path: Path) -> None:
    # docs/sdxl_train_network.md of sd-scripts, without a backslash.
    options = ("--network_module=networks.lora", "--network_dim=32", "--network_alpha=16", "--learning_rate=1e-4",
               "--text_encoder_lr1=1e-5", "--text_encoder_lr2=2e-5", "--max_train_epochs=10")  # fmt: skip
    text = "accelerate launch --num_cpu_threads_per_process 1 sdxl_train_network.py \n " + " \n ".join(options)
    recipe = imported(tmp_path, f"{text}\n\necho done\n")
    assert [key.key for key in recipe.keys] == [re.sub(r"^--|=.*", "", option) for option in options]
    assert recipe.settings["adapter"]["rank"] == 32 and not [key for key in recipe.keys if "no key of" in key.why]
    assert recipe.settings["optimizer"]["block_rates"][:2] == ["text_encoder/=0.1", "text_encoder_2/=0.2"]


def test_a_command_without_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="starts train_network.py and gives it no option"):
        imported(tmp_path, "accelerate launch train_network.py\n")


def test_an_empty_document_has_no_key() -> None:
    assert documents.flatten({}) == {} and documents.flatten({"a": {}}) == {"a": {}}


# Steps, by each tool's own formula.


@pytest.mark.parametrize(
    ("pictures", "batch", "accumulation", "epochs"), [(12, 1, 8, 100), (7, 1, 4, 10), (21, 4, 1, 10)]
)
def test_steps_are_counted_as_each_tool_counts_them(
    pictures: int, batch: int, accumulation: int, epochs: int, tmp_path: Path
) -> None:
    def steps(text: str) -> int:
        return int(imported(tmp_path, text, pictures=pictures).settings["max_steps"])

    # OneTrainer: batches of all epochs over the accumulation (create.py, create_lr_scheduler).
    onetrainer = {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "training_method": "LORA", "base_model_name": "a/b",
                  "batch_size": batch, "gradient_accumulation_steps": accumulation, "epochs": epochs}  # fmt: skip
    assert steps(json.dumps(onetrainer)) == pictures // batch * epochs // accumulation

    # diffusion-pipe: whole groups of batch x accumulation an epoch (dataset.py, post_init).
    pipe = (f"micro_batch_size_per_gpu = {batch}\ngradient_accumulation_steps = {accumulation}\nepochs = {epochs}\n"
            "output_dir = 'x'\n[model]\ntype = 'flux'\n[adapter]\ntype = 'lora'\nrank = 4\n"
            "[optimizer]\ntype = 'adamw_optimi'\nlr = 1e-4\n")  # fmt: skip
    assert steps(pipe) == max(1, pictures // (batch * accumulation)) * epochs

    # kohya_ss: one rounding for all epochs (lora_gui.py, train_model).
    gui = {"LoRA_type": "Standard", "network_dim": 8, "sdxl": True, "train_batch_size": batch, "epoch": epochs,
           "gradient_accumulation_steps": accumulation}  # fmt: skip
    assert steps(json.dumps(gui)) == math.ceil(pictures / batch / accumulation * epochs)
    assert steps(json.dumps(gui | {"dataset_config": "x.toml"})) == 1600

    # sd-scripts: rounded up for each epoch (train_network.py).
    command = f"--train_batch_size={batch} --gradient_accumulation_steps={accumulation} --max_train_epochs={epochs}"
    assert steps(SD_SCRIPTS.format(command)) == epochs * math.ceil(math.ceil(pictures / batch) / accumulation)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"tread_config": {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2}]}}, "tread_config.routes[0]"),
        ({"flux_guidance_mode": "constant", "flux_guidance_value": 1.0}, "flux_guidance_value"),
        ({"use_gradient_checkpointing": True, "use_bitfit": False}, "use_gradient_checkpointing"),
    ],
)
def test_keys_of_simpletuners_own_examples_are_known(values: dict[str, Any], key: str, tmp_path: Path) -> None:
    keys = [found for found in simpletuner(tmp_path, **values).keys if found.key.startswith(key)]
    assert keys and not [found for found in keys if "no key of" in found.why]


def test_a_key_of_kohyas_own_test_configs_is_known(tmp_path: Path) -> None:
    values = {"LoRA_type": "Standard", "network_dim": 8, "use_wandb": True}
    assert "no key of" not in marks(imported(tmp_path, json.dumps(values)))["use_wandb"][1]


# Families in what is written for others.


@pytest.mark.parametrize("family", ["flux", "sd3"])
@pytest.mark.parametrize(
    "change",
    [{"adapter.method": "lokr"}, {"adapter.method": "loha"}, {"adapter.method": "dora"}, {"adapter.method": "oft"}],
)
def test_what_is_written_for_kohya_tells_its_family_whatever_the_network_is(
    family: str, change: dict[str, Any], tmp_path: Path
) -> None:
    written = recipes_out.write(presets.load(f"{family}-style", change), "kohya")
    assert "family" not in written.unsaid and "lycoris.kohya" in written.text
    back = imported(tmp_path, written.text)
    assert back.settings["family"] == family and back.settings["base"] == presets.load(f"{family}-style", {}).base
    silent = re.sub(r"(?m)^(ae|clip_l|clip_g|t5xxl|pretrained_model_name_or_path) = .*\n", "", written.text)
    assert imported(tmp_path, silent).settings["family"] != family


def test_a_family_that_the_written_file_doesnt_tell_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kohya_out, "_FILES", {})
    config = presets.load("flux-style", {"adapter.method": "lokr", "base": "someone/mine"})
    assert recipes_out.write(config, "kohya").unsaid["family"].startswith("flux here, ")


def test_flux2_dev_comes_back_from_onetrainer() -> None:
    assert "family" not in recipes_out.write(presets.load("flux2dev-style", {}), "onetrainer").unsaid


def test_animagine_is_an_sdxl_base() -> None:
    assert bases.family_of("cagliostrolab/animagine-xl-4.0") == "sdxl" and bases.family_of("anima-base") == ""


@pytest.mark.parametrize("script", ["hunyuan_image_train_network.py", "anima_train_network.py"])
@pytest.mark.parametrize("module", ["lycoris.kohya", "networks.lora"])
def test_a_script_for_a_family_that_is_not_trained_here_is_refused_whatever_its_network(
    script: str, module: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="trained"):
        imported(tmp_path, f"accelerate launch {script} --network_module={module} --network_dim=4")
