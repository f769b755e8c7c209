"""One life of a process group on chosen seats: start it, watch it, end it. The controller calls `run` once for each.
It decides nothing about what comes next, and a trainer's fault is a result here, never an exception."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from cluster.causes import Account, End, first_cause, hung

Message = dict[str, Any]
SETTLE_SECONDS = 0.5  # how long a rank that only lost its peer waits for the rank that caused it
TICK_SECONDS = 0.2  # between two looks at what no message tells
RETRY_SECONDS = 0.2
START_SECONDS = 180.0  # for a seat that may still be importing
ANSWER_SECONDS = 8.0  # for an account, which takes a stack, or for the end of a process, besides the grace it has been granted
NO_ACCOUNT = f"asked what its rank does, it said nothing for {ANSWER_SECONDS:.0f} s"
AT_ONCE, AT_THE_NEXT_COMMIT = "at once", "at the next commit"


@dataclass(frozen=True)
class Outcome:
    """How a generation ended. When not `finished`, the other fields name the rank that brought it down."""

    finished: bool
    failed_rank: int | None
    reason: str
    traceback: str
    lost: tuple[int, ...]  # ranks whose seat died and must be replaced
    messages: tuple[Message | None, ...]  # the last one of every rank
    stopped: bool = False  # before its end, as should_stop asked
    cause: str = ""  # one of trainer.metrics.CAUSES
    section: str = ""  # what the failed rank was doing
    happened: float = 0.0  # Unix time of its last sign of life
    detected: float = 0.0  # Unix time
    stacks: dict[int, str] = field(default_factory=dict)  # of the ranks that lived when it was noticed


def run(
    seats: Sequence[ActorHandle],
    target: str,
    payloads: Sequence[Message],
    on_message: Callable[[int, Message], None],
    poll_seconds: float = 2.0,
    *,
    generation: int,
    grace_seconds: float = 20.0,
    silence: float = 30.0,
    seat_silence: float = 8.0,
    should_stop: Callable[[], str | None] = lambda: None,
) -> Outcome:
    """Run target ("package.module:function") as one process group, one rank per seat, until it has ended everywhere.

    Rank r gets payloads[r] | {rank, world, host, port, generation}; rank 0 also the listening socket of (host, port).
    on_message(rank, message) sees every report in the order of its rank. The first process that fails ends the rest;
    so does one that is silent for too long (cluster/vigil.py; `silence` seconds at least), a seat that does not answer
    for `seat_silence` seconds. should_stop(), asked every TICK_SECONDS, may say AT_ONCE or AT_THE_NEXT_COMMIT: the group
    is ended then, and has finished.
    Any exception in this process (Ctrl-C above all) stops the group: SIGTERM, and SIGKILL after `grace_seconds`.
    """
    try:
        group = Group(seats, on_message)
        group.start(target, payloads, generation, silence)
        for rank, message in _messages(group.running, poll_seconds, seat_silence):
            if message is not None:
                group.take(rank, message)
            group.stop_if(should_stop(), message, grace_seconds)
            group.give_up()
    except BaseException:
        _ask(seats, "stop", grace_seconds)
        raise
    return group.outcome()


class Group:
    """The process group while it lives: its ends so far, and what was seen when the first rank failed."""

    def __init__(self, seats: Sequence[ActorHandle], on_message: Callable[[int, Message], None]) -> None:
        self.running: dict[int, ActorHandle] = {}
        self._seats, self._on_message = seats, on_message
        self._last: list[Message | None] = [None] * len(seats)
        self._ends: list[End] = []
        self._accounts: dict[int, Account] = {}
        self._detected = 0.0
        self._stopped = False

    def start(self, target: str, payloads: Sequence[Message], generation: int, silence: float) -> None:
        """Start every rank; a seat that does not answer counts as lost, and the rest ends."""
        try:
            address: Any = ray.get(self._seats[0].listen.remote(), timeout=START_SECONDS)
        except (RayActorError, GetTimeoutError) as error:
            self._ended(_lost(0, error))
            return
        group = {"world": len(self._seats), "host": address[0], "port": address[1], "generation": generation}
        calls = [
            seat.start.remote(target, payload | group | {"rank": rank}, silence)
            for rank, (seat, payload) in enumerate(zip(self._seats, payloads, strict=True))
        ]
        ray.wait(calls, num_returns=len(calls), timeout=START_SECONDS)
        lost = []
        for rank, call in enumerate(calls):
            try:
                ray.get(call, timeout=0)
                self.running[rank] = self._seats[rank]
            except (RayActorError, GetTimeoutError) as error:
                lost.append(_lost(rank, error))
        for end in lost:
            self._ended(end)

    def take(self, rank: int, message: Message) -> None:
        """One message of a rank."""
        if message["kind"] == "silent":
            self._break_silence(message["seconds"])
        elif message["kind"] in ("exit", "lost"):
            self._ended(_end(rank, message, self._last[rank]))
        else:
            self._last[rank] = message
            self._on_message(rank, message)

    def stop_if(self, wish: str | None, message: Message | None, grace: float) -> None:
        """End the group if that is wished now; a wish for the next commit is granted when rank 0 tells of one. Whoever ends at once may
        commit its last step: steps go on while a commit is written."""
        if wish is None or self._stopped:
            return
        committed = message is not None and message["kind"] == "event" and message["event"] == "commit"
        if wish == AT_ONCE or committed:
            self._stopped = True
            _ask(list(self.running.values()), "stop" if wish == AT_ONCE else "kill", grace)

    def give_up(self) -> None:
        """A process that was killed and does not end (the kernel holds it, for a device or a file system that hangs) counts as lost, with
        its seat: nobody waits for it."""
        if self._detected and time.time() > self._detected + 2 * ANSWER_SECONDS:
            for rank in self.running.keys() - {end.rank for end in self._ends}:
                self._ended(End(rank, None, asked=True, detail="its process was killed and does not end"))

    def outcome(self) -> Outcome:
        cause = first_cause(self._ends)
        return Outcome(
            finished=cause is None,
            failed_rank=cause.rank if cause else None,
            reason=cause.reason if cause else "",
            traceback=cause.detail if cause and cause.code is not None else "",
            lost=tuple(sorted({end.rank for end in self._ends if end.code is None})),
            messages=tuple(self._last),
            stopped=self._stopped and cause is None,
            cause=cause.cause if cause else "",
            section=cause.section if cause else "",
            happened=cause.happened if cause else 0.0,
            detected=self._detected,
            stacks={rank: account.stack for rank, account in self._accounts.items() if account.stack},
        )

    def _ended(self, end: End) -> None:
        """A rank has ended; the first that failed ends the rest."""
        first = end.failed and not any(earlier.failed for earlier in self._ends)
        self._ends.append(end)
        if end.code is None:
            self.running.pop(end.rank, None)
        if first:
            self._detected = time.time()
            time.sleep(SETTLE_SECONDS if end.echo else 0)
            self._accounts = self._accounts or self._look()
            _ask(list(self.running.values()), "kill")

    def _break_silence(self, seconds: float) -> None:
        """Some rank is silent for too long: find the one that holds up the others. One whose seat does not answer is lost."""
        if any(end.failed for end in self._ends):
            return
        self._accounts = self._look()
        unheard = self.running.keys() - self._accounts.keys() - {end.rank for end in self._ends}
        for rank in unheard:
            self._ended(End(rank, None, detail=f"its node does not answer: {NO_ACCOUNT}", happened=time.time()))
        if not unheard:
            rank = hung(self._accounts)
            account = self._accounts[rank]
            self._ended(End(rank, -signal.SIGKILL, section=account.section, happened=account.happened, silent=seconds))

    def _look(self) -> dict[int, Account]:
        """What every rank that has not ended is doing, as far as its seat answers."""
        ended = {end.rank for end in self._ends}
        calls: dict[ray.ObjectRef, int] = {seat.account.remote(): rank for rank, seat in self.running.items() if rank not in ended}
        if calls:
            ray.wait([*calls], num_returns=len(calls), timeout=ANSWER_SECONDS)
        found = {}
        for call, rank in calls.items():
            with contextlib.suppress(RayActorError, GetTimeoutError):
                told: Any = ray.get(call, timeout=0)
                found[rank] = Account(**told)
        return found


def _messages(seats: dict[int, ActorHandle], poll_seconds: float, seat_silence: float) -> Iterator[tuple[int, Message | None]]:
    """(rank, message) of all seats as they come, until each has sent its exit, is lost ({"kind": "lost"}) or is no longer in `seats`; in
    between (-1, None)."""
    calls: dict[ray.ObjectRef, int] = {}
    due = dict.fromkeys(seats, 0.0)  # the seats to ask, and when
    seen = dict.fromkeys(seats, 0)  # messages of each that have arrived
    quiet = dict.fromkeys(seats, 0.0)  # seconds since a seat's last answer, less those in which nobody here listened
    refused: set[int] = set()  # whose connection is broken, which is worse than silence
    looked = time.monotonic()
    while calls or due:
        asked = [rank for rank, when in due.items() if when <= looked]
        calls |= {seats[rank].wait.remote(poll_seconds, seen[rank]): rank for rank in asked}
        due = {rank: when for rank, when in due.items() if rank not in asked}
        ready = _ready(calls)
        now = time.monotonic()
        quiet = {rank: seconds + min(now - looked, 2 * TICK_SECONDS) for rank, seconds in quiet.items()}
        looked = now
        for rank, answer in [(calls.pop(call), _answer(call)) for call in ready]:
            if answer is None:
                refused.add(rank)
                due[rank] = now + RETRY_SECONDS
                continue
            refused.discard(rank)
            seen[rank], messages = answer
            quiet[rank] = 0.0
            yield from ((rank, message) for message in messages if rank in seats)
            if not messages or messages[-1]["kind"] not in ("exit", "lost"):
                due[rank] = now
        for rank in [rank for rank in (*calls.values(), *due) if quiet[rank] > (seat_silence / 2 if rank in refused else seat_silence)]:
            detail = f"its node does not answer: nothing was heard from it for {quiet[rank]:.0f} s"
            yield rank, {"kind": "lost", "detail": detail, "happened": time.time() - quiet[rank]}
        yield -1, None
        calls = {call: rank for call, rank in calls.items() if rank in seats}
        due = {rank: when for rank, when in due.items() if rank in seats}


def _ready(calls: Mapping[ray.ObjectRef, Any], seconds: float = TICK_SECONDS) -> list[ray.ObjectRef]:
    """All that are answered, as soon as one is; none after so many seconds."""
    if not calls:
        time.sleep(seconds)
        return []
    ray.wait([*calls], num_returns=1, timeout=seconds)
    return ray.wait([*calls], num_returns=len(calls), timeout=0)[0]


def _answer(call: ray.ObjectRef) -> tuple[int, list[Message]] | None:
    """What a seat's wait has returned; None when the seat cannot be reached just now."""
    try:
        told: Any = ray.get(call)
        return told
    except ActorUnavailableError:  # the network, not the seat: what it holds is still there
        return None
    except RayActorError as error:
        return 0, [{"kind": "lost", "detail": _why(error)}]


