"""ModelConfig: everything that fixes the parameters and the objective of a VideoMAR, and the named sizes. Read by every file of model/."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """A VideoMAR's shape and objective; the defaults are the paper's 1.4B model (arXiv 2506.14168).

    Raises ValueError naming the field when the values do not fit together.
    """

    width: int = 1536
    depth: int = 36
    heads: int = 24
    ffn_ratio: int = 4
    latent_channels: int = 16
    text_width: int = 1536
    text_tokens: int = 300
    text_dropout: float = 0.1
    conditions: tuple[str, ...] = ()  # what the model is told beside the caption: any of model.conditions.UNITS
    condition_dropout: float = 0.1  # each on its own; a dropped caption takes all of them along
    block: int = 1  # latent frames that are masked, generated and cached together; frame 0 is alone
    rope_base: tuple[float, float, float] = (10_000.0, 10_000.0, 10_000.0)  # per axis t, h, w
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)  # positions are multiplied by it: below 1 to go beyond what was trained
    rope_split: tuple[int, int, int] = (2, 1, 1)
    rope_interleaved: bool = False
    mask_ratio_mean: float = 1.0
    mask_ratio_std: float = 0.25
    mask_ratio_min: float = 0.7
    head_width: int = 1024
    head_depth: int = 3
    head_repeats: int = 4
    head: str = "ddpm"
    flow_solver: str = "euler"
    head_output: str = "eps"  # what the head's network emits: eps itself (the paper), or v, from which eps = sigma x_t + alpha v
    diffusion_steps: int = 1000

    def __post_init__(self) -> None:
        for field in ("width", "depth", "heads", "latent_channels", "text_width", "text_tokens", "head_repeats"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"model.width {self.width} is not divisible by model.heads {self.heads}")
        pairs, parts = self.head_dim // 2, sum(self.rope_split)
        if self.head_dim % 2 or any(pairs * part % parts for part in self.rope_split):
            raise ValueError(
                f"model.rope_split {self.rope_split} does not divide the {pairs} rotary pairs of a head of {self.head_dim} channels"
            )
        if unknown := set(self.conditions) - {"fps", "motion", "context_noise"}:
            raise ValueError(f"model.conditions names {sorted(unknown)[0]!r}: choose among fps, motion, context_noise")
        if not 1 <= self.block <= 4:
            raise ValueError(f"model.block is {self.block}: choose 1 to 4 latent frames")
        if self.head not in ("ddpm", "flow"):
            raise ValueError(f"model.head is {self.head!r}: choose ddpm or flow")
        if self.flow_solver not in ("euler", "heun"):
            raise ValueError(f"model.flow_solver is {self.flow_solver!r}: choose euler or heun")
        if self.head_output not in ("eps", "v"):
            raise ValueError(f"model.head_output is {self.head_output!r}: choose eps or v")
        if not 0.0 < self.mask_ratio_min <= 1.0:
            raise ValueError(f"model.mask_ratio_min is {self.mask_ratio_min}: it must be above 0 and at most 1")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


SIZES: dict[str, ModelConfig] = {
    "toy": ModelConfig(
        width=192, depth=5, heads=4, text_width=64, text_tokens=24, rope_base=(20.0, 20.0, 20.0), head_width=128, head_output="v"
    ),
    "small": ModelConfig(width=512, depth=12, heads=8, head_width=512),
    "videomar-0.4b": ModelConfig(width=1024, depth=24, heads=16),
    "videomar-1.4b": ModelConfig(),
}


def named_size(size: str, **changes: Any) -> ModelConfig:
    """The named size with some fields replaced, e.g. the latent channels and text width that a data set dictates."""
    if size not in SIZES:
        raise ValueError(f"model.size {size!r} is unknown: choose one of {', '.join(SIZES)}")
    return replace(SIZES[size], **changes)
