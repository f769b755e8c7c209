"""The record of a finished data set: what it was made from, its shards, statistics and outcomes. Built from the chunks'
records and written last, so that a folder with a manifest is complete; the loader starts from it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.records import HELD_OUT, TRAIN, ChunkRecord, LatentSums, SourceRecord, require_clips
from data_pipeline.shards import ShardEntry
from data_pipeline.sources import Source
from data_pipeline.spec import EncodeSpec, fingerprint, versions
from data_pipeline.storage import Location

SCHEMA = 1
FILE = "manifest.json"


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation [2, C] of raw train latents: row 0 the first latent frame, row 1 the later ones."""

    mean: tuple[tuple[float, ...], ...]
    std: tuple[tuple[float, ...], ...]

    def scale(self) -> np.ndarray:
        """One number per kind [2]: the root of the mean variance over channels. Channels keep their relative sizes."""
        scale = np.sqrt(np.square(self.std).mean(axis=1))
        return np.where(scale > 0, scale, 1.0)


@dataclass(frozen=True)
class SourcesSummary:
    """How the inputs fared. `rejected` counts sources by reason; `failed` and `damaged` map names to what was wrong
    (damaged ones were used, but lost packets)."""

    total: int
    ok: int
    rejected: dict[str, int]
    failed: dict[str, str]
    damaged: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """See the fields of manifest.json, which are these. `buckets` is {bucket id: {"train" | "held_out": shards}}."""

    fingerprint: str
    spec: EncodeSpec
    tokenizer: str  # fingerprint
    text: str  # fingerprint
    buckets: dict[str, dict[str, tuple[ShardEntry, ...]]]
    statistics: LatentStatistics
    sources: SourcesSummary
    schema: int = SCHEMA
    generation: int = 0

    def clips(self, bucket: str, split: str) -> int:
        return sum(shard.count for shard in self.buckets[bucket][split])


def dataset_fingerprint(sources: Sequence[Source], spec: EncodeSpec) -> str:
    """Names a data set before it is encoded: equal inputs (names, sizes, captions), settings and versions."""
    inputs = sorted([source.name, source.size(), source.caption] for source in sources)
    return fingerprint(inputs, spec.to_json(), versions())


def build(records: Iterable[ChunkRecord], spec: EncodeSpec, videos: str, *, fingerprint: str, tokenizer: str, text: str) -> Manifest:
    """Sums up the records of all chunks. Pure; `videos` (the folder) is only for messages.

    Raises UserError when no video could be read, or when a bucket has no train clip, with the reasons.
    """
    chunks = sorted(records, key=lambda record: (record.split, record.index))
    outcomes = [source for chunk in chunks for source in chunk.sources]
    train = [source for chunk in chunks if chunk.split == TRAIN for source in chunk.sources]
    require_clips(train, [bucket.id for bucket in spec.buckets], videos)
    buckets = {bucket.id: {split: _shards(chunks, split, bucket.id) for split in (TRAIN, HELD_OUT)} for bucket in spec.buckets}
    sums = sum((source.sums for source in train if source.sums), LatentSums.zero(spec.channels))
    return Manifest(fingerprint, spec, tokenizer, text, buckets, statistics(sums), summary(outcomes))


def statistics(sums: LatentSums) -> LatentStatistics:
    """Statistics from sums; a kind of which there is no latent gets mean 0 and deviation 1."""
    count = np.array(sums.count)[:, None]
    mean = np.array(sums.total) / np.maximum(count, 1)
    variance = np.maximum(np.array(sums.square) / np.maximum(count, 1) - mean**2, 0)
    std = np.where(count, np.sqrt(variance), 1.0)
    return LatentStatistics(tuple(map(tuple, mean.tolist())), tuple(map(tuple, std.tolist())))


def summary(outcomes: Sequence[SourceRecord]) -> SourcesSummary:
    return SourcesSummary(
        total=len(outcomes),
        ok=sum(source.status == "ok" for source in outcomes),
        rejected=dict(sorted(Counter(source.reason for source in outcomes if source.status == "rejected").items())),
        failed={source.name: source.reason for source in outcomes if source.status == "failed"},
        damaged={
            source.name: f"{source.decode_errors} broken packets or pictures were skipped"
            for source in outcomes
            if source.status != "failed" and source.decode_errors
        },
    )


def normalise(latents: np.ndarray, statistics: LatentStatistics) -> np.ndarray:
    """Raw latents [..., T, h, w, C] -> float32 with zero mean per kind and channel and unit scale per kind."""
    mean, scale = by_frame(latents.shape[-4], statistics)
    return ((latents - mean) / scale).astype(np.float32)


def denormalise(latents: np.ndarray, statistics: LatentStatistics) -> np.ndarray:
    """The inverse of normalise."""
    mean, scale = by_frame(latents.shape[-4], statistics)
    return (latents * scale + mean).astype(np.float32)


def write(manifest: Manifest, folder: str | Location) -> None:
    storage.write_json(storage.location(folder) / FILE, asdict(manifest) | {"spec": manifest.spec.to_json()})


def read(folder: str | Location) -> Manifest:
    """Raises UserError naming the file when it is missing, damaged or of another schema."""
    path = storage.location(folder) / FILE
    try:
        value = json.loads(storage.read_bytes(path))
    except OSError as error:
        raise UserError(f"no data set at {folder}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: delete it to have the data set checked and completed") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}, this version reads {SCHEMA}: encode the data set again")
    return _from_json(value)


def dataset_id(folder: str | Location) -> str:
    """sha256 of the manifest's bytes: equal ids mean equal data sets."""
    return hashlib.sha256(storage.read_bytes(storage.location(folder) / FILE)).hexdigest()


def _shards(chunks: Sequence[ChunkRecord], split: str, bucket: str) -> tuple[ShardEntry, ...]:
    return tuple(shard for chunk in chunks if chunk.split == split for shard in chunk.shards if shard.bucket == bucket)


def _from_json(value: dict[str, Any]) -> Manifest:
    shards = {
        bucket: {split: tuple(ShardEntry(**entry) for entry in entries) for split, entries in splits.items()}
        for bucket, splits in value["buckets"].items()
    }
    mean, std = (tuple(map(tuple, value["statistics"][name])) for name in ("mean", "std"))
    return Manifest(
        **value
        | {
            "spec": EncodeSpec.from_json(value["spec"]),
            "buckets": shards,
            "statistics": LatentStatistics(mean, std),
            "sources": SourcesSummary(**value["sources"]),
        }
    )


def by_frame(count: int, statistics: LatentStatistics) -> tuple[np.ndarray, np.ndarray]:
    """mean [T, 1, 1, C] and scale [T, 1, 1, 1] of `count` latent frames."""
    kind = np.minimum(np.arange(count), 1)
    return np.array(statistics.mean)[kind][:, None, None], statistics.scale()[kind][:, None, None, None]
