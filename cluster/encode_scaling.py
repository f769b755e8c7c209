"""How many decoders and encoders there should be, and which of them holds the others up: pure decisions from measured load.
The encode pool asks; nothing here knows Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace

MUCH = 0.5  # of the time


@dataclass(frozen=True)
class Limits:
    """Fewest and most actors of each pool."""

    decoders: tuple[int, int]
    encoders: tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    decoders: int
    encoders: int


@dataclass(frozen=True)
class Queues:
    """What is where right now. waiting (of chunks that were taken), decoding: sources; decoded, encoding: pieces of sources;
    committing: chunks."""

    waiting: int = 0
    decoding: int = 0
    decoded: int = 0
    encoding: int = 0
    committing: int = 0
    held: int = 0  # decoders that wait for room behind them
    idle: int = 0  # encoders that wait for pieces


@dataclass(frozen=True)
class Load:
    """Shares of a stretch of time: that decoders waited for room, that encoders waited for pieces, that chunks were being written."""

    blocked: float = 0.0
    starved: float = 0.0
    writing: float = 0.0


class LoadMeter:
    """Averages the queues over time."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._sums = Load()

    def add(self, queues: Queues, sizes: Sizes, seconds: float) -> None:
        """The queues were so for `seconds`."""
        self._seconds += seconds
        blocked, starved = queues.held / max(sizes.decoders, 1), queues.idle / max(sizes.encoders, 1)
        writing = queues.committing / max(sizes.decoders, 1)
        self._sums = Load(
            self._sums.blocked + blocked * seconds, self._sums.starved + starved * seconds, self._sums.writing + writing * seconds
        )

    def take(self) -> Load:
        """The averages since the last take."""
        load = Load(*(value / self._seconds if self._seconds else 0.0 for value in vars(self._sums).values()))
        self._seconds, self._sums = 0.0, Load()
        return load


def limits_of(cpus: int) -> Limits:
    """What so many CPUs can carry. Encoders share them with the decoders, of which there is one more than CPUs, so that none idles while
    a piece changes hands."""
    cpus = max(cpus, 1)
    return Limits((1, cpus + 1), (1, cpus))


def first_sizes(limits: Limits) -> Sizes:
    """Where to begin: decoding is the longer half of the work almost always."""
    return Sizes(max(limits.decoders[0], limits.decoders[1] - 1), limits.encoders[0])


def rescaled(sizes: Sizes, load: Load, limits: Limits) -> Sizes:
    """One step towards balance: more of what holds the rest up, or, where that is at its limit, less of what waits."""
    if load.blocked > MUCH:
        grown = replace(sizes, encoders=sizes.encoders + 1)
        sizes = grown if grown.encoders <= limits.encoders[1] else replace(sizes, decoders=sizes.decoders - 1)
    elif load.starved > MUCH:
        grown = replace(sizes, decoders=sizes.decoders + 1)
        sizes = grown if grown.decoders <= limits.decoders[1] else replace(sizes, encoders=sizes.encoders - 1)
    return Sizes(_clamped(sizes.decoders, limits.decoders), _clamped(sizes.encoders, limits.encoders))


def bottleneck(load: Load) -> str:
    """What the rest waits for: storage, encode, decode, or nothing in particular."""
    if load.writing > MUCH:
        return "storage"
    if load.blocked > max(load.starved, MUCH / 2):
        return "encode"
    return "decode" if load.starved > MUCH / 2 else "none"


def _clamped(size: int, limits: tuple[int, int]) -> int:
    return min(max(size, limits[0]), limits[1])
