"""Nothing non-finite is stepped, saved or published: the check between backward and the optimizer's step."""

from __future__ import annotations

import math

import torch

SCALER_SKIPS_ALLOWED = 20
"""Steps in a row whose fp16 gradients may overflow: the scaler starts at 65,536 and halves its scale at each, so 16 reach 1.

Source: torch.amp.GradScaler (init_scale 2**16, backoff_factor 0.5).
"""


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank as soon as it is true on one; a rank that stopped alone would leave the others waiting for it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
        return flag
    votes = torch.tensor([float(flag)], device=device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    return bool(votes.item())


class StepGuard:
    """Judges each optimizer step before it is taken."""

    def __init__(self, loss_scaling: bool) -> None:
        self._loss_scaling = loss_scaling
        self._overflows = 0

    def problem(self, loss: float, gradient_norm: float) -> str | None:
        """What is not finite, in words; None where the step may be taken (under loss scaling: or skipped by the scaler).

        `loss`: sum over the step's micro-batches; `gradient_norm`: before clipping, over all ranks.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if math.isfinite(gradient_norm):
            self._overflows = 0
            return None
        self._overflows += 1
        if self._loss_scaling and self._overflows <= SCALER_SKIPS_ALLOWED:
            return None
        return f"the gradient norm is {gradient_norm}"
