"""How many decoders and encoders there should be, and which of them holds the others up: pure decisions from measured load.
The encode pool asks; nothing here knows Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace

MUCH = 0.5  # of the time
WAITING = 0.2  # of a decoder's time, from which on another one than there are CPUs for helps


@dataclass(frozen=True)
class Limits:
    """Fewest and most actors of each pool; spare: how many of the most decoders are of use only while others wait for storage."""

    decoders: tuple[int, int]
    encoders: tuple[int, int]
    spare: int = 0


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
    """Shares of a stretch of time: that decoders waited for room, that encoders waited for pieces, that chunks were being written, that
    decoders had something to decode and did not compute."""

    blocked: float = 0.0
    starved: float = 0.0
    writing: float = 0.0
    waiting: float = 0.0


class LoadMeter:
    """Averages the queues over time. waited: seconds that decoders have told of; whoever hears of them adds them."""

    def __init__(self) -> None:
        self.waited = 0.0
        self._seconds = self._decoder_seconds = 0.0
        self._sums = Load()

    def add(self, queues: Queues, sizes: Sizes, seconds: float) -> None:
        """The queues were so for `seconds`."""
        self._seconds += seconds
        self._decoder_seconds += sizes.decoders * seconds
        blocked, starved = queues.held / max(sizes.decoders, 1), queues.idle / max(sizes.encoders, 1)
        writing = queues.committing / max(sizes.decoders, 1)
        self._sums = Load(
            self._sums.blocked + blocked * seconds, self._sums.starved + starved * seconds, self._sums.writing + writing * seconds
        )

    def take(self) -> Load:
        """The averages since the last take."""
        load = Load(*(value / self._seconds if self._seconds else 0.0 for value in vars(self._sums).values()))
        load = replace(load, waiting=self.waited / self._decoder_seconds if self._decoder_seconds else 0.0)
        self.waited = self._seconds = self._decoder_seconds = 0.0
        self._sums = Load()
        return load


def limits_of(cpus: int) -> Limits:
    """What so many CPUs can carry. Encoders share them with the decoders, of which there is one more than CPUs where those wait for
    storage: where they do not, it would only take the processor's cache from the others."""
    cpus = max(cpus, 1)
    return Limits((1, cpus + 1), (1, cpus), spare=1)


def first_sizes(limits: Limits) -> Sizes:
    """Where to begin: decoding is the longer half of the work almost always."""
    return Sizes(max(limits.decoders[0], limits.decoders[1] - limits.spare), limits.encoders[0])


def rescaled(sizes: Sizes, load: Load, limits: Limits) -> Sizes:
    """One step towards balance: more of what holds the rest up, or, where that is at its limit, less of what waits."""
    if load.blocked > MUCH:
        grown = replace(sizes, encoders=sizes.encoders + 1)
        sizes = grown if grown.encoders <= limits.encoders[1] else replace(sizes, decoders=sizes.decoders - 1)
    elif load.starved > MUCH:
        grown, most = replace(sizes, decoders=sizes.decoders + 1), limits.decoders[1] - (0 if load.waiting > WAITING else limits.spare)
        sizes = grown if grown.decoders <= most else replace(sizes, encoders=sizes.encoders - 1)
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
