import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import generation
from cluster.generation import End, Outcome, first_cause
from cluster.session import REPOSITORY, Session
from tests.cluster.conftest import MARK, is_gone, until_gone
from tests.cluster.seating import Seats, make_seats
from trainer.metrics import CAUSES

pytestmark = pytest.mark.timeout(120)
TARGETS = "tests.cluster.targets"
GLOO_ECHO = "RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]"

ends = st.builds(
    End,
    rank=st.integers(0, 7),
    code=st.sampled_from([0, 1, 3, -9, None]),
    asked=st.booleans(),
    detail=st.sampled_from(["", "Traceback\nValueError: clip 7 is broken", GLOO_ECHO]),
)


@given(st.lists(ends))
def test_the_cause_is_the_first_own_fault_else_the_first_fault(arrived: list[End]) -> None:
    failed = [end for end in arrived if end.failed]
    own = [end for end in failed if not end.echo]
    assert first_cause(arrived) == next(iter(own or failed), None)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (End(1, -9), "rank 1 was killed by SIGKILL"),
        (End(0, 3), "rank 0 exited with code 3"),
        (End(2, 1, detail="Traceback\n  File\nValueError: clip 7\n"), "rank 2 raised ValueError: clip 7"),
        (End(3, None, detail="The actor died.\nnode was lost"), "the seat of rank 3 died: node was lost"),
    ],
)
def test_a_reason_is_one_line_that_names_the_rank(end: End, reason: str) -> None:
    assert end.reason == reason


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (End(1, None, detail="gone"), "seat"),
        (End(1, 1, detail="Traceback\nValueError: x"), "exception"),
        (End(1, -9), "signal"),
        (End(1, 3), "exit"),
    ],
)
def test_a_failure_has_one_of_the_declared_causes(end: End, cause: str) -> None:
    assert generation._outcome([End(0, 0), end], [None, None]).cause == cause
    assert cause in CAUSES


def test_an_error_that_only_mentions_a_connection_in_its_traceback_is_no_echo() -> None:
    assert not End(0, 1, detail="Connection closed by peer\nValueError: clip 7 is broken").echo


@pytest.fixture(scope="module")
def seats(ray_session: Session) -> Iterator[Seats]:
    seats = make_seats(3, 1, preload=[TARGETS], threads=1)
    yield seats
    seats.close()


class Run:
    """Runs one generation and keeps what it reported."""

    def __init__(self, seats: Any, folder: Path) -> None:
        self.seats = seats
        self.folder = folder
        self.messages: list[tuple[int, dict[str, Any]]] = []

    def __call__(self, target: str, world: int = 3, **payload: Any) -> Outcome:
        payloads = [{"log": str(self.folder / f"rank-{rank}.log"), **payload} for rank in range(world)]
        return generation.run(self.seats[:world], f"{TARGETS}:{target}", payloads, self.take, 30.0, generation=5)

    def take(self, rank: int, message: dict[str, Any]) -> None:
        self.messages.append((rank, message))


@pytest.fixture
def run(seats: Seats, tmp_path: Path) -> Run:
    return Run(seats, tmp_path)


def test_a_group_finishes_when_every_rank_has(run: Run) -> None:
    outcome = run("ring")
    assert outcome.finished
    assert (outcome.failed_rank, outcome.reason, outcome.traceback, outcome.lost) == (None, "", "", ())
    assert outcome.messages == tuple({"kind": "up", "rank": r, "world": 3, "generation": 5} for r in range(3))
    assert sorted(rank for rank, _ in run.messages) == [0, 1, 2]


def test_a_smaller_group_runs_on_some_of_the_seats(run: Run) -> None:
    assert run("ring", world=1).messages == ({"kind": "up", "rank": 0, "world": 1, "generation": 5},)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "raised ValueError: clip 7 is broken"),
        ("SIGKILL", "was killed by SIGKILL"),
        ("exit 3", "exited with code 3"),
    ],
)
def test_the_rank_that_failed_is_named_and_not_its_peers(run: Run, rank: int, fault: str, said: str) -> None:
    outcome = run("ring", at=rank, fault=fault)
    assert not outcome.finished
    assert outcome.failed_rank == rank
    assert outcome.reason == f"rank {rank} {said}"
    assert ("clip 7" in outcome.traceback) == (fault == "raise")


