"""What moves through the encode pool, and the actors that have it in hand. The pool's driver keeps these; they decide nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray
from ray.actor import ActorHandle

from data_pipeline.chunks import Chunk
from data_pipeline.records import SourceRecord
from data_pipeline.sources import Source


@dataclass(eq=False)
class Part:
    """A source on its way. Made anew when the source is begun again: what is under way for the old one is void."""

    source: Source
    chunk: Assembly
    outcome: SourceRecord | None = None
    encoded: list[ray.ObjectRef | None] = field(default_factory=list)  # by piece; None while it is on its way
    begun: bool = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def key(self) -> object:
        return self.source.id


@dataclass(eq=False)
class Assembly:
    """A chunk on its way, with a part for each of its sources."""

    index: int
    content: Chunk
    work: str
    parts: list[Part] = field(default_factory=list)

    @property
    def chunk(self) -> Assembly:
        return self

    @property
    def name(self) -> str:
        return self.content.name

    @property
    def key(self) -> object:
        return self.content.name

    @property
    def begun(self) -> bool:
        return any(part.begun for part in self.parts)

    @property
    def complete(self) -> bool:
        """Whether every source has its outcome and all its pieces are encoded."""
        return all(part.outcome and None not in part.encoded for part in self.parts)


@dataclass(eq=False)
class Piece:
    """Some clips of a part, decoded: a reference to `bytes` of frames."""

    part: Part
    number: int
    frames: ray.ObjectRef
    bytes: int

    @property
    def chunk(self) -> Assembly:
        return self.part.chunk

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def key(self) -> object:
        return self.part.source.id, self.number


Task = Part | Piece | Assembly  # to decode, to encode, to write


@dataclass(eq=False)
class Worker:
    """An actor, the calls it has in hand (oldest first), and the part whose further pieces a decoder still holds."""

    actor: ActorHandle
    calls: list[ray.ObjectRef] = field(default_factory=list)
    holds: Part | None = None
    dead: bool = False


@dataclass(frozen=True)
class Call:
    task: Task
    worker: Worker
    results: tuple[ray.ObjectRef, ...]  # besides the one that is waited for
