"""What there is in each kind of place that videos come from: a folder, a glob, a table, tars, a Hugging Face data set, an S3
prefix. sources.py calls it; it opens no video. Each listing yields entries one by one."""

import csv
import io
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.members import open_table
from data_pipeline.storage import Location, S3Path

VIDEOS = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"))
IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))
LATENTS = frozenset((".safetensors", ".npy"))
TABLES = (".csv", ".jsonl", ".parquet")
CAPTIONS, LICENCES, FILES = ("caption", "text"), ("licence", "license"), ("file", "video", "path", "image")
BATCH_ROWS = 4096  # of a table, read at once
SIZES, THREADS = 256, 16  # of files in S3 that are asked for together, and how many of them at once


@dataclass(frozen=True, slots=True)
class Entry:
    """`name` is relative to what was listed, in posix form; `member` as open_video takes it; caption None: not told; `bytes`
    of the file at `path`, None where the listing does not say."""

    name: str
    path: str
    member: str = ""
    caption: str | None = None
    licence: str = ""
    bytes: int | None = None


def list_entries(place: str, suffixes: frozenset[str]) -> Iterator[Entry]:
    """The files of these suffixes at a place; of those in S3 the bytes, too. Raises UserError when there is no such place."""
    return _sized(_entries(place, suffixes))


def _sized(entries: Iterator[Entry]) -> Iterator[Entry]:
    """What the listing does not say is asked here, many at a time: whoever needs it later would ask for one after the other. A file that
    is gone has -1."""
    with ThreadPoolExecutor(THREADS) as threads:
        while batch := list(islice(entries, SIZES)):
            unknown = list({entry.path for entry in batch if entry.bytes is None and entry.path.startswith("s3://")})
            told = threads.map(lambda path: storage.size(storage.location(path)), unknown)
            sizes = {path: -1 if size is None else size for path, size in zip(unknown, told, strict=True)}
            yield from (replace(entry, bytes=sizes[entry.path]) if entry.path in sizes else entry for entry in batch)


def _entries(place: str, suffixes: frozenset[str]) -> Iterator[Entry]:
    root = storage.location(place)
    if isinstance(root, S3Path):
        one = root.suffix.lower() in (*suffixes, *TABLES, ".tar") and storage.size(root) is not None
        return _file(root, suffixes) if one else _files(root, storage.list_files(root), suffixes)
    if root.is_file():
        return _file(root, suffixes)
    if root.is_dir():
        return (
            _hugging_face(root) if (root / "state.json").is_file() else _files(root, ((path, None) for path in _below(str(root))), suffixes)
        )
    if re.search(r"[*?\[]", place):
        return _glob(place, suffixes)
    raise UserError(f"no folder or video at {place}: check data.videos")


def wanted(name: str, suffixes: frozenset[str]) -> bool:
    file = posixpath.basename(name)  # pathlib keeps a table of all names that it ever saw
    return posixpath.splitext(file)[1].lower() in suffixes and not file.startswith(".")


def _file(path: Location, suffixes: frozenset[str]) -> Iterator[Entry]:
    if path.suffix in TABLES:
        return _table(path)
    return _tar(path, path.name, suffixes) if path.suffix == ".tar" else iter((Entry(path.name, str(path)),))


def _files(root: Location, files: Iterable[tuple[str | Location, int | None]], suffixes: frozenset[str]) -> Iterator[Entry]:
    """Of these (path, bytes) below `root` the videos and, opened up, the tars of videos."""
    start = len(str(root).rstrip("/")) + 1
    for path, size in files:
        name = str(path)[start:]
        if wanted(name, suffixes):
            yield Entry(name, str(path), bytes=size)
        elif name.endswith(".tar"):
            yield from _tar(storage.location(path), name, suffixes)


def _below(folder: str) -> Iterator[str]:
    """The files in a folder and its subfolders, but not behind links to folders; the names of no folder are held. Raises
    UserError naming a folder that may not be read."""
    folders = [folder]
    while folders:
        inside = folders.pop()
        try:
            with os.scandir(inside) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file():
                        yield entry.path
        except PermissionError as error:
            raise UserError(f"folder {inside} may not be read: allow it, or name the others by a glob") from error


