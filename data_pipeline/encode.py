"""The work on a chunk: decode its sources, encode their clips, commit its shards. The encode pool calls the three from
different processes, encode_chunk one after the other; any order gives the same bytes."""

import json
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from data_pipeline import storage
from data_pipeline.buckets import Bucket
from data_pipeline.chunks import Chunk, by_id, held_out_rule
from data_pipeline.clips import Clip, SourceClips, clips_of
from data_pipeline.decode import DecodeError
from data_pipeline.records import ChunkRecord, LatentSums, SourceRecord, require_clips
from data_pipeline.shards import Sample, ShardEntry, from_bfloat16, is_intact, to_bfloat16, write_shard
from data_pipeline.sources import Source
from data_pipeline.spec import EncodeSpec, fingerprint, versions
from data_pipeline.storage import Location
from data_pipeline.text import TextEncoder
from data_pipeline.tokenizers import VideoTokenizer

PIECE_BYTES = 16 << 20  # of frames that travel from a decoder to an encoder at once, if a clip is not larger
READS = 16  # records asked for at a time
STALL_SECONDS = 120  # without a picture, after which a decoder counts as hanging
TRIES = 3  # processes that decoding a source must kill before the source is to blame


@dataclass(frozen=True)
class NumberedClip:
    """A clip of a source, with its place among those of its bucket."""

    bucket: Bucket
    number: int
    clip: Clip


@dataclass(frozen=True)
class EncodedClip:
    """What becomes of a clip: a sample of its bucket's shard, and its share of the statistics."""

    bucket: Bucket
    number: int
    sample: Sample
    sums: LatentSums


Piece = tuple[NumberedClip, ...]  # some of a source's clips
Encoded = Sequence[EncodedClip]


def encode_chunk(chunk: Chunk, spec: EncodeSpec, tokenizer: VideoTokenizer, text: TextEncoder, folder: str | Location) -> ChunkRecord:
    """Writes the chunk's shards into the data set's folder, then one record per source; returns what it wrote.

    A chunk whose records and shards are already there, made from the same inputs, is returned without work. A source
    that cannot be decoded is an outcome, not an error.
    """
    folder = storage.location(folder)
    work = work_fingerprint(chunk, spec, tokenizer, text)
    if finished := read_finished(chunk, work, folder):
        return finished
    parts = []
    for source in chunk.sources:
        encoded: list[EncodedClip] = []
        decoding = decode_source(source, spec)
        while True:
            try:
                encoded += encode_piece(next(decoding), source, spec, tokenizer, text)
            except StopIteration as end:
                parts.append((end.value, encoded))
                break
    return commit_chunk(chunk, spec, work, parts, folder)


def decode_source(source: Source, spec: EncodeSpec, careful: bool = False, stall: int = 0) -> Generator[Piece, None, SourceRecord]:
    """Yields the source's clips in pieces of about PIECE_BYTES and returns its outcome, still without sums.

    With `stall`, decoding that gives no picture for so many seconds ends this process, as nothing less can end it. If `careful`,
    a source whose decoding ends the process is an outcome too: processes of their own find that out.
    """
    if careful and (how := _kills(source, spec, stall)):
        return _failure(source, how)
    found = _clips_or_failure(source, spec, stall)
    if isinstance(found, SourceRecord):
        return found
    piece: list[NumberedClip] = []
    for bucket, clips in found.clips.items():
        for number, clip in enumerate(clips):
            if piece and sum(other.clip.frames.nbytes for other in piece) + clip.frames.nbytes > PIECE_BYTES:
                yield tuple(piece)
                piece = []
            piece.append(NumberedClip(bucket, number, clip))
    if piece:
        yield tuple(piece)
    return _outcome(source, found)


def encode_piece(piece: Piece, source: Source, spec: EncodeSpec, tokenizer: VideoTokenizer, text: TextEncoder) -> list[EncodedClip]:
    """The samples of some of a source's clips."""
    vectors = text.encode(source.caption)
    encoded = []
    for item in piece:
        latent = from_bfloat16(to_bfloat16(tokenizer.encode(item.clip.frames)))
        sample = Sample(f"{source.id}-{item.number:04d}", latent, vectors, _meta(source, spec, item.clip))
        encoded.append(EncodedClip(item.bucket, item.number, sample, LatentSums.of(latent)))
    return encoded


def commit_chunk(chunk: Chunk, spec: EncodeSpec, work: str, parts: Sequence[tuple[SourceRecord, Encoded]], folder: Location) -> ChunkRecord:
    """Writes the chunk's shards, then its sources' records. `parts` are what came of its sources, in their order."""
    samples: dict[Bucket, list[Sample]] = {bucket: [] for bucket in spec.buckets}
    outcomes = []
    for outcome, encoded in parts:
        sums = LatentSums.zero(spec.channels)
        for item in sorted(encoded, key=lambda item: (spec.buckets.index(item.bucket), item.number)):
            samples[item.bucket].append(item.sample)
            sums = sums + item.sums
        outcomes.append(outcome if outcome.status == "failed" else replace(outcome, sums=sums))
    shards = tuple(write_shard(folder / bucket.id, chunk.name, found) for bucket, found in samples.items() if found)
    for outcome in outcomes:
        value = asdict(outcome) | {"chunk": {"name": chunk.name, "work": work, "shards": [asdict(s) for s in shards]}}
        storage.write_json(_record_path(folder, outcome.id), value)
    return ChunkRecord(chunk.split, chunk.index, work, tuple(outcomes), shards)


