"""VideoMAR (arXiv 2506.14168): embed -> blocks -> norm -> per-token generative head.

Holds the training forward and the one step that sampling needs. Shape letters: see
model/__init__.py. Parallelism, precision and compilation are applied from outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.block import Block
from model.cache import KVCache
from model.conditions import Conditions
from model.config import ModelConfig
from model.heads import Head, full_precision
from model.heads.ddpm import DDPMHead
from model.heads.flow import FlowHead
from model.rope3d import grid_positions, rotary_table
from model.supervision import TrainingBatch
from model.visibility import Visibility

HEADS = {"ddpm": DDPMHead, "flow": FlowHead}


class VideoMAR(nn.Module):
    """A decoder over continuous video tokens: causal in time, bidirectional inside a latent frame, conditioned on text.

    attention: one of model.attention.BACKENDS, or auto (flex on CUDA, sdpa-chunked elsewhere).
    """

    def __init__(self, config: ModelConfig, attention: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.latent_channels, config.width)
        self.mask_token = nn.Parameter(torch.empty(config.width))
        self.text_embed = nn.Linear(config.text_width, config.width)
        self.null_text = nn.Parameter(torch.empty(config.text_tokens, config.width))
        self.conditions = Conditions(config)
        self.blocks: Sequence[Block] = nn.ModuleList(Block(config, attention) for _ in range(config.depth))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head: Head = HEADS[config.head](config)  # type: ignore[assignment]
        self.initialise()

    def initialise(self) -> None:
        """Xavier-uniform linears with zero bias, N(0, 0.02) for the mask token and the null text, zeros where the head asks for them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.mask_token, self.null_text):
            nn.init.normal_(parameter, std=0.02)
        self.head.zero_init()

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Diffusion loss summed over the supervised tokens of each sample and target frame: [B, T]. Only those tokens enter the head."""
        frames, height, width = batch.latents.shape[1:4]
        order = torch.tensor(batch.sequence.frame_order, device=batch.latents.device)
        latents_BLC = batch.latents.index_select(1, order).flatten(1, 3)
        positions = grid_positions(batch.sequence.frame_order, height, width, order.device)
        text, text_mask_BK = self.text_keys(batch.text, batch.text_length, batch.drop_text, batch.conditions)
        seen_BLC = latents_BLC if batch.context_noise is None else latents_BLC + batch.context_noise
        hidden_BLD = self.trunk(seen_BLC, batch.masked, positions, text, text_mask_BK, batch.sequence.visibility)
        hidden_MD, latents_MC = hidden_BLD.flatten(0, 1)[batch.rows], latents_BLC.flatten(0, 1)[batch.rows]
        with torch.autocast(hidden_MD.device.type, enabled=False):
            loss_M = self.head.loss(full_precision(hidden_MD), full_precision(latents_MC), batch.head_draws)
        samples_M, tokens_M = batch.rows // len(positions), batch.rows % len(positions)
        places = samples_M * frames + positions[tokens_M, 0]
        return loss_M.new_zeros(len(batch.latents) * frames).index_add(0, places, loss_M).view(-1, frames)

    def trunk(
        self,
        latents_BLC: Tensor,
        masked_BL: Tensor,
        positions_L3: Tensor,
        text: list[tuple[Tensor, Tensor]],
        text_mask_BK: Tensor,
        visibility: Visibility | None = None,
        cache: KVCache | None = None,
        chosen_BR: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] of the given tokens, or [B, R, D] of the chosen ones, which saves most of the last block.

        With a cache they also see every kept frame; `text` holds each block's keys and values.
        """
        x = torch.where(masked_BL[..., None], self.mask_token, self.embed(latents_BLC.to(self.mask_token.dtype)))
        rotary = rotary_table(positions_L3, self.config, torch.promote_types(x.dtype, torch.float32))
        for index, block in enumerate(self.blocks):
            last = index + 1 == len(self.blocks)
            x = block(x, text[index], text_mask_BK, rotary, visibility, cache, index, chosen_BR if last else None)
        return self.norm(x)

    def text_keys(
        self, text_BKE: Tensor, length_B: Tensor, drop_B: Tensor, conditions_BQ: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Each block's keys and values of the caption and the conditions, and which of these tokens are real [B, K + Q].

        Where `drop` is set the caption is the learned null text, all of it real, and no condition is told. They do not depend on
        the video, so a sampler computes them once.
        """
        tokens = torch.arange(text_BKE.shape[1], device=text_BKE.device)
        text_BKD = torch.where(drop_B[:, None, None], self.null_text, self.text_embed(text_BKE.to(self.null_text.dtype)))
        real_BK = (tokens < length_B[:, None]) | drop_B[:, None]
        if self.config.conditions:
            tokens_BQD, told_BQ = self.conditions(conditions_BQ)
            text_BKD = torch.cat([text_BKD, tokens_BQD], dim=1)
            real_BK = torch.cat([real_BK, told_BQ & ~drop_B[:, None]], dim=1)
        return [block.cross_attention.keys_values(text_BKD) for block in self.blocks], real_BK
