"""The loader (latent + text, collated) against webdataset's own pipeline, warm, against a plain preadv loop, cold, and its seeks in
an index of 10^7 samples. `python -m tests.benchmarks.loader`; the gate's ratio is warm over webdataset's."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
import webdataset
from safetensors.torch import load

from data_pipeline.buckets import Bucket
from data_pipeline.loader import Batch, Dataset, prefetch
from data_pipeline.manifest import ChannelStatistics, LatentStatistics, Manifest, SourcesSummary, by_frame
from data_pipeline.order import EpochOrder
from data_pipeline.shards import Sample, ShardEntry, shard_path, write_shard
from data_pipeline.spec import EncodeSpec
from tests.benchmarks.machine import publish
from trainer.allocator import keep_freed_memory

BUCKET, SHARDS, PER_SHARD, BATCH, PAIRS, SEEKS = Bucket(17, 192, 192), 8, 500, 32, 5, 200  # 5 x 16 x 24 x 24 in bf16: 92 KB
SPEC = EncodeSpec(fps=8, buckets=(BUCKET,))


def samples(seed: int, count: int, shape: tuple[int, ...]) -> Iterator[Sample]:
    draw = np.random.default_rng(seed)
    for number in range(count):
        text = draw.normal(size=(int(draw.integers(4, 24)), SPEC.text_width)).astype(np.float32)
        latent = draw.normal(size=shape).astype(np.float32)
        yield Sample(f"{seed:08x}{number:08x}-0000", latent, text, {"caption": "nothing", "values": {"motion": 0.1}})


def dataset_of(folder: Path, entries: tuple[ShardEntry, ...]) -> Dataset:
    spread = LatentStatistics(((0.1,) * 16,) * 2, ((1.2,) * 16,) * 2)
    channels = ChannelStatistics((0.1,) * 16, (1.2,) * 16)
    shards = {BUCKET.id: {"train": entries, "held_out": ()}}
    manifest = Manifest("", SPEC, "", "", shards, spread, channels, SourcesSummary(0, 0, {}, {}, {}))
    return Dataset(folder, manifest, "benchmark")


def ours(dataset: Dataset, threads: int) -> float:
    """Seconds of an epoch."""
    started, split = time.perf_counter(), dataset.split(BUCKET.id, "train", 0)
    firsts = range(0, len(split), BATCH)
    seen = sum(len(b.keys) for b in prefetch((range(f, min(f + BATCH, len(split))) for f in firsts), split.fetch, 4, threads))
    assert seen == len(split)
    return time.perf_counter() - started


def theirs(dataset: Dataset) -> float:
    """Seconds of an epoch of webdataset's pipeline as its users write it: shuffled, decoded, ending in the same batches."""
    mean, scale = (torch.from_numpy(value).float().movedim(-1, 1) for value in by_frame(5, dataset.manifest.statistics))

    def tensor(data: bytes) -> torch.Tensor:
        return next(iter(load(data).values())).float()

    def collated(parts: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any], str]]) -> Batch:
        latents = torch.stack([(latent - mean) / scale for latent, _, _, _ in parts]).movedim(2, -1)
        text = torch.zeros((len(parts), SPEC.text_tokens, SPEC.text_width))
        for item, (_, vectors, _, _) in enumerate(parts):
            text[item, : len(vectors)] = vectors
        lengths = np.array([len(vectors) for _, vectors, _, _ in parts])
        return Batch(latents.numpy(), text.numpy(), lengths, tuple(key for _, _, _, key in parts))

    urls = [str(shard_path(dataset.folder, entry)) for entry in dataset.manifest.buckets[BUCKET.id]["train"]]
    started = time.perf_counter()
    handlers = webdataset.handle_extension("safetensors", tensor)
    stored = webdataset.WebDataset(urls, shardshuffle=SHARDS).shuffle(500).decode(handlers)
    pipeline = stored.to_tuple("latent.safetensors", "text.safetensors", "json", "__key__").batched(BATCH, collation_fn=collated)
    assert sum(len(batch.keys) for batch in pipeline) == SHARDS * PER_SHARD
    return time.perf_counter() - started


