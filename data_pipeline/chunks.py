"""The plan that deals a data set's sources to chunks, the units of work, and holds some of them out. Pure, and made as it is
asked for: what is kept per source is a few bytes. The encode pool and the data set commands call it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
    """Chunks in an order; as planned the train ones stand before the held-out ones. places: for each split where its sources are, in
    order; numbers [N]: which chunk of the whole plan stands where."""

    sources: Sequence[Source]
    places: dict[str, npt.NDArray[np.int32]]
    each: int  # sources per chunk
    numbers: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, position: int) -> Chunk: ...

    @overload
    def __getitem__(self, position: slice) -> "ChunkPlan": ...

    def __getitem__(self, position: int | slice) -> "Chunk | ChunkPlan":
        if isinstance(position, slice):
            return replace(self, numbers=self.numbers[position])
        split, index = self.place(position)
        return Chunk(split, index, tuple(self.sources[place] for place in self.members(position).tolist()))

    def place(self, position: int) -> tuple[str, int]:
        """(split, index in it) of a chunk."""
        number, train = int(self.numbers[position]), self._chunks(TRAIN)
        return (TRAIN, number) if number < train else (HELD_OUT, number - train)

    def members(self, position: int) -> npt.NDArray[np.int32]:
        """Where among all the sources those of a chunk are."""
        split, index = self.place(position)
        return self.places[split][index * self.each : (index + 1) * self.each]

    def count(self, first: int | None = None, split: str | None = None) -> int:
        """How many sources the first chunks have, or all of them; of one split, or of both."""
        return sum(int(self.counted[name][-1 if first is None else first]) for name in self.places if split in (None, name))

    @cached_property
    def counted(self) -> dict[str, npt.NDArray[np.int64]]:
        """For each split [N + 1], how many of its sources are in the first n chunks."""
        train = self._chunks(TRAIN)
        splits = {TRAIN: (self.numbers < train, 0), HELD_OUT: (self.numbers >= train, train)}
        counted = {}
        for split, (mine, first) in splits.items():
            sizes = np.minimum(len(self.places[split]) - (self.numbers.astype(np.int64) - first) * self.each, self.each)
            counted[split] = np.concatenate([[0], np.cumsum(np.where(mine, sizes, 0))])
        return counted

    def _chunks(self, split: str) -> int:
        return -(-len(self.places[split]) // self.each)


def plan_chunks(sources: Sequence[Source], spec: EncodeSpec) -> ChunkPlan:
    """Deals the sources, in their order, to the chunks of both splits."""
    held_out = held_out_rule(sources, spec)
    marks = np.fromiter(map(held_out, sources), bool, len(sources))
    places = {split: np.flatnonzero(marks == (split == HELD_OUT)).astype(np.int32) for split in (TRAIN, HELD_OUT)}
    return plan_of(sources, places, spec.sources_per_shard)


def plan_of(sources: Sequence[Source], places: dict[str, npt.NDArray[np.int32]], each: int) -> ChunkPlan:
    """The chunks of `each` sources that stand at these places, by split."""
    chunks = sum(-(-len(found) // each) for found in places.values())
    return ChunkPlan(sources, places, each, np.arange(chunks, dtype=np.int32))


def source_count(chunks: Sequence[Chunk]) -> int:
    """Of all chunks; those of a plan are not made for it."""
    return chunks.count() if isinstance(chunks, ChunkPlan) else sum(len(chunk.sources) for chunk in chunks)


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
