"""Between what people see and read and what the model sees: frames and captions to normalised latents and vectors, and back.

Made from a data set or from an exported folder; used by whatever samples. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline import manifest as manifests
from data_pipeline.errors import UserError
from data_pipeline.loader import TOKENIZER_FOLDER, Dataset
from data_pipeline.manifest import LatentStatistics
from data_pipeline.spec import EncodeSpec
from data_pipeline.text import TextEncoder, load_text
from data_pipeline.tokenizers import VideoTokenizer, load_tokenizer


@dataclass(frozen=True)
class Codec:
    """A data set's tokenizer (saved in `folder`), text encoder and latent statistics."""

    folder: Path
    spec: EncodeSpec
    tokenizer: VideoTokenizer
    text: TextEncoder
    statistics: LatentStatistics

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """uint8 frames [F, H, W, 3] -> normalised latents [T, h, w, C]."""
        return manifests.normalise(np.moveaxis(self.tokenizer.encode(frames), 1, -1), self.statistics)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Normalised latents [T, h, w, C] -> uint8 frames [F, H, W, 3]."""
        return self.tokenizer.decode(np.moveaxis(manifests.denormalise(latents, self.statistics), -1, -3))

    def encode_text(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [B, K, E], zero beyond their true lengths [B]."""
        vectors = [self.text.encode(caption) for caption in captions]
        padded = np.zeros((len(vectors), self.text.max_tokens, self.text.width), np.float32)
        for row, found in zip(padded, vectors, strict=True):
            row[: len(found)] = found
        return padded, np.array([len(found) for found in vectors])


def open_codec(folder: Path, spec: EncodeSpec, statistics: LatentStatistics, tokenizer: str, text: str) -> Codec:
    """The codec saved in a folder. Raises UserError when its tokenizer or text encoder has not the fingerprint that is asked for."""
    codec = Codec(folder, spec, load_tokenizer(folder), load_text(folder, spec), statistics)
    if codec.tokenizer.fingerprint != tokenizer:
        raise UserError(f"{folder} holds another tokenizer than the model was trained with: put the old one back or export again")
    if codec.text.fingerprint != text:
        raise UserError(f"the model of {folder.parent} was trained with another text encoder (fingerprint {text}) than this version has")
    return codec


def codec_of(dataset: Dataset) -> Codec:
    """The codec of a data set."""
    manifest = dataset.manifest
    return open_codec(dataset.folder / TOKENIZER_FOLDER, manifest.spec, manifest.statistics, manifest.tokenizer, manifest.text)
