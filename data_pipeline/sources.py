"""Lists the videos of a data set: stable order, ids that depend on names alone, captions joined by file name.
The command line calls it; it opens no video."""

import csv
import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError

EXTENSIONS = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"))


@dataclass(frozen=True)
class Source:
    """One input video; `name` is its path relative to the folder, in posix form, and `id` a hash of the name."""

    id: str
    path: str
    caption: str
    name: str
    licence: str = ""

    def size(self) -> int:
        """Bytes of the file, or -1 when it is gone: that is for the decoder to report."""
        try:
            return Path(self.path).stat().st_size
        except OSError:
            return -1


@dataclass(frozen=True)
class SourceList:
    """The sources sorted by name, and what did not match: names without a caption, caption rows without a video."""

    sources: tuple[Source, ...]
    without_caption: tuple[str, ...] = ()
    unknown_captions: tuple[str, ...] = ()


def list_sources(videos: str | Path, captions: str | Path | None = None) -> SourceList:
    """Every video in a folder and its subfolders, or the one file given. Without captions each has an empty one.

    Raises UserError when there is no such folder, no video in it, or no usable captions file.
    """
    root = Path(videos)
    names = _video_names(root)
    texts = {} if captions is None else _read_captions(Path(captions))
    owners, unknown = _match(texts, names)
    found = {name: texts[row] for name, row in owners.items()}
    sources = tuple(Source(_source_id(name), str(root if root.is_file() else root / name), found.get(name, ""), name) for name in names)
    missing = () if captions is None else tuple(name for name in names if name not in found)
    return SourceList(sources, missing, unknown)


def _source_id(name: str) -> str:
    return hashlib.blake2s(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _video_names(root: Path) -> list[str]:
    if root.is_file():
        return [root.name]
    if not root.is_dir():
        raise UserError(f"no folder or video at {root}: check data.videos")
    names = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    ]
    if not names:
        raise UserError(f"no video in {root}: looked for {', '.join(sorted(EXTENSIONS))} in it and its subfolders")
    return sorted(names)


def _read_captions(path: Path) -> dict[str, str]:
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
