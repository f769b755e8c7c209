"""Reading a data set from S3 through the loader and its cache against a plain loop of ranged GETs of the same shards:
`python -m tests.benchmarks.s3_reading`.

Two data sets are read in turn through a cache of a quarter of one of them, as in a long run on more data than the disk holds: nothing
that is read was there before, and every shard takes the place of another one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import boto3

from data_pipeline import storage
from data_pipeline.loader import Dataset
from data_pipeline.shard_cache import ShardCache
from data_pipeline.shards import shard_path
from data_pipeline.storage import S3Path
from tests.benchmarks import loader
from tests.benchmarks.machine import publish
from tests.benchmarks.s3_server import s3_server
from tests.s3 import new_bucket
from trainer.allocator import keep_freed_memory

RANGE, PAIRS = 8 << 20, 5
SHARDS = 64  # of each data set; a quarter of them fits into the cache


def plain(dataset: Dataset) -> float:
    """Seconds of nothing but ranged GETs, one after the other."""
    client = boto3.session.Session().client("s3")
    started = time.perf_counter()
    for entry in dataset.manifest.buckets[loader.BUCKET.id]["train"]:
        path = shard_path(dataset.folder, entry)
        assert isinstance(path, S3Path)
        for first in range(0, entry.bytes, RANGE):
            last = min(first + RANGE, entry.bytes) - 1
            body = client.get_object(Bucket=path.bucket, Key=path.key, Range=f"bytes={first}-{last}")["Body"].read()
            assert len(body) == last - first + 1
    return time.perf_counter() - started


def ours(dataset: Dataset, folder: Path, limit: int) -> float:
    """Seconds of an epoch of batches, none of which the cache holds: fetched, verified, decoded, collated. What it has asked for beyond
    the epoch ends with it: it would take its time from whatever is measured next."""
    cache = ShardCache(folder, limit)
    entries = dataset.manifest.buckets[loader.BUCKET.id]["train"]
    assert not {entry.sha256 for entry in entries} & {copy.stem for copy in cache.folder.glob("*.tar")}
    seconds = loader.ours(Dataset(dataset.folder, dataset.manifest, dataset.id, cache), 2)
    cache.close()
    return seconds


def uploaded(number: int) -> Dataset:
    with tempfile.TemporaryDirectory() as local:
        folder, target, first = Path(local), new_bucket() / "set", number * SHARDS
        entries = tuple(
            loader.write_shard(folder / loader.BUCKET.id, f"shard-{n:06d}", loader.samples(n, loader.PER_SHARD, (5, 16, 24, 24)))
            for n in range(first, first + SHARDS)
        )
        storage.copy_tree(folder, target, last="")
    return Dataset(target, loader.dataset_of(Path(), entries).manifest, "benchmark")


def measure(name: str) -> None:
    sets = [uploaded(number) for number in range(2)]
    size = sum(entry.bytes for entry in sets[0].manifest.buckets[loader.BUCKET.id]["train"])
    with tempfile.TemporaryDirectory() as folder:
        ours(sets[1], Path(folder), size // 4)
        found = [(plain(sets[turn % 2]), ours(sets[turn % 2], Path(folder), size // 4)) for turn in range(PAIRS)]
    one, two = median(pair[0] for pair in found), median(pair[1] for pair in found)
    rates = {"loader_bytes_per_second": size / two, "ranged_get_bytes_per_second": size / one}
    publish({"benchmark": "s3_reading", "ratio": one / two, "gate": 0.8, "server": name, "bytes": size, **rates})


def main() -> None:
    keep_freed_memory()
    with s3_server() as name:
        measure(name)


if __name__ == "__main__":
    main()
