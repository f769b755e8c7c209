"""The report page: well-formed, self-contained, safe for any name, and complete for runs that went well, badly or nowhere."""

from __future__ import annotations

import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import events
from trainer.goodput import Goodput
from trainer.inspection import report
from trainer.inspection.chart import COLOURS, HEIGHT, LEFT, POINTS, RIGHT, TOP, WIDTH, Line, chart, nice
from trainer.inspection.chronicle import event_table
from trainer.inspection.curves import event_marks, stage_starts
from trainer.inspection.sheet import Row, contact_sheet
from trainer.inspection.verdict import time_bars, verdict
from trainer.metrics import MetricsLog, StepMetrics

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


def test_the_page_is_balanced_and_loads_nothing() -> None:
    source = report.page(RUN, STEPS, HAPPENED)
    page = Page(source)
    assert source.startswith("<!doctype html>")
    assert {"html", "head", "title", "body", "main", "svg", "table"} <= set(page.tags)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("data:")] == []
    assert "http" not in source.replace("http://www.w3.org/2000/svg", "")  # the name of a language, not a place
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_page_tells_losses_speeds_stages_data_and_events() -> None:
    page = Page(report.page(RUN, STEPS, HAPPENED))
    assert page.of("h2") == ["Is it learning?", "Is it fast?", "Stages", "Data", "What happened"]
    assert {"training", "held-out", "frame 1", "frame 2", "tokens/s", "data wait"} <= set(page.of("button"))
    assert "frame 0" not in page.of("button")  # nothing ever predicts the given frame
    assert "10 steps, the last on 2 workers, in stage second" in page.of("p")[0]
    assert "1 generation, 1 failure, 1 promotion, 0 commits" in page.of("p")[0]
    cells = page.of("td")
    first = cells.index("first")
    assert cells[first : first + 5] == ["first", "5", f"{sum(1 / n for n in range(1, 6)) / 5:.4f}", "0.3125", "max_steps 5"]
    for name, reason in (("unreadable: bad.mp4", "no video stream"), ("damaged: cut.mp4", "2 broken"), ("rejected: motion", "1")):
        assert cells[cells.index(name) + 1] == reason


def test_every_chart_marks_the_stages() -> None:
    page = Page(report.page(RUN, STEPS, HAPPENED))
    charts = page.tags.count("svg")
    assert charts == 6
    assert page.of("text").count("first") == page.of("text").count("second") == charts
    assert stage_starts(STEPS) == [(1, "first"), (6, "second")]


def test_every_event_but_start_and_evaluations_has_a_row() -> None:
    cells = Page(event_table(HAPPENED)).of("td")
    assert cells[1::3] == ["layout", "promotion", "failure"]
    assert cells[-3:] == ["01:00:00", "failure", "generation 1, rank 1, reason killed by signal 9"]


def test_names_of_any_kind_stay_text() -> None:
    evil = '<script>alert("x")<b>&'
    happened = [
        event("start", sources={"total": 1, "ok": 0, "rejected": {evil: 1}, "failed": {evil: evil}, "damaged": {evil: evil}}),
        event("layout", stage=evil, step=0),
        event("promotion", stage=evil, step=2, reason=evil),
    ]
    source = report.page(Path(evil), [step(1, evil), step(2, evil)], happened)
    page = Page(source)
    assert page.tags.count("script") == source.count("<script") == 1
    assert set(page.of("title")) == {evil}
    assert page.of("h1") == [evil]
    assert page.of("td").count(evil) >= 4


def test_a_run_that_made_no_step_has_a_page() -> None:
    page = Page(report.page(RUN, [], HAPPENED[:1]))
    assert page.of("p") == ["No step was made yet."]
    assert page.of("h2") == ["Data"]
    assert Page(report.page(RUN, [], [])).of("h2") == []


