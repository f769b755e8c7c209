"""Batches of one bucket by global position, in the order of order.py, from a disk or from S3. The trainer asks for the
positions that it is to see; the loader knows nothing of ranks, devices or torch."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from data_pipeline import manifest as manifests
from data_pipeline import storage
from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.epochs import Epochs
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from data_pipeline.order import EpochOrder
from data_pipeline.shard_cache import ShardCache
from data_pipeline.shard_reader import ShardReader
from data_pipeline.shards import ShardEntry, shard_path, source_of, unpack
from data_pipeline.storage import Location, S3Path
from data_pipeline.tokenizers import VideoTokenizer, load_tokenizer

TOKENIZER_FOLDER, TOKENIZER_FILE = "tokenizer", "tokenizer.json"
WINDOWS_AHEAD = 3  # of shards that are asked for: the one that is read, and the next ones
SMALL = 1 << 20  # bytes of latents that stay in the processor's cache beside their mean; one number per row is slow where rows are short
OPEN_SHARDS = 8  # per sample set: the window that it reads and the one before; a copy that is open gives no room back to the cache's disk


@dataclass(frozen=True)
class Batch:
    """latents float32 [B, T, h, w, C] normalised; text float32 [B, K, E], zero beyond text_length int64 [B].

    The latents are a view: in memory their channels stand as in the shards, before rows and columns. Whoever gathers tokens on a device
    turns them on the way, which takes a third of a sample's time here.
    """

    latents: np.ndarray
    text: np.ndarray
    text_length: np.ndarray
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A data set, on a disk or in S3, in one of its generations. With a cache, shards from S3 are fetched ahead of their reading."""

    folder: Location
    manifest: Manifest
    id: str
    cache: ShardCache | None = field(default=None, compare=False)

    @cached_property
    def tokenizer(self) -> VideoTokenizer:
        """Raises UserError when the folder's tokenizer is not the one its latents were made with."""
        tokenizer = tokenizer_at(self.folder / TOKENIZER_FOLDER)
        if tokenizer.fingerprint != self.manifest.tokenizer:
            raise UserError(f"{self.folder / TOKENIZER_FOLDER} is another data set's tokenizer: encode the data set again")
        return tokenizer

    @cached_property
    def origin(self) -> str:
        """The id of its first generation, whose tokenizer and statistics all later ones keep: what training on it amounts to."""
        return manifests.dataset_id(self.folder, 0)

    def at(self, generation: int) -> "Dataset":
        """The same data set as it was, or is by now, in a generation."""
        return self if generation == self.manifest.generation else open_dataset(self.folder, self.cache, generation)

    @property
    def latent_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, float32 [C] each, of raw train latents over all frames."""
        found = self.manifest.latent_statistics
        return np.array(found.mean, np.float32), np.array(found.std, np.float32)

    @cached_property
    def new_captions(self) -> dict[str, tuple[ShardReader, int]]:
        """Where sources have their newer captions, by source id."""
        found = {}
        for entry in self.manifest.captions:
            reader = ShardReader(shard_path(self.folder, entry), entry, self.cache)
            found.update({source: (reader, row) for row in range(len(reader)) for source in reader.meta(row)["sources"]})
        return found

    def new_vectors(self, key: str) -> np.ndarray | None:
        """The text vectors [k, E] of a sample whose source has a newer caption than the sample itself."""
        place = self.new_captions.get(source_of(key)) if self.new_captions else None
        return None if place is None else place[0].text(place[1])

    def split(self, bucket: str, split: str, seed: int, epochs: Epochs | None = None) -> "SampleSet":
        """The samples of one bucket ("17x96x96") and split ("train" or "held_out"), in the order of `seed`. `epochs` says which
        generation each epoch reads; without it, all read this one."""
        if bucket not in self.manifest.buckets:
            raise UserError(f"data set {self.folder} has no bucket {bucket}; it has {', '.join(self.manifest.buckets)}")
        return SampleSet(self, bucket, split, seed, epochs)

    def normalise(self, latents: np.ndarray) -> np.ndarray:
        """Raw latents [..., T, h, w, C] -> what batches hold."""
        return manifests.normalise(latents, self.manifest.statistics)

    def denormalise(self, latents: np.ndarray) -> np.ndarray:
        return manifests.denormalise(latents, self.manifest.statistics)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Normalised latents [T, h, w, C], as in a batch or from the sampler -> uint8 frames [F, H, W, 3]."""
        return self.tokenizer.decode(np.moveaxis(self.denormalise(latents), -1, -3))


