"""A list of videos on disk instead of in memory: entries come in any order and go out sorted by name, with captions joined to
them by name. sources.py fills and reads it. It is a private SQLite file that ends with its object; memory stays at SQLite's cache."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from data_pipeline.errors import UserError
from data_pipeline.listings import Entry

SHOWN = 5  # names of those that did not match
COLUMNS = "name, path, member, caption, licence, bytes"  # the fields of an Entry
TEXTS = "surrogatepass"  # any str comes back, and bytes sort as Python sorts the str


@dataclass(frozen=True)
class Unmatched:
    """How many there are, and the first of them by name."""

    count: int = 0
    first: tuple[str, ...] = ()


NONE = Unmatched()


class EntryTable:
    """Entries 0 .. len - 1, sorted by name. May be read from several threads."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Raises UserError when there is no room for temporary files."""
        self._sql = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        with self._writing():
            self._sql.execute(f"CREATE TABLE listed ({COLUMNS})")
            self._sql.executemany("INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?)", (_packed(entry) for entry in entries))
            self._sql.execute("CREATE TABLE entry AS SELECT * FROM listed ORDER BY name")  # its rowids count from 1 in this order
            self._sql.execute("DROP TABLE listed")
        self._count = self._number("SELECT count(*) FROM entry")

    def __len__(self) -> int:
        return self._count

    def rows(self, start: int, stop: int) -> Iterator[Entry]:
        """The entries from `start` up to `stop`, read as they are asked for."""
        found = self._sql.execute(f"SELECT {COLUMNS} FROM entry WHERE rowid > ? AND rowid <= ? ORDER BY rowid", (start, stop))
        for row in found:
            name, path, member, caption, licence = (text if text is None else _text(text) for text in row[:-1])
            yield Entry(name, path, member, caption, licence, row[-1])

    def twice(self) -> str | None:
        """A name that more than one entry has."""
        pairs = "entry AS one JOIN entry AS other ON other.rowid = one.rowid + 1"
        return self._name(f"SELECT one.name FROM {pairs} WHERE one.name = other.name LIMIT 1")

    def caption(self, told: Iterable[tuple[str, str]]) -> str | None:
        """Gives captions to the entries that (file, caption) rows name, in place of their own; a bare file name serves if only
        one entry has it. Returns a file that more than one row names, if there is one: then no caption is given."""
        with self._writing():
            self._sql.execute("CREATE TABLE told (file, caption)")
            self._sql.executemany("INSERT INTO told VALUES (?, ?)", ((_bytes(file), _bytes(caption)) for file, caption in told))
            self._sql.execute("CREATE INDEX told_file ON told (file)")
            if (twice := self._name("SELECT file FROM told GROUP BY file HAVING count(*) > 1 LIMIT 1")) is not None:
                return twice
            self._sql.create_function("base", 1, lambda name: name.rpartition(b"/")[2], deterministic=True)
            self._sql.execute("CREATE INDEX entry_name ON entry (name)")
            self._sql.execute("CREATE TABLE bare AS SELECT base(name) AS base, rowid AS entry FROM entry ORDER BY 1")
            self._sql.execute("CREATE INDEX bare_base ON bare (base)")
            self._sql.execute("CREATE TABLE owner (entry INTEGER PRIMARY KEY, told INTEGER)")
            only = "told JOIN bare ON bare.base = told.file GROUP BY told.rowid HAVING count(*) = 1"
            self._sql.execute(f"INSERT INTO owner SELECT bare.entry, told.rowid FROM {only}")
            exact = "told JOIN entry ON entry.name = told.file"
            self._sql.execute(f"INSERT OR REPLACE INTO owner SELECT entry.rowid, told.rowid FROM {exact}")
            given = "FROM owner JOIN told ON told.rowid = owner.told WHERE owner.entry = entry.rowid"
            self._sql.execute(f"UPDATE entry SET caption = told.caption {given}")
        return None

    def without_caption(self) -> Unmatched:
        """Entries."""
        return self._unmatched("name FROM entry WHERE caption IS NULL")

    def unknown_captions(self) -> Unmatched:
        """Rows that named no entry, in their order."""
        return self._unmatched("file FROM told WHERE rowid NOT IN (SELECT told FROM owner)")

    def _unmatched(self, query: str) -> Unmatched:
        first = self._sql.execute(f"SELECT {query} ORDER BY rowid LIMIT {SHOWN}")
        return Unmatched(self._number(f"SELECT count(*) FROM (SELECT {query})"), tuple(_text(name) for (name,) in first))

    def _name(self, query: str) -> str | None:
        found = self._sql.execute(query).fetchone()
        return None if found is None else _text(found[0])

    def _number(self, query: str) -> int:
        return int(self._sql.execute(query).fetchone()[0])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction that never has to be undone: after an error the table is of no use."""
        try:
            self._sql.execute("PRAGMA journal_mode = OFF")
            self._sql.execute("BEGIN")
            yield
            self._sql.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise UserError(f"the list of videos has no room among the temporary files ({error}): free some, or set TMPDIR") from error


def _packed(entry: Entry) -> tuple[bytes | int | None, ...]:
    caption = None if entry.caption is None else _bytes(entry.caption)
    return _bytes(entry.name), _bytes(entry.path), _bytes(entry.member), caption, _bytes(entry.licence), entry.bytes


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", TEXTS)


def _text(data: bytes) -> str:
    return data.decode("utf-8", TEXTS)
