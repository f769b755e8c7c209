"""The sources of a data set: stable order, ids that depend on names alone, captions joined by file name.
The command line calls it; it opens no video."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, overload

from data_pipeline import storage
from data_pipeline.entry_table import NONE, EntryTable, Unmatched
from data_pipeline.errors import UserError
from data_pipeline.listings import IMAGES, LATENTS, VIDEOS, Entry, list_entries
from data_pipeline.members import open_video
from data_pipeline.storage import Location

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
    bytes: int | None = field(default=None, compare=False)  # of the file, where the listing told

    @property
    def kind(self) -> str:
        """What its name says: VIDEO or IMAGE."""
        return IMAGE if PurePosixPath(self.name).suffix.lower() in IMAGES else VIDEO

    def open(self) -> str | io.BytesIO:
        """What the decoder is to read. Raises OSError when it is gone."""
        return open_video(self.path, self.member)

    def size(self) -> int:
        """Bytes of the file, or -1 when it is gone: that is for the decoder to report."""
        if self.bytes is not None:
            return self.bytes
        size = storage.size(storage.location(self.path))
        return -1 if size is None else size


class Sources(Sequence[Source]):
    """A view of a table of entries: sources are made as they are asked for, so millions of them take no memory."""

    def __init__(self, table: EntryTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Source]:
        return map(_source, self._table.rows(0, len(self)))

    @overload
    def __getitem__(self, place: int) -> Source: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Source, ...]: ...

    def __getitem__(self, place: int | slice) -> Source | tuple[Source, ...]:
        chosen = range(len(self))[place]
        if isinstance(chosen, int):
            (entry,) = self._table.rows(chosen, chosen + 1)
            return _source(entry)
        if chosen.step == 1:
            return tuple(map(_source, self._table.rows(chosen.start, chosen.stop)))
        return tuple(self[number] for number in chosen)

    def __reduce__(self) -> tuple[type, tuple[tuple[Source, ...]]]:
        return tuple, (tuple(self),)  # for another process, which has not this one's table


@dataclass(frozen=True)
class SourceList:
    """The sources sorted by name, and what did not match: videos without a caption, caption rows without a video."""

    sources: Sequence[Source]
    without_caption: Unmatched = NONE
    unknown_captions: Unmatched = NONE


def list_sources(videos: str | Path, captions: str | Location | None = None, images: bool = False) -> SourceList:
    """Every video, and if `images` every still, at a place: a file, a folder and its subfolders, a glob, an S3 prefix, a
    table (csv, jsonl, parquet), tars of videos, a Hugging Face data set on disk.

    Captions come from the table `captions`, else from the place itself, else they are empty.
    Raises UserError when there is no such place, no video in it, a name twice, or no usable captions file.
    """
    table = EntryTable(list_entries(str(videos), VIDEOS | IMAGES if images else VIDEOS))
    if not len(table):
        raise UserError(f"no video in {videos}: looked for {', '.join(sorted(VIDEOS))} in it and its subfolders")
    if (twice := table.twice()) is not None:
        raise UserError(f"{videos} names {twice} more than once: keep one")
    if captions is None:
        return SourceList(Sources(table))
    if (twice := table.caption(caption_rows(storage.location(captions)))) is not None:
        raise _told_twice(captions, twice)
    return SourceList(Sources(table), table.without_caption(), table.unknown_captions())


def list_latents(place: str) -> Sequence[Source]:
    """Every latent in a folder of tars, or in one, with its caption. Raises UserError when there is none."""
    table = EntryTable(entry for entry in list_entries(place, LATENTS) if not entry.name.endswith(".text.safetensors"))
    if not len(table):
        raise UserError(f"no latent in {place}: looked for <key>.latent.safetensors and <key>.npy in its tars")
    return Sources(table)


def _source(entry: Entry) -> Source:
    return Source(_source_id(entry.name), entry.path, entry.caption or "", entry.name, entry.licence, entry.member, entry.bytes)


def _source_id(name: str) -> str:
    return hashlib.blake2s(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def read_captions(path: Location) -> dict[str, str]:
    """Captions by the file name as written in the table. Raises UserError when it is not usable."""
    rows = list(caption_rows(path))
    twice = [name for name, count in Counter(name for name, _ in rows).items() if count > 1]
    if twice:
        raise _told_twice(path, twice[0])
    return dict(rows)


def caption_rows(path: Location) -> Iterator[tuple[str, str]]:
    """(file, caption) of each row of a csv table, read as they are asked for. Raises UserError naming the line."""
    try:
        with storage.open_binary(path) as file:
            table = csv.DictReader(_lines(file, path))
            missing = {"file", "caption"} - set(table.fieldnames or ())
            if missing:
                raise UserError(f"captions file {path} has no column {sorted(missing)[0]!r}: it needs file,caption")
            for row in table:
                if None in row or None in row.values():  # DictReader's marks of a long and of a short row
                    raise UserError(
                        f"captions file {path}, line {table.line_num}, has not one value per column: quote captions that hold a comma"
                    )
                yield row["file"].strip().replace("\\", "/"), row["caption"].strip()
    except OSError as error:
        raise UserError(f"captions file {path} cannot be read: {error.strerror}") from error
    except csv.Error as error:
        raise UserError(f"captions file {path}, line {table.reader.line_num}, is not a row of a csv table: {error}") from error


def _lines(file: BinaryIO, path: Location) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"captions file {path}, line {number}, is not a UTF-8 text: save the table as UTF-8") from error


def _told_twice(path: str | Location, name: str) -> UserError:
    return UserError(f"captions file {path} has more than one row for {name}: keep one")
