"""What a rank holds of a logical tensor, as boxes of that tensor. Pure: no files, no communication.

The engine lists fragments, saving cuts them into chunks and loading intersects chunks; so any layout reads what any other wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """Elements offset[d] <= index[d] < offset[d] + extent[d] of a tensor; of a scalar, its one element."""

    offset: Shape
    extent: Shape

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.extent)

    def moved(self, offset: Shape) -> Box:
        """The same box seen from a tensor in which this one's origin stands at `offset`."""
        return Box(tuple(a + b for a, b in zip(offset, self.offset, strict=True)), self.extent)

    def overlap(self, other: Box) -> Box | None:
        """What two boxes of one tensor share, None when nothing."""
        sides = list(zip(self.offset, self.extent, other.offset, other.extent, strict=True))
        low = tuple(max(a, b) for a, _, b, _ in sides)
        extent = tuple(min(a + m, b + n) - start for (a, m, b, n), start in zip(sides, low, strict=True))
        return Box(low, extent) if all(length > 0 for length in extent) else None

    def inside(self, outer: Box) -> tuple[slice, ...]:
        """This box as an index into a tensor that holds `outer`."""
        starts = (a - b for a, b in zip(self.offset, outer.offset, strict=True))
        return tuple(slice(start, start + length) for start, length in zip(starts, self.extent, strict=True))


@dataclass(frozen=True)
class Fragment:
    """Elements [start, stop) of this rank's flattened shard, which is a box of the logical tensor `name` of shape `shape`.

    tensors: 1-D fp32 views by kind (weight, exp_avg, exp_avg_sq, ema), each of stop - start elements. Writing into them changes the
    training state.
    """

    name: str
    shape: Shape
    shard: Box
    start: int
    stop: int
    tensors: dict[str, Tensor]

    @property
    def place(self) -> tuple[str, Box, int, int]:
        """What it is a fragment of: equal for two ranks that hold the same elements."""
        return self.name, self.shard, self.start, self.stop


def whole(name: str, shape: Sequence[int], tensors: dict[str, Tensor]) -> Fragment:
    """The fragment that is a whole logical tensor, not sharded; `tensors` are flat."""
    shape = tuple(shape)
    return Fragment(name, shape, Box((0,) * len(shape), shape), 0, math.prod(shape), tensors)


def boxes(shape: Shape, start: int, stop: int) -> list[Box]:
    """Elements [start, stop) of a flattened tensor as boxes, in order, each of them contiguous: at most max(1, 2 * ndim - 1)."""
    if start >= stop:
        return []
    if not shape:
        return [Box((), ())]
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows are [first, last)
    if first > last:  # begins and ends inside one row
        return rows(last, boxes(shape[1:], start - last * row, stop - last * row))
    head = rows(first - 1, boxes(shape[1:], start - (first - 1) * row, row)) if start < first * row else []
    middle = [Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))] if first < last else []
    tail = rows(last, boxes(shape[1:], 0, stop - last * row))
    return head + middle + tail


def rows(index: int, found: list[Box]) -> list[Box]:
    """Boxes of row `index` as boxes of the tensor."""
    return [Box((index, *box.offset), (1, *box.extent)) for box in found]


def pieces(fragment: Fragment) -> Iterator[tuple[Box, slice]]:
    """A fragment as boxes of its logical tensor, each with its place in the fragment's flat views."""
    begin = 0
    for box in boxes(fragment.shard.extent, fragment.start, fragment.stop):
        yield box.moved(fragment.shard.offset), slice(begin, begin + box.size)
        begin += box.size


def deal_writers(held: Sequence[Sequence[tuple[str, Box, int, int]]]) -> list[set[tuple[str, Box, int, int]]]:
    """What each rank writes, of the places that each holds: every place once, by the least laden of those that hold it."""
    holders: dict[tuple[str, Box, int, int], list[int]] = {}
    for rank, places in enumerate(held):
        for place in places:
            holders.setdefault(place, []).append(rank)
    load, dealt = [0] * len(held), [set[tuple[str, Box, int, int]]() for _ in held]
    for place, ranks in holders.items():
        writer = min(ranks, key=lambda rank: load[rank])
        load[writer] += place[3] - place[2]
        dealt[writer].add(place)
    return dealt
