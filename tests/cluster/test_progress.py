import io
from typing import Any

import pytest

from cluster import progress
from cluster.encode import Progress
from cluster.progress import Terminal, TrainingLine, clock, preflight_line
from trainer.curriculum import Promotion, Stage

STAGES = [Stage("short", 5, 64, 64, 1000, Promotion(max_steps=10)), Stage("long", 9, 64, 64, 2000, Promotion(max_steps=5))]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(stage: str = "short", tokens: int = 1000, loss: float | None = 0.5, busy: float = 1.5, waiting: float = 0.5) -> dict[str, Any]:
    return {"stage": stage, "tokens": tokens, "loss": loss, "step_seconds": busy, "data_seconds": waiting}


def test_on_a_terminal_the_live_line_is_rewritten_and_a_permanent_one_takes_its_place() -> None:
    out = Tty()
    terminal = Terminal(out)
    terminal.show("step 1")
    terminal.show("step 2")
    terminal.say("saved")
    assert out.getvalue() == "\r\x1b[Kstep 1\r\x1b[Kstep 2\r\x1b[Ksaved\n"


def test_the_live_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Tty()
    Terminal(out).show("0123456789" * 3)
    assert out.getvalue() == "\r\x1b[K0123456789012345678"


def test_after_its_end_the_live_line_stays_and_others_print_below_it() -> None:
    out = Tty()
    terminal = Terminal(out)
    terminal.end()
    terminal.show("step 1")
    terminal.end()
    terminal.end()
    assert out.getvalue() == "\r\x1b[Kstep 1\n"
    terminal.say("saved")
    terminal.end()
    assert out.getvalue().endswith("saved\n")


def test_in_a_log_lines_are_plain_whole_and_ten_seconds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    terminal = Terminal(out)
    for now[0] in (0.0, 1.0, 9.9, 10.0, 19.0):
        terminal.show(f"at {now[0]} " + "x" * 200)
    terminal.say("saved")
    terminal.end()
    assert [line.rstrip(" x") for line in out.getvalue().splitlines()] == ["at 0.0", "at 10.0", "saved"]
    assert len(out.getvalue().splitlines()[0]) > 200
    assert "\x1b" not in out.getvalue()


def test_encoding_tells_how_far_how_fast_and_how_long_to_go() -> None:
    out = io.StringIO()
    Terminal(out).encoding(Progress(done=20, total=80, clips=55, seconds=10.0))
    assert out.getvalue() == "encode 20/80 videos  55 clips  2.0 videos/s  ETA 0:30\n"


def test_encoding_names_what_the_rest_waits_for() -> None:
    out = io.StringIO()
    Terminal(out).encoding(Progress(done=20, total=80, clips=55, seconds=10.0, bottleneck="decode"))
    assert out.getvalue().endswith("ETA 0:30  waiting for decode\n")


def test_the_eta_counts_the_tokens_of_all_stages_to_go_at_the_rate_so_far() -> None:
    text = TrainingLine(STAGES).text(step(), stage_step=4)
    # 6 x 1000 and 5 x 2000 tokens are left, at 1000 tokens in 2 seconds
    assert text == "stage 1/2 short  step 4/10  loss 0.5000  500 tokens/s  data wait 25%  ETA 0:32"


def test_a_new_stage_forgets_the_rate_of_the_one_before() -> None:
    line = TrainingLine(STAGES)
    line.text(step(), stage_step=10)
    text = line.text(step("long", tokens=2000, busy=1.0, waiting=0.0), stage_step=1)
    assert text == "stage 2/2 long  step 1/5  loss 0.5000  2,000 tokens/s  data wait 0%  ETA 0:04"


def test_the_rate_is_that_of_the_last_twenty_steps() -> None:
    line = TrainingLine(STAGES)
    line.text(step(busy=1000.0), stage_step=1)
    texts = [line.text(step(busy=1.0, waiting=0.0), stage_step=1) for _ in range(20)]
    assert "1,000 tokens/s" not in texts[-2]
    assert "1,000 tokens/s" in texts[-1]


def test_a_step_without_a_loss_says_that_it_was_skipped() -> None:
    assert "loss skipped" in TrainingLine(STAGES).text(step(loss=None), stage_step=1)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.6, "1:00"), (187, "3:07"), (3599, "59:59"), (7509, "2:05:09"), (360000, "100:00:00"), (float("inf"), "-")],
)
def test_times_are_shown_as_on_a_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(("speed", "told"), [(None, ""), (1.25e9, "; all-reduce 1,250 MB/s per rank")])
def test_what_a_new_runs_trial_has_shown_is_one_line(speed: float | None, told: str) -> None:
    stages = [{"stage": "short", "peak_bytes": 10**9}, {"stage": "long", "peak_bytes": 21 * 10**8}]
    line = preflight_line({"stages": stages, "seconds": 3.21, "bus_bytes_per_second": speed})
    assert line == f"tried 2 stages in 3.2 s: 2.1 GB at the peak{told}"
