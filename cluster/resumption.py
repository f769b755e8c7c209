"""Where a run goes on from: draws the number of its next generation and finds the commit that this one starts from. run.py asks it once
for each; knows no seats and no stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.failures import RunFailed
from trainer import events, lease
from trainer.checkpoint.commit import Commit, ResumePoint, commit_folder, resume_point
from trainer.checkpoint.files import FileRecord, is_sound
from trainer.curriculum import RunState

LIVES, LIVES_SECONDS = 5, 3600.0  # that controllers may take for one commit, within so long


def check_lives(run: Path, now: float) -> None:
    """Raises RunFailed where one controller after the other has died: what they meet at the same place the next one meets too. A commit or
    a start by hand begins the count anew."""
    begun = max((event["time"] for event in events.read_events(run) if begins_anew(event)), default=0.0)
    lives = lease.lives(run, max(begun, now - LIVES_SECONDS))
    if lives > LIVES:
        raise RunFailed(f"its controller has died {lives - 1} times within an hour without a new commit; Ray's logs say what of")


def begins_anew(event: dict[str, Any]) -> bool:
    return event["event"] == "commit" or (event["event"] == "start" and "happened" not in event)


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

    def doubt(self) -> None:
        """Nothing goes on from the newest commit, time after time: believe none that has not been read."""
        self._sealed.clear()

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
