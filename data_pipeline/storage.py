"""Files of a data set or a run, on a local disk or in S3, under one set of functions. A write is atomic: a reader sees the
old file, the new file or none, never half of one. Everything the package writes goes through here.

Missing files are FileNotFoundError; a full or broken disk is an OSError that names the file; S3 that refuses or stays away
is a StorageError with one line. Nothing here knows what it reads and writes.
"""

import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from data_pipeline import s3
from data_pipeline.s3 import FAULTS as FAULTS
from data_pipeline.s3 import S3Path as S3Path
from data_pipeline.s3 import StorageError as StorageError

READ_AHEAD = 1 << 18
Location: TypeAlias = Path | S3Path  # both take `/`, .name, .stem, .suffix, .parent, .with_name, .with_suffix, .absolute, str()


def location(text: "str | Location") -> Location:
    """The place that a recipe or a command line names: a local path, or s3://bucket/prefix."""
    if isinstance(text, str):
        return S3Path.parse(text) if text.startswith("s3://") else Path(text)
    return text


def read_bytes(path: Location) -> bytes:
    return s3.read(path) if isinstance(path, S3Path) else path.read_bytes()


def read_ranges(path: Location, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of each (offset, size); shorter where the file ends before. From S3 all are asked for at once."""
    if isinstance(path, S3Path):
        return s3.read_ranges(path, ranges)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(descriptor, size, offset) for offset, size in ranges]
    finally:
        os.close(descriptor)


def open_binary(path: Location) -> BinaryIO:
    """A file to read and seek in; of one in S3 only what is read is fetched, some READ_AHEAD bytes at a time."""
    return io.BufferedReader(_Remote(path), READ_AHEAD) if isinstance(path, S3Path) else path.open("rb")


def size(path: Location) -> int | None:
    """Bytes of a file, or None when there is none."""
    try:
        return s3.size(path) if isinstance(path, S3Path) else path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def list_files(folder: Location) -> Iterator[tuple[Location, int]]:
    """(path, bytes) of every file below a folder, in a stable order; none when there is no such folder.

    Temporary files of writes that were cut off are left out.
    """
    if isinstance(folder, S3Path):
        yield from s3.list_files(folder)
        return
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if not _is_temporary(name) and (found := size(path)) is not None:
                yield path, found


@contextmanager
def atomic(path: Location, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary local path; on leaving without an error its file becomes `path`, all at once and, if asked, durably.

    Locally the temporary is a hidden neighbour that is synced and renamed, for S3 a file that is uploaded.
    """
    if isinstance(path, S3Path):
        with tempfile.TemporaryDirectory(prefix="videomar-put-") as folder:
            yield Path(folder) / path.name
            s3.upload(Path(folder) / path.name, path)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                sync(temporary)
            temporary.replace(path)
            if durable:
                sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Location, data: bytes) -> None:
    if isinstance(path, S3Path):
        s3.write(path, data)
        return
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Location, value: Any) -> None:
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The same value always gives the same bytes: sorted keys, shortest exact floats, no NaN."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def create(path: Location, data: bytes) -> bool:
    """Writes a file that must not be there yet, e.g. a lease. Of several writers of different data exactly one gets True."""
    if isinstance(path, S3Path):
        return s3.create(path, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with naming(path):
        try:
            temporary.write_bytes(data)
            sync(temporary)
            os.link(temporary, path)  # which fails, in one step, when the name is taken
            sync(path.parent)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
    return True


def download(path: Location, target: Path) -> None:
    """Copies a file to a local one, which is half there until it returns."""
    if isinstance(path, S3Path):
        s3.download(path, target)
    else:
        shutil.copyfile(path, target)


@contextmanager
def local_copy(path: Location) -> Iterator[Path]:
    """The local file itself, or a temporary copy of the one in S3."""
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="videomar-get-") as folder:
        s3.download(path, Path(folder) / path.name)
        yield Path(folder) / path.name


def copy_tree(source: Location, target: Location, last: str) -> None:
    """Copies all files below a folder, between disk and S3 in either direction; the file named `last` makes the copy complete."""
    for path, _ in sorted(list_files(source), key=lambda found: (found[0].name == last, str(found[0]))):
        name = str(path)[len(str(source)) :].lstrip("/")
        with local_copy(path) as copy, atomic(target / name) as temporary:
            shutil.copyfile(copy, temporary)


def delete(path: Location) -> None:
    """Removes a file; one that is not there is no error."""
    if isinstance(path, S3Path):
        s3.delete(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a local file's data, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name into errors that the system raises without one, such as a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


class _Remote(io.RawIOBase):
    """An object as a file to seek and read in, from which only what is read is fetched."""

    def __init__(self, path: S3Path) -> None:
        """Raises FileNotFoundError."""
        self._path, self._size, self._at = path, s3.size(path), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        [data] = s3.read_ranges(self._path, [(self._at, wanted)])
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
