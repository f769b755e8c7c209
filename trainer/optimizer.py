"""AdamW's parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
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
        if not self.gate():
            return
        tails = [Tails(self, group) for group in self.param_groups]
        super().step(closure)
        for each in tails:
            each.step()


LANES = 16  # fp32 numbers that the fused kernel takes at a time on a CPU


class Tails:
    """The ends of a group's tensors, as they are before a step. The CPU's fused kernel computes what is left of a tensor behind the last
    whole vector in another precision: how a parameter is rounded would depend on where ZeRO cuts. Here it is not left."""

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        self.settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        cut = [each for each in group["params"] if each.is_cpu and each.numel() % LANES and each.grad is not None]
        self.states = [adam_state(optimizer, each) for each in cut]
        self.ends = [[each.data, state["exp_avg"], state["exp_avg_sq"]] for each, state in zip(cut, self.states, strict=True)]
        self.padded = [padded([kinds[kind] for kinds in self.ends]) for kind in range(3)]
        self.gradient = padded([each.grad for each in cut if each.grad is not None])

    def step(self) -> None:
        """The same step of the ends alone, in whole vectors, in the place of what the step made of them."""
        if not self.ends:
            return
        weight, exp_avg, exp_avg_sq = self.padded
        weight.grad = self.gradient
        adam = torch.optim.AdamW([weight], **self.settings, fused=True)
        adam.state[weight] = {"step": self.states[0]["step"] - 1, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        adam.step()
        for place, kinds in enumerate(self.ends):
            for whole, ends in zip(kinds, self.padded, strict=True):
                left = whole.numel() % LANES
                whole.view(-1)[-left:] = ends[place * LANES : place * LANES + left]


def padded(tensors: Sequence[Tensor]) -> Tensor:
    """The ends of contiguous tensors behind the last whole vector, each filled up with zeros."""
    ends = [each.view(-1)[-(each.numel() % LANES) :] for each in tensors]
    return torch.cat([nn.functional.pad(end, (0, LANES - end.numel())) for end in ends]) if ends else torch.empty(0)


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