def plain(dataset: Dataset) -> float:
    """Seconds of nothing but preadv, of the same stretches of the same files in the same order."""
    entries = dataset.manifest.buckets[BUCKET.id]["train"]
    split = dataset.split(BUCKET.id, "train", 0)
    parts = [[split._reader(entry)._index.places[part] for part in ("latent", "text")] for entry in entries]
    starts = [np.minimum(latent[:, 0], text[:, 0]) for latent, text in parts]
    sizes = [np.maximum(latent[:, :2].sum(1), text[:, :2].sum(1)) - start for (latent, text), start in zip(parts, starts, strict=True)]
    spans = [list(zip(start.tolist(), size.tolist(), strict=True)) for start, size in zip(starts, sizes, strict=True)]
    order, buffer = EpochOrder([entry.count for entry in entries], 0, BUCKET.id, 0), bytearray(1 << 20)
    files = [os.open(str(shard_path(dataset.folder, entry)), os.O_RDONLY) for entry in entries]
    started = time.perf_counter()
    for index in range(len(order)):
        shard, row = order[index]
        offset, size = spans[shard][row]
        assert os.preadv(files[shard], [memoryview(buffer)[:size]], offset) == size
    seconds = time.perf_counter() - started
    for file in files:
        os.close(file)
    return seconds


def forget(folder: Path) -> None:
    """Drops the files from the page cache."""
    for path in folder.rglob("*.tar"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def pairs(one: Callable[[], float], two: Callable[[], float], before: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Medians of interleaved runs."""
    found: list[tuple[float, float]] = []
    for _ in range(PAIRS):
        before()
        first = one()
        before()
        found.append((first, two()))
    return median(pair[0] for pair in found), median(pair[1] for pair in found)


def seeks(folder: Path) -> dict[str, float]:
    """Seconds to the first sample at a random place of 10^7, with nothing open, and how much memory 200 of them take."""
    path = folder / BUCKET.id
    entry = write_shard(path, "shard-000000", samples(1, 1000, (2, 16, 2, 2)))
    for number in range(1, 10_000):
        for suffix in ("tar", "idx"):
            (path / f"shard-{number:06d}.{suffix}").hardlink_to(path / f"shard-000000.{suffix}")
    dataset = dataset_of(folder, tuple(replace(entry, name=f"shard-{number:06d}") for number in range(10_000)))
    positions = np.random.default_rng(0).integers(0, 10**7, SEEKS).tolist()
    split, times = dataset.split(BUCKET.id, "train", 0), []
    split.caption(positions[0])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, position in enumerate(positions):
        fresh = dataset.split(BUCKET.id, "train", number)
        started = time.perf_counter()
        fresh.caption(position)
        times.append(time.perf_counter() - started)
    for position in positions:
        split.caption(position)
    spread = {"median_seconds": median(times), "p95_seconds": quantiles(times, n=20)[-1]}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    return {"samples": 10**7, **spread, "worst_seconds": max(times), "memory_growth_bytes": grown}


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder, wide = Path(name) / "set", Path(name) / "wide"
        wide.mkdir()
        entries = tuple(
            write_shard(folder / BUCKET.id, f"shard-{number:06d}", samples(number, PER_SHARD, (5, 16, 24, 24))) for number in range(SHARDS)
        )
        dataset, total = dataset_of(folder, entries), SHARDS * PER_SHARD
        ours(dataset, 1), theirs(dataset)
        single, reference = pairs(lambda: ours(dataset, 1), lambda: theirs(dataset))
        double = median(ours(dataset, 2) for _ in range(PAIRS))
        cold, raw = pairs(lambda: ours(dataset, 2), lambda: plain(dataset), lambda: forget(folder))
        found = seeks(wide)
    publish(
        {
            "benchmark": "loader",
            "ratio": reference / single,
            "gate": 3.0,
            "sample_bytes": sum(entry.bytes for entry in entries) / total,
            "samples_per_second": {"one_thread": total / single, "two_threads": total / double, "webdataset": total / reference},
            "cold": {"ratio": raw / cold, "gate": 0.9, "loader_samples_per_second": total / cold, "preadv_samples_per_second": total / raw},
            "seek": found | {"gate_seconds": 0.005},
        }
    )


if __name__ == "__main__":
    main()
