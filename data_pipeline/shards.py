"""Shards: plain WebDataset tars with an offset index beside each, written atomically and read by position.
encode.py writes them, loader.py and any WebDataset tool read them. bf16 is handled as bits: numpy has no such type."""

import hashlib
import io
import json
import os
import tarfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.storage import Location

INDEX_SCHEMA = 1
PARTS = {"latent": "latent.safetensors", "text": "text.safetensors", "meta": "json"}


class ShardError(UserError):
    """A shard that is missing or damaged; the message names the file."""


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


def write_shard(folder: Location, name: str, samples: Iterable[Sample]) -> ShardEntry:
    """Writes <folder>/<name>.tar, then its .idx; `folder` is the bucket's. The same samples give the same bytes.

    A crash between the two leaves a tar without index or, over an older shard, an index whose size or checksum differs.
    """
    members: list[dict[str, Any]] = []
    path = folder / f"{name}.tar"
    with storage.atomic(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                members.append({"key": sample.key} | {part: _add(tar, sample, part) for part in PARTS})
        size = temporary.stat().st_size
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    index = {"schema": INDEX_SCHEMA, "bytes": size, "sha256": sha256, "members": members}
    storage.write_bytes(path.with_suffix(".idx"), json.dumps(index, sort_keys=True).encode())
    return ShardEntry(folder.name, name, len(members), size, sha256)


def is_intact(folder: Location, entry: ShardEntry) -> bool:
    """Whether the tar on disk has the size that was committed, and its index names that very tar."""
    path = folder / entry.bucket / f"{entry.name}.tar"
    index = _read_index(path)
    return storage.size(path) == entry.bytes and index.get("sha256") == entry.sha256


class ShardReader:
    """Random access to the samples of one shard; safe to share between threads (positional reads)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"shard {path} cannot be opened: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)
        index = _read_index(path)
        intact = index.get("bytes") == os.fstat(self._descriptor).st_size
        self._members = index["members"] if intact else _scan(path)

    def __len__(self) -> int:
        return len(self._members)

    def key(self, row: int) -> str:
        return self._members[row]["key"]

    def latent(self, row: int) -> np.ndarray:
        """Raw latents float32 [T, C, h, w]."""
        return _unpack(self._read(row, "latent"))

    def text(self, row: int) -> np.ndarray:
        """Text vectors float32 [k, E], of true length."""
        return _unpack(self._read(row, "text"))

    def meta(self, row: int) -> dict[str, Any]:
        return json.loads(self._read(row, "meta"))

    def _read(self, row: int, part: str) -> bytes:
        offset, size = self._members[row][part]
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            raise ShardError(f"shard {self.path} ends inside sample {self.key(row)}: encode the data set again")
        return data


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits (uint16) of finite float32 values rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _add(tar: tarfile.TarFile, sample: Sample, part: str) -> list[int]:
    """Appends one member and returns the [offset, size] of its data."""
    if part == "meta":
        data = json.dumps(sample.meta, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    else:
        data = _pack(getattr(sample, part), part)
    header = tarfile.TarInfo(f"{sample.key}.{PARTS[part]}")  # TarInfo's own time and owner are 0
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return [tar.offset - padded, len(data)]


def _pack(values: np.ndarray, name: str) -> bytes:
    bits = to_bfloat16(values)
    spec = safetensors.TensorSpec(dtype="bfloat16", shape=list(bits.shape), data_ptr=bits.ctypes.data, data_len=bits.nbytes)
    return bytes(safetensors.serialize({name: spec}))


def _unpack(data: bytes) -> np.ndarray:
    ((_, tensor),) = safetensors.deserialize(data)
    return from_bfloat16(np.frombuffer(tensor["data"], np.uint16)).reshape(tensor["shape"])


def _read_index(path: Location) -> dict[str, Any]:
    """The index beside a tar, or {} when it is missing or of no use."""
    try:
        index = json.loads(storage.read_bytes(path.with_suffix(".idx")))
    except (OSError, ValueError):
        return {}
    return index if index.get("schema") == INDEX_SCHEMA else {}


def _scan(path: Path) -> list[dict[str, Any]]:
    """The members of a tar whose index is lost, from the tar itself."""
    members: dict[str, dict[str, Any]] = {}
    parts = {suffix: part for part, suffix in PARTS.items()}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = member.name.split(".", 1)
                members.setdefault(key, {"key": key})[parts[suffix]] = [member.offset_data, member.size]
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise ShardError(f"shard {path} is damaged ({error}): encode the data set again") from error
    torn = [key for key, member in members.items() if len(member) <= len(PARTS)]
    if torn:
        raise ShardError(f"shard {path} is damaged (sample {torn[0]} is incomplete): encode the data set again")
    return list(members.values())