def test_a_peer_that_would_wait_for_ever_is_ended(run: Run) -> None:
    outcome = run("ring", at=2, fault="exit 3", deaf=True)
    assert outcome.failed_rank == 2


def test_a_lost_seat_is_named_and_can_be_replaced(run: Run, seats: Seats) -> None:
    place = 1
    pid = seats.warm()[place]["pid"]

    def kill_the_seat(rank: int, message: dict[str, Any]) -> None:
        if rank == place:
            os.kill(pid, signal.SIGKILL)

    run.take = kill_the_seat  # type: ignore[method-assign]
    outcome = run("sleep")
    assert not outcome.finished
    assert outcome.lost == (place,)
    assert outcome.reason.startswith("the seat of rank 1 died")
    assert Run(seats, run.folder)("sleep").lost == (place,)
    seats.replace(place)
    assert Run(seats, run.folder)("ring").finished


def test_an_interrupt_lets_every_rank_commit_and_goes_on(run: Run) -> None:
    pids = []

    def interrupt(rank: int, message: dict[str, Any]) -> None:
        pids.append(message["pid"])
        if len(pids) == 2:
            raise KeyboardInterrupt

    run.take = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run("commit_on_sigterm", world=2, commit=str(run.folder / "commit"))
    assert (run.folder / "commit").read_text() == "whole"
    assert all(is_gone(pid) for pid in pids)


DRIVER = """
import sys
from cluster import generation, session
from tests.cluster.seating import make_seats
with session.connect(None, cpus=2):
    made = make_seats(2, 1, preload=[], threads=1)
    payloads = [{"log": f"{sys.argv[1]}/log", "commit": f"{sys.argv[1]}/commit-{rank}"} for rank in range(2)]
    report = lambda rank, message: print(message["pid"], flush=True)
    generation.run(made[:2], "tests.cluster.targets:commit_on_sigterm", payloads, report, 60.0, generation=1)
"""


@pytest.mark.parametrize(("number", "committed"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_a_driver_that_is_interrupted_or_killed_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, committed: bool
) -> None:
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    with tempfile.TemporaryDirectory(prefix="vm-") as folder:  # Ray's, which a killed driver cannot remove
        monkeypatch.setenv("TMPDIR", folder)
        with subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path], stdout=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            up = [driver.stdout.readline() for _ in range(2)]
            driver.send_signal(number)
        assert all(up)
        assert until_gone(mark) == []
    assert [(tmp_path / f"commit-{rank}").exists() for rank in range(2)] == [committed] * 2


def test_generations_follow_each_other_on_the_same_seats(run: Run) -> None:
    assert [run("ring", world=world).finished for world in (2, 1, 3)] == [True] * 3


@pytest.fixture(scope="module")
def torch_seats(ray_session: Session, seats: Seats) -> Iterator[Seats]:
    seats.close()
    torch_seats = make_seats(2, 1, preload=["torch", "torch.distributed", TARGETS], threads=1)
    yield torch_seats
    torch_seats.close()


def test_two_seats_join_a_gloo_group_over_the_inherited_socket(torch_seats: Seats, tmp_path: Path) -> None:
    run = Run(torch_seats, tmp_path)
    outcome = run("all_reduce", world=2)
    assert outcome.finished, outcome.traceback
    assert outcome.messages == tuple({"kind": "sum", "sum": 3.0, "threads": 1} for _ in range(2))
    before = [message for _, message in run.messages if message["kind"] == "before"]
    assert before == [{"kind": "before", "torch": True, "threads": 1}] * 2  # threads of the fork server


def test_a_killed_rank_of_a_gloo_group_is_named_and_not_its_peer(torch_seats: Seats, tmp_path: Path) -> None:
    outcome = Run(torch_seats, tmp_path)("all_reduce", world=2, at=1)
    assert outcome.reason == "rank 1 was killed by SIGKILL"
