"""Every file operation of a checkpoint: data written with its checksum and read by ranges, small files written whole or not at all.

The rest of the package knows only these functions; none of them knows what it moves.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 24  # bytes per write and checksum, so that both run beside training without holding the interpreter
CACHED = 1 << 26  # bytes of a file being written that may be in the page cache; more would take memory that training needs


@dataclass(frozen=True)
class FileRecord:
    """What a commit's marker says about a data file."""

    name: str
    bytes: int
    sha256: str


def write_data(path: Path, parts: Iterable[memoryview]) -> FileRecord:
    """Write bytes one after the other; on the disk when it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, written, flushed = hashlib.sha256(), 0, 0
    with path.open("wb", buffering=0) as file:
        for block in blocks(parts):
            digest.update(block)
            while block:
                done = file.write(block)
                block, written = block[done:], written + done
            if written - flushed >= CACHED:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), flushed, written - flushed, os.POSIX_FADV_DONTNEED)
                flushed = written
        os.fsync(file.fileno())
    fsync(path.parent)
    return FileRecord(path.name, written, digest.hexdigest())


def blocks(parts: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes in blocks of at most BLOCK."""
    for part in parts:
        yield from (part[start : start + BLOCK] for start in range(0, len(part), BLOCK))


def read_range(path: Path, start: int, stop: int) -> bytearray:
    """Bytes [start, stop) of a file. Raises OSError when it is shorter."""
    data = bytearray(stop - start)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        filled = 0
        while filled < len(data):
            read = file.readinto(memoryview(data)[filled:])
            if not read:
                raise OSError(f"{path} ends at byte {start + filled} and not at {stop}")
            filled += read
    return data


def is_sound(folder: Path, records: tuple[FileRecord, ...]) -> bool:
    """Whether every file has the bytes it was written with; several at a time. Raises OSError when the storage does not let us see."""

    def same(record: FileRecord) -> bool:
        try:
            with (folder / record.name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
        except FileNotFoundError:
            return False

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return all(pool.map(same, records))


def has_sizes(folder: Path, records: Iterable[FileRecord]) -> bool:
    """Whether every file is there with its size. Raises OSError when the storage does not let us see."""
    try:
        return all((folder / record.name).stat().st_size == record.bytes for record in records)
    except FileNotFoundError:
        return False


def write_durably(path: Path, text: str) -> None:
    """Write a small file whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until a file's data, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(folder: Path, first: str) -> None:
    """Delete a folder and all in it, the file `first` before all others."""
    (folder / first).unlink(missing_ok=True)
    shutil.rmtree(folder)
