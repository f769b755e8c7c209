"""20 training steps with a stage change under one layout, by the real engine and loop, in a process group that serves many layouts;
and the same steps in plain torch, which knows no engine, no padding and no accumulation. Comparison happens on every rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from data_pipeline.loader import Dataset, open_dataset
from model.videomar import VideoMAR
from tests.distributed.mistakes import planted
from tests.distributed.training import recipe, stage
from tests.model.conftest import awake
from trainer import process
from trainer.batches import MicroBatch, micro_batch
from trainer.config import RunConfig
from trainer.curriculum import RunState
from trainer.engine import Engine
from trainer.journal import Silence
from trainer.loop import evaluate, load, passes, train_step
from trainer.optimizer import parameter_groups
from trainer.parallel.apply import parallelise
from trainer.parallel.mesh import Mesh, build_mesh
from trainer.planner import Layout
from trainer.task import StageTask

STEPS_PER_STAGE = 10
# One pass per step, then two; 19 samples do not divide: the last micro-batch is padded.
STAGES = [stage("short", STEPS_PER_STAGE, frames=5, samples=10), stage("long", STEPS_PER_STAGE, samples=19)]
COMPARED = (1, 2 * STEPS_PER_STAGE)  # steps whose gradients are compared, parameter by parameter
OBJECTIVES = [(head, supervision) for head in ("ddpm", "flow") for supervision in ("all_frames", "one_frame")]


@dataclass(frozen=True)
class Case:
    """A layout, what is trained under it, and the mistake that is planted in it."""

    tp: int = 1
    megatron_sp: bool = False
    sp: int = 1
    dp: int = 1
    zero: int = 0
    objective: tuple[str, str] = OBJECTIVES[0]
    double: bool = False
    settings: tuple[tuple[str, Any], ...] = ()  # more keys of parallel and train
    mistake: str = ""

    @property
    def steps(self) -> list[int]:
        """Steps of each stage. A mistake must show in the first ones."""
        return [3] if self.mistake else [STEPS_PER_STAGE] * len(STAGES)

    @property
    def world(self) -> int:
        return self.tp * self.sp * self.dp

    def __str__(self) -> str:
        cut = "+cut" if self.megatron_sp else ""
        more = [f"{key}={value}" for key, value in self.settings] + ["double"] * self.double + [self.mistake] * bool(self.mistake)
        return " ".join([f"tp{self.tp}{cut} sp{self.sp} dp{self.dp} zero{self.zero} {'-'.join(self.objective)}", *more])

    @property
    def config(self) -> RunConfig:
        """The same number of passes on every replica, whatever the number of replicas."""
        head, supervision = self.objective
        parallel = {"tp": self.tp, "megatron_sp": self.megatron_sp, "sp": self.sp, "zero": self.zero}
        settings: dict[str, Any] = dict(self.settings)
        parallel |= {key: settings.pop(key) for key in ("offload", "precision") if key in settings}
        return recipe(STAGES, head=head, supervision=supervision, micro_batch=10 // self.dp, parallel=parallel, heads=4, **settings)


@dataclass
class Trace:
    """What a training left: a loss and a norm per step, held-out losses per stage, whole logical tensors by name."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    gradients: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # clipped, by step
    average: dict[str, Tensor] = field(default_factory=dict)


def stage_of(case: Case, dataset: Dataset, state: RunState, rank: int = 0, world: int = 1) -> StageTask:
    payload = {"rank": rank, "world": world, "generation": 1, "run": str(dataset.folder)}
    epochs = {bucket: dataset.split(bucket, "train", 0).epochs for bucket in dataset.manifest.buckets}  # nothing is left to decide
    return process.stage_task(case.config, dataset, replace(state, epochs=epochs), payload, torch.device("cpu"), 0)


def fresh_model(case: Case, task: StageTask) -> VideoMAR:
    """Without blind spots: what starts at zero in training is drawn here."""
    return awake(process.initial_model(case.config, task.model, resumed=False))


