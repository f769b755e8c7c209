"""Video tokenizers: from pixels to latents and back. A data set is encoded with one, which is saved in its folder;
latents are stored raw, normalisation belongs to the manifest."""

import json
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from data_pipeline import storage
from data_pipeline.buckets import Stride
from data_pipeline.errors import UserError
from data_pipeline.storage import Location
from data_pipeline.tokenizers.description import Description
from data_pipeline.tokenizers.linear import LinearTokenizer

NETWORKS = {
    "diffusers": ("data_pipeline.tokenizers.diffusers", "DiffusersNetwork"),
    "torchscript": ("data_pipeline.tokenizers.torchscript", "TorchscriptNetwork"),
}


class VideoTokenizer(Protocol):
    """A causal tokenizer: the first frame becomes one latent frame, then each group of stride[0] frames one more."""

    @property
    def channels(self) -> int:
        """C."""
        ...

    @property
    def stride(self) -> Stride:
        """Video frames, rows and columns per latent."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints promise equal latents."""
        ...

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [F, H, W, 3] -> raw latents float32 [T, C, h, w]."""
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Raw latents float32 [T, C, h, w] -> uint8 [F, H, W, 3]."""
        ...

    def save(self, folder: Path) -> None: ...


def load_tokenizer(folder: str | Path) -> VideoTokenizer:
    """The tokenizer that a folder's tokenizer.json describes, on the GPU if there is one.

    Raises UserError naming the file that is missing or of an unknown kind, or what the weights behind it lack.
    """
    path = Path(folder) / "tokenizer.json"
    try:
        kind = json.loads(path.read_text())["kind"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a tokenizer's description: encode the data set again") from error
    if kind == "linear":
        return LinearTokenizer.load(Path(folder))
    if kind not in NETWORKS:
        raise UserError(f"{path}: unknown tokenizer kind {kind!r}; this version knows: linear, {', '.join(NETWORKS)}")
    return open_tokenizer(Description.load(folder))


def open_tokenizer(description: Description) -> VideoTokenizer:
    """Loads a neural tokenizer and tests it. Raises UserError when it is not causal or not as described."""
    import torch

    from data_pipeline.tokenizers.network import NetworkTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    module, name = NETWORKS[description.kind]
    network = getattr(import_module(module), name)(description, device)
    return NetworkTokenizer(description, network, device)


def tokenizer_fingerprint(folder: str | Location) -> str:
    """Of the tokenizer that load_tokenizer would load, without loading it."""
    return str(json.loads(storage.read_bytes(storage.location(folder) / "tokenizer.json"))["fingerprint"])