def _glob(pattern: str, suffixes: frozenset[str]) -> Iterator[Entry]:
    parts = Path(pattern).parts
    fixed = next(number for number, part in enumerate(parts) if re.search(r"[*?\[]", part))
    root = Path(*parts[:fixed])
    found = root.glob(str(Path(*parts[fixed:])))
    return _files(root, ((f"{root}/{path.relative_to(root)}", None) for path in found if path.is_file()), suffixes)


def _tar(path: Location, name: str, suffixes: frozenset[str]) -> Iterator[Entry]:
    """A WebDataset tar: <key>.mp4 with <key>.txt (its caption) or <key>.json (caption, licence) beside it."""
    videos: list[Entry] = []
    about: dict[str, dict[str, Any]] = {}
    try:
        with storage.open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key = _key(member.name)
                if member.isfile() and wanted(member.name, suffixes):
                    videos.append(Entry(f"{name}/{member.name}", str(path), f"{member.offset_data}:{member.size}"))
                elif member.isfile() and member.name.endswith((".txt", ".json")) and (text := tar.extractfile(member)):
                    about.setdefault(key, {}).update(_about(text.read(), member.name))
    except (tarfile.TarError, ValueError, OSError) as error:
        raise UserError(f"{path} is not a tar of videos: {error}") from error
    for video in videos:
        yield _told(video, about.get(_key(video.name.removeprefix(f"{name}/")), {}))


def _key(member: str) -> str:
    """What the members of one sample share."""
    return member.rpartition(".")[0].removesuffix(".latent")


def _about(data: bytes, name: str) -> dict[str, Any]:
    text = data.decode("utf-8")
    if name.endswith(".txt"):
        return {"caption": text}
    value = json.loads(text)
    return value if isinstance(value, dict) else {}


def _table(path: Location) -> Iterator[Entry]:
    """Rows that name files relative to the table's folder (or absolutely, or in S3), or that hold the videos themselves."""
    if path.suffix == ".parquet":
        yield from _columns(path, path.name)
        return
    for number, row in enumerate(_rows(path), start=1):
        file = _first(row, FILES)
        if not file:
            raise UserError(f"table {path}, row {number}: no value in a column {' or '.join(FILES)}")
        yield _told(_named(path, str(file)), row)


def _rows(path: Location) -> Iterator[dict[str, Any]]:
    try:
        with io.TextIOWrapper(storage.open_binary(path), encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, filter(str.strip, file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"table {path} cannot be read: {error}") from error


def _hugging_face(root: Path) -> Iterator[Entry]:
    """A folder that `datasets` saved: its arrow files, in the order that state.json gives."""
    try:
        names = [entry["filename"] for entry in json.loads((root / "state.json").read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / 'state.json'} does not list the files of a Hugging Face data set") from error
    for name in names:
        yield from _columns(root / name, name)


def _columns(path: Location, name: str) -> Iterator[Entry]:
    """Row by row; only what is said about the videos is read, not the videos."""
    table: Any = open_table(str(path))
    schema = getattr(table, "schema_arrow", None) or table.schema
    file = next((column for column in FILES if column in schema.names), None)
    if file is None:
        raise UserError(f"table {path} has no column {' or '.join(FILES)}; it has {', '.join(schema.names)}")
    holds_bytes = not str(schema.field(file).type).endswith("string")
    columns = [column for column in schema.names if column in (*CAPTIONS, *LICENCES) or (column == file and not holds_bytes)]
    batches = (
        table.iter_batches(BATCH_ROWS, columns=columns) if hasattr(table, "iter_batches") else table.select(columns).to_batches(BATCH_ROWS)
    )
    rows = (row for batch in batches for row in (batch.to_pylist() if columns else [{}] * batch.num_rows))
    for number, row in enumerate(rows):
        entry = Entry(f"{name}/{number:08d}", str(path), f"{file}[{number}]") if holds_bytes else _named(path, str(row[file]))
        yield _told(entry, row)


def _named(table: Location, file: str) -> Entry:
    file = file.strip().replace("\\", "/")
    return Entry(file, file if file.startswith(("s3://", "/")) else f"{table.parent}/{file}")


def _told(entry: Entry, row: dict[str, Any]) -> Entry:
    caption = _first(row, CAPTIONS)
    return replace(entry, caption=None if caption is None else str(caption).strip(), licence=str(_first(row, LICENCES) or ""))


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
