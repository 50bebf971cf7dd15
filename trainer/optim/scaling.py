"""Loss scaling: gradients of a float16 base would vanish, so the loss is multiplied and its gradient divided again.

torch's own scaler: the scale is halved when a gradient overflows, and the step taken again; after many steps without it
is doubled. It is the same in all processes, which divide the summed gradients. It goes into the checkpoint, so that a
resumed run doubles where an unbroken one does. `GradScaler.step` is not used: the loop waits once a step for all its
numbers, and knows by them whether to step.
"""

from __future__ import annotations

from typing import Any

import torch

INITIAL = 65536.0  # torch's own
GROWS_AFTER_STEPS = 2000  # torch's own


def scaler(device: str, scales: bool, saved: Any = None) -> torch.amp.GradScaler:
    """A scaler in the state that was `saved`, or a new scaler; it does nothing unless it `scales`.

    In old checkpoints the state is the mere scale.
    """
    scaler = torch.amp.GradScaler(
        torch.device(device).type, init_scale=INITIAL, growth_interval=GROWS_AFTER_STEPS, enabled=scales
    )
    if saved is not None and scales:
        scaler.load_state_dict(saved if isinstance(saved, dict) else {**scaler.state_dict(), "scale": saved})
    # A process without rows scales no loss, and a scaler that never did can't divide.
    scaler.scale(torch.zeros((), device=device))
    return scaler


def backed_off(scaler: torch.amp.GradScaler) -> bool:
    """After a gradient that is no number: whether the scale was too large, and is smaller now.

    The step is then to be taken again.
    """
    # At 1 the loss isn't multiplied any more, so that the overflow is the model's own.
    before = scaler.get_scale()
    if before <= 1:
        return False
    # It halves if `unscale_` has met an infinity; a norm alone can be infinite where no gradient is.
    scaler.update()
    return scaler.get_scale() < before
