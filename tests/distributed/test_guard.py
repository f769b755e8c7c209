"""What the guard does to a run: a bad step leaves no trace but its event, too many take the run back and over the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.harness import RankFailed
from tests.distributed.test_parity import train_on
from tests.distributed.training import NAN_POSITION, recipe, stage
from trainer import events
from trainer.checkpoint.commit import last_commit
from trainer.config import RunConfig

STEPS, SAMPLES, BUCKET = 20, 39, "9x32x32"
BAD = NAN_POSITION // SAMPLES + 1  # the step that holds the bad sample
GUARD = {"window": 16, "skips": 3}


def guarded(**settings: Any) -> RunConfig:
    return recipe([stage("long", STEPS)], guard=settings.pop("guard", GUARD), commit_every=BAD - 1, **settings)


def told(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in events.read_events(run) if event["event"] == kind]


@pytest.fixture(scope="module")
def without_that_step(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A run that goes on, from the commit before the bad step, with the data behind it: one step fewer."""
    run = tmp_path_factory.mktemp("without") / "run"
    with pytest.raises(RankFailed, match="rank 0 died"):
        train_on(1, run, tiny_dataset, guarded(), die_at=BAD)
    events.record(run, "roll_back", generation=1, step=BAD - 1, samples={BUCKET: BAD * SAMPLES})
    return train_on(1, run, tiny_dataset, guarded())


def difference_elsewhere(lines: list[dict[str, Any]], without: list[dict[str, Any]]) -> float:
    """Largest relative difference of losses and gradient norms in all steps but the bad one."""
    pairs = zip(lines[: BAD - 1] + lines[BAD:], without[: STEPS - 1], strict=True)
    return max(abs(a[key] / b[key] - 1) for a, b in pairs for key in ("loss", "grad_norm"))


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_in_bf16_the_same_step_is_skipped(zero: int, without_that_step: list[dict[str, Any]], tiny_dataset: Path, tmp_path: Path) -> None:
    lines = train_on(2, tmp_path / "run", tiny_dataset, guarded(zero=zero, precision="bf16"), "a sample is NaN")
    assert [line["step"] for line in lines if line["skipped"]] == [BAD]
    assert [line["step"] for line in lines if line["loss"] is None] == [BAD]
    assert difference_elsewhere(lines, without_that_step) <= 0.1


@pytest.mark.parametrize("bad", ["a sample is NaN", "a gradient spikes"])
@pytest.mark.parametrize(("world", "zero"), [(1, 1), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_a_bad_step_leaves_no_trace_but_its_event(
    bad: str, world: int, zero: int, without_that_step: list[dict[str, Any]], tiny_dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    lines = train_on(world, run, tiny_dataset, guarded(zero=zero), bad)
    assert [line["step"] for line in lines if line["skipped"]] == [BAD]
    assert difference_elsewhere(lines, without_that_step) <= 1e-5
    (skip,) = told(run, "skip")
    assert (skip["step"], len(skip["samples"])) == (BAD, SAMPLES)
    assert skip["not_finite"] == ([skip["samples"][NAN_POSITION % SAMPLES]] if "NaN" in bad else [])
    newest = last_commit(run)
    assert newest is not None
    assert newest.state.skipped == (BAD - 1,)


def test_too_many_bad_steps_take_the_run_back_to_its_commit_and_over_the_data(tiny_dataset: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", guarded()
    lines = train_on(2, run, tiny_dataset, config, "three steps are NaN")
    assert [line["skipped"] for line in lines] == [False] * (BAD - 1) + [True] * 3
    (back,) = told(run, "roll_back")
    assert (back["step"], back["start"], back["samples"]) == (BAD - 1, {BUCKET: (BAD - 1) * SAMPLES}, {BUCKET: (BAD + 2) * SAMPLES})
    lines = train_on(1, run, tiny_dataset, config, "three steps are NaN")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert not any(line["skipped"] for line in lines)
    assert [line["samples_consumed"] for line in lines[BAD - 2 : BAD]] == [(BAD - 1) * SAMPLES, (BAD + 3) * SAMPLES]
    assert len(told(run, "roll_back")) == 1


def test_a_run_that_goes_back_too_often_fails_and_says_why(tiny_dataset: Path, tmp_path: Path) -> None:
    config = guarded(guard=GUARD | {"roll_backs": 0})
    with pytest.raises(RankFailed, match=r"3 steps in a row were skipped at step 9, after 0 returns to step 6; .*lower train\.lr"):
        train_on(1, tmp_path / "run", tiny_dataset, config, "three steps are NaN")
