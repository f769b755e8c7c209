"""Where a run's metrics go besides its own files: the Prometheus endpoint, TensorBoard's event files, Weights & Biases.

The one process that steers a run (the controller; rank 0 under torchrun) opens `published`. The sinks write what instruments.py puts on
the meter, under the declared names; neither package is imported where it is not asked for, and one that fails is left out: a run goes on.
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import UserError
from trainer.config import RunConfig
from trainer.exporter import serving
from trainer.instruments import RunInstruments
from trainer.meter import Meter
from trainer.sections import MetricsSection

PATIENCE = 30.0  # seconds with Weights & Biases, at a run's start and at its end
Say = Callable[[str], None]


class Sink(Protocol):
    """Takes scalars by tag: a declared name, and behind slashes the values of its labels."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check(metrics: MetricsSection) -> None:
    """Raises UserError when a sink that the recipe asks for is not installed."""
    for name in SINKS:
        if getattr(metrics, name) and find_spec(name) is None:
            raise UserError(f"metrics.{name} needs the extra: pip install 'videomar[{name}]'")


@contextlib.contextmanager
def published(config: RunConfig, run: Path, say: Say) -> Iterator[RunInstruments]:
    """A run's instruments; while the block lasts, what they are told goes wherever the recipe wants it."""
    meter = Meter(str(config.run.name))
    makers = {name: partial(make, config, run) for name, make in SINKS.items() if getattr(config.metrics, name)}
    with serving(meter, config.metrics.host, config.metrics.port):
        sinks = Sinks(meter, makers, say)
        try:
            yield RunInstruments(meter, config.curriculum.stages, tell=sinks.tell)
        finally:
            sinks.close()


class Sinks:
    """What is put on a meter goes to every sink; one that raises is told of once, with its name, and left out."""

    def __init__(self, meter: Meter, makers: Mapping[str, Callable[[], Sink]], say: Say) -> None:
        self._meter, self._say = meter, say
        self._open: dict[str, Sink] = {}
        for name, make in makers.items():
            with self._surviving(name):
                self._open[name] = make()

    def tell(self, step: int) -> None:
        """Write what was put since the last call; it is the run's after so many optimiser steps."""
        if not self._open:
            return
        values = {"/".join((name, *labels)): value for name, labels, value in self._meter.news()}
        for name, sink in [*self._open.items()] if values else []:
            with self._surviving(name):
                sink.write(step, values)

    def close(self) -> None:
        """Wait for what is still to be written."""
        for name, sink in [*self._open.items()]:
            with self._surviving(name):
                sink.close()

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever other people's packages raise
            self._open.pop(name, None)
            line = next(iter(str(error).splitlines()), "")
            self._say(f"metrics.{name} is left out from here on: {type(error).__name__}: {line}")


class EventFiles:
    """TensorBoard's own format, in <run>/tensorboard; each start of a run adds a file."""

    def __init__(self, config: RunConfig, run: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(run / "tensorboard"), flush_secs=10)
        self._step = math.inf

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if step < self._step:  # a restart: what TensorBoard has read of this step and later ones no longer stands
            self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))
        self._step = step
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases that goes on when the run does."""

    def __init__(self, config: RunConfig, run: Path) -> None:
        import wandb

        offline = config.metrics.wandb_mode == "offline"
        self._run: Any = wandb.init(
            project=config.metrics.wandb,
            name=config.run.name,
            id=identity(run),
            resume=None if offline else "allow",
            mode=config.metrics.wandb_mode,
            dir=str(run),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(
                init_timeout=PATIENCE,
                login_timeout=PATIENCE,
                finish_timeout=PATIENCE,
                console="off",
                disable_git=True,
                disable_code=True,
                silent=True,
            ),
        )
        self._run.define_metric("*", step_metric="run_step")  # its own count of steps cannot fall back to a commit

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "run_step": step})

    def close(self) -> None:
        self._run.finish()


def identity(run: Path) -> str:
    """The run's id at Weights & Biases, the same after every restart."""
    path = run / "wandb-id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text()


SINKS: dict[str, Callable[[RunConfig, Path], Sink]] = {"tensorboard": EventFiles, "wandb": WeightsAndBiases}
