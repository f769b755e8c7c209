import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.gang import Gang
from cluster.session import Session
from data_pipeline.errors import UserError
from tests.cluster.conftest import is_gone
from tests.cluster.seating import Seats, make_seats

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
    return ray.get(seat.wait.remote(30.0, 0))[1][0]


def until_exit(seat: Any, seen: int = 0) -> list[dict[str, Any]]:
    """What comes behind the first `seen` messages."""
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["kind"] != "exit":
        seen, found = ray.get(seat.wait.remote(30.0, seen))
        messages += found
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
    assert ray.get(seat.wait.remote(0.01, 1)) == (1, [])
    assert ray.get(seat.kill.remote()) == -signal.SIGKILL


def test_kill_works_while_another_call_waits(seat: Any, tmp_path: Path) -> None:
    start(seat, tmp_path, "sleep")
    assert first(seat)["kind"] == "up"
    waiting = seat.wait.remote(100.0, 1)
    assert ray.get(seat.kill.remote()) == -signal.SIGKILL
    _, [end] = ray.get(waiting)
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


def gathered(gang: Gang, minimum: int, seconds: float) -> None:
    gang.gather(minimum, seconds, True, gang.refresh, lambda text: None)


def test_a_module_that_cannot_be_imported_marks_the_node_and_is_named(ray_session: Session) -> None:
    gang = Gang(["no_such_module"], {"CPU": 1}, threads=1, maximum=1)
    with pytest.raises(UserError, match=r"did not start: .*no_such_module"):
        gathered(gang, 1, 60.0)
    (node,) = {node for node, _ in gang.news()}
    assert gang.ready == []
    gang.refresh()
    assert gang.starting == 0, "a node that is marked gets no more seats"
    gang.close()
    assert node == ray.get_runtime_context().get_node_id()


def test_seats_that_the_cluster_cannot_hold_are_a_users_error(ray_session: Session) -> None:
    for need, missing in (({"CPU": 9.0}, "2 x 9 CPUs"), ({"CPU": 1.0, "GPU": 1.0}, "2 x 1 CPUs and 2 x 1 GPUs")):
        gang, said = Gang([], need, threads=1, maximum=2), list[str]()
        with pytest.raises(UserError, match=f"cluster.min_workers=2 needs {missing}, but 0 seats .*: lower cluster.min_workers or"):
            gang.gather(2, 3.0, True, gang.refresh, said.append)
        assert len(said) == 1
        assert "waiting up to 3 s" in said[0]


def test_a_seat_that_is_told_to_end_is_no_longer_given_out_but_lives_until_it_is_released(ray_session: Session) -> None:
    gang = Gang([], {"CPU": 1}, threads=1, maximum=1)
    gathered(gang, 1, 60.0)
    (held,) = gang.ready
    os.kill(held.facts["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 20
    while gang.ready and time.monotonic() < deadline:
        gang.refresh()
    assert gang.leaving == [held]
    time.sleep(4)  # Ray would abort it after three
    gang.refresh()
    assert [state for _, state in gang.news()] == ["joined", "draining"]
    assert ray.get(held.seat.listen.remote())
    gang.release()
    assert is_gone(held.facts["pid"])


def test_closed_seats_give_their_cpus_back(ray_session: Session) -> None:
    for _ in range(3):
        make_seats(2, 1, preload=[], threads=1).close()
