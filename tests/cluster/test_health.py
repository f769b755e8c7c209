"""What is said about seats before a run starts, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.health import Sight, examine, lines, looked_at, shares, unusable
from cluster.session import Session
from tests.cluster.seating import make_seats

GOOD = Sight("alpha", "a", (), 0.01, 8 << 30, 0.01, None)


def test_healthy_seats_are_one_line() -> None:
    (line,) = lines([GOOD, replace(GOOD, host="beta", node="b", bytes_per_second=2e8)], 4)
    assert line == "seats 4 on 2 nodes, storage shared, clocks within 0.01 s, 8.6 GB of /dev/shm free, 200 MB/s to the slowest node"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"skew": 40.0}, "its clock is 40.0 s off"),
        ({"shm_bytes": 64 << 20}, "only 67 MB of /dev/shm are free"),
        ({"work_seconds": 0.05}, "it is 5.0 times slower than the others"),
    ],
)
def test_what_is_odd_is_said_and_not_refused(change: dict[str, float], said: str) -> None:
    told = lines([GOOD, GOOD, replace(GOOD, host="beta", **change)], 3)
    assert len(told) == 2
    assert f"beta: {said}" in told[1]


def test_storage_that_a_seat_does_not_share_is_refused_by_folder_and_host() -> None:
    assert not unusable(GOOD)
    refused = unusable(replace(GOOD, host="beta", unseen=("/data/runs",)))
    assert refused.startswith("/data/runs is not the same, writable folder on beta as here: put run.root and data.root on")


def test_a_node_that_comes_later_is_compared_with_those_before() -> None:
    slow = replace(GOOD, host="beta", work_seconds=0.05)
    assert len(lines([slow], 1)) == 1
    assert "beta: it is 5.0 times slower than the others" in lines([slow], 1, [GOOD, GOOD])[1]


def test_a_folder_is_shared_where_the_file_is_there_and_another_can_be_written(tmp_path: Path) -> None:
    assert not shares(tmp_path, "t")
    (tmp_path / ".videomar-probe-t").touch()
    assert shares(tmp_path, "t")
    assert not shares(tmp_path / "elsewhere", "t")
    assert looked_at([str(tmp_path), "/proc"], "t")["unseen"] == ("/proc",)


@pytest.mark.timeout(120)
def test_the_seats_of_this_machine_are_examined_and_nothing_is_left(ray_session: Session, tmp_path: Path) -> None:
    seats = make_seats(2, 1, preload=[], threads=1)
    sights = examine({held.node: held.seat for held in seats.held}, [tmp_path])
    seats.close()
    assert [(sight.unseen, sight.bytes_per_second) for sight in sights] == [((), None)]
    assert max(sight.skew for sight in sights) < 5.0
    assert list(tmp_path.iterdir()) == []
