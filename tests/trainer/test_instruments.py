"""What a run's messages make of its meter: the numbers of steps and events, and wall time that is accounted for to the last second."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from cluster.encode_scaling import Load, Queues, Sizes, bottleneck
from data_pipeline.s3 import Fault
from trainer.curriculum import Promotion, Stage
from trainer.goodput import goodput
from trainer.instruments import RunInstruments, pulse
from trainer.meter import Meter
from trainer.metrics import BOTTLENECKS, LOSSES, POOLS, QUEUES, STORAGE_FAULTS

STAGES = [
    Stage("short", 5, 32, 32, 256, Promotion(max_steps=4)),
    Stage("long", 9, 32, 32, 384, Promotion(max_steps=2)),
]


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def step(number: int, **changes: Any) -> dict[str, Any]:
    told = {"step": number, "stage": "short", "loss": 1.0, "loss_by_frame": [None, 1.5], "grad_norm": 0.5, "lr": 1e-3, "epoch": 0}
    told |= {"tokens": 256, "supervised_tokens": 100, "world_size": 2, "generation": 1, "dp": 2, "tp": 1, "sp": 1, "zero": 1}
    told |= {"micro_batch": 4, "step_seconds": 1.0, "data_seconds": 0.25, "checkpoint_seconds": 0.0, "mfu": 0.0, "skipped": False}
    return told | {"samples_consumed": number * 8, "loss_by_source": {"5x32x32": 1.0}, "recompiles": 0} | changes


def instruments() -> tuple[RunInstruments, Clock]:
    clock = Clock()
    return RunInstruments(Meter("run"), STAGES, clock), clock


def value(run: RunInstruments, name: str, *labels: str) -> float | None:
    return {(found, key): number for found, key, number in run.meter.series()}.get((name, labels))


def spent(run: RunInstruments) -> dict[str, float]:
    return {labels[0]: number for name, labels, number in run.meter.series() if name == "time_seconds_total" and number}


def test_a_run_tells_where_it_stands() -> None:
    run, _ = instruments()
    assert value(run, "run_state", "encoding") == 1
    run.encoding(done=3, total=4, clips=7)
    assert (value(run, "encode_sources_done"), value(run, "encode_clips_total")) == (3, 7)
    run.dataset({"ok": 3, "rejected": 1, "failed": 0}, {"too short": 1}, {"train": 9, "held_out": 1})
    assert value(run, "dataset_rejected_sources", "too short") == 1
    run.generation(1, seats=2, state="training")
    assert (value(run, "run_state", "encoding"), value(run, "run_state", "training")) == (0, 1)
    run.step(step(1), stage_step=1)
    assert value(run, "run_remaining_tokens") == 3 * 256 + 2 * 384
    assert (value(run, "run_layout", "world"), value(run, "frame_loss", "1"), value(run, "frame_loss", "0")) == (2, 1.5, None)
    assert (value(run, "run_samples"), value(run, "tokens_total")) == (8, 256)


def test_the_encode_pool_is_told_with_its_queues_actors_and_bottleneck() -> None:
    run, _ = instruments()
    assert (value(run, "encode_actors", "decoders"), value(run, "encode_bottleneck", "none")) == (0, 1)
    run.pool(vars(Queues(waiting=9, decoded=2, held=1)), vars(Sizes(3, 2)), "encode")
    assert {labels[0]: number for name, labels, number in run.meter.series() if name == "encode_queue_items"} == {
        "waiting": 9,
        "decoding": 0,
        "decoded": 2,
        "encoding": 0,
        "committing": 0,
    }
    assert (value(run, "encode_actors", "decoders"), value(run, "encode_actors", "encoders")) == (3, 2)
    assert (value(run, "encode_bottleneck", "encode"), value(run, "encode_bottleneck", "none")) == (1, 0)


def test_every_answer_of_the_pool_about_its_bottleneck_is_declared() -> None:
    loads = [Load(), Load(blocked=1.0), Load(starved=1.0), Load(writing=1.0)]
    assert {bottleneck(load) for load in loads} == set(BOTTLENECKS)
    assert {field.name for field in fields(Queues)} >= set(QUEUES)
    assert {field.name for field in fields(Sizes)} == set(POOLS)


def test_clips_of_a_second_data_set_are_counted_on() -> None:
    run, _ = instruments()
    for clips in (7, 0, 4):
        run.encoding(1, 2, clips)
    assert value(run, "encode_clips_total") == 11


def test_each_stage_has_a_readiness_of_its_own() -> None:
    run, _ = instruments()
    run.readiness({"short": (1.0, 0.0), "long": (0.25, 90.0)})
    assert (value(run, "stage_readiness_ratio", "long"), value(run, "stage_ready_seconds", "long")) == (0.25, 90.0)
    run.readiness({"short": (1.0, 0.0), "long": (0.25, float("inf"))})
    assert (value(run, "stage_ready_seconds", "short"), value(run, "stage_ready_seconds", "long")) == (0.0, None)


def test_faults_of_storage_are_counted_by_kind_and_every_kind_is_declared() -> None:
    run, _ = instruments()
    assert value(run, "storage_errors_total", "denied") == 0
    run.message({"kind": "storage", "faults": {"transient": 2}}, 0)
    run.storage({"transient": 1})
    assert value(run, "storage_errors_total", "transient") == 3
    assert set(STORAGE_FAULTS) == set(get_args(Fault)) - {"missing", "exists"}


def test_a_roll_back_is_counted() -> None:
    run, _ = instruments()
    run.message({"kind": "event", "event": "layout", "step": 0, "recomputed": 0, "accumulation": 1}, 0)
    assert value(run, "roll_backs_total") == 0
    run.message({"kind": "event", "event": "roll_back", "step": 4}, 0)
    assert value(run, "roll_backs_total") == 1


def test_samples_are_told_beside_what_they_compare_with() -> None:
    run, _ = instruments()
    told = {"psnr": 20.0, "psnr_copy_last_frame": 15.0, "dynamic_degree": 0.25, "dynamic_degree_truth": 0.75}
    run.message({"kind": "samples", **told}, 0)
    assert (value(run, "sample_psnr_decibels", "generated"), value(run, "sample_psnr_decibels", "copy_last_frame")) == (20.0, 15.0)
    assert [value(run, "sample_dynamic_degree_ratio", video) for video in ("generated", "truth")] == [0.25, 0.75]


def test_whoever_listens_is_told_the_step_once_there_is_one() -> None:
    told: list[int] = []
    run = RunInstruments(Meter("run"), STAGES, tell=told.append)
    run.message({"kind": "event", "event": "layout", "step": 0, "recomputed": 0, "accumulation": 1}, 0)
    run.message({"kind": "step", **step(1)}, 1)
    run.message({"kind": "event", "event": "commit", "step": 1, "seconds": 0.5, "bytes": 7}, 1)
    assert told == [1, 1]


def test_a_new_stage_ends_the_series_of_the_old_one() -> None:
    run, _ = instruments()
    run.step(step(1), stage_step=1)
    run.step(step(2, stage="long", loss_by_frame=[None, 1.0, 0.5], samples_consumed=4), stage_step=1)
    assert (value(run, "loss", "short"), value(run, "loss", "long"), value(run, "run_stage")) == (None, 1.0, 2)


def test_a_step_that_was_not_finite_keeps_the_last_loss_and_is_counted() -> None:
    run, _ = instruments()
    run.step(step(1), stage_step=1)
    run.step(step(2, loss=None, grad_norm=None, skipped=True), stage_step=2)
    assert (value(run, "loss", "short"), value(run, "skipped_steps_total")) == (1.0, 1)


def test_steps_after_the_commit_are_recomputation_until_the_furthest_is_passed() -> None:
    run, clock = instruments()
    run.generation(1, 2, "training")
    for number in (1, 2, 3):
        clock.time += 1.25
        run.step(step(number), stage_step=number)
    run.failure("signal")
    run.generation(2, 2, "training")
    run.event("layout", {"step": 1, "recomputed": 2, "accumulation": 1})
    for number in (2, 3, 4):
        clock.time += 1.25
        run.step(step(number), stage_step=number)
    assert spent(run) == {"step": 4.0, "recompute": 2.0, "data": 1.5}
    assert (value(run, "recomputed_steps_total"), value(run, "failures_total", "signal"), value(run, "failures_total", "seat")) == (2, 1, 0)


def test_commits_and_promotions_are_counted_with_their_time() -> None:
    run, clock = instruments()
    run.event("layout", {"step": 0, "recomputed": 0, "accumulation": 1})
    assert value(run, "commits_total") == 0
    clock.time += 30
    run.event("commit", {"step": 2, "seconds": 0.5, "bytes": 7})
    run.event("promotion", {"step": 4})
    assert (value(run, "commits_total"), value(run, "commit_seconds"), value(run, "last_commit_timestamp_seconds")) == (1, 0.5, 1030.0)
    assert value(run, "promotions_total") == 1


@given(st.lists(st.tuples(st.sampled_from(["step", "evaluation", "generation", "encoding"]), st.floats(0, 100)), max_size=60))
def test_every_second_is_spent_once(story: list[tuple[str, float]]) -> None:
    run, clock = instruments()
    for number, (kind, seconds) in enumerate(story):
        clock.time += seconds
        if kind == "step":
            run.step(step(number), stage_step=number)
        elif kind == "evaluation":
            run.event("evaluation", {"stage": "short", "held_out_loss": 1.0})
        elif kind == "generation":
            run.generation(number, 2, "training")
        else:
            run.encoding(number, number + 1, number)
    run.generation(0, 2, "sampling")
    assert abs(sum(spent(run).values()) - (clock.time - 1000.0)) < 1e-6


def test_a_pulse_is_the_ranks_own() -> None:
    meter = Meter("run")
    sent = {"rank_step_seconds": 1.0, "rank_forward_seconds": 0.25, "rank_data_wait_seconds": 0.0, "rank_memory_bytes": 5}
    pulse(meter, {"kind": "rank", "rank": 3, **sent})
    assert {(name, labels): number for name, labels, number in meter.series()} == {(name, ("3",)): float(x) for name, x in sent.items()}


def test_the_goodput_and_every_cause_of_lost_time_are_told() -> None:
    run, _ = instruments()
    run.goodput(goodput([{"time": 0.0, "event": "start"}, {"time": 1.0, "event": "layout", "step": 0}], [], until=4.0))
    assert value(run, "goodput_ratio") == 0.0
    assert (value(run, "lost_seconds", "start"), value(run, "lost_seconds", "other")) == (1.0, 3.0)
    assert {labels[0] for name, labels, _ in run.meter.series() if name == "lost_seconds"} == set(LOSSES)
