"""Where a run goes on from: draws the number of its next generation and finds the commit that this one starts from. run.py asks it once
for each; knows no seats and no stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from cluster.failures import RunFailed
from trainer import events, lease
from trainer.checkpoint.commit import Commit, ResumePoint, commit_folder, resume_point
from trainer.checkpoint.files import FileRecord, is_sound
from trainer.curriculum import RunState


def standing(found: Commit | None) -> RunState:
    """Where a run stands with its commit, or without one."""
    return found.state if found else RunState()


class Resumption:
    """A run's, for as long as this process steers it. number: of the last generation drawn; a newer one in the folder means that another
    process took over."""

    def __init__(self, run: Path, number: int, say: Callable[[str], None]) -> None:
        self.number = number
        self._run, self._say = run, say
        self._sealed: set[Path] = set()  # commits that were made in this life
        self._verified = functools.cache(is_sound)  # the bytes of others are read once
        self._passed_over: set[str] = set()

    def seal(self, step: int) -> None:
        """The generation has made a commit, which need not be read to be believed."""
        self._sealed.add(commit_folder(self._run, step, self.number))

    def point(self) -> ResumePoint:
        """The commit to go on from, and which newer ones cannot be."""
        return resume_point(self._run, self._is_sound)

    def commit(self) -> Commit | None:
        """The commit to go on from; says what newer ones are passed over."""
        point = self.point()
        for folder, reason in point.passed_over:
            if folder not in self._passed_over:
                self._say(f"commit {folder} is passed over: {reason}")
                events.record(self._run, "passed_over", commit=folder, reason=reason)
        self._passed_over |= {folder for folder, _ in point.passed_over}
        return point.commit

    def draw(self) -> None:
        """The next generation's number, from which on no earlier one makes a commit. Raises RunFailed when the run is another process's."""
        self.check_owner()
        self.number = lease.draw(self._run)

    def check_owner(self) -> None:
        """Raises RunFailed when another process steers the run by now."""
        if not lease.holds(self._run, self.number):
            raise RunFailed(f"another process has taken over {self._run}")

    def _is_sound(self, folder: Path, files: tuple[FileRecord, ...]) -> bool:
        """Whether a commit whose files have their sizes has their bytes too."""
        return folder in self._sealed or self._verified(folder, files)
