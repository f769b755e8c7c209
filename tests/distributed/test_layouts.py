"""Promise 1: 20 steps of every objective under every layout of up to 4 processes equal a plain loop on one, to 1e-5, gradients included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.layouts import OBJECTIVES, Case, Trace, train_cases, train_references

pytestmark = pytest.mark.timeout(1800)  # the first test of a session trains all cases: minutes on two quiet cores

# (tp, megatron_sp, sp, dp) of all degrees {1, 2, 4} x {off, on} x {1, 2, 4} x {1, 2} that fit 4 processes.
SHAPES = [
    (tp, cut, sp, dp)
    for tp in (1, 2, 4)
    for cut in (False, True)
    for sp in (1, 2, 4)
    for dp in (1, 2)
    if tp * sp * dp <= 4 and (tp > 1 or not cut)
]
# Every shape at every ZeRO stage; the objective goes round, so that every shape and every stage sees all four.
MATRIX = [Case(*shape, zero, OBJECTIVES[(number + zero) % 4]) for number, shape in enumerate(SHAPES) for zero in range(4)]
DOUBLE = [
    Case(4, True, 1, 1, 0, OBJECTIVES[0], double=True),
    Case(2, True, 2, 1, 0, OBJECTIVES[1], double=True),
    Case(2, False, 1, 2, 0, OBJECTIVES[2], double=True),
    Case(1, False, 2, 2, 0, OBJECTIVES[3], double=True),
]
OPTIONS = [
    Case(2, True, 1, 2, 3, OBJECTIVES[0], settings=(("checkpointing", "full"),)),
    Case(2, True, 2, 1, 1, OBJECTIVES[1], settings=(("checkpointing", "selective"),)),
    Case(1, False, 2, 2, 2, OBJECTIVES[2], settings=(("offload", True),)),
    Case(2, False, 1, 2, 3, OBJECTIVES[3], settings=(("offload", True),)),
]
PLANTED = [
    Case(tp=2, zero=1, mistake="q/k-norm gradients not summed"),
    Case(tp=2, zero=2, mistake="null text's gradient not summed"),
    Case(tp=2, megatron_sp=True, zero=1, mistake="gradients of cut tokens not summed"),
    Case(sp=2, zero=1, mistake="wrong mask on one rank"),
    Case(sp=2, zero=2, mistake="sequence averaged, not summed"),
    Case(sp=2, zero=0, mistake="text cut over the sequence group"),
    Case(sp=2, zero=0, mistake="positions of the first rank on all"),
    Case(dp=2, zero=3, mistake="not averaged over replicas"),
    Case(dp=2, zero=1, mistake="each replica its own gradient"),
    Case(sp=2, zero=3, mistake="ZeRO-3 partitions over another group"),
    Case(tp=2, zero=0, mistake="bias added by every rank"),
    Case(tp=2, dp=2, zero=1, mistake="norm counts whole parameters per rank"),
]
EVERY = MATRIX + DOUBLE + OPTIONS + PLANTED


@pytest.fixture(scope="module")
def references(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references") / "traces.pt"
    run_ranks(1, train_references, tiny_dataset, path)
    traces: dict[object, Trace] = torch.load(path, weights_only=False)
    for trace in traces.values():
        assert min(trace.norms) > 0.05, "clipping must be active in every step"
        assert trace.losses[-1] < trace.losses[0]
    return path


@pytest.fixture(scope="module")
def errors(tiny_dataset: Path, references: Path) -> dict[Case, dict[str, float]]:
    """Of every case the largest relative difference over its ranks, by what was compared. One process group per world size."""
    found: dict[Case, dict[str, float]] = {}
    for world in (1, 2, 4):
        cases = [case for case in EVERY if case.world == world]
        by_rank = run_ranks(world, train_cases, tiny_dataset, cases, references, timeout=900.0)
        for case, *ranks in zip(cases, *by_rank, strict=True):
            found[case] = {what: max(errors[what] for errors in ranks) for what in ranks[0]}
    return found


@pytest.mark.parametrize("case", MATRIX + OPTIONS, ids=str)
def test_a_layout_trains_as_one_process_does(case: Case, errors: dict[Case, dict[str, float]]) -> None:
    assert {what: error for what, error in errors[case].items() if not error <= 1e-5} == {}


@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_in_double_precision_nothing_but_rounding_is_left(case: Case, errors: dict[Case, dict[str, float]]) -> None:
    assert {what: error for what, error in errors[case].items() if not error <= 1e-10} == {}


@pytest.mark.parametrize("case", PLANTED, ids=lambda case: case.mistake)
def test_a_planted_mistake_is_noticed(case: Case, errors: dict[Case, dict[str, float]]) -> None:
    assert max(errors[case].values()) > 1e-4
