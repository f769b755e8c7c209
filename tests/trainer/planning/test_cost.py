"""What a device sends, as the cost model counts it, against the collectives that the real model and engine make under fake groups."""

from __future__ import annotations

import pytest

from model.config import ModelConfig
from tests.distributed.harness import run_ranks
from tests.trainer.planning.fake_step import Case, step
from trainer.planner import Layout
from trainer.planning.cost import DEVICES, Cluster, step_cost
from trainer.planning.memory import Numerics
from trainer.planning.workload import Workload, all_frames

MODEL = ModelConfig(width=512, depth=6, heads=8, head_width=512)
LAYOUTS = [
    Layout(4, 1, 1, 0, 1, 2),
    Layout(4, 1, 1, 1, 1, 2),
    Layout(4, 1, 1, 2, 1, 2),
    Layout(4, 1, 1, 3, 1, 2),
    Layout(1, 4, 1, 1, 2, 1),
    Layout(1, 4, 1, 1, 2, 1, True),
    Layout(1, 1, 4, 1, 2, 1),
    Layout(2, 2, 2, 1, 2, 2, True, "full"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_bytes_that_are_sent_are_those_that_were_counted(layout: Layout) -> None:
    frames, height, width = 4, 16, 16
    case = Case(MODEL, layout, frames, height, width)
    samples, tokens = layout.dp * layout.micro_batch * layout.accumulation, height * width
    work = Workload("stage", MODEL, samples, frames * tokens, (all_frames(frames, tokens, 1),))
    cluster = Cluster(layout.dp * layout.tp * layout.sp, 8, 80e9, DEVICES["H100"], 0.4)
    (done,) = run_ranks(1, step, case, timeout=200)
    assert step_cost(work, layout, cluster, Numerics("fp32", cuda=False)).sent == pytest.approx(done.sent, rel=0.15)