def in_precision(batch: MicroBatch, double: bool) -> MicroBatch:
    """The batch in the model's precision."""
    if not double:
        return batch
    inputs = batch.inputs
    times, noise = inputs.head_draws
    floats = ["latents", "text", *(["context_noise"] if inputs.context_noise is not None else [])]  # what is held out is not disturbed
    doubled = {name: getattr(inputs, name).double() for name in floats}
    return replace(batch, inputs=replace(inputs, **doubled, head_draws=(times, noise.double())))


@contextlib.contextmanager
def default_precision(double: bool) -> Iterator[None]:
    """New tensors in double precision, or as they are; DeepSpeed's list of what it reduces leaves double out."""
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    known = get_accelerator().supported_dtypes()
    try:
        with patch.object(type(get_accelerator()), "supported_dtypes", lambda accelerator: [*known, torch.float64]):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def train_plainly(case: Case, dataset: Dataset) -> Trace:
    """The recipe in a plain torch loop on one process."""
    trace, state, train = Trace(), RunState(), case.config.train
    model, optimizer = None, None
    for _ in STAGES:
        task = stage_of(case, dataset, state)
        if model is None or optimizer is None:
            model = fresh_model(case, task)
            optimizer = torch.optim.AdamW(parameter_groups(model, train.weight_decay), lr=train.lr, betas=train.betas, eps=1e-8)
            trace.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        (source,) = task.sources
        draws, whole = source.draws, Layout(1, 1, 1, 0, source.samples, 1)
        for _ in range(STEPS_PER_STAGE):
            position = state.samples.get(draws.shape.bucket, 0)
            plan = draws.plan(range(position, position + source.samples), whole)
            batch = in_precision(micro_batch(plan, plan.units[0][0], draws, source.data, model.head), case.double)
            loss = model(batch.inputs).sum() / plan.supervised
            optimizer.zero_grad()
            loss.backward()
            trace.losses.append(float(loss.detach()))
            trace.norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)))
            state = state.stepped({draws.shape.bucket: source.samples}, False, state.guard)
            if state.step in COMPARED:
                trace.gradients[state.step] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            optimizer.step()
            for name, parameter in model.named_parameters():
                trace.average[name].lerp_(parameter.detach(), 1 - train.ema)
        with torch.no_grad():
            held = task.held_out_draws.plan(range(min(train.evaluate_samples, len(task.held_out))), replace(whole, micro_batch=2))
            batches = [micro_batch(held, unit, task.held_out_draws, task.held_out, model.head) for unit in held.units[0]]
            trace.held_out.append(sum(float(model(in_precision(b, case.double).inputs).sum()) for b in batches) / held.supervised)
        state = state.promoted()
    return trace


def train_engine(case: Case, dataset: Dataset, rank: int, mesh: Mesh, expected: Trace) -> dict[str, float]:
    """The largest relative differences of this rank's training from the expected one, by what was compared."""
    trace, state, engine = Trace(), RunState(), None
    errors: dict[str, float] = {}
    for steps in case.steps:
        task = stage_of(case, dataset, state, rank, case.world)
        model, mesh = fresh_model(case, task), replace(mesh, layout=task.layout)
        parallelise(model, mesh, case.config.train.checkpointing)
        before, engine = engine, Engine(model, case.config.train, case.config.parallel, mesh)
        if case.double:
            engine.deepspeed.communication_data_type = torch.float64
        if before:
            hand_over(before, engine, state.step)
        taken = watch_gradients(engine)
        loaded = (load(task, model.head, request) for request in passes(task, state))
        batches = ((step, place, in_precision(batch, case.double)) for step, place, batch in loaded)
        for _ in range(steps):
            state, metrics = train_step(task, engine, state, batches, Silence())
            trace.losses.append(metrics["loss"])
            trace.norms.append(metrics["grad_norm"])
            if state.step in COMPARED:
                errors[f"gradients of step {state.step}"] = worst(engine, taken, expected.gradients[state.step])
        with patch("trainer.loop.micro_batch", lambda *given: in_precision(micro_batch(*given), case.double)):
            trace.held_out.append(evaluate(task, engine, task.measured(state.samples)))
        state = state.promoted()
    assert engine is not None
    if not case.mistake:
        errors["average"] = worst(engine, dict(enumerate(engine.ema.averages)), expected.average)
        errors["held_out"] = largest(trace.held_out, expected.held_out)
    for what in ("losses", "norms"):
        found = getattr(trace, what)
        errors[what] = largest(found, getattr(expected, what)[: len(found)])
    engine.deepspeed.destroy()
    return errors


