"""The sources of a data set: stable order, ids that depend on names alone, captions joined by file name.
The command line calls it; it opens no video."""

import csv
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.listings import IMAGES, VIDEOS, Entry, list_entries
from data_pipeline.members import open_video

VIDEO, IMAGE = "video", "image"


@dataclass(frozen=True, slots=True)
class Source:
    """One input video or still; `name` is its path relative to what was listed, in posix form, and `id` a hash of the name.

    `member` says where in the file at `path` it is, if it is not all of it.
    """

    id: str
    path: str
    caption: str
    name: str
    licence: str = ""
    member: str = ""

    @property
    def kind(self) -> str:
        """What its name says: VIDEO or IMAGE."""
        return IMAGE if PurePosixPath(self.name).suffix.lower() in IMAGES else VIDEO

    def open(self) -> str | io.BytesIO:
        """What the decoder is to read. Raises OSError when it is gone."""
        return open_video(self.path, self.member)

    def size(self) -> int:
        """Bytes of the file, or -1 when it is gone: that is for the decoder to report."""
        size = storage.size(storage.location(self.path))
        return -1 if size is None else size


@dataclass(frozen=True)
class SourceList:
    """The sources sorted by name, and what did not match: names without a caption, caption rows without a video."""

    sources: tuple[Source, ...]
    without_caption: tuple[str, ...] = ()
    unknown_captions: tuple[str, ...] = ()


def list_sources(videos: str | Path, captions: str | Path | None = None, images: bool = False) -> SourceList:
    """Every video, and if `images` every still, at a place: a file, a folder and its subfolders, a glob, an S3 prefix, a
    table (csv, jsonl, parquet), tars of videos, a Hugging Face data set on disk.

    Captions come from the table `captions`, else from the place itself, else they are empty.
    Raises UserError when there is no such place, no video in it, a name twice, or no usable captions file.
    """
    entries = sorted(list_entries(str(videos), images), key=lambda entry: entry.name)
    _check_names(entries, str(videos))
    names = [entry.name for entry in entries]
    texts = {} if captions is None else read_captions(Path(captions))
    owners, unknown = _match(texts, names)
    found = {entry.name: entry.caption for entry in entries if entry.caption is not None}
    found |= {name: texts[row] for name, row in owners.items()}
    sources = tuple(
        Source(_source_id(entry.name), entry.path, found.get(entry.name, ""), entry.name, entry.licence, entry.member) for entry in entries
    )
    missing = () if captions is None else tuple(name for name in names if name not in found)
    return SourceList(sources, missing, unknown)


def _source_id(name: str) -> str:
    return hashlib.blake2s(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _check_names(entries: list[Entry], place: str) -> None:
    if not entries:
        raise UserError(f"no video in {place}: looked for {', '.join(sorted(VIDEOS))} in it and its subfolders")
    twice = next((one.name for one, other in pairwise(entries) if one.name == other.name), None)
    if twice is not None:
        raise UserError(f"{place} names {twice} more than once: keep one")


def read_captions(path: Path) -> dict[str, str]:
    """Captions by the file name as written in the table."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"captions file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"captions file {path}, line {line}, is not a UTF-8 text: save the table as UTF-8") from error
    table = csv.DictReader(io.StringIO(text, newline=""))
    rows = []
    try:
        missing = {"file", "caption"} - set(table.fieldnames or ())
        if missing:
            raise UserError(f"captions file {path} has no column {sorted(missing)[0]!r}: it needs file,caption")
        for row in table:
            if None in row or None in row.values():  # DictReader's marks of a long and of a short row
                raise UserError(
                    f"captions file {path}, line {table.line_num}, has not one value per column: quote captions that hold a comma"
                )
            rows.append((row["file"].strip().replace("\\", "/"), row["caption"].strip()))
    except csv.Error as error:
        raise UserError(f"captions file {path}, line {table.reader.line_num}, is not a row of a csv table: {error}") from error
    twice = [name for name, count in Counter(name for name, _ in rows).items() if count > 1]
    if twice:
        raise UserError(f"captions file {path} has more than one row for {twice[0]}: keep one")
    return dict(rows)


def _match(texts: dict[str, str], names: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """({video name: caption row}, rows that name no video). A bare file name serves if only one video has it."""
    known = set(names)
    sharing = Counter(Path(name).name for name in names)
    by_file_name = {Path(name).name: name for name in names if sharing[Path(name).name] == 1}
    owners = {by_file_name[row]: row for row in texts if row in by_file_name}
    owners |= {row: row for row in texts if row in known}
    used = set(owners.values())
    return owners, tuple(row for row in texts if row not in used)
