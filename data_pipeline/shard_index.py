"""The index beside a shard: where each sample's parts lie in the tar, and their checksums. Written with the shard, read by its
reader, and made again from the tar itself when it is lost. Knows nothing of latents."""

import hashlib
import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.storage import Location

SCHEMA = 2
PARTS = {"latent": "latent.safetensors", "text": "text.safetensors", "meta": "json"}  # name here: suffix in the tar

Places = npt.NDArray[np.int64]


class ShardError(UserError):
    """A shard that is missing or damaged; the message names the file."""


@dataclass(frozen=True)
class ShardIndex:
    """bytes, sha256: of the whole tar; keys [N]; places: per part int64 [N, 3], the offset, bytes and crc32 of each sample's."""

    bytes: int
    sha256: str
    keys: tuple[str, ...]
    places: dict[str, Places]

    def encode(self) -> bytes:
        """The same index always has the same bytes."""
        parts = {part: places.tolist() for part, places in self.places.items()}
        value = {"schema": SCHEMA, "bytes": self.bytes, "sha256": self.sha256, "keys": self.keys, "parts": parts}
        return json.dumps(value, sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> "ShardIndex | None":
        """None when the bytes are not an index of this schema."""
        try:
            value = json.loads(data)
            places = {part: np.array(value["parts"][part], np.int64).reshape(-1, 3) for part in PARTS}
            fits = value["schema"] == SCHEMA and all(len(places[part]) == len(value["keys"]) for part in PARTS)
            return cls(value["bytes"], value["sha256"], tuple(value["keys"]), places) if fits else None
        except (ValueError, KeyError, TypeError):
            return None


def index_path(tar: Location) -> Location:
    return tar.with_suffix(".idx")


def read_index(tar: Location) -> ShardIndex | None:
    """The index beside a tar, or None when it is missing or of no use."""
    try:
        return ShardIndex.decode(storage.read_bytes(index_path(tar)))
    except FileNotFoundError:
        return None


def scan(tar: Path, name: str) -> ShardIndex:
    """The index of a tar from the tar itself, which is read once. Raises ShardError, naming the shard `name`, when it is damaged."""
    keys: dict[str, dict[str, list[int]]] = {}
    parts = {suffix: part for part, suffix in PARTS.items()}
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                key, suffix = member.name.split(".", 1)
                file = archive.extractfile(member) if member.isfile() else None
                assert file is not None, "a shard's members are files"
                keys.setdefault(key, {})[parts[suffix]] = [member.offset_data, member.size, zlib.crc32(file.read())]
    except (tarfile.TarError, KeyError, ValueError, AssertionError) as error:
        raise ShardError(f"shard {name} is damaged ({error}): encode the data set again") from error
    if torn := [key for key, found in keys.items() if len(found) < len(PARTS)]:
        raise ShardError(f"shard {name} is damaged (sample {torn[0]} is incomplete): encode the data set again")
    places = {part: np.array([found[part] for found in keys.values()], np.int64).reshape(-1, 3) for part in PARTS}
    size, sha256 = digest(tar)
    return ShardIndex(size, sha256, tuple(keys), places)


def digest(path: Path) -> tuple[int, str]:
    """(bytes, sha256) of a local file."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def first_damage(tar: Path, index: ShardIndex) -> str | None:
    """What a checksum says is wrong in a local tar: the first sample and part that differ, or None if none does."""
    with tar.open("rb") as file:
        for part, places in index.places.items():
            for key, (offset, size, crc) in zip(index.keys, places.tolist(), strict=True):
                file.seek(offset)
                if zlib.crc32(file.read(size)) != crc:
                    return f"{part} of sample {key}"
    return None
