"""Changes to a data set, each a new generation of its manifest: what was encoded since, added or removed sources, new captions.
No latent is encoded twice and no shard is rewritten, so what trains on an older generation is not disturbed. Callers encode
the chunks that plan_growth gives as they do all others; this module knows no Ray."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from data_pipeline import manifest as manifests
from data_pipeline import storage
from data_pipeline.encode import Chunk, is_held_out
from data_pipeline.errors import UserError
from data_pipeline.manifest import Exclusions, Manifest
from data_pipeline.records import HELD_OUT, TRAIN, ChunkRecord, SourceRecord
from data_pipeline.shard_reader import ShardReader
from data_pipeline.shards import Sample, ShardEntry, shard_path, source_of, write_shard
from data_pipeline.sources import Source
from data_pipeline.storage import Location
from data_pipeline.text import TextEncoder, caption_hash

TEXT_FOLDER = "text"  # of new captions, as shards without latents
NO_LATENT = np.zeros((1, 1, 1, 1), np.float32)
REMOVED = "removed"

Chosen = Callable[[SourceRecord], bool]


def read_records(folder: Location) -> list[ChunkRecord]:
    """The records of every chunk in a data set's folder, as its source records tell."""
    chunks: dict[str, tuple[dict, list[SourceRecord]]] = {}
    for path, _ in storage.list_files(folder / "sources"):
        value = json.loads(storage.read_bytes(path))
        made = value.pop("chunk")
        chunks.setdefault(made["name"], (made, []))[1].append(SourceRecord.from_json(value))
    found = []
    for name, (made, outcomes) in sorted(chunks.items()):
        kind, number = name.rsplit("-", 1)
        sources = tuple(sorted(outcomes, key=lambda outcome: outcome.name))
        shards = tuple(ShardEntry(**entry) for entry in made["shards"])
        found.append(ChunkRecord(TRAIN if kind == "shard" else HELD_OUT, int(number), made["work"], sources, shards))
    return found


def plan_growth(sources: Sequence[Source], old: Manifest, records: Sequence[ChunkRecord]) -> list[Chunk]:
    """Chunks of those sources that the data set does not have yet, numbered behind the ones it has.

    A new source is held out if its hash says so, as when the data set was made.
    """
    known = {source.id for record in records for source in record.sources}
    chunks = []
    for split in (TRAIN, HELD_OUT):
        members = [source for source in sources if source.id not in known and is_held_out(source, old.spec) == (split == HELD_OUT)]
        first = 1 + max((record.index for record in records if record.split == split), default=-1)
        for index, start in enumerate(range(0, len(members), old.spec.sources_per_shard), start=first):
            chunks.append(Chunk(split, index, tuple(members[start : start + old.spec.sources_per_shard])))
    return chunks


def grow(old: Manifest, records: Sequence[ChunkRecord]) -> Manifest:
    """The next generation, with the shards of all `records`. Raises UserError without new ones."""
    made = advance(old, records)
    if made.buckets == old.buckets:
        raise UserError("nothing to add: the data set has all of these videos, or none of them gave a clip")
    return made


def advance(old: Manifest, records: Sequence[ChunkRecord], pending: int = 0) -> Manifest:
    """The next generation, with the shards of all `records`, while `pending` sources are still to come; statistics stay those of
    the first."""
    chunks = sorted(records, key=lambda record: (record.split, record.index))
    buckets = {bucket: {split: manifests.shards(chunks, split, bucket) for split in splits} for bucket, splits in old.buckets.items()}
    outcomes = [source for chunk in chunks for source in chunk.sources]
    exclusions = merge(old.exclusions, manifests.exclude_duplicates(chunks, old.spec))
    made = replace(old, buckets=buckets, sources=manifests.summary(outcomes), exclusions=exclusions)
    return replace(made, generation=old.generation + 1, pending=pending)


def choose(ids: Iterable[str] = (), caption: str | None = None, licence: str | None = None) -> Chosen:
    """Sources by id or name, by a pattern found in their caption, or by their licence. Raises UserError for a bad pattern."""
    named = frozenset(ids)
    try:
        pattern = None if caption is None else re.compile(caption, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"caption pattern {caption!r} is not a regular expression: {error}") from error

    def chosen(source: SourceRecord) -> bool:
        return (
            source.id in named
            or source.name in named
            or (pattern is not None and bool(pattern.search(source.caption)))
            or (licence is not None and source.licence == licence)
        )

    return chosen


def remove(old: Manifest, folder: Location, chosen: Chosen) -> Manifest:
    """The next generation, in which no clip of the chosen sources is read. Raises UserError when none is chosen, or when
    nothing of a bucket would be left to train on."""
    ids = {source.id for record in read_records(folder) for source in record.sources if chosen(source)}
    removed: Exclusions = {}
    for bucket, splits in old.buckets.items():
        for entry in (entry for entries in splits.values() for entry in entries):
            keys = ShardReader(shard_path(folder, entry), entry).keys
            rows = [row for row, key in enumerate(keys) if source_of(key) in ids]
            if rows:
                removed.setdefault(bucket, {})[entry.name] = {REMOVED: rows}
    if not removed:
        raise UserError(f"nothing to remove: no clip of {folder} is of such a source")
    made = replace(old, exclusions=merge(old.exclusions, removed), generation=old.generation + 1)
    for bucket in made.buckets:
        if not made.clips(bucket, TRAIN):
            raise UserError(f"removing these would leave no train clip in bucket {bucket} of {folder}")
    return made


def recaption(old: Manifest, folder: Location, captions: Mapping[str, str], text: TextEncoder) -> Manifest:
    """The next generation, in which sources, by id or name, have new captions. Each distinct caption is encoded once; the
    empty one is always there. Raises UserError for a source that is not there and for another text encoder."""
    if text.fingerprint != old.text:
        raise UserError(f"{folder} has its captions from another text encoder: use the one that it was encoded with")
    ids = {name: source.id for record in read_records(folder) for source in record.sources for name in (source.id, source.name)}
    if unknown := next((name for name in captions if name not in ids), None):
        raise UserError(f"{folder} has no source {unknown}: name sources as in its source records")
    owners: dict[str, list[str]] = {"": []}
    for name, caption in captions.items():
        owners.setdefault(caption, []).append(ids[name])
    samples = (
        Sample(caption_hash(caption), NO_LATENT, text.encode(caption), {"caption": caption, "sources": sorted(sources)})
        for caption, sources in sorted(owners.items())
    )
    entry = write_shard(folder / TEXT_FOLDER, f"captions-{old.generation + 1:06d}", samples)
    return replace(old, captions=(*old.captions, entry), generation=old.generation + 1)


def merge(one: Exclusions, other: Exclusions) -> Exclusions:
    """Both, each row once per reason."""
    merged: Exclusions = {}
    for exclusions in (one, other):
        for bucket, shards in exclusions.items():
            for shard, reasons in shards.items():
                for reason, rows in reasons.items():
                    place = merged.setdefault(bucket, {}).setdefault(shard, {})
                    place[reason] = sorted({*place.get(reason, []), *rows})
    return merged
