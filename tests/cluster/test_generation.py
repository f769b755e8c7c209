import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from cluster import failures, generation
from cluster.generation import Outcome
from cluster.session import REPOSITORY, Session
from tests.cluster.conftest import MARK, is_gone, until_gone
from tests.cluster.seating import Seats, make_seats

pytestmark = pytest.mark.timeout(120)
TARGETS = "tests.cluster.targets"


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

    def __call__(self, target: str, world: int = 3, seats: Any = None, **payload: Any) -> Outcome:
        payloads = [{"log": str(self.folder / f"rank-{rank}.log"), **payload} for rank in range(world)]
        patience = {"silence": 1.0, "seat_silence": 4.0, "should_stop": self.should_stop}
        seats = seats or self.seats[:world]
        return generation.run(seats, f"{TARGETS}:{target}", payloads, self.take, 1.0, generation=5, **patience)

    def should_stop(self) -> str | None:
        return None

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


def test_a_rank_that_hangs_is_ended_and_named_with_the_stacks_of_all(run: Run) -> None:
    outcome = run("ring", at=1, fault="hang", deaf=True)
    assert (outcome.failed_rank, outcome.cause, outcome.section) == (1, "hang", "step")
    assert 1.0 < outcome.detected - outcome.happened < 30.0
    assert "hang_here" in outcome.stacks[1]
    assert all("_await_end" in outcome.stacks[rank] for rank in (0, 2))
    assert failures.write(run.folder, 5, outcome).read_text().count('"MainThread"') == 3
    assert any(line.startswith("  rank 1 was in hang_here") for line in failures.shortened(outcome))


def test_a_stopped_process_is_the_one_that_hangs(run: Run) -> None:
    outcome = run("ring", at=2, fault="SIGSTOP", deaf=True)
    assert (outcome.failed_rank, outcome.cause) == (2, "hang")


def test_a_failure_keeps_the_stacks_of_the_ranks_that_lived(run: Run) -> None:
    outcome = run("ring", at=2, fault="exit 3", deaf=True)
    assert sorted(outcome.stacks) == [0, 1]
    assert outcome.cause == "exit"


def test_a_seat_that_does_not_answer_is_lost(run: Run, seats: Seats) -> None:
    place = 2
    pid = seats.warm()[place]["pid"]
    run.take = lambda rank, message: os.kill(pid, signal.SIGSTOP) if rank == place else None  # type: ignore[assignment,method-assign]
    try:
        outcome = run("sleep")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (outcome.lost, outcome.cause) == ((place,), "node")
    ray.get(seats[place].kill.remote())
    assert Run(seats, run.folder)("ring").finished


@pytest.mark.parametrize("wish", [generation.AT_ONCE, generation.AT_THE_NEXT_COMMIT])
def test_a_group_ends_early_when_it_is_asked_to(run: Run, wish: str) -> None:
    run.should_stop = lambda: wish if run.messages else None  # type: ignore[method-assign]
    outcome = run("commit_after_a_while", world=2)
    assert (outcome.finished, outcome.stopped) == (True, True)
    assert any(message["kind"] == "event" for _, message in run.messages) == (wish == generation.AT_THE_NEXT_COMMIT)


def test_a_group_that_ends_at_once_commits_its_last_step_though_word_of_an_earlier_commit_has_just_come(run: Run) -> None:
    run.should_stop = lambda: generation.AT_ONCE if len(run.messages) == 1 else None  # type: ignore[method-assign]
    outcome = run("commit_on_sigterm", world=1, commit=str(run.folder / "commit"), told={"kind": "event", "event": "commit"})
    assert outcome.stopped
    assert (run.folder / "commit").read_text() == "whole"


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


@dataclass(eq=False)
class Answer:
    """Of a seat; None: lost on its way."""

    told: Any

    def get(self) -> Any:
        if self.told is None:
            raise ActorUnavailableError("it cannot be reached", None)
        return self.told


class Flapping:
    """A seat behind a link on which every second answer is lost."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.kept, self.gone, self.asked = messages, 0, 0
        self.wait = SimpleNamespace(remote=self.answer)

    def answer(self, timeout: float, seen: int) -> Answer:
        self.kept, self.gone, self.asked = self.kept[seen - self.gone :], seen, self.asked + 1
        return Answer(None if self.asked % 2 else (seen + 1, self.kept[:1]))


def test_a_link_that_flaps_loses_no_message_and_doubles_none(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [*({"kind": "number", "number": number} for number in range(4)), {"kind": "exit", "code": 0}]
    monkeypatch.setattr(generation.ray, "get", Answer.get)
    monkeypatch.setattr(generation, "_ready", lambda calls: [*calls])
    monkeypatch.setattr(generation, "RETRY_SECONDS", 0.0)
    seats: Any = {0: Flapping(sent)}
    assert [message for _, message in generation._messages(seats, 1.0, 60.0) if message] == sent


def test_seats_that_refuse_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = range(50)
    seats: Any = {rank: SimpleNamespace(wait=SimpleNamespace(remote=lambda timeout, seen: Answer(None))) for rank in ranks}
    seats[50] = SimpleNamespace(wait=SimpleNamespace(remote=lambda timeout, seen: Answer((1, [{"kind": "exit", "code": 0}]))))
    pauses: list[float] = []
    monkeypatch.setattr(generation.ray, "get", Answer.get)
    monkeypatch.setattr(generation, "_ready", lambda calls: [*calls])
    monkeypatch.setattr(generation.time, "sleep", pauses.append)
    found = next(rank for rank, message in generation._messages(seats, 1.0, 60.0) if message)
    assert (found, pauses) == (50, [])


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


def test_nobody_waits_for_a_process_that_was_killed_and_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    group = generation.Group([None, None], lambda rank, message: None)
    group.running = dict.fromkeys((0, 1), None)
    monkeypatch.setattr(generation, "_ask", lambda *given: None)
    monkeypatch.setattr(group, "_look", dict)
    group.take(0, {"kind": "exit", "code": 1})
    del group.running[0]
    group.give_up()
    assert group.running == {1: None}
    monkeypatch.setattr(generation, "ANSWER_SECONDS", 0.0)
    group.give_up()
    outcome = group.outcome()
    assert (group.running, outcome.failed_rank, outcome.lost) == ({}, 0, (1,))
