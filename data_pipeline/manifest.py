"""The record of a data set: what it was made from, its shards, statistics and outcomes. Built from the chunks' records and
written after them, so that all it names is there; the loader starts from it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.duplicates import duplicates
from data_pipeline.errors import UserError
from data_pipeline.records import HELD_OUT, TRAIN, ChunkRecord, LatentSums, SourceRecord, require_clips
from data_pipeline.shards import ShardEntry
from data_pipeline.sources import Source
from data_pipeline.spec import EncodeSpec, fingerprint, versions
from data_pipeline.storage import Location

SCHEMA = 2
FILE = "manifest.json"

Exclusions = dict[str, dict[str, dict[str, list[int]]]]


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
class ChannelStatistics:
    """Mean and standard deviation [C] of raw train latents over all their frames, as found when the data set was first
    finished: later generations keep them, so that what was trained on them stays right."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


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
    """See the fields of manifest.json, which are these. `buckets` is {bucket id: {"train" | "held_out": shards}};
    `exclusions` names the rows of shards that are not to be read: {bucket id: {shard name: {reason: rows}}}; `captions` are
    shards of captions that replace those of the samples, the last of them before the others; `pending` sources are still to be
    encoded: the shards are the first ones, and statistics those of the first that there were."""

    fingerprint: str
    spec: EncodeSpec
    tokenizer: str  # fingerprint
    text: str  # fingerprint
    buckets: dict[str, dict[str, tuple[ShardEntry, ...]]]
    statistics: LatentStatistics
    latent_statistics: ChannelStatistics
    sources: SourcesSummary
    exclusions: Exclusions = field(default_factory=dict)
    captions: tuple[ShardEntry, ...] = ()
    schema: int = SCHEMA
    generation: int = 0
    pending: int = 0

    def clips(self, bucket: str, split: str) -> int:
        """How many there are to read."""
        return sum(len(self.rows(shard)) for shard in self.buckets[bucket][split])

    def rows(self, shard: ShardEntry) -> Sequence[int]:
        """The rows of a shard that are to be read, in order: all but the excluded ones."""
        excluded = self.excluded(shard)
        return [row for row in range(shard.count) if row not in excluded] if excluded else range(shard.count)

    def excluded(self, shard: ShardEntry) -> frozenset[int]:
        """The rows of a shard that are not to be read, for whatever reason."""
        reasons = self.exclusions.get(shard.bucket, {}).get(shard.name, {})
        return frozenset(row for rows in reasons.values() for row in rows)


def dataset_fingerprint(sources: Sequence[Source], spec: EncodeSpec, codecs: Sequence[str] = ()) -> str:
    """Names a data set before it is encoded: equal inputs (names, sizes, captions), settings and versions. `codecs` are
    the fingerprints of a tokenizer and a text encoder that are not made from the data."""
    return fingerprint(([source.name, source.size(), source.caption] for source in sources), spec.to_json(), list(codecs), versions())


def build(
    records: Iterable[ChunkRecord], spec: EncodeSpec, videos: str, *, fingerprint: str, tokenizer: str, text: str, pending: int = 0
) -> Manifest:
    """Sums up the records of all chunks, or of the first ones. Pure; `videos` (the folder) is only for messages.

    Raises UserError when no video could be read, or when a bucket has no train clip and gets none, with the reasons.
    """
    chunks = sorted(records, key=lambda record: (record.split, record.index))
    outcomes = [source for chunk in chunks for source in chunk.sources]
    train = train_sources(chunks)
    if not pending:
        require_clips(train, [bucket.id for bucket in spec.buckets], videos)
    buckets = {bucket.id: {split: shards(chunks, split, bucket.id) for split in (TRAIN, HELD_OUT)} for bucket in spec.buckets}
    sums = sum((chunk.sums for chunk in chunks if chunk.split == TRAIN and chunk.sums), LatentSums.zero(spec.channels))
    return Manifest(
        fingerprint=fingerprint,
        spec=spec,
        tokenizer=tokenizer,
        text=text,
        buckets=buckets,
        statistics=statistics(sums),
        latent_statistics=channel_statistics(sums),
        sources=summary(outcomes),
        exclusions=exclude_duplicates(chunks, spec),
        pending=pending,
    )


def train_sources(chunks: Sequence[ChunkRecord]) -> list[SourceRecord]:
    """The outcomes of those that are not held out."""
    return [source for chunk in chunks if chunk.split == TRAIN for source in chunk.sources]


