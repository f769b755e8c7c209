"""What the user sees while a job runs: one live line on a terminal, a plain line now and then in a log. Owns no decision."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import uuid
from collections import deque
from typing import Any, TextIO

from cluster.encode import Progress as EncodeProgress
from trainer.curriculum import Stage, tokens_to_go

LOG_SECONDS = 10.0  # between the plain lines of a log
RECENT_STEPS = 20


class Terminal:
    """Permanent lines, and a live one that is rewritten in place where the output is a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live, self._printed = self._out.isatty(), float("-inf")
        self._open = False  # whether the live line is the last thing written

    def say(self, text: str) -> None:
        """A line that stays."""
        print(("\r\x1b[K" if self._live else "") + text, file=self._out, flush=True)
        self._open = False

    def show(self, text: str) -> None:
        """The state right now; in a log at most one line in ten seconds."""
        if self._live:
            fitting = text[: shutil.get_terminal_size().columns - 1]  # a line that wraps cannot be rewritten
            print(f"\r\x1b[K{fitting}", end="", file=self._out, flush=True)
            self._open = True
        elif time.monotonic() - self._printed >= LOG_SECONDS:
            self._printed = time.monotonic()
            print(text, file=self._out, flush=True)

    def end(self) -> None:
        """Leaves the live line, so that what anyone prints next starts on a line of its own."""
        if self._open:
            print(file=self._out, flush=True)
            self._open = False

    def encoding(self, progress: EncodeProgress) -> None:
        self.show(encoding_line(progress))


class Board:
    """What a controller has to tell, for whoever asks, from several threads: entries ("say" or "show", text) of one life of it."""

    def __init__(self) -> None:
        self.live = ""  # the state right now
        self._life = uuid.uuid4().hex
        self._said: list[str] = []
        self._shown = 0  # how often `live` has changed
        self._news = threading.Condition()

    def say(self, text: str) -> None:
        """A line that stays."""
        with self._news:
            self._said.append(text)
            self._news.notify_all()

    def show(self, text: str) -> None:
        """The state right now."""
        with self._news:
            self.live = text
            self._shown += 1
            self._news.notify_all()

    def encoding(self, progress: EncodeProgress) -> None:
        self.show(encoding_line(progress))

    def since(self, life: str, seen: int, patience: float) -> tuple[str, int, list[tuple[str, str]]]:
        """(this life, the number of its lines, those behind the first `seen` of `life` and then the state right now, where it changes
        meanwhile). Waits for news, `patience` seconds at most; a reader of another life is told everything."""
        with self._news:
            first, shown = (seen if life == self._life else 0), self._shown
            self._news.wait_for(lambda: len(self._said) > first or self._shown > shown, patience)
            news = [("say", text) for text in self._said[first:]]
            return self._life, len(self._said), news + [("show", self.live)] * (self._shown > shown)


def encoding_line(progress: EncodeProgress) -> str:
    """How far the videos are."""
    slowest = f"  waiting for {progress.bottleneck}" if progress.bottleneck != "none" else ""
    return (
        f"encode {progress.done}/{progress.total} videos  {progress.clips} clips  {progress.rate:.1f} videos/s  "
        f"ETA {clock(progress.eta)}{slowest}"
    )


def preflight_line(event: dict[str, Any]) -> str:
    """What a new run's trial of its stages has shown."""
    fullest = max(event["stages"], key=lambda stage: stage["peak_bytes"])
    speed = event["bus_bytes_per_second"]
    collectives = f"; all-reduce {speed / 1e6:,.0f} MB/s per rank" if speed else ""
    return f"tried {len(event['stages'])} stages in {event['seconds']:.1f} s: {fullest['peak_bytes'] / 1e9:.1f} GB at the peak{collectives}"


class TrainingLine:
    """The live line of a run, from the step messages of rank 0."""

    def __init__(self, stages: list[Stage]) -> None:
        self._stages = stages
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_STEPS)

    def text(self, message: dict[str, Any], stage_step: int) -> str:
        """The line after one more step, the `stage_step`-th of its stage."""
        if self._recent and self._recent[-1]["stage"] != message["stage"]:
            self._recent.clear()
        self._recent.append(message)
        busy, waiting = (sum(step[key] for step in self._recent) for key in ("step_seconds", "data_seconds"))
        rate = sum(step["tokens"] for step in self._recent) / (busy + waiting)
        index = next(i for i, stage in enumerate(self._stages) if stage.name == message["stage"])
        loss = f"{message['loss']:.4f}" if message["loss"] is not None else "skipped"
        stage = f"stage {index + 1}/{len(self._stages)} {message['stage']}  step {stage_step}/{self._stages[index].promotion.max_steps}"
        speed = f"{rate:,.0f} tokens/s  data wait {waiting / (busy + waiting):.0%}"
        return f"{stage}  loss {loss}  {speed}  ETA {clock(tokens_to_go(self._stages, index, stage_step) / rate)}"


def clock(seconds: float) -> str:
    """3:07 or 2:05:09; a dash when unknown."""
    if seconds == float("inf"):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
