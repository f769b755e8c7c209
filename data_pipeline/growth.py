"""How a data set comes into being piece by piece: which chunks are encoded first, and when those that are there are worth a
generation of their own. Pure; cluster/readiness.py acts on it."""

from collections.abc import Container, Sequence
from hashlib import blake2b

from data_pipeline.chunks import Chunk
from data_pipeline.manifest import Manifest
from data_pipeline.records import HELD_OUT, TRAIN

GROWTH = 1.2  # of the sources that a generation has, from one to the next


def encode_order(chunks: Sequence[Chunk], evaluated: int) -> list[Chunk]:
    """The chunks in the order in which to encode them: first so many held-out sources as an evaluation takes, then what is trained
    on, then the other held-out ones. Shuffled: the first ones stand for all, in the statistics of latents for good, and names of files
    are sorted by what they show."""
    shuffled = sorted(chunks, key=lambda chunk: blake2b(chunk.name.encode()).digest())
    held_out, first, count = [chunk for chunk in shuffled if chunk.split == HELD_OUT], 0, 0
    while first < len(held_out) and count < evaluated:
        count, first = count + len(held_out[first].sources), first + 1
    return [*held_out[:first], *(chunk for chunk in shuffled if chunk.split == TRAIN), *held_out[first:]]


def prefix(order: Sequence[Chunk], done: Container[int]) -> int:
    """How many chunks from the first one on are done without a gap."""
    return next((index for index in range(len(order)) if index not in done), len(order))


def sources(chunks: Sequence[Chunk], split: str | None = None) -> int:
    return sum(len(chunk.sources) for chunk in chunks if split in (None, chunk.split))


def may_begin(order: Sequence[Chunk], there: int, fraction: float) -> bool:
    """Whether the first `there` chunks are enough of the data to train on; all of them always are."""
    trained = sources(order[:there], TRAIN)
    return there == len(order) or (fraction < 1 and trained > 0 and trained >= fraction * sources(order, TRAIN))


def first_chunks(order: Sequence[Chunk], tried: int, fraction: float) -> int:
    """How many chunks to encode before any other, so that training can begin as soon as may be; twice as many as were `tried` in vain."""
    wanted, trained = fraction * sources(order, TRAIN), 0
    for there, chunk in enumerate(order, 1):
        trained += len(chunk.sources) if chunk.split == TRAIN else 0
        if fraction < 1 and trained > 0 and trained >= wanted and there >= 2 * tried:
            return there
    return len(order)


def worth_a_generation(order: Sequence[Chunk], there: int, newest: Manifest) -> bool:
    """Whether the first `there` chunks are so many more than those of the newest generation, or all of them."""
    known = newest.sources.total
    return newest.pending > 0 and (there == len(order) or sources(order[:there]) >= GROWTH * known)


def holds(made: Manifest, newest: Manifest) -> bool:
    """Whether a generation has every shard of the newest one, which a writer with another order may have made."""
    places = [(bucket, split) for bucket, splits in newest.buckets.items() for split in splits]
    return all(set(newest.buckets[bucket][split]) <= set(made.buckets[bucket][split]) for bucket, split in places)