def largest(found: list[float], expected: list[float]) -> float:
    """Largest relative difference."""
    return max(abs(one - right) / abs(right) for one, right in zip(found, expected, strict=True))


def hand_over(before: Engine, after: Engine, steps: int) -> None:
    """What a commit between two stages does: every fragment's numbers, the step count, then the weights that compute."""
    for old, new in zip(before.named_fragments(), after.named_fragments(), strict=True):
        assert old.place == new.place
        for kind, tensor in new.tensors.items():
            tensor.copy_(old.tensors[kind])
    after.set_optimizer_step(steps)
    after.publish_masters()
    before.deepspeed.destroy()


def watch_gradients(engine: Engine) -> dict[int, Tensor]:
    """The flat gradient of every part as the optimiser last saw it, by the part's place."""
    taken: dict[int, Tensor] = {}

    def take(*_: Any) -> None:
        for index, part in enumerate(engine.parts):
            if part.master.grad is not None:
                taken[index] = part.master.grad.detach().clone()

    adam = engine.optimizer.optimizer if engine.stage else engine.optimizer
    adam.register_step_pre_hook(take)
    return taken


def worst(engine: Engine, flat: dict[int, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest ||found - expected|| / ||expected|| over the parameters, of what this rank holds of each."""
    squares: dict[str, float] = {}
    for index, part in enumerate(engine.parts):
        for span in part.spans:
            _, shard = engine.shards[span.name]
            index_of_shard = tuple(slice(o, o + e) for o, e in zip(shard.offset, shard.extent, strict=True))
            right = expected[span.name][index_of_shard].reshape(-1)[span.start : span.stop]
            found = flat[index].view(-1)[span.offset : span.offset + span.stop - span.start]
            squares[span.name] = squares.get(span.name, 0.0) + float((found.double() - right.double()).square().sum())
    norms = {name: float(expected[name].double().norm()) for name in squares}
    return max((square**0.5 / norms[name] if norms[name] else float(square > 0) for name, square in squares.items()), default=0.0)


def train_cases(
    rank: int, world: int, host: str, port: int, listener: Any, folder: Path, cases: list[Case], references: Path
) -> list[dict[str, float]]:
    """What run_ranks() runs: all cases of one world size, one after the other, in one process group."""
    torch.set_num_threads(1)
    process.join_group({"rank": rank, "world": world, "host": host, "port": port}, listener)
    dataset, meshes, found = open_dataset(folder), {}, []
    expected = torch.load(references, weights_only=False)
    for case in cases:
        shape = (case.tp, case.megatron_sp, case.sp, case.dp)
        if shape not in meshes:
            meshes[shape] = build_mesh(stage_of(case, dataset, RunState(), rank, world).layout)
        with planted(case.mistake, rank), default_precision(case.double):
            found.append(train_engine(case, dataset, rank, meshes[shape], expected[case.objective, case.double]))
    return found


def train_references(rank: int, world: int, host: str, port: int, listener: Any, folder: Path, path: Path) -> None:
    """The plain training of every (objective, double), written to `path`."""
    torch.set_num_threads(1)
    dataset, found = open_dataset(folder), {}
    for objective, double in product(OBJECTIVES, (False, True)):
        with default_precision(double):
            found[objective, double] = train_plainly(Case(objective=objective, double=double), dataset)
    torch.save(found, path)
