"""Saving beside training: a thread copies this rank's share of the fragments into host memory that it keeps, and writes them.

Training goes on at once: it waits only before it changes a weight while the copy still runs, and a step's forward and backward change
none. What was written becomes a commit by `seal`, which is called when every rank's file is on its disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.files import FileRecord, write_data
from trainer.checkpoint.fragments import Fragment, deal_writers
from trainer.checkpoint.store import file_header

Gather = Callable[[Any], list[Any]]  # an object of every rank, by rank; called in the same order on all ranks
Seal = Callable[[list[FileRecord]], None]


class WriteFailed(Exception):
    """A rank could not write its part of a commit; says which and why."""


class Saver:
    """The saving of one rank, under one layout. `gather` must not share a process group with training: it is called by the thread."""

    def __init__(self, fragments: Sequence[Fragment], rank: int, gather: Gather) -> None:
        mine = deal_writers(gather([fragment.place for fragment in fragments]))[rank]
        self._fragments = [fragment for fragment in fragments if fragment.place in mine]
        self._rank, self._gather = rank, gather
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        # The buffer's pages are touched before the first save needs them.
        self._host: Future[tuple[list[Fragment], Tensor]] = self._thread.submit(host_copies, self._fragments)
        self._saving: Future[None] | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._stall = 0.0

    def save(self, folder: Path, seal: Seal) -> None:
        """Write the fragments as they are now to `folder`, and when all ranks have, call `seal`; all in the background, after the save
        before this one. They must stay as they are until copied() has returned."""
        started = time.perf_counter()
        self.wait()
        path, ready = folder / f"rank-{self._rank:05d}.safetensors", computed(self._fragments)
        self._copied.clear()
        self._saving = self._thread.submit(self._save, path, seal, ready)
        self._stall += time.perf_counter() - started

    def copied(self) -> None:
        """Until the fragments may change again."""
        started = time.perf_counter()
        self._copied.wait()
        self._stall += time.perf_counter() - started

    def stall(self) -> float:
        """Seconds that save() and copied() have kept training waiting since this was last asked."""
        stall, self._stall = self._stall, 0.0
        return stall

    def check(self) -> None:
        """Raises what the writing that goes on has failed with, without waiting for it."""
        if self._saving and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Until the last save is a commit. Raises what writing it failed with."""
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def close(self) -> None:
        """Finish what is being saved and end the thread; for a way out that is an error's already, so it raises nothing itself."""
        self._thread.shutdown(wait=True)

    def _save(self, path: Path, seal: Seal, ready: torch.Event | None) -> None:
        copies, buffer = self._host.result()
        try:
            copy_to_host(self._fragments, copies, ready)
        finally:
            self._copied.set()
        self._write(path, copies, buffer, seal)

    def _write(self, path: Path, copies: list[Fragment], buffer: Tensor, seal: Seal) -> None:
        record: FileRecord | str | None = None
        try:
            if copies:
                record = write_data(path, [memoryview(file_header(copies)), memoryview(buffer.numpy()).cast("B")])
        except OSError as error:
            record = f"{path} cannot be written ({error.strerror})"
        records = self._gather(record)
        if failed := [each for each in records if isinstance(each, str)]:
            raise WriteFailed(failed[0])
        try:
            seal([each for each in records if each])
        finally:
            self._gather(None)  # no rank begins the next save while one still tidies up after this


def host_copies(fragments: Sequence[Fragment]) -> tuple[list[Fragment], Tensor]:
    """The same fragments over one buffer of host memory, pinned where they live on a GPU, in the order in which they are written."""
    views = [view for fragment in fragments for view in fragment.tensors.values()]
    pinned = any(view.is_cuda for view in views)
    buffer = torch.zeros(sum(len(view) for view in views), pin_memory=pinned)
    places = iter(buffer.split([len(view) for view in views]))
    return [replace(fragment, tensors={kind: next(places) for kind in fragment.tensors}) for fragment in fragments], buffer


def computed(fragments: Sequence[Fragment]) -> torch.Event | None:
    """The moment in a device's queue of work at which the fragments hold what was asked of them; None on a CPU, which has no queue."""
    devices = {view.device for fragment in fragments for view in fragment.tensors.values() if view.device.type != "cpu"}
    if not devices:
        return None
    event = torch.Event(devices.pop())
    event.record()
    return event


@torch.no_grad()
def copy_to_host(fragments: Sequence[Fragment], copies: Sequence[Fragment], ready: torch.Event | None) -> None:
    """Copy every tensor from the moment `ready` on, beside the device's other work; done when it returns."""
    sources = [view for fragment in fragments for view in fragment.tensors.values()]
    targets = [view for copy in copies for view in copy.tensors.values()]
    stream = None
    if ready is not None:
        stream = torch.Stream(ready.device)
        stream.wait_event(ready)
    with stream or nullcontext():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source, non_blocking=True)
    if stream:
        stream.synchronize()
