"""Videos in the cells of tables: what reading them costs."""

import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import members, storage
from data_pipeline.members import open_video
from data_pipeline.storage import S3Path
from tests.s3 import S3Server

ROWS, GROUP, VIDEO_BYTES = 12, 6, 1 << 20


def test_cells_of_a_parquet_table_in_s3_cost_one_pass_over_their_group_in_any_order(
    tmp_path: Path, bucket: S3Path, s3_server: S3Server
) -> None:
    rows = [{"video": {"bytes": os.urandom(VIDEO_BYTES), "path": f"{number}.mp4"}} for number in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=GROUP, compression="none")
    table, fetched = bucket / "rows.parquet", [0]
    storage.write_bytes(table, (tmp_path / "rows.parquet").read_bytes())

    def note(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == "GET" and (span := request.get("HTTP_RANGE")):
            first, last = map(int, span.removeprefix("bytes=").split("-"))
            fetched[0] += last + 1 - first

    def read(number: int) -> int:
        """Opens a row's video; the bytes that this fetched."""
        before = fetched[0]
        file = open_video(str(table), f"video[{number}]")
        assert isinstance(file, io.BytesIO)
        assert file.read() == rows[number]["video"]["bytes"]
        return fetched[0] - before

    s3_server.gate = note
    members._kept_table.cache_clear()
    assert sum(read(number) for number in range(0, ROWS, 2)) < 1.2 * ROWS * VIDEO_BYTES
    assert read(1) >= VIDEO_BYTES  # back to an earlier group, which is read again
    assert read(3) == read(5) == 0


def test_a_cell_is_read_again_after_its_storage_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"video": bytes([number]) * 100} for number in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=GROUP)
    table = members.open_table(str(tmp_path / "rows.parquet"))
    cells = members._Groups(table)
    assert cells.cell("video", 0) == rows[0]["video"]
    with monkeypatch.context() as patch:
        patch.setattr(cells, "_cells", iter([_Broken()]))
        with pytest.raises(OSError, match="cut off"):
            cells.cell("video", 1)
    assert [cells.cell("video", number) for number in (1, 2, 11, 3)] == [rows[number]["video"] for number in (1, 2, 11, 3)]


class _Broken:
    """A cell whose pages did not come."""

    def as_py(self) -> bytes:
        raise OSError("cut off")
