"""Tokenizers as a pair of TorchScript files, the form in which Cosmos is published. load_tokenizer calls it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from data_pipeline.tokenizers.description import TORCHSCRIPT_FILES, Description

if TYPE_CHECKING:
    import torch


class TorchscriptNetwork:
    """encoder.jit and decoder.jit; what they return may be wrapped in a tuple."""

    def __init__(self, description: Description, device: str) -> None:
        import torch

        dtype = getattr(torch, description.dtype)
        try:
            parts = [torch.jit.load(str(Path(description.path) / name), map_location=device) for name in TORCHSCRIPT_FILES]
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{description.path}: not TorchScript files ({str(error).splitlines()[0]})") from error
        self._encoder, self._decoder = (part.to(dtype).eval() for part in parts)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return _first(self._encoder(pixels))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return _first(self._decoder(latents))


def _first(found: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return found[0] if isinstance(found, tuple) else found
