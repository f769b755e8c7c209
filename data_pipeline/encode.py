"""The encode work of one chunk of sources, and the plan that deals sources to chunks. cluster/encode.py calls it inside
actors, tests call it in process; it knows nothing of Ray, and any order of chunks gives the same bytes."""

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.clips import Clip, SourceClips, clips_of
from data_pipeline.decode import DecodeError
from data_pipeline.order import keyed_generator
from data_pipeline.records import HELD_OUT, TRAIN, ChunkRecord, LatentSums, SourceRecord, chunk_name, require_clips
from data_pipeline.shards import Sample, ShardEntry, from_bfloat16, is_intact, to_bfloat16, write_shard
from data_pipeline.sources import Source
from data_pipeline.spec import EncodeSpec, fingerprint, versions
from data_pipeline.text import TextEncoder
from data_pipeline.tokenizers import VideoTokenizer


@dataclass(frozen=True)
class Chunk:
    """The sources whose clips go to one shard of every bucket: the unit of work, of retry and of resume."""

    split: str  # TRAIN or HELD_OUT
    index: int
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        return chunk_name(self.split, self.index)


def plan_chunks(sources: Sequence[Source], spec: EncodeSpec) -> list[Chunk]:
    """Deals the sources, in their order, to the chunks of both splits. Pure."""
    held_out = held_out_ids(sources, spec)
    chunks = []
    for split in (TRAIN, HELD_OUT):
        members = [source for source in sources if (source.id in held_out) == (split == HELD_OUT)]
        for index, start in enumerate(range(0, len(members), spec.sources_per_shard)):
            chunks.append(Chunk(split, index, tuple(members[start : start + spec.sources_per_shard])))
    return chunks


def held_out_ids(sources: Sequence[Source], spec: EncodeSpec) -> frozenset[str]:
    """The sources kept for evaluation: those whose hash falls below spec.held_out.

    Of two or more sources at least one is held out and at least one is not: if need be, the one of smallest hash is.
    """
    draws = {source.id: float(keyed_generator("held-out", spec.seed, source.id).random()) for source in sources}
    chosen = frozenset(id for id, draw in draws.items() if draw < spec.held_out)
    if len(sources) < 2:
        return frozenset()
    return chosen if 0 < len(chosen) < len(draws) else frozenset([min(draws, key=lambda id: (draws[id], id))])


def encode_chunk(
    chunk: Chunk, spec: EncodeSpec, tokenizer: VideoTokenizer, text: TextEncoder, folder: str | Path, careful: bool = False
) -> ChunkRecord:
    """Writes the chunk's shards into the data set's folder, then one record per source; returns what it wrote.

    A chunk whose records and shards are already there, made from the same inputs, is returned without work. A source
    that cannot be decoded is an outcome, not an error; so is, if `careful`, one whose decoding kills the process.
    """
    folder = Path(folder)
    work = work_fingerprint(chunk, spec, tokenizer, text)
    if finished := read_finished(chunk, work, folder):
        return finished
    samples: dict[str, list[Sample]] = {bucket.id: [] for bucket in spec.buckets}
    outcomes = [
        _failure(source, "decoding it kills the process")
        if careful and _kills(source, spec)
        else _encode_source(source, spec, tokenizer, text, samples)
        for source in chunk.sources
    ]
    shards = tuple(write_shard(folder / bucket, chunk.name, found) for bucket, found in samples.items() if found)
    record = ChunkRecord(chunk.split, chunk.index, work, tuple(outcomes), shards)
    for outcome in outcomes:
        value = asdict(outcome) | {"chunk": {"name": chunk.name, "work": work, "shards": [asdict(s) for s in shards]}}
        storage.write_json(_record_path(folder, outcome.id), value)
    return record


def read_finished(chunk: Chunk, work: str, folder: Path) -> ChunkRecord | None:
    """The record of a chunk that was completed before, or None when any of its files is missing or of other work."""
    outcomes, shards = [], []
    for source in chunk.sources:
        try:
            value = json.loads(_record_path(folder, source.id).read_text())
            made = value.pop("chunk")
        except (OSError, ValueError, KeyError):
            return None
        if made["work"] != work or made["name"] != chunk.name:
            return None
        shards = [ShardEntry(**entry) for entry in made["shards"]]
        outcomes.append(SourceRecord.from_json(value))
    if not all(is_intact(folder, shard) for shard in shards):
        return None
    return ChunkRecord(chunk.split, chunk.index, work, tuple(outcomes), tuple(shards))


