"""Text encoders: from a caption to the vectors that cross-attention reads. A data set has one, whose fingerprint is
stored with it."""

from typing import Protocol

import numpy as np


class TextEncoder(Protocol):
    """Turns captions into vectors; equal fingerprints promise equal vectors."""

    @property
    def width(self) -> int:
        """E, the numbers per token."""
        ...

    @property
    def max_tokens(self) -> int:
        """K, the most tokens of a caption."""
        ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, caption: str) -> np.ndarray:
        """float32 [k, E] of the caption's true length, 1 <= k <= K; an empty caption gives one token."""
        ...
