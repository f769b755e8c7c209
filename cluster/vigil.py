"""How long a process may be silent before it counts as hung. The seat keeps one for the process it has forked; knows no clock."""

from collections import deque

RECENT = 20  # durations of a section that are remembered
TIMES = 10.0  # the longest of them, that a section may take
UNMEASURED = 40.0  # times the least silence, that a section may take which was never left before


class Vigil:
    """Over one process, from its signs of life. silence: seconds that are always granted. Times are any clock's seconds."""

    def __init__(self, silence: float, now: float) -> None:
        self.section = ""  # what it is doing; "": it has not said yet
        self.last = now  # its last sign of life
        self._silence = silence
        self._entered = now
        self._taken: dict[str, deque[float]] = {}

    def alive(self, now: float) -> None:
        """Any message."""
        self.last = now

    def enter(self, section: str, now: float) -> None:
        """It begins a section, which may be the same again."""
        self._taken.setdefault(self.section, deque(maxlen=RECENT)).append(now - self._entered)
        self.section, self._entered, self.last = section, now, now

    @property
    def patience(self) -> float:
        """Seconds of silence that are granted in the section it is in: what it has taken so far, many times over."""
        taken = self._taken.get(self.section)
        return max(self._silence, TIMES * max(taken)) if taken else UNMEASURED * self._silence

    def silent(self, now: float) -> float:
        """Seconds without a sign of life if they are too many, else 0. A process that never named a section is not judged."""
        quiet = now - self.last
        return quiet if self.section and quiet > self.patience else 0.0
