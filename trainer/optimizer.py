"""AdamW's parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.sections import TrainSection


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices of the trunk decay; vectors (norms, biases, mask token), the null text and the whole head do not (MAR's rule).

    Frozen parameters are in no group, and a group that has none left is left out.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        head_or_vector = parameter.ndim < 2 or name.startswith("head.") or name == "null_text"
        (plain if head_or_vector else decayed).append(parameter)
    return [{"params": group, "weight_decay": decay} for group, decay in ((decayed, weight_decay), (plain, 0.0)) if group]


class GatedAdamW(torch.optim.AdamW):
    """AdamW that does nothing, not even count the step, while its gate is closed. Every ZeRO stage ends in this one call, after it
    has computed the gradient's norm, so a skipped step is the same at all of them."""

    def gate(self) -> bool:
        """Open, unless the engine puts its own here."""
        return True

    def step(self, closure: Any = None) -> None:
        if self.gate():
            super().step(closure)


def adamw(model: nn.Module, train: TrainSection) -> GatedAdamW:
    return GatedAdamW(parameter_groups(model, train.weight_decay), lr=train.lr, betas=train.betas, eps=1e-8, fused=True)


def adam_state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Tensor]:
    """The optimiser's state of one tensor, made now (it would be at the first step) so that a commit can be loaded into it."""
    state = optimizer.state[tensor]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor.data), torch.zeros_like(tensor.data)
    return state


def learning_rate(train: TrainSection, scale: float, step: int) -> float:
    """Constant after a linear warm-up over the run's first steps; `scale` is the stage's."""
    return train.lr * scale * min(1.0, (step + 1) / max(1, train.warmup_steps))
