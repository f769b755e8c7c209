"""A run's records and a reader of its report, for the tests of the page and of what stands on it."""

from __future__ import annotations

from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from trainer.metrics import StepMetrics

RUN = Path("run")
VOID = {"meta", "img", "br", "link", "input", "hr"}
Record = dict[str, Any]


class Page(HTMLParser):
    """Checks that tags are balanced while it reads; keeps the tags, the attributes and the text by tag."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]

    def coordinates(self) -> list[list[tuple[float, float]]]:
        """The points of every polyline."""
        lines = [value for name, value in self.attributes if name == "points"]
        return [[(float(x), float(y)) for x, y in (point.split(",") for point in line.split())] for line in lines]


def step(number: int, stage: str = "first", loss: float | None = 1.0) -> Record:
    by_frame = [None, loss, None if loss is None else loss / 2]
    counts = {"samples_consumed": 4 * number, "epoch": 0, "tokens": 64, "supervised_tokens": 20, "memory_bytes": 1}
    layout = {"world_size": 2, "generation": 1, "dp": 2, "tp": 1, "sp": 1, "zero": 1, "micro_batch": 2}
    seconds = {"step_seconds": 0.5, "data_seconds": 0.1, "checkpoint_seconds": 0.0}
    rates = {"tokens_per_second": 100.0, "supervised_tokens_per_second": 30.0, "mfu": 0.0, "lr": 1e-3}
    outcome: Record = {
        "loss": loss,
        "loss_by_frame": by_frame,
        "grad_norm": loss,
        "skipped": loss is None,
        "loss_by_source": {},
        "recompiles": 0,
    }
    fields: Record = {"step": number, "stage": stage, **outcome, **counts, **layout, **seconds, **rates}
    return asdict(StepMetrics(**fields))


def event(kind: str, **fields: Any) -> Record:
    return {"time": 3600.0, "event": kind} | fields


STEPS = [step(number, "first" if number <= 5 else "second", 1 / number) for number in range(1, 11)]
FATES = {"rejected": {"motion": 1}, "failed": {"bad.mp4": "no video stream"}, "damaged": {"cut.mp4": "2 broken"}}
HAPPENED = [
    event("start", sources={"total": 9, "ok": 7, **FATES}),
    event("layout", stage="first", step=0, dp=2, seconds={"group": 0.1}),
    event("evaluation", stage="first", step=5, held_out_loss=0.3125),
    event("promotion", stage="first", step=5, reason="max_steps 5"),
    event("failure", generation=1, rank=1, reason="killed by signal 9"),
]
