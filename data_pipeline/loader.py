"""Batches of one bucket by global position, in the order of order.py. The trainer asks for the positions that it is to
see; the loader knows nothing of ranks, devices or torch."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_pipeline import manifest as manifests
from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from data_pipeline.order import EpochOrder, wrap
from data_pipeline.shards import ShardError, ShardReader
from data_pipeline.tokenizers import VideoTokenizer, load_tokenizer

TOKENIZER_FOLDER = "tokenizer"
OPEN_SHARDS = 256  # per sample set


@dataclass(frozen=True)
class Batch:
    """latents float32 [B, T, h, w, C] normalised; text float32 [B, K, E], zero beyond text_length int64 [B]."""

    latents: np.ndarray
    text: np.ndarray
    text_length: np.ndarray
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A finished data set on disk."""

    folder: Path
    manifest: Manifest
    id: str

    @cached_property
    def tokenizer(self) -> VideoTokenizer:
        """Raises UserError when the folder's tokenizer is not the one its latents were made with."""
        tokenizer = load_tokenizer(self.folder / TOKENIZER_FOLDER)
        if tokenizer.fingerprint != self.manifest.tokenizer:
            raise UserError(f"{self.folder / TOKENIZER_FOLDER} is another data set's tokenizer: encode the data set again")
        return tokenizer

    def split(self, bucket: str, split: str, seed: int) -> "SampleSet":
        """The samples of one bucket ("17x96x96") and split ("train" or "held_out"), in the order of `seed`."""
        if bucket not in self.manifest.buckets:
            raise UserError(f"data set {self.folder} has no bucket {bucket}; it has {', '.join(self.manifest.buckets)}")
        return SampleSet(self, bucket, split, seed)

    def normalise(self, latents: np.ndarray) -> np.ndarray:
        """Raw latents [..., T, h, w, C] -> what batches hold."""
        return manifests.normalise(latents, self.manifest.statistics)

    def denormalise(self, latents: np.ndarray) -> np.ndarray:
        return manifests.denormalise(latents, self.manifest.statistics)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Normalised latents [T, h, w, C], as in a batch or from the sampler -> uint8 frames [F, H, W, 3]."""
        return self.tokenizer.decode(np.moveaxis(self.denormalise(latents), -1, -3))


class SampleSet:
    """An endless stream of samples: positions 0 .. len - 1 are the first epoch, and so on; `len` may be 0."""

    def __init__(self, dataset: Dataset, bucket: str, split: str, seed: int) -> None:
        self.bucket = Bucket.parse(bucket)
        self._dataset = dataset
        self._shards = dataset.manifest.buckets[bucket][split]
        counts = tuple(shard.count for shard in self._shards)
        self._length = sum(counts)
        self._order = lru_cache(maxsize=2)(lambda epoch: EpochOrder(counts, seed, bucket, epoch))
        self._reader = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return self._length

    def sample_key(self, position: int) -> str:
        """The key of the sample at a global position: "<source id>-<clip number>"."""
        reader, row = self._locate(position)
        return reader.key(row)

    def meta(self, position: int) -> dict[str, Any]:
        """What the shard tells about the sample at a global position: caption, source, fps, filter values and so on."""
        reader, row = self._locate(position)
        return reader.meta(row)

    def caption(self, position: int) -> str:
        """The caption of the sample at a global position."""
        return str(self.meta(position)["caption"])

    def fetch(self, positions: Sequence[int]) -> Batch:
        """The samples at these global positions, in this order. Safe to call from several threads."""
        spec = self._dataset.manifest.spec
        places = [self._locate(position) for position in positions]
        frames, height, width = latent_shape(self.bucket, spec.stride)
        latents = np.empty((len(places), frames, height, width, spec.channels), np.float32)
        text = np.zeros((len(places), spec.text_tokens, spec.text_width), np.float32)
        lengths = np.empty(len(places), np.int64)
        for item, (reader, row) in enumerate(places):
            latents[item] = np.moveaxis(reader.latent(row), 1, -1)
            vectors = reader.text(row)
            lengths[item] = len(vectors)
            text[item, : len(vectors)] = vectors
        keys = tuple(reader.key(row) for reader, row in places)
        return Batch(self._dataset.normalise(latents), text, lengths, keys)

    def _locate(self, position: int) -> tuple[ShardReader, int]:
        epoch, index = wrap(position, self._length)
        shard, row = self._order(epoch)[index]
        return self._reader(shard), row

    def _open(self, shard: int) -> ShardReader:
        entry = self._shards[shard]
        reader = ShardReader(self._dataset.folder / entry.bucket / f"{entry.name}.tar")
        if len(reader) != entry.count:
            raise ShardError(f"shard {reader.path} has {len(reader)} samples, not {entry.count}: encode the data set again")
        return reader


def open_dataset(folder: str | Path) -> Dataset:
    """Raises UserError when there is no finished data set in the folder."""
    folder = Path(folder)
    return Dataset(folder, manifests.read(folder), manifests.dataset_id(folder))


Request = TypeVar("Request")
Result = TypeVar("Result")


def prefetch(requests: Iterable[Request], fetch: Callable[[Request], Result], depth: int = 2) -> Generator[Result, None, None]:
    """Yields fetch(request) in order while a thread works up to `depth` results ahead of the consumer.

    An exception of fetch is raised here, in its place; close() ends the thread.
    """
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        try:
            for request in requests:
                ahead.append(thread.submit(fetch, request))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            thread.shutdown(wait=False, cancel_futures=True)
