"""How much sooner all_frames reaches the held-out loss that our own one_frame (cut after its target, gathered rows) ends with.

    python -m tests.benchmarks.time_to_loss [--frames 7 13] [--seeds 0 1 2] [--steps 60] [--supervised 48]

Both train the same model on the same encoded synthetic videos with as many supervised frames per optimiser step, AdamW and moving
average; each takes the best of the same learning rates (seed 0, half the steps). The two then train in turns, a few steps each, so
that both see the same machine; the clock of each runs during its own steps only. What is held out is judged one frame at a time for
both, on the moving average. Batches are made before the clock starts: in training the loader works ahead.

The batch decides: with 24 supervised frames per step, 4 clips of all_frames, and 150 steps, all_frames was once sooner (1.3x) and twice
later at 7 latent frames: so few clips make a noisy step. 48 is where steps count more than noise, and was chosen after that was seen.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from data_pipeline import manifest
from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.chunks import plan_chunks
from data_pipeline.encode import encode_chunk, sample_for_fit
from data_pipeline.loader import TOKENIZER_FOLDER, Dataset, open_dataset
from data_pipeline.sources import list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.synthetic import write_synthetic
from data_pipeline.text.hashing import HashingText
from data_pipeline.tokenizers.linear import LinearTokenizer
from model.config import SIZES, ModelConfig
from model.supervision import AllFrames, OneFrame, Supervision
from model.videomar import VideoMAR
from tests.benchmarks.machine import publish
from trainer.allocator import keep_freed_memory
from trainer.batches import Draws, Shape, micro_batch
from trainer.optimizer import adamw, learning_rate
from trainer.planner import Layout
from trainer.sections import TrainSection

GATES = {7: 1.3, 13: 2.0}
RATES = (1e-3, 2e-3, 4e-3)
TURN, EVALUATE_EVERY, HELD_OUT, EMA = 10, 20, 64, 0.98


def encoded(folder: Path, frames: list[int], size: int, clips: int) -> Dataset:
    """Synthetic videos as latents, one bucket per number of latent frames."""
    longest = 1 + 4 * (max(frames) - 1)
    write_synthetic(folder / "videos", clips, seed=0, size=size, frames=longest, fps=8)
    sources = list_sources(folder / "videos", folder / "videos" / "captions.csv").sources
    spec = EncodeSpec(fps=8, buckets=tuple(Bucket(1 + 4 * (count - 1), size, size) for count in sorted(frames)), channels=16)
    text = HashingText(spec.text_width, spec.text_tokens)
    tokenizer = LinearTokenizer.fit(sample_for_fit(sources, spec), spec.channels, spec.stride)
    tokenizer.save(folder / "dataset" / TOKENIZER_FOLDER)
    records = [encode_chunk(chunk, spec, tokenizer, text, folder / "dataset") for chunk in plan_chunks(sources, spec)]
    fingerprint = manifest.dataset_fingerprint(sources, spec)
    made = manifest.build(records, spec, "synthetic", fingerprint=fingerprint, tokenizer=tokenizer.fingerprint, text=text.fingerprint)
    manifest.write(made, folder / "dataset")
    return open_dataset(folder / "dataset")


@dataclass
class Contender:
    """One supervision in training: its weights, their moving average, its clock in seconds and its held-out losses by step."""

    dataset: Dataset
    config: ModelConfig
    supervision: Supervision
    bucket: Bucket
    lr: float
    seed: int
    supervised: int  # frames per optimiser step
    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[float, float]] = field(default_factory=list)  # (seconds, held-out loss)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = VideoMAR(self.config)
        self.average = copy.deepcopy(self.model).eval()
        self.train = TrainSection(lr=self.lr, warmup_steps=20)
        self.optimizer = adamw(self.model, self.train)
        frames, height, width = latent_shape(self.bucket, self.dataset.manifest.spec.stride)
        shape = Shape(self.bucket.id, frames, height * width)
        self.samples = self.supervised // (frames - 1) if isinstance(self.supervision, AllFrames) else self.supervised
        self.data, self.held_out = (self.dataset.split(self.bucket.id, split, self.seed) for split in ("train", "held_out"))
        self.draws = Draws(self.seed, shape, self.data.epoch_of, self.config, self.supervision)
        self.held_out_draws = Draws(0, shape, self.held_out.epoch_of, self.config, OneFrame(), purpose="held_out")

    def turn(self) -> None:
        """TURN optimiser steps, and the held-out loss when it is due."""
        for _ in range(TURN):
            # one_frame is cut after its target: in passes of a quarter of the batch, sorted by target, as training does it.
            passes = 4 if isinstance(self.supervision, OneFrame) else 1
            layout = Layout(1, 1, 1, 0, self.samples // passes, passes)
            plan = self.draws.plan(range(self.step * self.samples, (self.step + 1) * self.samples), layout)
            batches = [micro_batch(plan, unit, self.draws, self.data, self.model.head) for unit in plan.units[0]]
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.train, 1.0, self.step)
            started = time.perf_counter()
            for batch in batches:
                (self.model(batch.inputs).sum() / plan.supervised).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            for averaged, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                averaged.data.lerp_(parameter.data, 1 - EMA)
            self.seconds += time.perf_counter() - started
            self.step += 1
        if self.step % EVALUATE_EVERY == 0:
            self.losses.append((self.seconds, self.held_out_loss()))

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Of the moving average, per supervised token, over fixed clips with fixed draws."""
        plan = self.held_out_draws.plan(range(min(HELD_OUT, len(self.held_out))), Layout(1, 1, 1, 0, 16, 1))
        batches = [micro_batch(plan, unit, self.held_out_draws, self.held_out, self.model.head) for unit in plan.units[0]]
        return sum(float((self.average(batch.inputs).sum(1) * batch.weights).sum()) for batch in batches) / plan.supervised

    def reached(self, loss: float) -> bool:
        return bool(self.losses) and self.losses[-1][1] <= loss


