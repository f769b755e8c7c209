"""The commits of one generation on one rank: which folder, which marker, which old ones go. Made by process.py, called by the loop."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.checkpoint.commit import Commit, commit_folder, prune, write_marker
from trainer.checkpoint.saver import Saver
from trainer.curriculum import RunState
from trainer.journal import Journal


@dataclass(frozen=True)
class Keeper:
    """Makes commits. journal: rank 0's, which makes valid what all ranks have written; None elsewhere. keep: permanent commits."""

    run: Path
    generation: int
    dataset: str
    recipe: str
    keep: int
    saver: Saver
    journal: Journal | None

    def commit(self, state: RunState, reason: str, permanent: bool) -> None:
        """Begin a commit of the state as it is now."""
        folder = commit_folder(self.run, state.step, self.generation)
        commit = Commit(folder, state, self.generation, self.dataset, self.recipe, reason, permanent)
        begun = time.perf_counter()
        self.saver.save(folder, lambda files: self.seal(replace(commit, files=tuple(files)), begun))

    def seal(self, commit: Commit, begun: float) -> None:
        """On rank 0: the steps before the commit are on the disk, then its marker, then older commits go."""
        if self.journal:
            self.journal.sync()
            write_marker(commit, self.journal.check_owner)
            self.journal.check_owner()  # once more: a newer generation may be reading what would be deleted
            size, seconds = sum(file.bytes for file in commit.files), time.perf_counter() - begun
            self.journal.event("commit", step=commit.state.step, reason=commit.reason, seconds=seconds, bytes=size)
            with contextlib.suppress(OSError):  # somebody reads there: the next commit deletes what is left
                prune(self.run, commit, self.keep)
