"""TensorBoard's files read back by TensorBoard, W&B's record by record; and a sink that fails, which is left out while the run goes on."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from trainer import sinks
from trainer.config import RunConfig, load
from trainer.instruments import RunInstruments
from trainer.meter import BY_NAME, Meter
from trainer.sections import MetricsSection
from trainer.sinks import Sinks, published

from .test_instruments import STAGES, step

BLOCK = 32768  # bytes of LevelDB's log format


def recipe(**metrics: Any) -> RunConfig:
    config = load(["run.name=mine"])
    curriculum = config.curriculum.model_copy(update={"stages": STAGES})
    return config.model_copy(update={"curriculum": curriculum, "metrics": MetricsSection(**metrics)})


def train(run: RunInstruments, *steps: int, loss: float = 1.0) -> None:
    for number in steps:
        run.message({"kind": "step", **step(number, loss=loss + number)}, number)


def events_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_every_step_under_the_declared_names(tmp_path: Path) -> None:
    said: list[str] = []
    with published(recipe(tensorboard=True), tmp_path, said.append) as run:
        train(run, 1, 2)
        run.message({"kind": "event", "event": "evaluation", "stage": "short", "held_out_loss": 0.5}, 3)
        train(run, 3)
    found = events_of(tmp_path)
    assert found["loss/short"] == [(1, 2.0), (2, 3.0), (3, 4.0)]
    assert found["held_out_loss/short"] == [(3, 0.5)]
    assert [value for _, value in found["learning_rate"]] == pytest.approx([1e-3] * 3)
    assert {tag.partition("/")[0] for tag in found} <= set(BY_NAME)
    assert not said


def test_steps_that_a_restart_computes_again_are_there_once(tmp_path: Path) -> None:
    with published(recipe(tensorboard=True), tmp_path, print) as run:
        train(run, 1, 2, 3)
        train(run, 2, 3, loss=10.0)
    with published(recipe(tensorboard=True), tmp_path, print) as run:  # another process steers the run
        train(run, 3, 4, loss=20.0)
    assert events_of(tmp_path)["loss/short"] == [(1, 2.0), (2, 12.0), (3, 23.0), (4, 24.0)]


def test_wandb_keeps_a_run_offline_under_the_declared_names_and_one_id(tmp_path: Path) -> None:
    said: list[str] = []
    with published(recipe(wandb="videomar", wandb_mode="offline"), tmp_path, said.append) as run:
        train(run, 1, 2)
    assert not said
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert file.name == f"run-{(tmp_path / 'wandb-id').read_text()}.wandb"
    deadline = time.monotonic() + 30
    while len(rows := history(file)) < 2 and time.monotonic() < deadline:  # its own process writes on for a moment
        time.sleep(0.05)
    assert [(row["run_step"], row["loss/short"]) for row in rows] == [(1, 2.0), (2, 3.0)]
    names = {name.partition("/")[0] for row in rows for name in row if not name.startswith("_")}
    assert names <= set(BY_NAME)


def history(file: Path) -> list[dict[str, Any]]:
    """The rows of a run's file: records of W&B's protocol in LevelDB's log format, of which it ships no reader."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole, rows = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4) and place <= len(data):  # a whole record, or the last part of one
            record, whole = Record.FromString(whole), b""
            rows += [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}]
    return [row for row in rows if row]


class Broken:
    """A sink that fails at its second step."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)
        if step > 1:
            raise OSError(28, "No space left on device\nand more")

    def close(self) -> None:
        raise AssertionError("it was left out")


class Kept(Broken):
    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)

    def close(self) -> None:
        self.steps.append(0)


def never() -> Broken:
    raise ConnectionError("no network")


def test_a_sink_that_fails_is_named_once_and_the_others_and_the_run_go_on() -> None:
    meter, broken, kept, said = Meter("run"), Broken(), Kept(), list[str]()
    several = Sinks(meter, {"wandb": lambda: broken, "tensorboard": lambda: kept, "third": never}, said.append)
    train(RunInstruments(meter, STAGES, tell=several.tell), 1, 2, 3)
    several.close()
    assert (broken.steps, kept.steps) == ([1, 2], [1, 2, 3, 0])
    assert said == [
        "metrics.third is left out from here on: ConnectionError: no network",
        "metrics.wandb is left out from here on: OSError: [Errno 28] No space left on device",
    ]


def test_a_sink_that_is_not_installed_is_one_line_that_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    sinks.check(MetricsSection(tensorboard=True, wandb="videomar"))
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    sinks.check(MetricsSection())
    with pytest.raises(UserError, match=r"^metrics\.tensorboard needs the extra: pip install 'videomar\[tensorboard\]'$"):
        sinks.check(MetricsSection(tensorboard=True))
    with pytest.raises(UserError, match=r"^metrics\.wandb needs the extra: pip install 'videomar\[wandb\]'$"):
        sinks.check(MetricsSection(wandb="videomar"))


def test_without_sinks_nothing_is_written(tmp_path: Path) -> None:
    with published(recipe(), tmp_path, print) as run:
        train(run, 1)
    assert list(tmp_path.iterdir()) == []
