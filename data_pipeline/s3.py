"""S3 through fsspec: names, single calls, and the one policy of retries. storage.py calls it, nothing else does.

Credentials and the endpoint come from the AWS SDK's own chain (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, profiles, instance roles).
"""

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, TypeVar

import fsspec
from botocore.config import Config
from botocore.session import Session

from data_pipeline.errors import UserError

PATIENCE = 120.0  # seconds during which a call is repeated before it is given up
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds between two tries; doubled each time, and shortened at random
TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60}  # seconds
PART = 16 << 20  # bytes of one request of a large transfer
PIECE = 1 << 20  # bytes that stay in the processor's cache on their way
SETTINGS: dict[str, Any] = {
    "retries": {"total_max_attempts": 1},  # repeated here, once
    "request_checksum_calculation": "when_required",  # servers other than AWS's know no trailing checksums
    "response_checksum_validation": "when_required",
    "max_pool_connections": 32,
}

Fault = Literal["missing", "no bucket", "denied", "exists", "transient", "refused"]
DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AccountProblem", "403"}
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
MISSING = {"NoSuchKey", "404", "NotFound"}
EXISTS = {"PreconditionFailed", "ConditionalRequestConflict", "412"}
TRANSIENT = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "BadDigest",
    "IncompleteBody",
    "NoSuchUpload",
    "InvalidPart",
}

Result = TypeVar("Result")


class Faults:
    """What the calls of this process have met, by kind, until somebody asks; safe from several threads. A missing file, and one that is
    there already, are answers and not counted."""

    def __init__(self) -> None:
        self._met: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, met: Mapping[str, int]) -> None:
        with self._lock:
            self._met.update(met)

    def take(self) -> dict[str, int]:
        """Those since the last call."""
        with self._lock:
            met, self._met = self._met, Counter()
        return dict(met)


FAULTS = Faults()


class StorageError(UserError):
    """The storage refuses or does not answer. What was committed stays; the same command continues from there."""


