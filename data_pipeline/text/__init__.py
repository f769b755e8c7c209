"""Text encoders: from a caption to the vectors that cross-attention reads. A data set has one, whose fingerprint is
stored with it."""

import hashlib
import json
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import Location
from data_pipeline.text.hashing import HashingText


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


def caption_hash(caption: str) -> str:
    """16 hex digits that stand for a caption."""
    return hashlib.blake2b(caption.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


FILE = "text.json"  # in the tokenizer's folder


class EachOnce:
    """A text encoder that encodes a caption once, however many clips have it: the last KEPT captions, by their hash."""

    KEPT = 1024

    def __init__(self, encoder: TextEncoder) -> None:
        self.width, self.max_tokens, self.fingerprint = encoder.width, encoder.max_tokens, encoder.fingerprint
        self._encoder = encoder
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(self, caption: str) -> np.ndarray:
        name = caption_hash(caption)
        if name not in self._known:
            self._known[name] = self._encoder.encode(caption)
            if len(self._known) > self.KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(name)
        return self._known[name]


def load_text(folder: str | Location, spec: EncodeSpec) -> TextEncoder:
    """The text encoder that a folder's text.json describes; without one, hashing of the spec's width and length.

    Raises UserError naming the file that is of an unknown kind, or what the weights behind it lack.
    """
    path, value = _description(folder)
    if value is None:
        return HashingText(spec.text_width, spec.text_tokens)
    if value.get("kind") != "transformers":
        raise UserError(f"{path}: unknown text encoder kind {value.get('kind')!r}; this version knows: hashing, transformers")
    from data_pipeline.text.transformers import TextDescription, TransformersText

    return EachOnce(TransformersText(TextDescription.from_json(value, str(path))))


def text_fingerprint(folder: str | Location, spec: EncodeSpec) -> str:
    """Of the text encoder that load_text would load, without loading it."""
    value = _description(folder)[1]
    return HashingText(spec.text_width, spec.text_tokens).fingerprint if value is None else str(value["fingerprint"])


def _description(folder: str | Location) -> tuple[Location, dict[str, Any] | None]:
    """(text.json's place, what it holds or None when it is not there). Raises UserError when it is damaged."""
    path = storage.location(folder) / FILE
    try:
        return path, dict(json.loads(storage.read_bytes(path)))
    except FileNotFoundError:
        return path, None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a text encoder's description: encode the data set again") from error
