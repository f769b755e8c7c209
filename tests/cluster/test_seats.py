import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.seats import Seats, make_seats
from cluster.session import Session
from data_pipeline.errors import UserError
from tests.cluster.conftest import is_gone

pytestmark = pytest.mark.timeout(120)
TARGETS = "tests.cluster.targets"


@pytest.fixture(scope="module")
def seats(ray_session: Session) -> Iterator[Seats]:
    seats = make_seats(2, 1, preload=[TARGETS], threads=1)
    yield seats
    seats.close()


@pytest.fixture
def seat(seats: Seats) -> Any:
    return seats[0]


def start(seat: Any, tmp_path: Path, target: str, **payload: Any) -> int:
    return ray.get(seat.start.remote(f"{TARGETS}:{target}", {"log": str(tmp_path / "log.txt"), **payload}))


def first(seat: Any) -> dict[str, Any]:
    return ray.get(seat.wait.remote(30.0))[0]


def until_exit(seat: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["kind"] != "exit":
        messages += ray.get(seat.wait.remote(30.0))
    return messages


def test_a_process_gets_its_payload_and_reports_to_its_seat(seat: Any, tmp_path: Path) -> None:
    pid = start(seat, tmp_path, "hello", name="rank 0")
    hello, end = until_exit(seat)
    assert hello == {"kind": "hello", "name": "rank 0", "pid": pid, "ray": False}
    assert (end["kind"], end["code"], end["asked"]) == ("exit", 0, False)


def test_what_processes_print_is_appended_to_the_log(seat: Any, tmp_path: Path) -> None:
    for name in ("first", "second"):
        start(seat, tmp_path / "new folder", "hello", name=name)
        until_exit(seat)
    assert (tmp_path / "new folder" / "log.txt").read_text() == "printed by first\nprinted by second\n"


def test_a_process_that_raises_reports_the_traceback_before_its_end(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "raise_error")
    error, end = until_exit(seat)
    assert error["kind"] == "error"
    assert error["traceback"].strip().endswith("ValueError: clip 7 is broken")
    assert end["code"] == 1
    assert error["traceback"] in (tmp_path / "log.txt").read_text()


def test_an_unknown_target_is_an_error_of_the_process(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "no_such_function")
    error, end = until_exit(seat)
    assert "no_such_function" in error["traceback"]
    assert end["code"] == 1


def test_an_exit_code_is_passed_on_and_stays_readable(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "exit_with", code=7)
    assert [end["code"] for end in until_exit(seat)] == [7]
    assert [end["code"] for end in until_exit(seat)] == [7]


def test_a_process_never_waits_for_a_reader_and_no_message_is_lost(seat: Any, tmp_path: Path) -> None:
    done = tmp_path / "done"
    start(seat, tmp_path, "chatter", count=500, done=str(done))
    while not done.exists():
        pass
    numbers = [message["number"] for message in until_exit(seat)[:-1]]
    assert numbers == list(range(500))


def test_wait_returns_nothing_when_the_time_is_up(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "sleep")
    assert first(seat)["kind"] == "up"
    assert ray.get(seat.wait.remote(0.01)) == []
    assert ray.get(seat.kill.remote()) == -signal.SIGKILL


def test_kill_works_while_another_call_waits(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "sleep")
    assert first(seat)["kind"] == "up"
    waiting = seat.wait.remote(100.0)
    assert ray.get(seat.kill.remote()) == -signal.SIGKILL
    [end] = ray.get(waiting)
    assert (end["kind"], end["code"], end["asked"]) == ("exit", -signal.SIGKILL, True)


def test_stop_lets_a_commit_end(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "commit_on_sigterm", commit=str(tmp_path / "commit"))
    assert first(seat)["kind"] == "up"
    assert ray.get(seat.stop.remote(30.0)) == 0
    assert (tmp_path / "commit").read_text() == "whole"


def test_stop_kills_what_ignores_it(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "ignore_sigterm")
    assert first(seat)["kind"] == "up"
    assert ray.get(seat.stop.remote(0.2)) == -signal.SIGKILL


def test_a_process_left_from_before_is_killed_by_the_next_start(seat: Any, tmp_path: Path) -> None:
    left = start(seat, tmp_path, "sleep")
    start(seat, tmp_path, "hello", name="next")
    assert [message["kind"] for message in until_exit(seat)] == ["hello", "exit"]
    assert is_gone(left)


def test_a_grandchild_that_holds_the_pipe_does_not_hide_the_end(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "leave_a_grandchild")
    grandchild, end = until_exit(seat)
    os.kill(grandchild["pid"], signal.SIGKILL)
    assert end["code"] == 0


def test_the_death_of_the_fork_server_is_an_end_and_the_next_start_makes_a_new_one(seat: Any, tmp_path: Path) -> None:
    pid = start(seat, tmp_path, "sleep")
    os.kill(first(seat)["server"], signal.SIGKILL)
    assert until_exit(seat)[-1]["code"] != 0
    assert is_gone(pid)
    start(seat, tmp_path, "hello", name="again")
    assert until_exit(seat)[-1]["code"] == 0


def test_a_process_dies_with_its_seat_and_the_seat_can_be_replaced(seats: Seats, tmp_path: Path) -> None:
    pid = start(seats[1], tmp_path, "sleep")
    server = first(seats[1])["server"]
    os.kill(seats.warm()[1]["pid"], signal.SIGKILL)
    assert is_gone(pid)
    assert is_gone(server)
    seats.replace(1)
    start(seats[1], tmp_path, "hello", name="new seat")
    assert until_exit(seats[1])[-1]["code"] == 0


def test_warm_names_a_module_that_cannot_be_imported(ray_session: Session) -> None:
    seats = make_seats(1, 1, preload=["no_such_module"], threads=1)
    with pytest.raises(ImportError, match="no_such_module"):
        seats.warm()
    seats.close()


def test_seats_that_the_cluster_cannot_hold_are_a_users_error(ray_session: Session) -> None:
    with pytest.raises(UserError, match=r"cluster\.workers=3 needs 3 x 2 CPUs, but Ray has .* lower cluster\.workers"):
        make_seats(3, 2, preload=[], threads=1, timeout=1.0)
    with pytest.raises(UserError, match=r"1 x 1 CPUs and 1 x 1 GPUs, but Ray has .* and 0 of 0 free"):
        make_seats(1, 1, preload=[], threads=1, gpus_per_seat=1, timeout=1.0)


def test_closed_seats_give_their_cpus_back(ray_session: Session) -> None:
    for _ in range(3):
        make_seats(2, 1, preload=[], threads=1).close()
