"""The encode pool's throughput against what its stages would allow: cores / (sum of CPU seconds per clip of decoding, encoding, writing).

    VIDEOMAR_TEST_VIDEOS=<folder> python -m tests.benchmarks.encode [--weights <folder of a neural tokenizer>]

The pool runs over a short and a long list of the same real clips, under other names; the difference leaves out what starting the
actors takes. Without VIDEOMAR_TEST_VIDEOS synthetic videos are drawn. The stages are timed one by one in this process. With weights it
is also told how many cores must decode to keep one encoder of them busy, on the GPU if there is one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from cluster.encode import encode_dataset
from cluster.session import connect
from data_pipeline.buckets import Bucket
from data_pipeline.chunks import Chunk
from data_pipeline.encode import EncodedClip, commit_chunk, decode_source, encode_piece
from data_pipeline.records import SourceRecord
from data_pipeline.sources import Source, list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.synthetic import write_synthetic
from data_pipeline.text.hashing import HashingText
from data_pipeline.tokenizers import open_tokenizer
from data_pipeline.tokenizers.description import describe
from data_pipeline.tokenizers.linear import LinearTokenizer
from tests.benchmarks.machine import machine, publish

SPEC = EncodeSpec(fps=8, buckets=(Bucket(9, 64, 64), Bucket(17, 64, 64), Bucket(17, 96, 96)), max_clips=64, sources_per_shard=8)
SHORT, LONG, PAIRS = 2, 8, 3  # times the list of videos


def chunks_of(sources: tuple[Source, ...], times: int) -> list[Chunk]:
    copies = [replace(source, id=f"{source.id}{copy:04d}") for copy in range(times) for source in sources]
    size = SPEC.sources_per_shard
    return [Chunk("train", index, tuple(copies[start : start + size])) for index, start in enumerate(range(0, len(copies), size))]


def stages(sources: tuple[Source, ...], tokenizer: LinearTokenizer, folder: Path) -> dict[str, float]:
    """CPU seconds per clip of each stage, in one process with one thread."""
    text, spent, clips = HashingText(SPEC.text_width, SPEC.text_tokens), dict.fromkeys(("decode", "encode", "write"), 0.0), 0
    for chunk in chunks_of(sources, 1):
        parts: list[tuple[SourceRecord, list[EncodedClip]]] = []
        for source in chunk.sources:
            encoded: list[EncodedClip] = []
            decoding = decode_source(source, SPEC)
            while True:
                started = time.process_time()
                try:
                    piece = next(decoding)
                except StopIteration as end:
                    parts.append((end.value, encoded))
                    break
                finally:
                    spent["decode"] += time.process_time() - started
                started = time.process_time()
                encoded += encode_piece(piece, source, SPEC, tokenizer, text)
                spent["encode"] += time.process_time() - started
        started = time.process_time()
        clips += commit_chunk(chunk, SPEC, "", parts, folder).clips
        spent["write"] += time.process_time() - started
    return {stage: seconds / clips for stage, seconds in spent.items()}


def run(chunks: list[Chunk], tokenizer: Path, workers: int) -> tuple[int, float]:
    """(clips, seconds) of the whole pool."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        records = encode_dataset(chunks, SPEC, tokenizer, Path(folder), workers, lambda progress: None)
        return sum(record.clips for record in records), time.perf_counter() - started


def encoder_of(weights: str | None, sources: tuple[Source, ...]) -> dict[str, Any]:
    """One encoder of a neural tokenizer's weights, or why it was not measured. Its seconds per clip end with the latents in memory."""
    if weights is None:
        return {"decode_cores_per_encoder": None, "why": "no weights of a neural tokenizer were given"}
    tokenizer = open_tokenizer(describe(weights, SPEC.channels, SPEC.stride))
    spec = replace(SPEC, channels=tokenizer.channels, stride=tokenizer.stride)
    started = time.process_time()
    clips = [item.clip.frames for source in sources for piece in decode_source(source, spec) for item in piece]
    decode = (time.process_time() - started) / len(clips)
    for frames in {frames.shape: frames for frames in clips}.values():
        tokenizer.encode(frames)  # so that kernels of every shape are chosen
    started = time.perf_counter()
    for frames in clips:
        tokenizer.encode(frames)
    encode = (time.perf_counter() - started) / len(clips)
    told = {"device": machine()["device"], "encode_seconds_per_clip": encode, "decode_cpu_seconds_per_clip": decode}
    return told | {"decode_cores_per_encoder": decode / encode}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--weights")
    weights = options.parse_args().weights
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        videos = Path(os.environ.get("VIDEOMAR_TEST_VIDEOS", Path(name) / "videos"))
        if not videos.is_dir():
            write_synthetic(videos, clips=48, seed=0, size=256, frames=120)
        sources = tuple(source for source in list_sources(videos).sources if not source.name.startswith("edge/"))
        frames = (item.clip.frames for source in sources[:4] for piece in decode_source(source, SPEC) for item in piece)
        tokenizer = LinearTokenizer.fit(frames, SPEC.channels, SPEC.stride)
        tokenizer.save(Path(name) / "tokenizer")
        found, spent = [], []
        with connect(None, cores):
            run(chunks_of(sources, 1), Path(name) / "tokenizer", cores)
            for _ in range(PAIRS):
                spent.append(stages(sources, tokenizer, Path(name) / "stages"))
                short, long = (run(chunks_of(sources, times), Path(name) / "tokenizer", cores) for times in (SHORT, LONG))
                found.append(
                    ((long[0] - short[0]) / (long[1] - short[1]), short[1] - short[0] * (long[1] - short[1]) / (long[0] - short[0]))
                )
    per_clip = {stage: median(one[stage] for one in spent) for stage in spent[0]}
    rate, possible = median(one[0] for one in found), cores / sum(per_clip.values())
    publish(
        {
            "benchmark": "encode",
            "ratio": rate / possible,
            "gate": 0.85,
            "clips_per_second": rate,
            "clips_per_second_per_core": rate / cores,
            "cpu_seconds_per_clip": per_clip,
            "start_seconds": median(one[1] for one in found),
            "decode_cores_per_linear_encoder": per_clip["decode"] / per_clip["encode"],
            "neural_encoder": encoder_of(weights, sources[:4]),
            "videos": len(sources),
            "buckets": [bucket.id for bucket in SPEC.buckets],
        }
    )


if __name__ == "__main__":
    main()