def test_a_skipped_step_leaves_no_point_in_the_losses() -> None:
    steps = [step(1), step(2, loss=None), step(3)]
    found = re.findall(r"<svg.*?</svg>", report.page(RUN, steps, []))
    losses, by_frame, norms, *speeds = (Page(text).coordinates() for text in found)
    assert [len(line) for line in losses] == [2]
    assert [len(line) for line in by_frame] == [2, 2]
    assert [len(line) for line in norms] == [2]
    assert {len(line) for lines in speeds for line in lines} == {3}


def test_a_run_of_skipped_steps_alone_has_a_page_without_loss_charts() -> None:
    page = Page(report.page(RUN, [step(1, loss=None), step(2, loss=None)], []))
    assert page.of("h2") == ["Is it learning?", "Is it fast?", "Stages"]
    assert "too few steps to tell" in page.of("p")[1]
    assert page.tags.count("svg") == 3


def test_what_a_restart_went_back_behind_is_not_in_the_charts() -> None:
    again = [event("layout", stage="first", step=4), event("evaluation", stage="first", step=5, held_out_loss=0.25)]
    page = Page(report.page(RUN, STEPS, [*HAPPENED, *again]))
    cells = page.of("td")
    assert "0.2500" in cells
    assert "0.3125" not in cells
    assert "2 generations" in page.of("p")[0]


def test_the_file_shows_the_sheet_and_is_whole(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for record in STEPS:
        log.write(StepMetrics(**record))
    log.sync()
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    contact_sheet([Row("a cat", frames, frames, 1)], tmp_path / "samples" / "contact-sheet.png")
    folder = str(tmp_path / "samples")
    events.record(tmp_path, "samples", step=10, folder=folder, seconds=2.0, psnr=20.25, psnr_copy_last_frame=15.0, clips=1)
    path = report.write(tmp_path)
    page = Page(path.read_text())
    assert page.of("h1") == [tmp_path.name]
    assert "What does it look like now?" in page.of("h2")
    assert any(name == "src" and value.startswith("data:image/png;base64,") for name, value in page.attributes)
    assert "after step 10: PSNR 20.2 dB" in page.of("figcaption")[0]
    assert folder not in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".part"] == []


def test_samples_whose_sheet_is_gone_are_left_out(tmp_path: Path) -> None:
    gone = event("samples", step=10, folder=str(tmp_path / "gone"), seconds=2.0, psnr=20.0, psnr_copy_last_frame=15.0, clips=1)
    page = Page(report.page(RUN, STEPS, [*HAPPENED, gone]))
    assert "img" not in page.tags
    assert "samples" in page.of("td")


def test_an_empty_chart_is_nothing() -> None:
    assert chart("title", []) == ""
    assert chart("title", [Line("line", [])], [(1, "mark")]) == ""


def test_a_chart_starts_at_zero_and_keeps_its_points_inside() -> None:
    page = Page(chart("title", [Line("up", [(0, 0.0), (100, 2.0)]), Line("flat", [(50, 1.0)])]))
    up, flat = page.coordinates()
    bottom, top = up[0][1], up[1][1]
    assert up == [(LEFT, bottom), (WIDTH - RIGHT, TOP)]
    assert flat == [(LEFT + (WIDTH - LEFT - RIGHT) / 2, (bottom + top) / 2)]
    assert bottom < HEIGHT
    assert {"0", "25", "50", "75", "100", "0.5", "1", "1.5", "2"} <= set(page.of("text"))


def test_a_chart_of_one_point_or_of_zeros_can_be_drawn() -> None:
    for points in ([(0, 0.0)], [(1, 3.0)], [(5, 0.0), (6, 0.0)]):
        ((x, y), *_), *_ = Page(chart("title", [Line("line", points)])).coordinates()
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT


def test_more_lines_than_colours_can_be_drawn() -> None:
    lines = [Line(f"frame {number}", [(0, 1.0), (1, number)]) for number in range(COLOURS + 3)]
    assert len(Page(chart("title", lines)).coordinates()) == len(lines)