def sample_for_fit(sources: Sequence[Source], spec: EncodeSpec, limit: int = 16, videos: str = "data.videos") -> Iterator[np.ndarray]:
    """uint8 clips [F, H, W, 3] to fit a tokenizer on: one per bucket of the first `limit` train sources that have any,
    in hashed order so that they are spread over the folder. Raises UserError, naming `videos`, when none has."""
    brief = replace(spec, max_clips=1)
    held_out = held_out_ids(sources, spec)
    outcomes: list[SourceRecord] = []
    for source in sorted(sources, key=lambda source: source.id):
        if source.id in held_out:
            continue
        found = _clips_or_failure(source, brief)
        if isinstance(found, SourceRecord):
            outcomes.append(found)
            continue
        outcomes.append(_outcome(source, found, LatentSums.zero(spec.channels)))
        yield from (clip.frames for clips in found.clips.values() for clip in clips)
        if sum(outcome.status == "ok" for outcome in outcomes) == limit:
            return
    if not any(outcome.status == "ok" for outcome in outcomes):
        require_clips(outcomes, [bucket.id for bucket in spec.buckets], videos)


def work_fingerprint(chunk: Chunk, spec: EncodeSpec, tokenizer: VideoTokenizer, text: TextEncoder) -> str:
    """Equal for chunks that would be encoded to the same bytes."""
    inputs = [[source.id, source.caption, source.size()] for source in chunk.sources]
    return fingerprint(inputs, spec.to_json(), tokenizer.fingerprint, text.fingerprint, versions())


def _encode_source(
    source: Source, spec: EncodeSpec, tokenizer: VideoTokenizer, text: TextEncoder, samples: dict[str, list[Sample]]
) -> SourceRecord:
    """Appends the source's samples to those of each bucket and returns its outcome."""
    found = _clips_or_failure(source, spec)
    if isinstance(found, SourceRecord):
        return found
    vectors = text.encode(source.caption)
    sums = LatentSums.zero(tokenizer.channels)
    for bucket, clips in found.clips.items():
        for number, clip in enumerate(clips):
            latent = from_bfloat16(to_bfloat16(tokenizer.encode(clip.frames)))
            sums = sums + LatentSums.of(latent)
            meta = _meta(source, spec, clip)
            samples[bucket.id].append(Sample(f"{source.id}-{number:04d}", latent, vectors, meta))
    return _outcome(source, found, sums)


def _clips_or_failure(source: Source, spec: EncodeSpec) -> SourceClips | SourceRecord:
    try:
        return clips_of(source.path, spec)
    except DecodeError as error:
        return _failure(source, str(error))


def _failure(source: Source, reason: str) -> SourceRecord:
    return SourceRecord(source.id, source.name, "failed", reason, caption=source.caption, licence=source.licence)


def _kills(source: Source, spec: EncodeSpec) -> bool:
    """Whether decoding the source kills the process that does it: a process of its own finds out."""
    child = multiprocessing.get_context("spawn").Process(target=_clips_or_failure, args=(source, spec))
    child.start()
    child.join()
    return child.exitcode is not None and child.exitcode < 0


def _outcome(source: Source, found: SourceClips, sums: LatentSums) -> SourceRecord:
    rejected = {bucket.id: dict(reasons) for bucket, reasons in found.rejected.items() if reasons}
    reasons = sorted({reason for counts in rejected.values() for reason in counts})
    usable = any(found.clips.values())
    return SourceRecord(
        id=source.id,
        name=source.name,
        status="ok" if usable else "rejected",
        reason="" if usable else "+".join(reasons),
        decode_errors=found.decode_errors,
        clips={bucket.id: len(clips) for bucket, clips in found.clips.items()},
        rejected=rejected,
        values={bucket.id: [clip.values for clip in clips] for bucket, clips in found.clips.items()},
        hashes={bucket.id: [clip.hash for clip in clips] for bucket, clips in found.clips.items()},
        facts=found.facts,
        caption=source.caption,
        licence=source.licence,
        sums=sums,
    )


def _meta(source: Source, spec: EncodeSpec, clip: Clip) -> dict[str, Any]:
    return {
        "caption": source.caption,
        "source": source.id,
        "name": source.name,
        "start": clip.start,
        "stop": clip.stop,
        "fps": spec.fps,
        "motion": clip.values["motion"],
        "hash": clip.hash,
        "licence": source.licence,
        "frames": len(clip.frames),
        "height": clip.frames.shape[1],
        "width": clip.frames.shape[2],
        "values": clip.values,
    }


def _record_path(folder: Path, source_id: str) -> Path:
    return folder / "sources" / f"{source_id}.json"
