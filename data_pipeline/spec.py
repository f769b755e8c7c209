"""What a data set is made with: one frozen value that the command line builds and everything else reads."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from data_pipeline.buckets import Bucket, Stride, latent_shape
from data_pipeline.filters import FilterThresholds

CODE_VERSION = 5  # raise it when the same inputs would give other bytes


@dataclass(frozen=True)
class EncodeSpec:
    """Every setting that changes a byte of the data set. Raises ValueError naming the setting that cannot be."""

    fps: float
    buckets: tuple[Bucket, ...]
    held_out: float = 0.1  # fraction of the sources
    channels: int = 16
    stride: Stride = (4, 8, 8)  # video frames, rows, columns per latent
    text_tokens: int = 24
    text_width: int = 64
    sources_per_shard: int = 16
    max_clips: int = 16  # per source and bucket
    thresholds: FilterThresholds = field(default_factory=FilterThresholds)
    scene_threshold: float = 0.12  # mean luma difference of two pictures, 0..1
    one_aspect: bool = False  # of buckets that differ in aspect alone, a source goes to the nearest only
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fps < float("inf"):
            raise ValueError(f"fps {self.fps} must be positive")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be a fraction below 1")
        if not self.buckets or len(set(self.buckets)) < len(self.buckets):
            raise ValueError("buckets must name at least one shape, and none twice")
        for name in ("channels", "text_tokens", "text_width", "sources_per_shard", "max_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.text_width % 2:
            raise ValueError(f"text_width {self.text_width} must be even: positions are sine and cosine pairs")
        if min(self.stride) < 1:
            raise ValueError(f"stride {list(self.stride)} must be at least 1 in each direction")
        for bucket in self.buckets:
            latent_shape(bucket, self.stride)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"buckets": [bucket.id for bucket in self.buckets], "stride": list(self.stride)}

    @property
    def fingerprint(self) -> str:
        """What samples name as the settings that they were made with."""
        return fingerprint(self.to_json())

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "EncodeSpec":
        return cls(
            **value
            | {
                "buckets": tuple(map(Bucket.parse, value["buckets"])),
                "stride": tuple(value["stride"]),
                "thresholds": FilterThresholds(**value["thresholds"]),
            }
        )


def versions() -> dict[str, Any]:
    """The code and libraries whose change may change a byte of the data set."""
    return {"code": CODE_VERSION} | {name: version(name) for name in ("av", "numpy")}


def fingerprint(*parts: Any) -> str:
    """32 hex digits that are the same for equal JSON values, in every process and on every machine. An iterator stands for
    the list of what it gives, of which one item is held at a time."""
    total = hashlib.blake2b(digest_size=16)
    for text in _joined(map(_json, parts)):
        total.update(text.encode())
    return total.hexdigest()


def _json(value: Any) -> Iterator[str]:
    """The pieces of a value's JSON text, as json.dumps writes it."""
    return _joined(map(_json, value)) if isinstance(value, Iterator) else iter((json.dumps(value, sort_keys=True),))


def _joined(items: Iterator[Iterator[str]]) -> Iterator[str]:
    before = "["
    for item in items:
        yield before
        yield from item
        before = ", "
    yield "]" if before == ", " else "[]"