@dataclass(frozen=True, order=True)
class S3Path:
    """s3://bucket/key, with the few members of pathlib's paths that naming files takes."""

    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, uri: str) -> "S3Path":
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise UserError(f"{uri} names no bucket: write s3://<bucket>/<prefix>")
        return cls(bucket, key.strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str | PurePosixPath) -> "S3Path":
        return replace(self, key=f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "S3Path":
        return replace(self, key=self.key.rpartition("/")[0])

    def with_name(self, name: str) -> "S3Path":
        return self.parent / name

    def with_suffix(self, suffix: str) -> "S3Path":
        return self.parent / (self.stem + suffix)

    def absolute(self) -> "S3Path":
        return self


def read(path: S3Path) -> bytes:
    return retrying(path, lambda: client(os.getpid()).get_object(Bucket=path.bucket, Key=path.key)["Body"].read())


def read_ranges(path: S3Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of [offset, size] ranges, all asked for at once. HTTP knows no range of no bytes: such a one is not asked for."""
    starts, ends = [offset for offset, size in ranges if size], [offset + size for offset, size in ranges if size]
    found = iter(_asking(path, lambda files: files.cat_ranges([_plain(path)] * len(starts), starts, ends, on_error="raise")))
    return [next(found) if size else b"" for _, size in ranges]


def size(path: S3Path) -> int:
    return int(retrying(path, lambda: client(os.getpid()).head_object(Bucket=path.bucket, Key=path.key)["ContentLength"]))


def list_files(folder: S3Path) -> Iterator[tuple[S3Path, int]]:
    """Page by page, so that a prefix of millions is never held."""
    prefix, token = (f"{folder.key}/" if folder.key else ""), {}
    while True:
        page = _asking(folder, lambda files, token=token: files.call_s3("list_objects_v2", Bucket=folder.bucket, Prefix=prefix, **token))
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # what consoles leave to show an empty folder
                yield S3Path(folder.bucket, entry["Key"]), int(entry["Size"])
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def write(path: S3Path, data: bytes) -> None:
    _asking(path, lambda files: files.pipe_file(_plain(path), data, chunksize=PART))


def create(path: S3Path, data: bytes) -> bool:
    """Writes an object that must not exist yet; whether that is ours now. An answer that got lost counts as ours by its content."""
    try:
        _asking(path, lambda files: files.pipe_file(_plain(path), data, mode="create"))
    except FileExistsError:
        return read(path) == data
    return True


def upload(source: Path, path: S3Path) -> None:
    _asking(path, lambda files: files.put_file(str(source), _plain(path), chunksize=PART))


def download(path: S3Path, target: Path) -> None:
    """In ranges, by the SDK's own client: an event loop in between costs as much again as the transfer."""
    bytes_ = size(path)
    with target.open("wb") as file:
        for first in range(0, bytes_, PART):
            retrying(path, partial(_copy, path, first, min(first + PART, bytes_), file))


def _copy(path: S3Path, first: int, end: int, file: BinaryIO) -> None:
    """Bytes [first, end) of an object to the same place of a file."""
    body = client(os.getpid()).get_object(Bucket=path.bucket, Key=path.key, Range=f"bytes={first}-{end - 1}")["Body"]
    file.seek(first)
    for piece in body.iter_chunks(PIECE):
        file.write(piece)


@cache
def client(process: int) -> Any:
    """The SDK's own client, one per process: its connections do not outlive a fork."""
    return Session().create_client("s3", config=Config(**SETTINGS, **TIMEOUTS))


def delete(path: S3Path) -> None:
    """One by one, not in bulk: a bulk request hides the keys that it could not delete."""
    _asking(path, lambda files: files.call_s3("delete_object", Bucket=path.bucket, Key=path.key))


def retrying(path: S3Path, call: Callable[[], Result]) -> Result:
    """The result of `call`, repeated while the fault may pass and PATIENCE lasts.

    Raises FileNotFoundError, FileExistsError, or StorageError with one line that names the path and the remedy.
    """
    started, tries = time.monotonic(), 0
    while True:
        try:
            return call()
        except Exception as error:
            kind, reason = fault(error), _reason(error)
            if kind == "missing":
                raise FileNotFoundError(2, "No such file or directory", str(path)) from error
            if kind == "exists":
                raise FileExistsError(17, "File exists", str(path)) from error
            FAULTS.add({kind: 1})
            if kind == "transient" and time.monotonic() - started < PATIENCE:
                time.sleep(pause(tries) * random.uniform(0.5, 1.0))
                tries += 1
                continue
            raise StorageError(_line(path, kind, reason)) from error


def _asking(path: S3Path, call: Callable[[Any], Result]) -> Result:
    """The same, of a call with a file system."""
    return retrying(path, lambda: call(_filesystem()))


def pause(tries: int) -> float:
    """Seconds to wait after so many failed repetitions."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries, 30)))


def fault(error: BaseException) -> Fault:
    """What kind of fault an exception of fsspec or botocore tells of. Pure."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        code, status = str(response["Error"].get("Code", "")), response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        named: dict[Fault, set[str]] = {"no bucket": {"NoSuchBucket"}, "missing": MISSING, "exists": EXISTS, "transient": TRANSIENT}
        for kind, codes in named.items():
            if code in codes:
                return kind
        if code in DENIED:
            return "denied"
        return "transient" if status >= 500 or status == 429 else "refused"
    if "Credentials" in type(error).__name__ or isinstance(error, PermissionError):
        return "denied"
    if isinstance(error, FileNotFoundError):
        return "missing"
    local = isinstance(error, OSError) and (error.filename is not None or error.errno in DISK)  # our own, not the network
    ours = isinstance(error, TypeError | ValueError | AttributeError) or type(error).__name__ == "ParamValidationError"
    return "refused" if local or ours else "transient"


def _line(path: S3Path, kind: Fault, reason: str) -> str:
    if kind == "no bucket":
        return f"{path}: there is no bucket {path.bucket}: create it, or check the name and AWS_ENDPOINT_URL"
    if kind == "denied":
        return f"{path}: access denied ({reason}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    if kind == "transient":
        return f"{path}: the storage fails since {PATIENCE:.0f} s ({reason}): what is committed is kept, run again when it is back"
    return f"{path}: the storage refuses the request ({reason})"


def _reason(error: BaseException) -> str:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        return str(response["Error"].get("Code") or response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _filesystem() -> Any:
    """fsspec keeps one per process and settings; it makes anew what a fork has broken."""
    files = fsspec.filesystem("s3", use_listings_cache=False, config_kwargs=SETTINGS | TIMEOUTS, default_block_size=PART)
    files.retries = 1  # repeated here, once
    return files


def _plain(path: S3Path) -> str:
    return f"{path.bucket}/{path.key}"
