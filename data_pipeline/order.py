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
        self._rows = lru_cache(maxsize=2)(self._window_rows)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside an epoch of {len(self)} samples")
        window = int(np.searchsorted(self._ends, index, side="right")) // self._window
        first = window * self._window
        start = int(self._ends[first - 1]) if first else 0
        sample = self._rows(window)[index - start] + start
        place = int(np.searchsorted(self._ends, sample, side="right"))
        row = int(sample - self._ends[place] + self._counts[self._shards[place]])
        return int(self._shards[place]), row

    def shards_ahead(self, index: int) -> tuple[int, ...]:
        """The shards that are read from this index on: those of its window, then those of the next one, if any."""
        first = int(np.searchsorted(self._ends, index, side="right")) // self._window * self._window
        return tuple(self._shards[first : first + 2 * self._window].tolist())

    def _window_rows(self, window: int) -> Indices:
        shards = self._shards[window * self._window : (window + 1) * self._window]
        return _permutation(int(self._counts[shards].sum()), *self._key, "window", window)


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
        drawn = self._block(block)
        bucket = int(drawn[place])
        return bucket, block * self._shares[bucket] + int(np.count_nonzero(drawn[:place] == bucket))

    def _block(self, block: int) -> Indices:
        deck = np.repeat(np.arange(len(self.weights)), self._shares)
        return deck[_permutation(self.BLOCK, self.seed, "mixture", block)]

    @property
    def _shares(self) -> tuple[int, ...]:
        exact = np.array(self.weights) / sum(self.weights) * self.BLOCK
        shares = np.floor(exact).astype(np.int64)
        shares[np.argsort(shares - exact, kind="stable")[: self.BLOCK - int(shares.sum())]] += 1
        while not shares.all():
            shares[shares.argmax()] -= 1
            shares[shares.argmin()] += 1
        return tuple(shares.tolist())


def _keyed_philox(*key: int | str) -> np.random.Philox:
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def _permutation(size: int, *key: int | str) -> Indices:
    # Sorting raw words: numpy promises to keep bit streams, but not the results of Generator.permutation.
    return np.argsort(_keyed_philox(*key).random_raw(size), kind="stable")
