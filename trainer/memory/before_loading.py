"""What memory settings ask for before anything is trained: a limit, and encoders that are brought layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from trainer import system
from trainer.memory import mechanics


def limit(device: str, budget_gib: float) -> None:
    """Hold this process to the budget on a GPU, so that it runs out there.

    Without one, on Windows, to what is free: beyond it, the driver moves memory over the bus without a word, and a run
    that seems to fit takes ten times as long.
    """
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        usual = free + torch.cuda.memory_reserved(device) if system.gpu_spills() else total
        most = budget_gib * mechanics.GIB or usual
        # By number: of all torch.cuda's calls that take a device this one refuses "cuda". None is the current device.
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), torch.device(device).index)


def fetch_encoders(pipe: Any, component: str, device: str) -> None:
    """Everything ready to encode but the denoiser, which stays on the CPU.

    The autoencoder is on the device; text encoders are brought there layer by layer. By diffusers' group offloading;
    T5's encoder alone is 9.5 GB in bf16.
    """
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name.startswith("text_encoder"):
            apply_group_offloading(
                part, torch.device(device), offload_type="leaf_level", use_stream=device.startswith("cuda")
            )
        elif isinstance(part, nn.Module) and name != component:
            part.to(device)
