"""Videos that are not files of their own: members of tars, cells of tables, objects in S3. sources.py says where each is,
the decoders open it here; nothing else knows how."""

import io
import re
from functools import lru_cache
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.storage import S3Path


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
            return arrow.parquet.ParquetFile(storage.open_binary(place) if remote else path, memory_map=not remote)
        with arrow.memory_map(path) as file:
            try:
                return arrow.ipc.open_stream(file).read_all()
            except arrow.ArrowInvalid:
                return arrow.ipc.open_file(file).read_all()
    except (arrow.ArrowInvalid, OSError) as error:
        raise UserError(f"table {path} cannot be read: {str(error).splitlines()[0]}") from error


@lru_cache(maxsize=4)
def _kept_table(path: str) -> Any:
    return open_table(path)


def _cell(path: str, column: str, row: int) -> bytes:
    """The bytes in a row of a column, which holds them as such or, as Hugging Face's do, beside a path."""
    table = _kept_table(path)
    if hasattr(table, "read_row_group"):
        group = 0
        while row >= (rows := table.metadata.row_group(group).num_rows):
            group, row = group + 1, row - rows
        table = table.read_row_group(group, columns=[column])
    value = table[column][row].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise OSError(None, "the table holds no video there")
    return value
