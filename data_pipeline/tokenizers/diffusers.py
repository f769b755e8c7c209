"""Causal video autoencoders of the diffusers library, from a local folder: Cosmos, Wan, LTX. load_tokenizer calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError
from data_pipeline.tokenizers.description import Description

if TYPE_CHECKING:
    import torch


class DiffusersNetwork:
    """The mode of the posterior, without the scale and shift of the model's configuration: latents are stored raw."""

    def __init__(self, description: Description, device: str) -> None:
        try:
            import diffusers
            import torch
        except ImportError as error:
            raise UserError("data.tokenizer is a diffusers model: install the extra, pip install 'videomar[tokenizers]'") from error
        kind: Any = getattr(diffusers, description.model)
        dtype = getattr(torch, description.dtype)
        self._model = kind.from_pretrained(description.path, local_files_only=True, torch_dtype=dtype).to(device).eval()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._model.encode(pixels).latent_dist.mode()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._model.decode(latents).sample