def exclude_duplicates(chunks: Sequence[ChunkRecord], spec: EncodeSpec) -> Exclusions:
    """The clips that look like an earlier one of their bucket, by the spec's limit. Train clips come first, so that no
    held-out clip has a likeness among them."""
    limit = spec.thresholds.duplicate_bits
    if limit is None:
        return {}
    train_first = sorted(chunks, key=lambda chunk: (chunk.split != TRAIN, chunk.index))
    exclusions: Exclusions = {}
    for bucket in spec.buckets:
        places, hashes = [], []
        for chunk in train_first:
            found = [value for source in chunk.sources for value in source.hashes.get(bucket.id, [])]
            places += [(chunk.name, row) for row in range(len(found))]
            hashes += found
        for position in duplicates(hashes, limit):
            shard, row = places[position]
            exclusions.setdefault(bucket.id, {}).setdefault(shard, {}).setdefault("duplicate", []).append(row)
    return exclusions


def statistics(sums: LatentSums) -> LatentStatistics:
    """Statistics from sums; a kind of which there is no latent gets mean 0 and deviation 1."""
    count = np.array(sums.count)[:, None]
    mean = np.array(sums.total) / np.maximum(count, 1)
    variance = np.maximum(np.array(sums.square) / np.maximum(count, 1) - mean**2, 0)
    std = np.where(count, np.sqrt(variance), 1.0)
    return LatentStatistics(tuple(map(tuple, mean.tolist())), tuple(map(tuple, std.tolist())))


def channel_statistics(sums: LatentSums) -> ChannelStatistics:
    """Over both kinds of latent frames."""
    count = max(sum(sums.count), 1)
    mean = np.sum(sums.total, axis=0) / count
    variance = np.maximum(np.sum(sums.square, axis=0) / count - mean**2, 0)
    return ChannelStatistics(tuple(mean.tolist()), tuple(np.sqrt(variance).tolist()))


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
    mean, factor = normalisation(latents.shape[-4], statistics)
    return (latents.astype(np.float32) - mean[:, None, None, :, 0, 0]) * factor


def normalisation(count: int, statistics: LatentStatistics) -> tuple[np.ndarray, np.ndarray]:
    """float32 mean [T, C, 1, 1] and factor [T, 1, 1, 1] of `count` raw latent frames [T, C, h, w]: what they are less, then times."""
    mean, scale = by_frame(count, statistics)
    return np.moveaxis(mean, -1, 1).astype(np.float32), (1.0 / scale).astype(np.float32)


def denormalise(latents: np.ndarray, statistics: LatentStatistics) -> np.ndarray:
    """The inverse of normalise."""
    mean, scale = by_frame(latents.shape[-4], statistics)
    return (latents * scale + mean).astype(np.float32)


def write(manifest: Manifest, folder: str | Location) -> bool:
    """Keeps the generation under its number for good, then makes the newest one the data set's own.

    False when another writer has taken the number for something else: that stands, and what is beyond it is to be written anew.
    """
    folder = storage.location(folder)
    path, data = _path(folder, manifest.generation), storage.json_bytes(asdict(manifest) | {"spec": manifest.spec.to_json()})
    kept = storage.create(path, data) or storage.read_bytes(path) == data
    _publish(folder, manifest.generation)
    return kept


def _publish(folder: Location, newest: int) -> None:
    """manifest.json only goes up: who has written an older generation into it just now, beside another writer, goes on to the newest."""
    while True:
        while storage.size(_path(folder, newest + 1)) is not None:
            newest += 1
        if _published(folder) >= newest:
            return
        storage.write_bytes(folder / FILE, storage.read_bytes(_path(folder, newest)))


def _published(folder: Location) -> int:
    """The generation that manifest.json holds, -1 for none."""
    return -1 if storage.size(folder / FILE) is None else read(folder).generation


def _path(folder: Location, generation: int | None) -> Location:
    return folder / FILE if generation is None else folder / "generations" / f"manifest-{generation:06d}.json"


def read(folder: str | Location, generation: int | None = None) -> Manifest:
    """The newest generation, or a given one. Raises UserError naming the file when it is missing, damaged or of another schema."""
    path = _path(storage.location(folder), generation)
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


def dataset_id(folder: str | Location, generation: int | None = None) -> str:
    """sha256 of the manifest's bytes: equal ids mean equal data sets."""
    return hashlib.sha256(storage.read_bytes(_path(storage.location(folder), generation))).hexdigest()


def shards(chunks: Sequence[ChunkRecord], split: str, bucket: str) -> tuple[ShardEntry, ...]:
    """The shards of one bucket and split, in the order of the chunks."""
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
            "captions": tuple(ShardEntry(**entry) for entry in value["captions"]),
            "statistics": LatentStatistics(mean, std),
            "latent_statistics": ChannelStatistics(**{name: tuple(found) for name, found in value["latent_statistics"].items()}),
            "sources": SourcesSummary(**value["sources"]),
        }
    )


def by_frame(count: int, statistics: LatentStatistics) -> tuple[np.ndarray, np.ndarray]:
    """mean [T, 1, 1, C] and scale [T, 1, 1, 1] of `count` latent frames."""
    kind = np.minimum(np.arange(count), 1)
    return np.array(statistics.mean)[kind][:, None, None], statistics.scale()[kind][:, None, None, None]
