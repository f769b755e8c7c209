"""One VideoMAR block: self-attention over video tokens, cross-attention to text, FFN (videomar.md section 1). Knows no masks of its own."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.attention import attend
from model.cache import KVCache
from model.config import ModelConfig
from model.rope3d import Rotary, rotate
from model.visibility import Visibility


def split_heads(x_BLD: Tensor, head_dim: int) -> Tensor:
    """[B, L, N * head_dim] -> [B, N, L, head_dim]; N follows from the width at hand, which tensor parallelism may have divided."""
    return rearrange(x_BLD, "b l (n d) -> b n l d", d=head_dim)


def take(x_BLD: Tensor, chosen_BR: Tensor | None) -> Tensor:
    """[B, R, D]: the chosen tokens of each sample, or all."""
    return x_BLD if chosen_BR is None else x_BLD.gather(1, chosen_BR[..., None].expand(-1, -1, x_BLD.shape[-1]))


class SelfAttention(nn.Module):
    """Multi-head attention over video tokens with per-head RMSNorm on q and k and 3-D RoPE."""

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        self.head_dim, self.backend = config.head_dim, backend
        self.q, self.k, self.v = (nn.Linear(config.width, config.width, bias=False) for _ in range(3))
        self.q_norm, self.k_norm = (nn.RMSNorm(config.head_dim, eps=1e-6) for _ in range(2))
        self.out = nn.Linear(config.width, config.width)
        self.attend = attend  # sequence parallelism puts its exchange around it

    def forward(
        self, x_BLD: Tensor, rotary: Rotary, visibility: Visibility | None, cache: KVCache | None, block: int, chosen_BR: Tensor | None
    ) -> Tensor:
        q, k, v = (split_heads(project(x_BLD), self.head_dim) for project in (self.q, self.k, self.v))
        q, k = rotate(self.q_norm(q), rotary), rotate(self.k_norm(k), rotary)
        if cache is not None:
            k, v = cache.write(block, k, v)
        if chosen_BR is not None:
            q = q.gather(2, chosen_BR[:, None, :, None].expand(-1, q.shape[1], -1, self.head_dim))
        return self.out(rearrange(self.attend(q, k, v, visibility, self.backend), "b n l d -> b l (n d)"))


class CrossAttention(nn.Module):
    """Video tokens attend to the caption; its padding is masked out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q, self.k, self.v = (nn.Linear(config.width, config.width, bias=False) for _ in range(3))
        self.q_norm, self.k_norm = (nn.RMSNorm(config.head_dim, eps=1e-6) for _ in range(2))
        self.out = nn.Linear(config.width, config.width)

    def keys_values(self, text_BKD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, N, K, head_dim]; they depend on the caption alone, so a sampler computes them once."""
        k, v = (split_heads(project(text_BKD), self.head_dim) for project in (self.k, self.v))
        return self.k_norm(k), v

    def forward(self, x_BLD: Tensor, keys_values: tuple[Tensor, Tensor], text_mask_BK: Tensor) -> Tensor:
        q = self.q_norm(split_heads(self.q(x_BLD), self.head_dim))
        attended = F.scaled_dot_product_attention(q, *keys_values, attn_mask=text_mask_BK[:, None, None, :])
        return self.out(rearrange(attended, "b n l d -> b l (n d)"))


class FeedForward(nn.Module):
    """Two linears around a tanh-approximated GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.width * config.ffn_ratio, bias=False)
        self.down = nn.Linear(config.width * config.ffn_ratio, config.width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BLD), approximate="tanh"))


class Block(nn.Module):
    """x + self(norm(x)); x + cross(x, text); x + ffn(norm(x)). Of chosen tokens alone, if asked: what they see is still everything."""

    def __init__(self, config: ModelConfig, backend: str) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.attention = SelfAttention(config, backend)
        self.cross_attention = CrossAttention(config)
        self.ffn_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.ffn = FeedForward(config)

    def forward(
        self,
        x_BLD: Tensor,
        text: tuple[Tensor, Tensor],
        text_mask_BK: Tensor,
        rotary: Rotary,
        visibility: Visibility | None,
        cache: KVCache | None,
        index: int,
        chosen_BR: Tensor | None = None,
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x_BLD), rotary, visibility, cache, index, chosen_BR)
        x_BLD = take(x_BLD, chosen_BR) + attended
        x_BLD = x_BLD + self.cross_attention(x_BLD, text, text_mask_BK)
        return x_BLD + self.ffn(self.ffn_norm(x_BLD))
