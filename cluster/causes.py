"""How a rank's process ended, and what brought a group down. Pure: generation.py collects the ends, these functions judge them."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ECHO = re.compile(
    r"connection (was likely )?(closed|reset|refused)|broken pipe|failed to (connect|recv)|timed? ?out"
    r"|remote process exited|ncclRemoteError",
    re.IGNORECASE,
)
# What the line that names an error says, by cause; the first that fits.
SAYS = {
    "out_of_memory": r"out ?of ?memory|MemoryError|can(no|')t allocate memory|low on memory|CUBLAS_STATUS_ALLOC_FAILED",
    "hardware": r"uncorrectable|\bECC\b|\bXid\b|hardware (error|failure)|GPU is lost|fallen off the bus|device .*unavailable",
    "data": r"\bshard\b.* (is damaged|cannot be opened|is not the one)|cannot be (written|read)|no space left|input/output error"
    r"|read-only file system|stale file handle|quota exceeded|too many open files|botocore|SlowDown|ShardError",
    "communication": r"nccl|gloo|TCPStore|Dist(Backend|Network|Store)Error|" + ECHO.pattern,
}
SEAT_SAYS = {
    "preempted": r"preempted",
    "out_of_memory": r"low on memory|OutOfMemory",  # by Ray's own watch; it names "the OOM killer" for whatever it cannot explain
    "seat": r"its worker process has died",  # Ray goes on to guess at nodes
    "node": r"node (has )?(died|failed|terminated|is dead|was (terminated|lost|removed))|node death|does not answer|did not start",
}
OF_A_SICK_NODE = ("hardware", "hang", "exception", "exit", "signal", "communication")  # by what one may show, besides losing its seats
WAITS_FOR_PEERS = re.compile(r"torch/distributed/|deepspeed/comm/|distributed_c10d|torch/cuda/(streams|__init__)")
INNERMOST = 8  # frames in which a wait for the peers shows


@dataclass(frozen=True)
class End:
    """How a rank's process ended. code: as in multiprocessing (-9: SIGKILL), None when its seat died with it."""

    rank: int
    code: int | None
    asked: bool = False  # killed by us
    detail: str = ""  # the traceback, or why the seat died
    section: str = ""  # what it was doing
    happened: float = 0.0  # Unix time of its last sign of life
    silent: float = 0.0  # seconds without one for which it was ended as hung, 0: it was not
    memory_kill: bool = False  # the kernel has killed for memory while it ran

    @property
    def failed(self) -> bool:
        return bool(self.silent) or (self.code != 0 and not self.asked)

    @property
    def echo(self) -> bool:
        """Whether it only failed because a peer was gone."""
        return self.code is not None and bool(ECHO.search(last_line(self.detail)))

    @property
    def reason(self) -> str:
        """One line."""
        if self.silent:
            return f"rank {self.rank} hung: no sign of life for {self.silent:.0f} s in section {self.section or 'start'}"
        if self.code is None:
            return f"the seat of rank {self.rank} died: {cut(last_line(self.detail))}"
        if self.detail:
            return f"rank {self.rank} raised {cut(last_line(self.detail))}"
        if self.code < 0:
            memory = ", out of memory" if self.memory_kill else ""
            return f"rank {self.rank} was killed by {signal.Signals(-self.code).name}{memory}"
        return f"rank {self.rank} exited with code {self.code}"

    @property
    def cause(self) -> str:
        """One of trainer.metrics.CAUSES."""
        if self.silent:
            return "hang"
        if self.code is None:
            return _said(SEAT_SAYS, self.detail, "seat")
        if self.code in (-signal.SIGTERM, 128 + signal.SIGTERM):
            return "preempted"
        if self.detail:
            return _said(SAYS, last_line(self.detail), "exception")
        if self.code == -signal.SIGKILL and self.memory_kill:
            return "out_of_memory"
        return "signal" if self.code < 0 else "exit"


def first_cause(ends: Sequence[End]) -> End | None:
    """The end that brought the group down, of ends in the order of their arrival: the first that failed by itself,
    else the first that failed at all; None when every rank finished."""
    failed = [end for end in ends if end.failed]
    return min(failed, key=lambda end: end.echo, default=None)


@dataclass(frozen=True)
class Account:
    """What a living process is doing: its section, its last sign of life (Unix time), whether the kernel holds it stopped, its stack."""

    section: str
    happened: float
    stopped: bool
    stack: str

    @property
    def waits_for_peers(self) -> bool:
        """Whether the main thread is inside a collective."""
        frames = main_thread(self.stack)[:INNERMOST]
        return any(WAITS_FOR_PEERS.search(frame) for frame in frames)


def hung(accounts: Mapping[int, Account]) -> int:
    """The rank that holds up the others, of a group in which one has been silent for too long: a stopped process, else one that waits for
    something else than its peers, else the one that has been silent for longest."""
    return min(accounts, key=lambda rank: (not accounts[rank].stopped, accounts[rank].waits_for_peers, accounts[rank].happened))


def main_thread(stack: str) -> list[str]:
    """The frames of the main thread in a dump by py-spy or faulthandler, innermost first; all lines where no thread has that name."""
    blocks = [block for block in re.split(r"\n(?=(?:Current t|T)hread )", stack) if re.match(r"(Current t|T)hread ", block)]
    found = next((block for block in blocks if '"MainThread"' in block.split("\n")[0]), blocks[-1] if blocks else stack)
    return [line.strip() for line in found.split("\n")[1:] if line.strip()]


def last_line(text: str) -> str:
    """The last line that says anything, whole: a long path before them must not hide the words that name a cause."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def cut(line: str) -> str:
    """A line of at most 200 characters: of a longer one the beginning, which names the error, and the end."""
    return line if len(line) <= 200 else f"{line[:115]} ... {line[-80:]}"


def _said(patterns: Mapping[str, str], text: str, otherwise: str) -> str:
    return next((cause for cause, pattern in patterns.items() if re.search(pattern, text, re.IGNORECASE)), otherwise)
