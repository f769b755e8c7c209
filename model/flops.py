"""FLOPs of one training pass over a bucket: matrix products only, 2 FLOPs per multiply-add. For MFU and for the planner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.config import ModelConfig

if TYPE_CHECKING:  # the planner counts without torch, which visibility needs
    from model.visibility import Visibility


def forward_flops(config: ModelConfig, visibility: Visibility, supervised: int) -> int:
    """FLOPs of one sample's forward: the trunk over the sequence that `visibility` describes, the head on `supervised` tokens."""
    return trunk_flops(config, visibility.starts[-1], visibility.pairs()) + head_flops(config, supervised)


def trunk_flops(config: ModelConfig, tokens: int, pairs: int) -> int:
    """FLOPs of everything before the head, for one sample of L tokens in which attention sees `pairs` (query, key) token pairs."""
    width = config.width
    told = config.text_tokens + len(config.conditions)
    linears = (4 + 2 + 2 * config.ffn_ratio) * width**2 * tokens + 2 * width**2 * told
    attention = 2 * width * (pairs + tokens * told)
    embeddings = config.latent_channels * width * tokens + width * (config.text_width * config.text_tokens + 256 * len(config.conditions))
    return 2 * (config.depth * (linears + attention) + embeddings)


def head_flops(config: ModelConfig, supervised: int) -> int:
    """FLOPs of the head's forward: the condition once per supervised token, everything else once per repeat."""
    width, channels = config.head_width, config.latent_channels
    outputs = channels if config.head == "flow" else 2 * channels
    per_repeat = channels * width + (256 + width) * width + config.head_depth * 5 * width**2 + 2 * width**2 + outputs * width
    return 2 * supervised * (config.width * width + config.head_repeats * per_repeat)


def training_flops(config: ModelConfig, visibility: Visibility, supervised: int) -> int:
    """Forward and backward: the backward pass has two matrix products for each one of the forward.

    Counts the gradients of the embeddings' inputs too, which nobody needs: less than 0.1 % at 1.4 B.
    """
    return 3 * forward_flops(config, visibility, supervised)
