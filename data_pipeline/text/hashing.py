"""The embedded default text encoder: every word has a fixed random vector. Needs no weights and no fitting, and is
enough to tell colours, shapes and directions apart; it knows nothing of meaning."""

import re
from functools import lru_cache

import numpy as np

from data_pipeline.order import keyed_generator
from data_pipeline.spec import fingerprint

POSITION_SCALE = 0.5  # of the position term beside word vectors of unit RMS


class HashingText:
    """Words and punctuation marks, lower-cased, as vectors of `width` numbers; at most `max_tokens` of them."""

    def __init__(self, width: int = 64, max_tokens: int = 24) -> None:
        if width < 2 or width % 2:
            raise ValueError(f"text width {width} must be even: positions are sine and cosine pairs")
        self.width = width
        self.max_tokens = max_tokens
        self._positions = POSITION_SCALE * np.sqrt(2) * _sinusoids(max_tokens, width)
        sample = self.encode("a red circle moves left, and so on").tobytes()
        self.fingerprint = fingerprint("hashing", width, max_tokens, sample.hex())

    def encode(self, caption: str) -> np.ndarray:
        words = re.findall(r"\w+|[^\w\s]", caption.lower())[: self.max_tokens] or [""]
        vectors = np.stack([_word_vector(word, self.width) for word in words])
        return (vectors + self._positions[: len(words)]).astype(np.float32)


@lru_cache(maxsize=65536)
def _word_vector(word: str, width: int) -> np.ndarray:
    vector = keyed_generator("word", word).standard_normal(width)
    return vector / np.sqrt(np.mean(vector**2))


def _sinusoids(count: int, width: int) -> np.ndarray:
    angles = np.arange(count)[:, None] / 1000.0 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
