"""What happened to each source and chunk, as values that go to JSON and back. Written by encode.py, summed up by
manifest.py, passed between processes by cluster/encode.py."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.shards import ShardEntry

TRAIN, HELD_OUT = "train", "held_out"  # the splits of a data set, by source


@dataclass(frozen=True)
class LatentSums:
    """Sums over latent values for statistics: per kind the count, per kind and channel the sum and sum of squares.

    Kind 0 is the first latent frame, which stands for one video frame; kind 1 the later ones, each for a group.
    """

    count: tuple[int, ...]
    total: tuple[tuple[float, ...], ...]
    square: tuple[tuple[float, ...], ...]

    @classmethod
    def zero(cls, channels: int) -> "LatentSums":
        nothing = ((0.0,) * channels,) * 2
        return cls((0, 0), nothing, nothing)

    @classmethod
    def of(cls, latent: np.ndarray) -> "LatentSums":
        """Sums of one raw latent [T, C, h, w]."""
        channels = latent.shape[1]
        kinds = [frames.swapaxes(0, 1).reshape(channels, -1).astype(np.float64) for frames in (latent[:1], latent[1:])]
        return cls(
            tuple(values.shape[1] for values in kinds),
            tuple(tuple(values.sum(axis=1).tolist()) for values in kinds),
            tuple(tuple((values**2).sum(axis=1).tolist()) for values in kinds),
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LatentSums":
        return cls(tuple(value["count"]), tuple(map(tuple, value["total"])), tuple(map(tuple, value["square"])))

    def __add__(self, other: "LatentSums") -> "LatentSums":
        def add(one: tuple, two: tuple) -> tuple:
            return tuple(np.add(one, two).tolist())

        return LatentSums(
            add(self.count, other.count),
            tuple(map(add, self.total, other.total)),
            tuple(map(add, self.square, other.square)),
        )


@dataclass(frozen=True)
class SourceRecord:
    """The outcome of one source: ok, rejected (it decodes, but no bucket got a clip) or failed (with the reason)."""

    id: str
    name: str
    status: str
    reason: str = ""
    decode_errors: int = 0
    clips: dict[str, int] = field(default_factory=dict)  # by bucket id
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)  # by bucket id and reason, see SourceClips
    values: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # filter values of each clip, by bucket id
    hashes: dict[str, list[str]] = field(default_factory=dict)  # perceptual hash of each clip, by bucket id
    facts: dict[str, float] = field(default_factory=dict)  # see SourceClips
    caption: str = ""
    licence: str = ""
    sums: LatentSums | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "SourceRecord":
        return cls(**value | {"sums": value["sums"] and LatentSums.from_json(value["sums"])})


@dataclass(frozen=True)
class ChunkRecord:
    """The outcome of one chunk: its sources, in order, and the shards that hold their clips. total: the sums of a brief record, whose
    sources have none of their own."""

    split: str
    index: int
    work: str  # fingerprint of what it was made from
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardEntry, ...]
    total: LatentSums | None = None

    @property
    def name(self) -> str:
        """Of its shards, the same in every bucket."""
        return chunk_name(self.split, self.index)

    @property
    def clips(self) -> int:
        return sum(shard.count for shard in self.shards)

    @property
    def sums(self) -> LatentSums | None:
        """Of its sources together, None where none has any."""
        found = [source.sums for source in self.sources if source.sums]
        return self.total or (sum(found[1:], found[0]) if found else None)

    def brief(self) -> "ChunkRecord":
        """All that manifests are made of, without what only the files of source records are asked for, which is most of it."""
        untold: dict[str, Any] = {"values": {}, "facts": {}, "caption": "", "licence": "", "sums": None}
        return replace(self, sources=tuple(replace(source, **untold) for source in self.sources), total=self.sums)


def chunk_name(split: str, index: int) -> str:
    return f"{'shard' if split == TRAIN else 'held-out'}-{index:06d}"


def require_clips(outcomes: Sequence[SourceRecord], buckets: Sequence[str], videos: str) -> None:
    """Raises UserError when none of the sources in `videos` could be read, naming the first reasons, or when none has
    a clip for one of the buckets, naming the bucket and the counts by reason."""
    failed = [f"{source.name}: {source.reason}" for source in outcomes if source.status == "failed"]
    if len(failed) == len(outcomes):
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise UserError(f"no readable video in {videos}: {'; '.join(failed[:3])}{more}")
    for bucket in buckets:
        if any(source.clips.get(bucket) for source in outcomes):
            continue
        reasons: Counter[str] = Counter({"unreadable": len(failed)} if failed else {})
        for source in outcomes:
            reasons.update(source.rejected.get(bucket, {}))
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        raise UserError(f"no train clip in {videos} fits bucket {bucket} ({counts}): use a smaller or shorter bucket")