@dataclass(frozen=True)
class Rows:
    """What a generation of a data set has of one bucket and split: shards, and the rows of each that are to be read."""

    dataset: Dataset
    shards: tuple[ShardEntry, ...]
    rows: tuple[Sequence[int], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(map(len, self.rows))


class SampleSet:
    """An endless stream of samples, epoch after epoch; `len`, which may be 0, is the number of samples in the data set at hand.

    epochs: which generation each epoch reads; may be replaced by one in which more epochs are decided.
    """

    def __init__(self, dataset: Dataset, bucket: str, split: str, seed: int, epochs: Epochs | None = None) -> None:
        self.bucket = Bucket.parse(bucket)
        self._dataset, self._split, self._seed = dataset, split, seed
        self._rows = lru_cache(maxsize=4)(self._rows_of)
        self._length = sum(self._rows(dataset.manifest.generation).counts)
        own = Epochs().then(dataset.manifest.generation, self._length, last=True) if self._length else Epochs()
        self.epochs = own if epochs is None else epochs
        self._order = lru_cache(maxsize=4)(self._order_of)
        self._reader = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        self._ahead = threading.local()  # of each thread, as one may be a batch behind another

    def __len__(self) -> int:
        return self._length

    def epoch_of(self, position: int) -> tuple[int, int]:
        """(epoch, index inside it) of a global position. Raises ValueError when that epoch is not decided yet."""
        place = self.epochs.place(position)
        return place.epoch, place.index

    def sample_key(self, position: int) -> str:
        """The key of the sample at a global position: "<source id>-<clip number>"."""
        _, entry, row = self._place(position)
        return self._reader(entry).key(row)

    def meta(self, position: int) -> dict[str, Any]:
        """What the shard tells about the sample at a global position: caption, source, fps, filter values and so on."""
        _, entry, row = self._place(position)
        return self._reader(entry).meta(row)

    def caption(self, position: int) -> str:
        """The caption of the sample at a global position."""
        dataset, entry, row = self._place(position)
        reader = self._reader(entry)
        reader, row = dataset.new_captions.get(source_of(reader.key(row)), (reader, row))
        return str(reader.meta(row)["caption"])

    def still_read(self, generation: int, most: int) -> list[int]:
        """The first positions, `most` at most, of the samples that a newer generation does not exclude."""
        newer, found = self._rows(generation).dataset.manifest, []
        for position in range(len(self)):
            _, entry, row = self._place(position)
            if row not in newer.excluded(entry):
                found.append(position)
            if len(found) == most:
                break
        return found

    def fetch(self, positions: Sequence[int]) -> Batch:
        """The samples at these global positions, in this order. Safe to call from several threads."""
        spec = self._dataset.manifest.spec
        places = [self._place(position) for position in positions]
        frames, height, width = latent_shape(self.bucket, spec.stride)
        latents = np.empty((len(places), frames, spec.channels, height, width), np.float32)
        text = np.zeros((len(places), spec.text_tokens, spec.text_width), np.float32)
        lengths = np.empty(len(places), np.int64)
        mean, factor = manifests.normalisation(frames, self._dataset.manifest.statistics)
        if latents.nbytes <= len(places) * SMALL:
            mean = np.broadcast_to(mean, (frames, spec.channels, height, width)).copy()
        by_shard: dict[ShardEntry, list[int]] = {}
        for item, (_, entry, _) in enumerate(places):
            by_shard.setdefault(entry, []).append(item)
        readers = {entry: self._reader(entry) for entry in by_shard}
        asked = {entry: reader.read([places[item][2] for item in by_shard[entry]]) for entry, reader in readers.items()}
        for entry, items in by_shard.items():
            for item, parts in zip(items, asked[entry], strict=True):
                raw = unpack(parts["latent"])  # what follows is manifests.normalise, without its temporaries
                raw -= mean
                np.multiply(raw, factor, out=latents[item])
                vectors = places[item][0].new_vectors(readers[entry].key(places[item][2]))
                vectors = unpack(parts["text"]) if vectors is None else vectors
                lengths[item] = len(vectors)
                text[item, : len(vectors)] = vectors
        return Batch(np.moveaxis(latents, 2, -1), text, lengths, tuple(readers[entry].key(row) for _, entry, row in places))

    def _place(self, position: int) -> tuple[Dataset, ShardEntry, int]:
        """(the generation that is read, shard, row) of a global position; what comes next is asked for."""
        place = self.epochs.place(position)
        there, order = self._rows(place.generation), self._order(place.generation, place.epoch)
        if self._dataset.cache and position not in getattr(self._ahead, "window", ()):
            self._ahead.window = self._want(self._dataset.cache, position)
        shard, row = order[place.index]
        return there.dataset, there.shards[shard], there.rows[shard][row]

    def _want(self, cache: ShardCache, position: int) -> range:
        """Asks for the shards that are read from a position on, beyond the end of its epoch too; gives the positions of its window."""
        ends, entries = [position], list[ShardEntry]()
        while len(ends) <= WINDOWS_AHEAD and ends[-1] < self.epochs.decided:
            place = self.epochs.place(ends[-1])
            window, shards = self._order(place.generation, place.epoch).window(place.index)
            entries += [self._rows(place.generation).shards[shard] for shard in shards]
            ends.append(ends[-1] + window.stop - place.index)
        cache.want([(shard_path(self._dataset.folder, entry), entry) for entry in entries])
        return range(position, ends[1])

    def _rows_of(self, generation: int) -> Rows:
        dataset = self._dataset.at(generation)
        shards = dataset.manifest.buckets[self.bucket.id][self._split]
        return Rows(dataset, shards, tuple(map(dataset.manifest.rows, shards)))

    def _order_of(self, generation: int, epoch: int) -> EpochOrder:
        return EpochOrder(self._rows(generation).counts, self._seed, self.bucket.id, epoch)

    def _open(self, entry: ShardEntry) -> ShardReader:
        return ShardReader(shard_path(self._dataset.folder, entry), entry, self._dataset.cache)


def tokenizer_at(folder: Location) -> VideoTokenizer:
    """The tokenizer saved in a folder on a disk or in S3. Raises UserError naming the file that is missing or of an unknown kind."""
    if not isinstance(folder, S3Path):
        return load_tokenizer(folder)
    with TemporaryDirectory(prefix="videomar-tokenizer-") as copy:
        storage.copy_tree(folder, Path(copy), last=TOKENIZER_FILE)
        return load_tokenizer(copy)


def open_dataset(folder: str | Location, cache: ShardCache | None = None, generation: int | None = None) -> Dataset:
    """The newest generation of a data set, or a given one. Raises UserError when there is no such data set in the
    folder. `cache` serves data sets in S3."""
    folder = storage.location(folder)
    found = manifests.read(folder, generation), manifests.dataset_id(folder, generation)
    return Dataset(folder, *found, cache if isinstance(folder, S3Path) else None)


Request = TypeVar("Request")
Result = TypeVar("Result")


def prefetch(
    requests: Iterable[Request], fetch: Callable[[Request], Result], depth: int = 2, threads: int = 1
) -> Generator[Result, None, None]:
    """Yields fetch(request) in order while `threads` threads work up to `depth` results ahead of the consumer.

    An exception of fetch is raised here, in its place; close() ends the threads.
    """
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as thread:
        try:
            for request in requests:
                ahead.append(thread.submit(fetch, request))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
