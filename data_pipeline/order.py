"""The order in which samples are visited, as a pure function of (seed, bucket, epoch, position): no state, no files. The loader
calls it; it must not know ranks, workers or world size, which is why none of them can change the order."""

import hashlib
import json
from collections.abc import Sequence
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
        start, shards, rows = self._places(self._window_at(index))
        return int(shards[index - start]), int(rows[index - start])

    def window(self, index: int) -> tuple[range, tuple[int, ...]]:
        """The indices of the window that an index stands in, and the shards that it reads."""
        first = self._window_at(index) * self._window
        last = min(first + self._window, len(self._shards))
        return range(int(self._ends[first - 1]) if first else 0, int(self._ends[last - 1])), tuple(self._shards[first:last].tolist())

    def _window_at(self, index: int) -> int:
        return int(self._ends.searchsorted(index, side="right")) // self._window

    def _window_places(self, window: int) -> tuple[int, Indices, Indices]:
        """The window's first index, and the shard and row of each of its samples in their order."""
        shards = self._shards[window * self._window : (window + 1) * self._window]
        ends = np.cumsum(self._counts[shards])
        samples = _permutation(int(ends[-1]), *self._key, "window", window)
        places = np.searchsorted(ends, samples, side="right")
        start = int(self._ends[window * self._window - 1]) if window else 0
        return start, shards[places], samples - (ends - self._counts[shards])[places]


def _keyed_philox(*key: int | str) -> np.random.Philox:
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))


def _permutation(size: int, *key: int | str) -> Indices:
    # Sorting raw words: numpy promises to keep bit streams, but not the results of Generator.permutation.
    return np.argsort(_keyed_philox(*key).random_raw(size), kind="stable")