def read_finished(chunk: Chunk, work: str, folder: Location) -> ChunkRecord | None:
    """The record of a chunk that was completed before, or None when any of its files is missing or of other work."""
    outcomes, shards = [], []
    for source in chunk.sources:
        try:
            value = json.loads(storage.read_bytes(_record_path(folder, source.id)))
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


def finished_chunks(chunks: Sequence[Chunk], work: Callable[[Chunk], str], folder: Location) -> Iterator[tuple[int, ChunkRecord]]:
    """(index, brief record) of the chunks that were completed before, in order. One listing rules out most of the others, and of
    those that it does not a few at a time are looked at."""
    there = np.sort(np.fromiter((hash(path.stem) for path, _ in storage.list_files(folder / "sources")), np.int64))
    if not len(there):
        return

    def is_likely(chunk: Chunk) -> bool:
        ids = np.array([hash(source.id) for source in chunk.sources], np.int64)
        return bool((np.searchsorted(there, ids, "left") < np.searchsorted(there, ids, "right")).all())

    likely = ((index, chunk) for index, chunk in enumerate(chunks) if is_likely(chunk))
    with ThreadPoolExecutor(READS) as pool:
        while looked_at := list(islice(likely, 4 * READS)):
            found = pool.map(lambda known: read_finished(known[1], work(known[1]), folder), looked_at)
            yield from ((index, record.brief()) for (index, _), record in zip(looked_at, found, strict=True) if record)


def sample_for_fit(sources: Sequence[Source], spec: EncodeSpec, limit: int = 16, videos: str = "data.videos") -> Iterator[np.ndarray]:
    """uint8 clips [F, H, W, 3] to fit a tokenizer on: one per bucket of the first `limit` train sources that have any,
    in hashed order so that they are spread over the folder. Raises UserError, naming `videos`, when none has."""
    brief = replace(spec, max_clips=1)
    held_out = held_out_rule(sources, spec)
    outcomes: list[SourceRecord] = []
    for source in by_id(sources):
        if held_out(source):
            continue
        found = _clips_or_failure(source, brief)
        if isinstance(found, SourceRecord):
            outcomes.append(found)
            continue
        outcomes.append(_outcome(source, found))
        yield from (clip.frames for clips in found.clips.values() for clip in clips)
        if sum(outcome.status == "ok" for outcome in outcomes) == limit:
            return
    if not any(outcome.status == "ok" for outcome in outcomes):
        require_clips(outcomes, [bucket.id for bucket in spec.buckets], videos)


def work_fingerprint(chunk: Chunk, spec: EncodeSpec, tokenizer: VideoTokenizer, text: TextEncoder) -> str:
    """Equal for chunks that would be encoded to the same bytes."""
    inputs = [[source.id, source.caption, source.size()] for source in chunk.sources]
    return fingerprint(inputs, spec.to_json(), tokenizer.fingerprint, text.fingerprint, versions())


def _clips_or_failure(source: Source, spec: EncodeSpec, stall: int = 0) -> SourceClips | SourceRecord:
    try:
        file = source.open()
        if not stall:
            return clips_of(file, spec)
        try:
            signal.alarm(stall)  # the kernel's own clock: it needs no thread that might wait for the decoder
            return clips_of(file, spec, lambda: signal.alarm(stall))
        finally:
            signal.alarm(0)
    except DecodeError as error:
        return _failure(source, str(error))
    except OSError as error:
        return _failure(source, error.strerror or str(error))


def _failure(source: Source, reason: str) -> SourceRecord:
    return SourceRecord(source.id, source.name, "failed", reason, caption=source.caption, licence=source.licence)


def _kills(source: Source, spec: EncodeSpec, stall: int) -> str | None:
    """How decoding the source ends every process that tries it, or None when one survives."""
    for _ in range(TRIES):
        child = multiprocessing.get_context("spawn").Process(target=_clips_or_failure, args=(source, spec, stall))
        child.start()
        child.join()
        if child.exitcode is None or child.exitcode >= 0:
            return None
    if -child.exitcode == signal.SIGALRM:
        return f"decoding it gives no picture for {stall} s ({TRIES} times)"
    return f"decoding it kills the process ({signal.Signals(-child.exitcode).name}, {TRIES} times)"


def _outcome(source: Source, found: SourceClips) -> SourceRecord:
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
        "kind": source.kind,
        "config": spec.fingerprint,
        "frames": len(clip.frames),
        "height": clip.frames.shape[1],
        "width": clip.frames.shape[2],
        "values": clip.values,
    }


def _record_path(folder: Location, source_id: str) -> Location:
    return folder / "sources" / f"{source_id}.json"
