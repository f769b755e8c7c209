"""Shards: plain WebDataset tars with an offset index beside each, written atomically. encode.py writes them, shard_reader.py
and any WebDataset tool read them. bf16 is handled as bits: numpy has no such type."""

import io
import json
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import safetensors

from data_pipeline import storage
from data_pipeline.shard_index import PARTS, ShardIndex, digest, index_path, read_index
from data_pipeline.storage import Location


@dataclass(frozen=True)
class Sample:
    """One clip as stored: raw latent [T, C, h, w], text [k, E] and what is known about it (JSON values)."""

    key: str
    latent: np.ndarray
    text: np.ndarray
    meta: dict[str, Any]


@dataclass(frozen=True)
class ShardEntry:
    """A committed shard, as manifest and source records list it; `name` has no suffix."""

    bucket: str
    name: str
    count: int
    bytes: int
    sha256: str


def source_of(key: str) -> str:
    """The id of the source that a sample's key, "<source id>-<clip number>", names."""
    return key.rpartition("-")[0]


def shard_path(folder: Location, entry: ShardEntry) -> Location:
    """The tar of a shard in a data set's folder."""
    return folder / entry.bucket / f"{entry.name}.tar"


def write_shard(folder: Location, name: str, samples: Iterable[Sample]) -> ShardEntry:
    """Writes <folder>/<name>.tar, then its .idx; `folder` is the bucket's. The same samples give the same bytes. Every
    sample has its text as a member of its own, also where others have the same: what reads tars as streams follows no links.

    A crash between the two leaves a tar without index or, over an older shard, an index whose size or checksum differs.
    """
    keys: list[str] = []
    places: dict[str, list[list[int]]] = {part: [] for part in PARTS}
    path = folder / f"{name}.tar"
    with storage.atomic(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                keys.append(sample.key)
                for part in PARTS:
                    places[part].append(_add(tar, f"{sample.key}.{PARTS[part]}", _packed(sample, part)))
        size, sha256 = digest(temporary)
    index = ShardIndex(size, sha256, tuple(keys), {part: np.array(rows, np.int64) for part, rows in places.items()})
    storage.write_bytes(index_path(path), index.encode())
    return ShardEntry(folder.name, name, len(keys), size, sha256)


def is_intact(folder: Location, entry: ShardEntry) -> bool:
    """Whether the tar that is there has the size that was committed, and its index names that very tar."""
    path = shard_path(folder, entry)
    index = read_index(path)
    return index is not None and index.sha256 == entry.sha256 and storage.size(path) == entry.bytes


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits (uint16) of finite float32 values rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 values, in an array of their own, of bfloat16 bits: these are its upper halves."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def unpack(data: bytes | memoryview) -> np.ndarray:
    """The one bfloat16 tensor of a safetensors file, as float32. Reads the header itself: the library would copy the data."""
    start = 8 + int.from_bytes(data[:8], "little")
    first, size, shape = _header(bytes(data[8:start]))
    return from_bfloat16(np.frombuffer(data, np.uint16, size, start + first)).reshape(shape)


@lru_cache(maxsize=256)  # all latents of a bucket have the same one
def _header(data: bytes) -> tuple[int, int, tuple[int, ...]]:
    """(offset behind the header in bytes, numbers, shape) of the one tensor that a safetensors header tells of."""
    ((_, tensor),) = json.loads(data).items()
    first, last = tensor["data_offsets"]
    return first, (last - first) // 2, tuple(tensor["shape"])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> list[int]:
    """Appends one member and returns the [offset, size, crc32] of its data."""
    header = tarfile.TarInfo(name)  # its own time and owner are 0
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return [tar.offset - padded, len(data), zlib.crc32(data)]


def _packed(sample: Sample, part: str) -> bytes:
    if part == "meta":
        return json.dumps(sample.meta, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    return _pack(getattr(sample, part), part)


def _pack(values: np.ndarray, name: str) -> bytes:
    bits = to_bfloat16(values)
    spec = safetensors.TensorSpec(dtype="bfloat16", shape=list(bits.shape), data_ptr=bits.ctypes.data, data_len=bits.nbytes)
    return bytes(safetensors.serialize({name: spec}))
