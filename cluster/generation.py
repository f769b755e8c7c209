"""One life of a process group on chosen seats: start it, watch it, end it. The controller calls `run` once for each.
It decides nothing about what comes next, and a trainer's fault is a result here, never an exception."""

import re
import signal
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError

Message = dict[str, Any]
SETTLE_SECONDS = 0.5  # how long a rank that only lost its peer waits for the rank that caused it
RETRY_SECONDS = 1.0
TICK_SECONDS = 0.2
ECHO = re.compile(
    r"connection (was likely )?(closed|reset|refused)|broken pipe|failed to (connect|recv)|timed? ?out"
    r"|remote process exited|ncclRemoteError",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class End:
    """How a rank's process ended. code: as in multiprocessing (-9: SIGKILL), None when its seat died with it."""

    rank: int
    code: int | None
    asked: bool = False  # killed by us
    detail: str = ""  # the traceback, or why the seat died

    @property
    def failed(self) -> bool:
        return self.code != 0 and not self.asked

    @property
    def echo(self) -> bool:
        """Whether it only failed because a peer was gone."""
        return self.code is not None and bool(ECHO.search(_last_line(self.detail)))

    @property
    def reason(self) -> str:
        """One line."""
        if self.code is None:
            return f"the seat of rank {self.rank} died: {_last_line(self.detail)}"
        if self.detail:
            return f"rank {self.rank} raised {_last_line(self.detail)}"
        if self.code < 0:
            return f"rank {self.rank} was killed by {signal.Signals(-self.code).name}"
        return f"rank {self.rank} exited with code {self.code}"


@dataclass(frozen=True)
class Outcome:
    """How a generation ended. When not `finished`, the other fields name the rank that brought it down."""

    finished: bool
    failed_rank: int | None
    reason: str
    traceback: str
    lost: tuple[int, ...]  # ranks whose seat died and must be replaced
    messages: tuple[Message | None, ...]  # the last one of every rank

    @property
    def cause(self) -> str:
        """How the failed rank ended, one of trainer.metrics.CAUSES."""
        if self.failed_rank in self.lost:
            return "seat"
        if self.traceback:
            return "exception"
        return "signal" if "was killed by" in self.reason else "exit"


def run(
    seats: Sequence[ActorHandle],
    target: str,
    payloads: Sequence[Message],
    on_message: Callable[[int, Message], None],
    poll_seconds: float = 5.0,
    *,
    generation: int,
    grace_seconds: float = 20.0,
    should_stop: Callable[[], str | None] = lambda: None,
) -> Outcome:
    """Run target ("package.module:function") as one process group, one rank per seat, until it has ended everywhere.

    Rank r gets payloads[r] | {rank, world, host, port, generation}; rank 0 also the listening socket of (host, port).
    on_message(rank, message) sees every report in the order of its rank. The first process that fails ends the rest.
    Any exception in this process (Ctrl-C above all) stops the group: SIGTERM, and SIGKILL after `grace_seconds`. So does an answer of
    should_stop(), asked every TICK_SECONDS; a group that ends because it was asked to has finished.
    """
    last: list[Message | None] = [None] * len(seats)
    try:
        started, ends = _start(seats, target, payloads, generation)
        if ends:
            _ask(seats, "kill")
        asked = None
        for told in _messages({rank: seats[rank] for rank in started}, poll_seconds):
            if not asked and (asked := should_stop()):
                _ask(seats, "stop", grace_seconds)
            if told is None:
                continue
            rank, message = told
            end = _end(rank, message, last[rank])
            if end is None:
                last[rank] = message
                on_message(rank, message)
                continue
            if end.failed and not any(earlier.failed for earlier in ends):
                time.sleep(SETTLE_SECONDS if end.echo else 0)
                _ask(seats, "kill")
            ends.append(end)
    except BaseException:
        _ask(seats, "stop", grace_seconds)
        raise
    return _outcome(ends, last)


def first_cause(ends: Sequence[End]) -> End | None:
    """The end that brought the group down, of ends in the order of their arrival: the first that failed by itself,
    else the first that failed at all; None when every rank finished."""
    failed = [end for end in ends if end.failed]
    return min(failed, key=lambda end: end.echo, default=None)


def _outcome(ends: Sequence[End], last: Sequence[Message | None]) -> Outcome:
    cause = first_cause(ends)
    return Outcome(
        finished=cause is None,
        failed_rank=cause.rank if cause else None,
        reason=cause.reason if cause else "",
        traceback=cause.detail if cause and cause.code is not None else "",
        lost=tuple(sorted(end.rank for end in ends if end.code is None)),
        messages=tuple(last),
    )


def _start(seats: Sequence[ActorHandle], target: str, payloads: Sequence[Message], generation: int) -> tuple[list[int], list[End]]:
    """Returns (ranks that run, ranks whose seat was lost). A seat that did not answer counts as lost."""
    try:
        address: Any = ray.get(seats[0].listen.remote())
    except RayActorError as error:
        return [], [_lost(0, error)]
    group = {"world": len(seats), "host": address[0], "port": address[1], "generation": generation}
    calls = [
        seat.start.remote(target, payload | group | {"rank": rank})
        for rank, (seat, payload) in enumerate(zip(seats, payloads, strict=True))
    ]
    started, ends = [], []
    for rank, call in enumerate(calls):
        try:
            ray.get(call)
            started.append(rank)
        except RayActorError as error:
            ends.append(_lost(rank, error))
    return started, ends


def _messages(seats: dict[int, ActorHandle], poll_seconds: float) -> Iterator[tuple[int, Message] | None]:
    """(rank, message) of all seats as they come, until each has sent its exit or is lost ({"kind": "lost"}); None where none comes."""
    calls: dict[ray.ObjectRef, int] = {seat.wait.remote(poll_seconds): rank for rank, seat in seats.items()}
    while calls:
        ready, _ = ray.wait([*calls], num_returns=1, timeout=TICK_SECONDS)
        if not ready:
            yield None
            continue
        rank = calls.pop(ready[0])
        messages: list[Message] = []
        try:
            messages = ray.get(ready[0])
        except ActorUnavailableError:  # the network, not the seat: what it holds is still there
            time.sleep(RETRY_SECONDS)
        except RayActorError as error:
            messages = [{"kind": "lost", "detail": str(error)}]
        yield from ((rank, message) for message in messages)
        if not messages or messages[-1]["kind"] not in ("exit", "lost"):
            calls[seats[rank].wait.remote(poll_seconds)] = rank


def _end(rank: int, message: Message, before: Message | None) -> End | None:
    """The end of a rank's process if `message` tells it; `before` is the message before, which may hold a traceback."""
    if message["kind"] == "lost":
        return End(rank, None, detail=message["detail"])
    if message["kind"] == "exit":
        detail = before["traceback"] if before and before["kind"] == "error" else ""
        return End(rank, message["code"], message["asked"], detail)
    return None


def _lost(rank: int, error: RayActorError) -> End:
    return End(rank, None, detail=str(error))


def _ask(seats: Sequence[ActorHandle], method: str, *arguments: float) -> None:
    """Call a method of all seats at once and wait; a seat that is lost has no process left to end."""
    calls = {getattr(seat, method).remote(*arguments): seat for seat in seats}
    while calls:
        ready, _ = ray.wait(list(calls), num_returns=1)
        seat = calls.pop(ready[0])
        try:
            ray.get(ready[0])
        except ActorUnavailableError:
            time.sleep(RETRY_SECONDS)
            calls[getattr(seat, method).remote(*arguments)] = seat
        except RayActorError:
            pass


def _last_line(text: str) -> str:
    """The last line that says anything, cut to 200 characters."""
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return textwrap.shorten(last, 200, placeholder=" ...")