def test_smoothing_is_the_mean_of_the_points_so_far() -> None:
    line = Line("loss", [(step, float(step)) for step in range(6)])
    assert line.smoothed(3).points == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (5, 4.0)]
    assert line.smoothed(1).points == list(line.points)
    assert Line("nothing", []).smoothed().points == []


@given(st.floats(1e-9, 1e12))
def test_a_nice_number_is_the_next_round_one(value: float) -> None:
    found = nice(value)
    mantissa = float(f"{found:e}".partition("e")[0])
    assert value <= found <= 2 * value * (1 + 1e-12)
    assert any(mantissa == pytest.approx(step) for step in (1, 1.5, 2, 3, 5, 8))


@pytest.mark.parametrize(("value", "found"), [(1, 1), (1.01, 1.5), (0.021, 0.03), (2.0, 2), (640, 800), (801, 1000), (9, 10)])
def test_nice_numbers_by_example(value: float, found: float) -> None:
    assert nice(value) == pytest.approx(found)


@pytest.mark.parametrize("value", [0.0, -3.0, float("nan"), float("inf")])
def test_nothing_to_show_is_scaled_to_one(value: float) -> None:
    assert nice(value) == 1.0


def test_a_long_run_is_drawn_with_as_many_points_as_can_be_seen() -> None:
    line = Line("loss", [(step, 1.0) for step in range(100_000)]).thinned()
    assert len(line.points) == POINTS
    assert (line.points[0][0], line.points[-1][0]) == (0, 99_999)
    assert len({x for x, _ in line.points}) == POINTS


def test_a_failure_is_marked_where_the_run_went_on() -> None:
    again = event("layout", stage="second", step=6)
    assert event_marks(STEPS, [*HAPPENED, again]) == [(6.0, "failure: killed by signal 9")]
    assert event_marks(STEPS, HAPPENED) == [(10.0, "failure: killed by signal 9")]  # it did not go on: at the last step
    assert "failure: killed by signal 9" in Page(report.page(RUN, STEPS, HAPPENED)).of("title")


def test_the_wall_time_is_told_part_by_part_with_a_bar_each() -> None:
    page = Page(time_bars(Goodput(6.0, {"recompute": 3.0, "detect": 0.0, "other": 1.0})))
    assert page.of("p") == ["Goodput 60.0%: 6.0 of 10.0 s of wall time went into steps that count."]
    assert page.of("td")[0:3] == ["steps that count", "6.0 s", "60.0%"]
    assert page.of("td")[3:6] == ["steps thrown away", "3.0 s", "30.0%"]
    assert [value for name, value in page.attributes if name == "style"] == ["width:60.0%", "width:30.0%", "width:10.0%"]
    assert time_bars(Goodput(0.0, {"other": 0.0})) == ""


def test_the_page_says_whether_it_learns() -> None:
    evaluations = [event("evaluation", stage="second", step=step, held_out_loss=loss) for step, loss in ((6, 0.5), (8, 0.3), (10, 0.4))]
    assert verdict(STEPS, evaluations) == "In stage second the held-out loss fell from 0.5000 to 0.4000 (-20.0%); its best was 0.3000."
    assert "the training loss fell from 0.1667 to 0.1000" in verdict(STEPS, [])
    assert "too few steps" in verdict(STEPS[:1], [])


def test_samples_over_time_are_shown_newest_first_and_once_each(tmp_path: Path) -> None:
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    happened = []
    for step in (10, 20, 10):
        folder = tmp_path / "samples" / f"step-{step}"
        contact_sheet([Row("a cat", frames, frames, 1)], folder / "contact-sheet.png")
        elsewhere = f"/gone/samples/step-{step}"  # a run that was moved
        happened.append(event("samples", step=step, folder=elsewhere, seconds=1.0, psnr=20.0, psnr_copy_last_frame=15.0, clips=1))
    page = Page(report.page(tmp_path, STEPS, happened))
    assert [text.split(":")[0] for text in page.of("figcaption") if "Held-out" in text] == [
        f"Held-out clips after step {n}" for n in (20, 10)
    ]
    assert "after step 10" in page.of("summary")
