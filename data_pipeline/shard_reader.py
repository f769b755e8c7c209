"""Random access to the samples of one shard: positional reads of a local file, ranged reads from S3 until the whole shard has
come into the local cache. Every part that is read is checked against its checksum. The loader and `doctor` call it."""

import json
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib  # zlib's own crc32 takes a quarter of a sample's time

from data_pipeline import storage
from data_pipeline.shard_cache import ShardCache
from data_pipeline.shard_index import ShardError, ShardIndex, read_index, scan
from data_pipeline.shards import ShardEntry, unpack
from data_pipeline.storage import Location


class ShardReader:
    """One shard; safe to share between threads."""

    def __init__(self, path: Location, entry: ShardEntry | None = None, cache: ShardCache | None = None) -> None:
        """`entry` is what the manifest says of the shard; `cache` is for shards in S3. Raises ShardError naming the shard."""
        self.path = path
        self._entry, self._cache = entry, cache
        self._descriptor: int | None = None
        if isinstance(path, Path):
            self._keep(self._open(path))
        local, here = self._local_descriptor(), cache.place(entry) if cache and entry else path
        self._size = storage.size(path) if local is None else os.fstat(local).st_size
        self._index = self._checked((None if local is None else read_index(here)) or read_index(path))

    def __len__(self) -> int:
        return len(self._index.keys)

    @property
    def keys(self) -> tuple[str, ...]:
        return self._index.keys

    def key(self, row: int) -> str:
        return self._index.keys[row]

    def latent(self, row: int) -> np.ndarray:
        """Raw latents float32 [T, C, h, w]."""
        return unpack(self._part(row, "latent"))

    def text(self, row: int) -> np.ndarray:
        """Text vectors float32 [k, E], of true length."""
        return unpack(self._part(row, "text"))

    def meta(self, row: int) -> dict[str, Any]:
        return json.loads(bytes(self._part(row, "meta")))

    def read(self, rows: Sequence[int], parts: Sequence[str] = ("latent", "text")) -> Iterator[dict[str, memoryview]]:
        """The bytes of some parts of each row, all of them asked for at once: a disk reads on in the background, and gives them row by
        row, while they are in the processor's cache. Raises ShardError naming a damaged sample."""
        places = list(zip(*(self._index.places[part][list(rows)].tolist() for part in parts), strict=True))
        found = zip(self._bytes([_span(place) for place in places]), rows, places, strict=True)
        return (self._cut(data, row, dict(zip(parts, place, strict=True))) for data, row, place in found)

    def _part(self, row: int, part: str) -> memoryview:
        (found,) = self.read([row], [part])
        return found[part]

    def _bytes(self, spans: Sequence[tuple[int, int]]) -> Iterable[bytes]:
        descriptor = self._local_descriptor()
        if descriptor is None:
            return storage.read_ranges(self.path, spans)
        for start, size in spans:
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
        return (os.pread(descriptor, size, start) for start, size in spans)

    def _cut(self, data: bytes, row: int, place: dict[str, list[int]]) -> dict[str, memoryview]:
        found, view, start = {}, memoryview(data), min(offset for offset, _, _ in place.values())
        for part, (offset, size, crc) in place.items():
            found[part] = view[offset - start : offset - start + size]
            if len(found[part]) != size or isal_zlib.crc32(found[part]) != crc:
                if self._cache and self._entry:
                    self._cache.drop(self._entry)
                what = f"the {part} of sample {self.key(row)} differs from its checksum"
                raise ShardError(f"shard {self.path} is damaged: {what}; encode the data set again")
        return found

    def _local_descriptor(self) -> int | None:
        """Of the local file, or of the cached copy once it has come."""
        if self._descriptor is None and self._cache and self._entry and (copy := self._cache.open(self._entry)) is not None:
            self._keep(copy)
        return self._descriptor

    def _open(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"shard {self.path} cannot be opened: {error.strerror}") from error

    def _keep(self, descriptor: int) -> None:
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor

    def _checked(self, index: ShardIndex | None) -> ShardIndex:
        """The index if it is the tar's own, or one made from the tar."""
        if index is None or index.bytes != self._size or (self._entry and index.sha256 != self._entry.sha256):
            index = self._rebuilt()
        if self._entry and (index.sha256, len(index.keys)) != (self._entry.sha256, self._entry.count):
            raise ShardError(
                f"shard {self.path} is not the one that the manifest lists ({len(index.keys)} samples, not {self._entry.count}, "
                "or another checksum): encode the data set again"
            )
        return index

    def _rebuilt(self) -> ShardIndex:
        if isinstance(self.path, Path):
            return scan(self.path, str(self.path))
        if self._size is None:
            raise ShardError(f"shard {self.path} cannot be opened: No such file or directory")
        with storage.local_copy(self.path) as copy:
            return scan(copy, str(self.path))


def _span(place: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(offset, bytes) of the stretch that holds the parts: those of one sample are neighbours in the tar."""
    start = min(offset for offset, _, _ in place)
    return start, max(offset + size for offset, size, _ in place) - start
