"""Does the embedded default learn, and from its context? Trains it with the product's own command and compares held-out losses.

    python -m tests.benchmarks.learning [--seeds 0 1 2] [--root FOLDER] [key=value ...]

Baselines, on the same held-out clips with the same draws: the same model given another clip's context, and a head trained for the same
steps on position and timestep alone. Gates: each ratio at most 0.85 for every seed.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.loader import Dataset, open_dataset
from model.config import ModelConfig
from model.heads.ddpm import DDPMHead
from model.supervision import OneFrame, Target, TrainingBatch
from model.videomar import VideoMAR
from tests.benchmarks.machine import publish
from trainer.batches import Draws, MicroBatch, Shape, StepPlan, micro_batch, supervision_of
from trainer.checkpoint.commit import last_commit
from trainer.config import RunConfig, load
from trainer.curriculum import Stage
from trainer.events import read_events
from trainer.inspection.showcase import averaged_model
from trainer.metrics import read_metrics
from trainer.optimizer import adamw, learning_rate
from trainer.planner import Layout, global_batch
from trainer.process import model_config

REPOSITORY = Path(__file__).parents[2]
GATE = 0.85
HELD_OUT = 64  # clips


class PositionHead(nn.Module):
    """A head that knows a token's position and nothing else: what the data's statistics alone give away."""

    def __init__(self, config: ModelConfig, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.head = DDPMHead(config)
        self.position = nn.Parameter(torch.randn(*grid, config.width) * 0.5)

    def forward(self, batch: TrainingBatch) -> Tensor:
        """Loss sums per sample [B], as VideoMAR's."""
        order, (height, width) = batch.sequence.frame_order, batch.latents.shape[2:4]
        hidden = self.position[order, :height, :width].flatten(0, 2)
        latents = batch.latents[:, order].flatten(0, 3)
        loss = self.head.loss(hidden[batch.rows % len(hidden)], latents[batch.rows], batch.head_draws)
        tokens = len(hidden)
        return loss.new_zeros(len(batch.latents)).index_add(0, batch.rows // tokens, loss)


def stage_draws(config: RunConfig, dataset: Dataset, stage: Stage, split: str) -> tuple[Draws, int]:
    """The draws that training makes for a stage, and its samples per step."""
    bucket = Bucket(stage.frames, stage.height, stage.width)
    frames, height, width = latent_shape(bucket, dataset.manifest.spec.stride)
    shape = Shape(bucket.id, frames, height * width)
    data = dataset.split(bucket.id, split, config.seed)
    # Training's own supervision; what is held out is judged one frame at a time, whatever training did.
    supervision = supervision_of(config.train) if split == "train" else OneFrame()
    draws = Draws(
        config.seed, shape, data.epoch_of, model_config(config, dataset), supervision, purpose="train" if split == "train" else "held_out"
    )
    return draws, global_batch(stage.tokens_per_step, frames, height * width)


def train_position_head(config: RunConfig, dataset: Dataset, steps: dict[str, int]) -> PositionHead:
    """Train the baseline on the very steps that the run made; returns its moving average."""
    torch.manual_seed(config.seed)
    trained = VideoMAR(model_config(config, dataset))
    grid = latent_shape(
        max(Bucket(stage.frames, stage.height, stage.width) for stage in config.curriculum.stages), dataset.manifest.spec.stride
    )
    model = PositionHead(trained.config, grid)
    model.head.load_state_dict(trained.head.state_dict())
    average, optimizer, step = copy.deepcopy(model), adamw(model, config.train), 0
    for stage in config.curriculum.stages:
        draws, samples = stage_draws(config, dataset, stage, "train")
        data = dataset.split(draws.shape.bucket, "train", config.seed)
        for number in range(steps[stage.name]):
            plan = draws.plan(range(number * samples, (number + 1) * samples), Layout(1, 1, 1, 0, samples, 1))
            batch = micro_batch(plan, plan.units[0][0], draws, data, model.head)
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(config.train, stage.lr_scale, step)
            (model(batch.inputs).sum() / plan.supervised).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
            optimizer.step()
            optimizer.zero_grad()
            for averaged, parameter in zip(average.parameters(), model.parameters(), strict=True):
                averaged.data.lerp_(parameter.data, 1 - config.train.ema)
            step += 1
    return average


def with_another_context(batch: MicroBatch, targets: list[Target], sources: list[str]) -> TrainingBatch:
    """The batch with every sample's frames before its target taken from a clip of another source; target and text stay."""
    latents = batch.inputs.latents.clone()
    for row, target in enumerate(targets):
        other = next(place for place in range(row + 1, row + len(sources)) if sources[place % len(sources)] != sources[row])
        latents[row, : target.frames - 1] = batch.inputs.latents[other % len(sources), : target.frames - 1]
    return replace(batch.inputs, latents=latents)


@torch.no_grad()
def held_out_losses(config: RunConfig, dataset: Dataset, model: VideoMAR, baseline: PositionHead) -> dict[str, float]:
    """Loss per supervised token of the last stage's held-out clips, all with the same draws."""
    draws, _ = stage_draws(config, dataset, config.curriculum.stages[-1], "held_out")
    data = dataset.split(draws.shape.bucket, "held_out", config.seed)
    plan: StepPlan = draws.plan(range(min(HELD_OUT, len(data))), Layout(1, 1, 1, 0, 16, 1))
    sums = {"model": 0.0, "another_context": 0.0, "position_head": 0.0}
    for unit in plan.units[0]:
        batch = micro_batch(plan, unit, draws, data, model.head)
        weights = batch.weights
        targets = [plan.targets[sample] for sample in unit.samples]
        sums["model"] += float((model(batch.inputs).sum(1) * weights).sum())
        sources = [data.sample_key(plan.positions[sample]).rpartition("-")[0] for sample in unit.samples]
        sums["another_context"] += float((model(with_another_context(batch, targets, sources)).sum(1) * weights).sum())
        sums["position_head"] += float((baseline(batch.inputs) * weights).sum())
    return {name: total / plan.supervised for name, total in sums.items()}


def measure(seed: int, root: Path, overrides: list[str]) -> dict[str, float]:
    """Train with one seed through the command line, train the baseline, compare."""
    arguments = [f"seed={seed}", f"run.root={root}", f"run.name=seed-{seed}", *overrides]
    subprocess.run([sys.executable, REPOSITORY / "trainer" / "main.py", *arguments], check=True, stdout=sys.stderr)
    config = load(arguments)
    happened, metrics = read_events(config.run_folder), read_metrics(config.run_folder)
    dataset, commit = (
        open_dataset(next(event["data_folder"] for event in happened if event["event"] == "start")),
        last_commit(config.run_folder),
    )
    assert commit is not None
    steps = {stage.name: sum(step["stage"] == stage.name for step in metrics) for stage in config.curriculum.stages}
    baseline = train_position_head(config, dataset, steps)
    losses = held_out_losses(config, dataset, averaged_model(config, dataset, commit), baseline)
    samples = next(event for event in reversed(happened) if event["event"] == "samples")
    return {
        "seed": seed,
        **losses,
        "ratio_to_another_context": losses["model"] / losses["another_context"],
        "ratio_to_position_head": losses["model"] / losses["position_head"],
        "psnr": samples["psnr"],
        "psnr_copy_last_frame": samples["psnr_copy_last_frame"],
        "training_seconds": sum(step["step_seconds"] + step["data_seconds"] for step in metrics),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=None, help="keep the runs in this folder (an existing one is continued)")
    known, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = [measure(seed, (known.root or Path(scratch)).absolute(), overrides) for seed in known.seeds]
    worst = {name: max(run[name] for run in runs) for name in ("ratio_to_another_context", "ratio_to_position_head")}
    passed = max(worst.values()) <= GATE
    publish(
        {
            "benchmark": "learning",
            "ratio": max(worst.values()),
            "gate": GATE,
            "passed": passed,
            "worst": worst,
            "median": {name: median(run[name] for run in runs) for name in worst},
            "runs": runs,
        }
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
