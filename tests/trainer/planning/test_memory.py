"""The memory model against torch's MemTracker: one step of the real model and engine under fake tensors and fake process groups."""

from __future__ import annotations

import pytest

from model.config import named_size
from tests.distributed.harness import run_ranks
from tests.trainer.planning.fake_step import Case, step
from trainer.planner import Layout
from trainer.planning.memory import Numerics, estimate, parameters
from trainer.planning.workload import Workload, all_frames, one_frame

SMALL, LARGE = named_size("videomar-0.4b"), named_size("videomar-1.4b")
WIDE, TALL = (4, 16, 16), (7, 16, 16)  # latent frames, height, width
FAST = [
    Case(SMALL, Layout(1, 1, 1, 0, 1, 1), *WIDE),
    Case(SMALL, Layout(4, 2, 2, 1, 2, 1, True, "full"), *WIDE, precision="bf16"),
    Case(LARGE, Layout(8, 1, 1, 2, 1, 2, False, "selective"), *WIDE, precision="bf16"),
]
SLOW = [
    Case(SMALL, Layout(1, 1, 1, 0, 4, 2), *WIDE, supervision="one_frame"),
    Case(SMALL, Layout(1, 1, 1, 0, 2, 1, False, "full"), *TALL),
    Case(SMALL, Layout(16, 1, 1, 1, 1, 2, False, "selective"), *WIDE, masks=2),
    Case(SMALL, Layout(8, 4, 1, 2, 2, 1), *WIDE),
    Case(SMALL, Layout(64, 1, 1, 3, 4, 2), *WIDE, supervision="one_frame", precision="bf16"),
    Case(LARGE, Layout(1, 1, 1, 0, 1, 1, False, "full"), *TALL),
    Case(LARGE, Layout(8, 2, 1, 1, 1, 2, True), *WIDE, precision="bf16"),
    Case(LARGE, Layout(16, 1, 4, 1, 2, 1, False, "selective"), *TALL, precision="bf16"),
    Case(LARGE, Layout(64, 8, 1, 1, 8, 1, True), *WIDE, precision="bf16"),
    Case(LARGE, Layout(16, 2, 2, 3, 1, 2, True, "full"), *TALL, precision="bf16"),
]


def work_of(case: Case) -> Workload:
    tokens = case.height * case.width
    sequence = one_frame(case.frames, tokens) if case.supervision == "one_frame" else all_frames(case.frames, tokens, case.masks)
    return Workload("stage", case.model, 512, case.frames * tokens, (sequence,))


@pytest.mark.parametrize("case", [*FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str)
def test_the_estimate_is_within_ten_percent_of_the_tracked_peak(case: Case) -> None:
    (done,) = run_ranks(1, step, case, timeout=280)
    expected = estimate(work_of(case), case.layout, Numerics(case.precision, cuda=False))
    print(f"{expected.total / done.peak:.3f} {expected}")
    assert done.parameters == parameters(case.model, case.layout.tp)
    assert done.updates > 0
    assert expected.total == pytest.approx(done.peak, rel=0.1)
