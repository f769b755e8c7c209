"""Which generation of a data set each epoch of a bucket reads, while the data set still grows: pure values. An epoch's generation is
decided before its first step and never again, so whoever has the table sees the same order. The loader and the trainer use it."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any


@dataclass(frozen=True)
class Era:
    """Epochs in a row that read the `samples` samples of one generation; `epochs` None: all epochs from here on."""

    generation: int
    samples: int
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"an epoch of generation {self.generation} would have {self.samples} samples")

    @property
    def length(self) -> float:
        """Positions that it covers."""
        return math.inf if self.epochs is None else self.epochs * self.samples


@dataclass(frozen=True)
class Place:
    """Where a global position stands: the index-th sample of an epoch, which reads a generation."""

    epoch: int
    index: int
    generation: int


@dataclass(frozen=True)
class Epochs:
    """All epochs that are decided so far, from position 0 on without a gap."""

    eras: tuple[Era, ...] = ()

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> "Epochs":
        """Back from JSON."""
        return cls(tuple(Era(**era) for era in tree["eras"]))

    @cached_property
    def _starts(self) -> Sequence[float]:
        return [0, *accumulate(era.length for era in self.eras)]

    @property
    def decided(self) -> float:
        """The first position whose epoch is not decided yet; infinite when nothing is left to decide."""
        return self._starts[-1]

    @property
    def count(self) -> float:
        """How many epochs are decided."""
        return sum(math.inf if era.epochs is None else era.epochs for era in self.eras)

    def place(self, position: int) -> Place:
        """Raises ValueError for a position whose epoch is not decided."""
        if not 0 <= position < self.decided:
            raise ValueError(f"the epoch of position {position} is not decided: positions end at {self.decided}")
        number = bisect_right(self._starts, position) - 1
        era, before = self.eras[number], sum(era.epochs or 0 for era in self.eras[:number])
        epoch, index = divmod(position - int(self._starts[number]), era.samples)
        return Place(before + epoch, index, era.generation)

    def then(self, generation: int, samples: int, last: bool) -> "Epochs":
        """With the next epoch decided; `last`: and all after it."""
        before, newest = self.eras, Era(generation, samples, None if last else 1)
        if not last and before and replace(before[-1], epochs=1) == newest:
            before, newest = before[:-1], replace(newest, epochs=(before[-1].epochs or 0) + 1)
        return Epochs((*before, newest))

    def whole_epochs(self, start: int, stop: int) -> int:
        """Epochs over the whole data set, which will not grow any more, that begin and end between two positions."""
        if not self.eras or self.eras[-1].epochs is not None:
            return 0
        first, samples = int(self._starts[-2]), self.eras[-1].samples
        begun = first + -(-max(start - first, 0) // samples) * samples
        return max(0, stop - begun) // samples