def _end(rank: int, message: Message, before: Message | None) -> End:
    """The end that `message` tells; `before` is the message before, which may hold a traceback."""
    if message["kind"] == "lost":
        return End(rank, None, detail=message["detail"], happened=message.get("happened", time.time()))
    detail = before["traceback"] if before and before["kind"] == "error" else ""
    return End(rank, detail=detail, **{key: value for key, value in message.items() if key != "kind"})


def _lost(rank: int, error: Exception) -> End:
    return End(rank, None, detail=_why(error), happened=time.time())


def _why(error: Exception) -> str:
    if isinstance(error, GetTimeoutError):
        return f"it did not start within {START_SECONDS:.0f} s"
    return f"{error}\nits node was preempted" if getattr(error, "preempted", False) else str(error)


def _ask(seats: Sequence[ActorHandle], method: str, grace: float = 0.0) -> None:
    """Call `kill` or `stop` of all seats at once and wait; a seat that is lost has no process left to end, one that cannot be reached is
    left alone after some seconds: a newer generation fences it off."""
    arguments = (grace,) if method == "stop" else ()
    calls = {getattr(seat, method).remote(*arguments): seat for seat in seats}
    deadline = time.monotonic() + grace + ANSWER_SECONDS
    while calls and (left := deadline - time.monotonic()) > 0:
        answered = [(calls.pop(call), _is_refused(call)) for call in _ready(calls, left)]
        if refused := [seat for seat, unreachable in answered if unreachable]:
            time.sleep(RETRY_SECONDS)
            calls |= {getattr(seat, method).remote(*arguments): seat for seat in refused}


def _is_refused(call: ray.ObjectRef) -> bool:
    """Whether a seat could not be reached just now."""
    try:
        ray.get(call)
    except RayActorError as error:
        return isinstance(error, ActorUnavailableError)
    return False
