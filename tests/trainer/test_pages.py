"""The pages in a real browser: nothing on the console, nothing asked of a network, readable on a desk and on a phone, by keyboard too.

Screenshots of every width and scheme are left in the test's temporary folder, whose path is printed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import Browser, chromium
from tests.trainer.test_report import HAPPENED, event, step
from trainer import events
from trainer.inspection import encoded, report
from trainer.inspection.evaluation import page
from trainer.inspection.sheet import Row, contact_sheet
from trainer.metrics import MetricsLog, StepMetrics
from trainer.study import page as study_page
from trainer.study.law import Law

pytestmark = pytest.mark.timeout(200)
SIZES = [(1280, False), (1280, True), (390, False), (390, True)]
FIT = """[...document.querySelectorAll('h1,h2,p,table,figure,details,video,output')]
  .filter(e => !e.closest('.wide') && (e.getBoundingClientRect().right > innerWidth + 1)).map(e => e.tagName)"""
SMALL_TEXT = "[...document.querySelectorAll('svg text,td,p,button')].filter(e => e.getBoundingClientRect().height < 9).length"
# WCAG's contrast of text against the page, by the computed colours.
CONTRAST = """(() => {
  const linear = n => n <= .03928 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4;
  const light = (c) => { const v = c.match(/\\d+/g).slice(0, 3).map(n => linear(n / 255));
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const back = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (e) => { const c = light(getComputedStyle(e).color); return (Math.max(c, back) + .05) / (Math.min(c, back) + .05); };
  return Math.min(...[...document.querySelectorAll('h1,p,td,button,figcaption,output')].map(ratio));
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run of two stages with a failure, samples, pictures of clips, long names and many steps."""
    run = tmp_path_factory.mktemp("a-run-with-quite-a-long-name")
    log = MetricsLog(run)
    for number in range(1, 301):
        log.write(StepMetrics(**step(number, "two-frames" if number <= 120 else "three-frames-and-larger", 1 / number**0.3)))
    log.sync()
    frames = np.random.default_rng(0).integers(0, 255, (9, 48, 48, 3), np.uint8)
    contact_sheet([Row("a red circle moves left", frames, frames, 1)] * 3, run / "samples" / "step" / "contact-sheet.png")
    happened = [*HAPPENED, event("layout", stage="three-frames-and-larger", step=150, dp=1, seconds={"group": 0.2})]
    for told in happened:
        fields = {key: value for key, value in told.items() if key not in ("time", "event")}
        events.record(run, told["event"], **{**fields, "step": 4} if told["event"] == "evaluation" else fields)
    events.record(
        run, "samples", step=300, folder=str(run / "samples" / "step"), seconds=2.0, psnr=20.25, psnr_copy_last_frame=15.0, clips=3
    )
    pictures = [{"caption": "a red circle moves left " * number, "jpeg": encoded.jpeg(frames[number])} for number in range(1, 9)]
    buckets = [{"bucket": "17x96x96", "train": 230, "held_out": 26, "left_out": {"duplicate": 2}}]
    (run / encoded.FILE).write_text(json.dumps({"buckets": buckets, "pictures": pictures}))
    return report.write(run)


@pytest.fixture(scope="module")
def evaluation_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two models, with a clip."""
    known = {"mean": 12.345678, "low": 11.0, "high": 13.5, "by_seed": [12.0, 13.0]}
    loss = {"mean": 0.5, "by_frame": [None, 0.5, 0.6], "by_noise_level": [{"time": 1.0, "loss": 0.5}]}
    model = {
        "model": "/a/path/that/is/long/enough/to/need/more/than/one/line/runs/toy",
        "sampling": {"iterations": 16, "guidance": 1.5, "temperature": [1.0, 0.91, 0.901]},
        "measures": dict.fromkeys(page.UNITS, known),
        "moving_error_of_mean_sample": 500.0,
        "fvd": None,
        "curves": {"psnr": [20.0, 18.0, 17.0], "ssim": [0.9, 0.8, 0.7]},
        "losses": {"9x32x32": loss},
    }
    plain = dict.fromkeys(page.UNITS, 1.0)
    result = {"clips": ["a-0"], "seeds": [0, 1], "bucket": "9x32x32", "given": 1, "shown": 1, "models": {"A": model, "B": model}}
    result |= {"difference": dict.fromkeys(page.UNITS, known), "copying": plain, "truth": plain, "copying_curves": model["curves"]}
    frames = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), np.uint8)
    path = tmp_path_factory.mktemp("evaluation") / "evaluation.html"
    path.write_text(page.page(result, [("worst, 12.0 dB", "a red circle", page.side_by_side([frames, frames, frames], 8))]))
    return path


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's page: a law across widths, a family without one, and a run that failed."""
    law = Law(3e3, 0.3, 0.2, 0.012, 8)
    runs: list[dict[str, Any]] = [
        {"run": f"width-{width}_supervision-{family}", "family": f"supervision {family}", "state": "finished", "parameters": 400 * width**2}
        | {"steps": 420, "flops": 3e13, "held_out_loss": 0.5, "curve": [(place * 3e12, law.at(place * 3e12)) for place in range(6, 11)]}
        for width in (96, 192)
        for family in ("one_frame", "all_frames")
    ]
    runs.append({"run": "width-384", "family": "", "state": "failed: its train ended with exit code 1", "parameters": 12_000_000})
    laws = [
        {"family": "supervision one_frame", "points": 8, "law": asdict(law)},
        {"family": "supervision all_frames", "points": 2, "law": None},
    ]
    axes = {"model.width": ["96", "192", "384"], "train.supervision": ["one_frame", "all_frames"]}
    path = tmp_path_factory.mktemp("study") / "study.html"
    path.write_text(study_page.page({"study": "toy-study", "recipe": "toy", "axes": axes, "runs": runs, "laws": laws}))
    return path


@pytest.mark.parametrize(("width", "dark"), SIZES)
@pytest.mark.parametrize("name", ["report_file", "evaluation_file", "study_file"])
def test_a_page_is_readable_and_complains_of_nothing(
    name: str, width: int, dark: bool, browser: Browser, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(name), width, dark)
    picture = tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png"
    browser.screenshot(picture)
    print(f"screenshot {picture}")
    assert browser.complaints == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "the page itself scrolls sideways"
    assert browser.run(FIT) == []
    assert browser.run(SMALL_TEXT) == 0
    assert browser.run(CONTRAST) >= 4.5
    corner = np.asarray(Image.open(picture).convert("L"))[2, 2]
    assert corner < 60 if dark else corner > 200


def test_a_curve_is_read_by_pointer_and_by_keyboard(browser: Browser, report_file: Path) -> None:
    browser.open(report_file, 1280)
    assert browser.run("document.querySelector('figure.chart output').textContent.trim()") == ""
    browser.run("document.querySelector('figure.chart svg').focus()")
    browser.press("End", 35)
    told = browser.run("document.querySelector('figure.chart output').textContent")
    assert told.startswith("at 300 · training 0.1")
    browser.press("Home", 36)
    assert browser.run("document.querySelector('figure.chart output').textContent").startswith("at 1 · training 1")
    for _ in range(14):
        browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39, modifiers=8)
    browser.press("ArrowRight", 39)
    browser.run("document.querySelector('figure.chart svg').scrollIntoView()")
    box = browser.run(
        "(({x, y, width, height}) => [x, y, width, height])(document.querySelector('figure.chart svg').getBoundingClientRect())"
    )
    middle = box[0] + box[2] * (64 + 700 * 0.5) / 780
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=middle, y=box[1] + box[3] / 2)
    told = browser.run("document.querySelector('figure.chart output').textContent")
    assert told.startswith(("at 149", "at 150", "at 151"))
    assert "failure: killed by signal 9" in told


def test_a_line_is_hidden_and_shown_by_its_button(browser: Browser, report_file: Path) -> None:
    browser.open(report_file, 1280)
    shown = "[...document.querySelectorAll('figure.chart')[0].querySelectorAll('g[data-name]')].map(g => g.style.display)"
    browser.run("document.querySelector('.legend button').focus()")
    browser.press(" ", 32)
    assert browser.run(shown)[0] == "none"
    assert browser.run("document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    browser.press(" ", 32)
    assert browser.run(shown)[0] == ""


def test_everything_that_acts_or_scrolls_is_reached_by_the_tab_key(browser: Browser, report_file: Path) -> None:
    browser.open(report_file, 390)
    wanted = browser.run("document.querySelectorAll('button,summary,svg[tabindex],.wide[tabindex]').length")
    assert wanted > 15
    reached = 0
    for _ in range(wanted + 5):
        browser.press("Tab", 9)
        is_new = "document.activeElement !== document.body && !document.activeElement.seen"
        if browser.run(f"{is_new} ? (document.activeElement.seen = true) : false"):
            reached += 1
            assert browser.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached >= wanted
