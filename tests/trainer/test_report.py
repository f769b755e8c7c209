"""The report page: well-formed, self-contained, safe for any name, and complete for runs that went well, badly or nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.trainer.report_page import HAPPENED, RUN, STEPS, Page, event, step
from trainer import events
from trainer.inspection import report
from trainer.inspection.chronicle import event_table
from trainer.inspection.curves import event_marks, stage_starts
from trainer.inspection.sheet import Row, contact_sheet
from trainer.metrics import MetricsLog, StepMetrics


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


def test_a_failure_is_marked_where_the_run_went_on() -> None:
    again = event("layout", stage="second", step=6)
    assert event_marks(STEPS, [*HAPPENED, again]) == [(6.0, "failure: killed by signal 9")]
    assert event_marks(STEPS, HAPPENED) == [(10.0, "failure: killed by signal 9")]  # it did not go on: at the last step
    assert "failure: killed by signal 9" in Page(report.page(RUN, STEPS, HAPPENED)).of("title")


def test_samples_over_time_are_shown_newest_first_and_once_each(tmp_path: Path) -> None:
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    happened = []
    for number in (10, 20, 10):
        folder = tmp_path / "samples" / f"step-{number}"
        contact_sheet([Row("a cat", frames, frames, 1)], folder / "contact-sheet.png")
        elsewhere = f"/gone/samples/step-{number}"  # a run that was moved
        happened.append(event("samples", step=number, folder=elsewhere, seconds=1.0, psnr=20.0, psnr_copy_last_frame=15.0, clips=1))
    page = Page(report.page(tmp_path, STEPS, happened))
    assert [text.split(":")[0] for text in page.of("figcaption") if "Held-out" in text] == [
        f"Held-out clips after step {n}" for n in (20, 10)
    ]
    assert "after step 10" in page.of("summary")
