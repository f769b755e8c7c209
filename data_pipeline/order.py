"""The order in which samples are visited, as a pure function of (seed, bucket, epoch, position), and the mixture of buckets
as one of (seed, step): no state, no files. The loader calls it; it must not know ranks, workers or world size, which is why
none of them can change the order."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.int64]


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A generator that is a function of its key alone: Philox whose 128-bit key is the blake2b hash of the key's parts.

    The parts are joined as JSON, so ("a", "b") and ("ab",), or 1 and "1", give unrelated streams.
    """
    return np.random.Generator(_keyed_philox(*key))


def wrap(position: int, samples: int) -> tuple[int, int]:
    """(epoch, index inside the epoch) of a global position in an endless stream of epochs of `samples` samples."""
    if samples < 1:
        raise ValueError(f"cannot place position {position} in a set of {samples} samples")
    return divmod(position, samples)


class EpochOrder:
    """One epoch's order over shards of the given sizes: `order[index]` is the (shard, row) of the index-th sample.

    Shards are permuted, then samples are permuted inside windows of `window` consecutive shards: reads stay local to
    a few files, and seeking to any index costs one window's permutation. Holds one window, not the epoch.
    """

    def __init__(self, counts: Sequence[int], seed: int, bucket: str, epoch: int, window: int = 4) -> None:
        self._counts = np.asarray(counts, dtype=np.int64)
        self._key = (seed, bucket, epoch)
        self._window = window
        self._shards = _permutation(len(counts), *self._key, "shards")
        self._ends = np.cumsum(self._counts[self._shards])
        self._places = lru_cache(maxsize=2)(self._window_places)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside an epoch of {len(self)} samples")
        window = int(np.searchsorted(self._ends, index, side="right")) // self._window
        start, shards, rows = self._places(window)
        return int(shards[index - start]), int(rows[index - start])

    def shards_ahead(self, index: int) -> tuple[int, ...]:
        """The shards that are read from this index on: those of its window, then those of the next one, if any."""
        first = int(np.searchsorted(self._ends, index, side="right")) // self._window * self._window
        return tuple(self._shards[first : first + 2 * self._window].tolist())

    def _window_places(self, window: int) -> tuple[int, Indices, Indices]:
        """The window's first index, and the shard and row of each of its samples in their order."""
        shards = self._shards[window * self._window : (window + 1) * self._window]
        ends = np.cumsum(self._counts[shards])
        samples = _permutation(int(ends[-1]), *self._key, "window", window)
        places = np.searchsorted(ends, samples, side="right")
        start = int(self._ends[window * self._window - 1]) if window else 0
        return start, shards[places], samples - (ends - self._counts[shards])[places]


@dataclass(frozen=True)
class Mixture:
    """Which bucket each step of a stage takes its batch from, when it trains on several with these relative weights.

    In every block of BLOCK steps each bucket has its share (rounded by largest remainder, at least one step), in an order
    drawn for the block. A bucket's own samples are taken in its own order: all its positions, without a gap.
    """

    weights: tuple[float, ...]
    seed: int

    BLOCK = 100  # steps

    def __post_init__(self) -> None:
        if not self.weights or min(self.weights) <= 0 or not np.isfinite(self.weights).all():
            raise ValueError(f"weights {list(self.weights)} of a mixture must be positive numbers")
        if len(self.weights) > self.BLOCK:
            raise ValueError(f"a mixture has at most {self.BLOCK} buckets, not {len(self.weights)}")

    def at(self, step: int) -> tuple[int, int]:
        """(bucket, how many steps before this one took the same bucket)."""
        block, place = divmod(step, self.BLOCK)
        shares = _shares(self.weights)
        drawn = _deal(shares, self.seed, block)
        bucket = int(drawn[place])
        return bucket, block * shares[bucket] + int(np.count_nonzero(drawn[:place] == bucket))


@lru_cache(maxsize=16)
def _shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """How many steps of a block each bucket has."""
    exact = np.array(weights) / sum(weights) * Mixture.BLOCK
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: Mixture.BLOCK - int(shares.sum())]] += 1
    while not shares.all():
        shares[shares.argmax()] -= 1
        shares[shares.argmin()] += 1
    return tuple(shares.tolist())


@lru_cache(maxsize=16)
def _deal(shares: tuple[int, ...], seed: int, block: int) -> Indices:
    """The bucket of each step of a block."""
    deck = np.repeat(np.arange(len(shares)), shares)
    return deck[_permutation(Mixture.BLOCK, seed, "mixture", block)]


def _keyed_philox(*key: int | str) -> np.random.Philox:
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def _permutation(size: int, *key: int | str) -> Indices:
    # Sorting raw words: numpy promises to keep bit streams, but not the results of Generator.permutation.
    return np.argsort(_keyed_philox(*key).random_raw(size), kind="stable")