def measure(dataset: Dataset, config: ModelConfig, frames: int, seeds: list[int], steps: int, supervised: int) -> dict[str, Any]:
    """Learning-rate search for both, then one race per seed."""
    bucket = Bucket(1 + 4 * (frames - 1), dataset.manifest.spec.buckets[0].height, dataset.manifest.spec.buckets[0].width)
    supervisions: dict[str, Supervision] = {"one_frame": OneFrame(), "all_frames": AllFrames()}
    searched: dict[str, dict[float, float]] = {name: {} for name in supervisions}
    for name, supervision in supervisions.items():
        for lr in RATES:
            tried = Contender(dataset, config, supervision, bucket, lr, 0, supervised)
            while tried.step < steps // 2:
                tried.turn()
            searched[name][lr] = tried.held_out_loss()
            print(frames, name, lr, round(searched[name][lr], 4), round(tried.seconds, 1), file=sys.stderr)
    best = {name: min(found, key=found.__getitem__) for name, found in searched.items()}
    make = {
        name: partial(Contender, dataset, config, supervisions[name], bucket, best[name], supervised=supervised) for name in supervisions
    }
    races = [race(make["one_frame"](seed=seed), make["all_frames"](seed=seed), steps) for seed in seeds]
    return {
        "ratio": median(run["sooner"] for run in races),
        "gate": GATES.get(frames),
        "learning_rate": best,
        "search": searched,
        "races": races,
    }


def race(one: Contender, every: Contender, steps: int) -> dict[str, Any]:
    """Both in turns, until one_frame is through and all_frames has reached its loss (or has had twice the steps)."""
    while one.step < steps or (not every.reached(one.losses[-1][1]) and every.step < 2 * steps):
        for contender in (one, every):
            if contender is every or contender.step < steps:
                contender.turn()
    goal = one.losses[-1][1]
    seconds = next((at for at, loss in every.losses if loss <= goal), None)
    print(one.bucket.id, one.seed, round(goal, 4), round(one.seconds, 1), seconds, file=sys.stderr)
    return {
        "seed": one.seed,
        "one_frame": one.losses,
        "all_frames": every.losses,
        "sooner": one.seconds / seconds if seconds else 0.0,
        "seconds_per_step": {"one_frame": one.seconds / one.step, "all_frames": every.seconds / every.step},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[7, 13], help="latent frames")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--supervised", type=int, default=48, help="supervised frames per optimiser step, for both")
    parser.add_argument("--size", type=int, default=48, help="pixels of a video's side")
    parser.add_argument("--clips", type=int, default=400)
    known = parser.parse_args()
    keep_freed_memory()
    config = ModelConfig(**{**vars(SIZES["toy"]), "width": 96, "depth": 5, "head_width": 48})
    with tempfile.TemporaryDirectory() as scratch:
        dataset = encoded(Path(scratch), known.frames, known.size, known.clips)
        results = {str(frames): measure(dataset, config, frames, known.seeds, known.steps, known.supervised) for frames in known.frames}
    passed = all(result["gate"] is None or result["ratio"] >= result["gate"] for result in results.values())
    publish(
        {
            "benchmark": "time_to_loss",
            "ratio": min(result["ratio"] for result in results.values()),
            "passed": passed,
            "supervised_frames_per_step": known.supervised,
            "config": vars(config),
            "frames": results,
        }
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
