"""Videos that are not files of their own: members of tars, cells of tables, objects in S3. sources.py says where each is,
the decoders open it here; nothing else knows how."""

import io
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.storage import S3Path

READ_BYTES = 8 << 20  # of a table in S3 that are fetched together


def open_video(path: str, member: str) -> str | io.BytesIO:
    """What FFmpeg is to read: the path of a plain file, or the bytes of what is inside another.

    `member` is empty, "<offset>:<size>" of a tar's member, or "<column>[<row>]" of a table. Raises OSError, UserError.
    """
    place = storage.location(path)
    if not member:
        return io.BytesIO(storage.read_bytes(place)) if isinstance(place, S3Path) else path
    if cell := re.fullmatch(r"(.+)\[(\d+)\]", member):
        return io.BytesIO(_cell(path, cell[1], int(cell[2])))
    offset, size = map(int, member.split(":"))
    (data,) = storage.read_ranges(place, [(offset, size)])
    return io.BytesIO(data)


def pyarrow() -> Any:
    """The library that reads tables. Raises UserError when it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("parquet and arrow tables need the extra: pip install 'videomar[tables]'") from error
    return pyarrow


def open_table(path: str) -> Any:
    """A pyarrow parquet file, or a memory-mapped arrow table. Raises UserError naming the file."""
    arrow = pyarrow()
    try:
        if path.endswith(".parquet"):
            remote = isinstance(place := storage.location(path), S3Path)
            file = storage.open_binary(place) if remote else path
            return arrow.parquet.ParquetFile(file, memory_map=not remote, buffer_size=READ_BYTES if remote else 0)
        with arrow.memory_map(path) as file:
            try:
                return arrow.ipc.open_stream(file).read_all()
            except arrow.ArrowInvalid:
                return arrow.ipc.open_file(file).read_all()
    except (arrow.ArrowInvalid, OSError) as error:
        raise UserError(f"table {path} cannot be read: {str(error).splitlines()[0]}") from error


class _Groups:
    """The cells of a parquet table, read forward: pages cannot be skipped, so rows that are asked for in their order cost one pass over
    their group together, not one each. Meanwhile the library keeps the pages that it is at: about twice a group's bytes where its writer
    made one page of it, as most do."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._at: tuple[str, int, int] | None = None  # column, group and row in it that the cells go on with
        self._cells: Iterator[Any] = iter(())

    def cell(self, column: str, row: int) -> Any:
        group = 0
        while row >= (rows := self._table.metadata.row_group(group).num_rows):
            group, row = group + 1, row - rows
        at, self._at = self._at, None  # after an error nothing is gone on with
        if at is None or at[:2] != (column, group) or at[2] > row:
            batches = self._table.iter_batches(1, row_groups=[group], columns=[column], use_threads=False)
            at, self._cells = (column, group, 0), (batch.column(0)[0] for batch in batches)
        value = next(islice(self._cells, row - at[2], None)).as_py()
        self._at = (column, group, row + 1)
        return value


@lru_cache(maxsize=1)  # sources follow one another in their tables, and a group may be large
def _kept_table(path: str) -> Any:
    table = open_table(path)
    return _Groups(table) if path.endswith(".parquet") else table


def _cell(path: str, column: str, row: int) -> bytes:
    """The bytes in a row of a column, which holds them as such or, as Hugging Face's do, beside a path."""
    table = _kept_table(path)
    value = table.cell(column, row) if isinstance(table, _Groups) else table[column][row].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise OSError(None, "the table holds no video there")
    return value
