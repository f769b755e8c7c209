"""How a data set comes into being piece by piece: which chunks are encoded first, and when those that are there are worth a
generation of their own. Pure; cluster/readiness.py acts on it. Nothing here makes a chunk, and what is asked at every progress takes no
longer the more there are."""

from collections.abc import Container
from dataclasses import replace
from hashlib import blake2b
from struct import unpack

import numpy as np

from data_pipeline.chunks import ChunkPlan
from data_pipeline.manifest import Manifest
from data_pipeline.records import HELD_OUT, TRAIN, chunk_name

GROWTH = 1.2  # of the sources that a generation has, from one to the next


def encode_order(plan: ChunkPlan, evaluated: int) -> ChunkPlan:
    """The chunks in the order in which to encode them: first so many held-out sources as an evaluation takes, then what is trained
    on, then the other held-out ones. Shuffled: the first ones stand for all, in the statistics of latents for good, and names of files
    are sorted by what they show."""
    digests = np.empty((len(plan), 2), np.uint64)
    for position in range(len(plan)):
        digests[position] = unpack(">2Q", blake2b(chunk_name(*plan.place(position)).encode()).digest()[:16])
    high, low = digests.T
    shuffled = replace(plan, numbers=plan.numbers[np.lexsort((low, high))])
    trained, held_out = np.diff(shuffled.counted[TRAIN]) > 0, shuffled.counted[HELD_OUT]
    first = int(np.searchsorted(held_out, evaluated))
    later = np.arange(len(plan)) >= first
    return replace(plan, numbers=np.concatenate([shuffled.numbers[chosen] for chosen in (~trained & ~later, trained, ~trained & later)]))


def prefix(done: Container[int], start: int, total: int) -> int:
    """How many chunks of `total` from the first one on are done without a gap, where `start` are known to be."""
    return next((index for index in range(start, total) if index not in done), total)


def may_begin(order: ChunkPlan, there: int, fraction: float) -> bool:
    """Whether the first `there` chunks are enough of the data to train on; all of them always are."""
    trained = order.count(there, TRAIN)
    return there == len(order) or (fraction < 1 and trained > 0 and trained >= fraction * order.count(split=TRAIN))


def first_chunks(order: ChunkPlan, tried: int, fraction: float) -> int:
    """How many chunks to encode before any other, so that training can begin as soon as may be; twice as many as were `tried` in vain."""
    if fraction >= 1:
        return len(order)
    enough = np.searchsorted(order.counted[TRAIN], max(fraction * order.count(split=TRAIN), 1))
    return min(max(int(enough), 2 * tried), len(order))


def worth_a_generation(order: ChunkPlan, there: int, newest: Manifest) -> bool:
    """Whether the first `there` chunks are so many more than those of the newest generation, or all of them."""
    known = newest.sources.total
    return newest.pending > 0 and (there == len(order) or order.count(there) >= GROWTH * known)


def holds(made: Manifest, newest: Manifest) -> bool:
    """Whether a generation has every shard of the newest one, which a writer with another order may have made."""
    places = [(bucket, split) for bucket, splits in newest.buckets.items() for split in splits]
    return all(set(newest.buckets[bucket][split]) <= set(made.buckets[bucket][split]) for bucket, split in places)
