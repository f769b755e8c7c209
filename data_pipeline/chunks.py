"""The plan that deals a data set's sources to chunks, the units of work, and holds some of them out. Pure, and made as it is
asked for: what is kept per source is a few bytes. The encode pool and the data set commands call it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from data_pipeline.order import keyed_generator
from data_pipeline.records import HELD_OUT, TRAIN, chunk_name
from data_pipeline.sources import Source
from data_pipeline.spec import EncodeSpec


@dataclass(frozen=True)
class Chunk:
    """The sources whose clips go to one shard of every bucket: the unit of work, of retry and of resume."""

    split: str  # TRAIN or HELD_OUT
    index: int
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        return chunk_name(self.split, self.index)


@dataclass(frozen=True, eq=False)
class ChunkPlan(Sequence[Chunk]):
    """The train chunks, then the held-out ones. places: for each split where its sources are, in order."""

    sources: Sequence[Source]
    places: dict[str, npt.NDArray[np.int32]]
    each: int  # sources per chunk

    def __len__(self) -> int:
        return sum(self._chunks(split) for split in self.places)

    @overload
    def __getitem__(self, number: int) -> Chunk: ...

    @overload
    def __getitem__(self, number: slice) -> list[Chunk]: ...

    def __getitem__(self, number: int | slice) -> Chunk | list[Chunk]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        split, index = self.place(number)
        return Chunk(split, index, tuple(self.sources[place] for place in self.members(number).tolist()))

    def place(self, number: int) -> tuple[str, int]:
        """(split, index in it) of a chunk."""
        index, train = range(len(self))[number], self._chunks(TRAIN)
        return (TRAIN, index) if index < train else (HELD_OUT, index - train)

    def members(self, number: int) -> npt.NDArray[np.int32]:
        """Where among all the sources those of a chunk are."""
        split, index = self.place(number)
        return self.places[split][index * self.each : (index + 1) * self.each]

    def _chunks(self, split: str) -> int:
        return -(-len(self.places[split]) // self.each)


def plan_chunks(sources: Sequence[Source], spec: EncodeSpec) -> ChunkPlan:
    """Deals the sources, in their order, to the chunks of both splits."""
    held_out = held_out_rule(sources, spec)
    marks = np.fromiter(map(held_out, sources), bool, len(sources))
    places = {split: np.flatnonzero(marks == (split == HELD_OUT)).astype(np.int32) for split in (TRAIN, HELD_OUT)}
    return ChunkPlan(sources, places, spec.sources_per_shard)


def held_out_rule(sources: Sequence[Source], spec: EncodeSpec) -> Callable[[Source], bool]:
    """Tells which of the sources are kept for evaluation: those whose hash falls below spec.held_out.

    Of two or more sources at least one is held out and at least one is not: if need be, the one of smallest hash is.
    """
    if len(sources) < 2:
        return lambda source: False
    seen: set[bool] = set()
    for source in sources:
        seen.add(is_held_out(source, spec))
        if len(seen) == 2:
            return lambda source: is_held_out(source, spec)
    only = min(sources, key=lambda source: (_draw(source, spec), source.id)).id
    return lambda source: source.id == only


def is_held_out(source: Source, spec: EncodeSpec) -> bool:
    """Whether a source that joins a data set later is kept for evaluation."""
    return _draw(source, spec) < spec.held_out


def by_id(sources: Sequence[Source]) -> Iterator[Source]:
    """The sources in the order of their ids, which is as good as a shuffled one: neighbours in a folder are far apart."""
    ids = np.fromiter((int(source.id, 16) for source in sources), np.uint64, len(sources))
    return (sources[int(place)] for place in np.argsort(ids, kind="stable"))


def _draw(source: Source, spec: EncodeSpec) -> float:
    return float(keyed_generator("held-out", spec.seed, source.id).random())
