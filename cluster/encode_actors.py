"""The two kinds of actors of the encode pool: decoders read videos and write shards, encoders turn clips into latents.
The pool calls them; what they do is data_pipeline's."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from data_pipeline.chunks import Chunk
from data_pipeline.encode import STALL_SECONDS, EncodedClip, Piece, commit_chunk, decode_source, encode_piece
from data_pipeline.loader import tokenizer_at
from data_pipeline.records import ChunkRecord, SourceRecord
from data_pipeline.sources import Source
from data_pipeline.spec import EncodeSpec
from data_pipeline.storage import FAULTS, Location
from data_pipeline.text import load_text

NICE = 19  # encoding takes what trainers on the same machine leave over
KEPT_BYTES = 64 << 20  # of free memory that a process does not give back: one clip after the other needs it
LARGEST_BYTES = 32 << 20  # of a block that comes out of it; glibc allows no more
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Decoded:
    """What travels with a piece: its bytes; with a source's last one the source's outcome; seconds in which it was not computed, for
    storage took them, or others on the same cores; faults of storage since the last word."""

    bytes: int
    outcome: SourceRecord | None
    waited: float
    faults: dict[str, int]


class Decoder:
    """A CPU actor. It holds the source it is at: what is not asked for stays with it, and that is what bounds the queue."""

    def __init__(self, spec: EncodeSpec, folder: Location, stall: int = STALL_SECONDS) -> None:
        _settle()
        self._spec, self._folder, self._stall = spec, folder, stall
        self._pieces: Generator[Piece, None, SourceRecord] | None = None
        self._next: Piece | SourceRecord | None = None
        self._waited = 0.0

    def start(self, source: Source, careful: bool) -> tuple[Decoded, Piece]:
        """The first piece of a source; whatever was left of another one is dropped."""
        self._pieces = self.decoding(source, careful)
        self._next = self._advance()
        return self.more()

    def more(self) -> tuple[Decoded, Piece]:
        """The next piece of the source, empty if it has no clips at all."""
        piece: Piece = ()
        if not isinstance(self._next, SourceRecord):
            assert self._next is not None, "asked for more of a source that has ended"
            piece, self._next = self._next, self._advance()
        ended = self._next if isinstance(self._next, SourceRecord) else None
        waited, self._waited = self._waited, 0.0
        return Decoded(sum(item.clip.frames.nbytes for item in piece), ended, waited, FAULTS.take()), piece

    def commit(
        self, chunk: Chunk, work: str, outcomes: list[SourceRecord], counts: list[int], *encoded: list[EncodedClip]
    ) -> tuple[ChunkRecord, dict[str, int]]:
        """Writes a chunk. `encoded` are the pieces of all its sources in order, `counts` how many each source has. Returns the brief
        record and the faults of storage."""
        pieces = iter(encoded)
        parts = [(outcome, [clip for _ in range(count) for clip in next(pieces)]) for outcome, count in zip(outcomes, counts, strict=True)]
        return commit_chunk(chunk, self._spec, work, parts, self._folder).brief(), FAULTS.take()

    def decoding(self, source: Source, careful: bool) -> Generator[Piece, None, SourceRecord]:
        return decode_source(source, self._spec, careful, self._stall)

    def _advance(self) -> Piece | SourceRecord:
        assert self._pieces is not None
        began, computed = time.monotonic(), time.process_time()
        try:
            return next(self._pieces)
        except StopIteration as end:
            return end.value
        finally:
            self._waited += max(0.0, time.monotonic() - began - (time.process_time() - computed))


class Encoder:
    """An actor without state, so that any of them can take over from any other; its codecs use the first GPU that they see."""

    def __init__(self, spec: EncodeSpec, tokenizer_folder: Location) -> None:
        _settle()
        self._spec = spec
        self._tokenizer = tokenizer_at(tokenizer_folder)
        self._text = load_text(tokenizer_folder, spec)

    def encode(self, source: Source, piece: Piece) -> tuple[int, Sequence[EncodedClip]]:
        """(clips, the clips encoded) of one piece."""
        return len(piece), encode_piece(piece, source, self._spec, self._tokenizer, self._text)


def _settle() -> None:
    """What either does before anything else."""
    os.nice(NICE)
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(M_TRIM_THRESHOLD, KEPT_BYTES)
        set_option(M_MMAP_THRESHOLD, LARGEST_BYTES)
