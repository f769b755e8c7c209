"""What is wrong with a finished data set: every byte against its checksum, every count, the order's coverage. Lost indices are
mended, nothing else is touched. The `doctor` command calls it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset
from data_pipeline.order import EpochOrder
from data_pipeline.shard_index import ShardError, ShardIndex, digest, first_damage, index_path, read_index, scan
from data_pipeline.shards import ShardEntry, shard_path


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be; `mended` if it is so no more."""

    what: str
    mended: bool = False


def examine(dataset: Dataset) -> Iterator[Finding]:
    """Everything that can be found wrong, in the order of the manifest."""
    for bucket, splits in dataset.manifest.buckets.items():
        hashes: list[np.ndarray] = []
        for split, entries in splits.items():
            for entry in entries:
                index, findings = examine_shard(dataset, entry)
                yield from findings
                if index:
                    hashes.append(np.fromiter(map(hash, index.keys), np.int64, len(index.keys)))
            yield from order_coverage(bucket, split, [len(dataset.manifest.rows(entry)) for entry in entries])
        keys = np.concatenate(hashes) if hashes else np.empty(0, np.int64)
        if twice := len(keys) - len(np.unique(keys)):
            yield Finding(f"bucket {bucket}: {twice} samples are there twice: encode the data set again")
    yield from strangers(dataset)
    yield from fingerprints(dataset)


def examine_shard(dataset: Dataset, entry: ShardEntry) -> tuple[ShardIndex | None, list[Finding]]:
    """(the shard's index, what is wrong with it); a lost or foreign index of a sound tar is written again."""
    path = shard_path(dataset.folder, entry)
    index = read_index(path)
    fits = index is not None and index.sha256 == entry.sha256
    try:
        with storage.local_copy(path) as tar:
            if digest(tar) != (entry.bytes, entry.sha256):
                where = first_damage(tar, index) if index and fits else None
                return None, [
                    Finding(f"shard {path} differs from its checksum{f', first in the {where}' if where else ''}: encode it again")
                ]
            if index is None or not fits:
                index = scan(tar, str(path))
                storage.write_bytes(index_path(path), index.encode())
                return index, [*_count(entry, index), Finding(f"the index of shard {path} was lost and is made again", mended=True)]
            return index, _count(entry, index)
    except ShardError as error:
        return None, [Finding(str(error))]
    except FileNotFoundError:
        return None, [Finding(f"shard {path} is missing: encode it again")]


def order_coverage(bucket: str, split: str, counts: list[int]) -> Iterator[Finding]:
    """Whether an epoch's order over shards of these sizes visits every sample once."""
    order = EpochOrder(counts, 0, bucket, 0)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    visits = np.zeros(int(starts[-1]), np.uint8)
    for index in range(len(order)):
        shard, row = order[index]
        visits[starts[shard] + row] += 1
    if wrong := int(np.count_nonzero(visits != 1)):
        yield Finding(f"bucket {bucket}, {split}: the order visits {wrong} of {len(visits)} samples not exactly once")


def strangers(dataset: Dataset) -> Iterator[Finding]:
    """Shards that the manifest does not list, and source records that do not add up."""
    manifest = dataset.manifest
    if manifest.pending:  # what is written but not yet listed is to be expected
        return
    for bucket, splits in manifest.buckets.items():
        listed = {entry.name for entries in splits.values() for entry in entries}
        for path, _ in storage.list_files(dataset.folder / bucket):
            if path.suffix == ".tar" and path.stem not in listed:
                yield Finding(f"shard {path} is not in the manifest")
    records = sum(1 for _ in storage.list_files(dataset.folder / "sources"))
    if records != manifest.sources.total:
        yield Finding(f"{records} records in {dataset.folder / 'sources'}, but the manifest counts {manifest.sources.total} sources")


def fingerprints(dataset: Dataset) -> Iterator[Finding]:
    """Whether the tokenizer that lies beside the latents is the one that made them."""
    try:
        _ = dataset.tokenizer
    except (UserError, OSError) as error:
        yield Finding(str(error))


def _count(entry: ShardEntry, index: ShardIndex) -> list[Finding]:
    there = len(index.keys)
    return (
        []
        if there == entry.count
        else [Finding(f"shard {entry.bucket}/{entry.name} holds {there} samples, the manifest says {entry.count}")]
    )
