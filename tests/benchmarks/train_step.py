"""Supervised tokens per second of a training step (forward, backward, AdamW), against two faithful baselines of the published recipe.

    python -m tests.benchmarks.train_step [--frames 7 25] [--pairs 5] [--width 256] [--depth 4] [--grid 12]

c1: the full-length sequence with one supervised frame; c2: the same, cut after that frame. Both with a dense L x L mask and the head on
all tokens x 4, masked afterwards. Ours: all_frames with chunks of allowed keys and gathered rows, with M = 1 and M = 4. The runs are
interleaved, the ratio is the median over the pairs. For orientation, FLOPs per supervised token beside a decoupled temporal + spatial
stack (NOVA's), for every M and block size.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.flops import training_flops
from model.rope3d import grid_positions
from model.supervision import AllFrames, OneFrame, Supervision, Target, TrainingBatch, masks_and_rows
from model.videomar import VideoMAR
from tests.benchmarks.machine import publish
from trainer.allocator import keep_freed_memory

GATES = {7: {"c1": 3.6, "c2": 2.3, "m4": 1.4}, 25: {"c1": 14.0, "c2": 6.5, "m4": 1.4}}


class Published(VideoMAR):
    """The published training forward: a dense mask, and the head on every token x 4, of which most are masked out of the loss."""

    def forward(self, batch: TrainingBatch) -> Tensor:
        latents_BLC = batch.latents.flatten(1, 3)
        positions = grid_positions(range(batch.latents.shape[1]), *batch.latents.shape[2:4])
        text, text_mask = self.text_keys(batch.text, batch.text_length, batch.drop_text, batch.conditions)
        hidden = self.trunk(latents_BLC, batch.masked, positions, text, text_mask, batch.sequence.visibility)
        losses = self.head.loss(hidden.flatten(0, 1), latents_BLC.flatten(0, 1), batch.head_draws)
        return (losses * batch.masked.flatten()).sum()


def batch_of(model: VideoMAR, supervision: Supervision, targets: list[Target], frames: int, grid: int, every_token: bool) -> TrainingBatch:
    """One video; head draws for the supervised tokens, or for every token of the sequence."""
    config, rng = model.config, np.random.default_rng(0)
    sequence = supervision.sequence(targets, frames, grid * grid)
    masked, rows = masks_and_rows(targets, sequence)
    times, noise = model.head.draw(rng, masked.numel() if every_token else len(rows))
    return TrainingBatch(
        latents=torch.from_numpy(rng.standard_normal((1, 1 + max(sequence.frame_order), grid, grid, config.latent_channels), np.float32)),
        sequence=sequence,
        masked=masked,
        rows=rows,
        head_draws=(torch.from_numpy(times), torch.from_numpy(noise)),
        text=torch.zeros(1, config.text_tokens, config.text_width),
        text_length=torch.tensor([config.text_tokens]),
        drop_text=torch.tensor([False]),
        conditions=torch.zeros(1, 0),
    )


def step_of(model: VideoMAR, batches: list[TrainingBatch]) -> Callable[[], float]:
    """A function that makes one optimiser step per batch and returns supervised tokens per second over all of them."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def run() -> float:
        started = time.perf_counter()
        for batch in batches:
            model(batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return sum(len(batch.rows) for batch in batches) / (time.perf_counter() - started)

    return run


def contenders(config: ModelConfig, frames: int, grid: int) -> dict[str, Callable[[], float]]:
    """The four recipes on the same weights. The baselines' targets are spread evenly over the frames, as uniform draws are on average."""
    torch.manual_seed(0)
    rng, one = np.random.default_rng(1), OneFrame()
    spread = sorted({1, (frames + 1) // 2, frames - 1})
    targets = [Target(frame + 1, {frame: one.draw(rng, 2, grid * grid, config).masked[1]}) for frame in spread]
    full = [replace(target, frames=frames) for target in targets]
    published, ours = Published(config, attention="dense"), VideoMAR(config, attention="sdpa-chunked")
    steps = {
        "c1": step_of(published, [batch_of(published, one, [target], frames, grid, True) for target in full]),
        "c2": step_of(published, [batch_of(published, one, [target], frames, grid, True) for target in targets]),
    }
    for name, masks in (("ours", 1), ("m4", 4)):
        supervision = AllFrames(masks=masks)
        target = supervision.draw(rng, frames, grid * grid, config)
        steps[name] = step_of(ours, [batch_of(ours, supervision, [target], frames, grid, False)])
    return steps


def measure(config: ModelConfig, frames: int, grid: int, pairs: int) -> dict[str, Any]:
    """Median ratios over interleaved runs; the first round only warms up."""
    steps = contenders(config, frames, grid)
    rounds = []
    for number in range(pairs + 1):
        rounds.append({name: run() for name, run in steps.items()})
        print(frames, number, {name: round(rate) for name, rate in rounds[-1].items()}, file=sys.stderr)
    ratios = {
        "c1": median(each["ours"] / each["c1"] for each in rounds[1:]),
        "c2": median(each["ours"] / each["c2"] for each in rounds[1:]),
        "m4": median(each["m4"] / each["ours"] for each in rounds[1:]),
    }
    rates = {name: median(each[name] for each in rounds[1:]) for name in steps}
    return {"ratios": ratios, "gates": GATES.get(frames), "supervised_tokens_per_second": rates}


def flops_per_supervised_token(config: ModelConfig, frames: int, tokens: int) -> dict[str, float]:
    """GFLOPs per supervised token by M and block size, and of a decoupled stack."""
    table = {}
    for block in (1, 2, 4):
        for masks in (1, 2, 4):
            supervision = AllFrames(block, masks)
            target = supervision.draw(np.random.default_rng(0), frames, tokens, config)
            visible = supervision.sequence([target], frames, tokens).visibility
            table[f"block {block}, M {masks}"] = training_flops(config, visible, target.supervised) / target.supervised / 1e9
    return table | {"decoupled (NOVA)": decoupled_flops(config, frames, tokens) / 1e9}


def decoupled_flops(config: ModelConfig, frames: int, tokens: int) -> float:
    """FLOPs per supervised token of a decoupled stack: half the blocks over all clean frames, half over each masked frame alone."""
    linears = (4 + 2 + 2 * config.ffn_ratio) * config.width**2
    temporal = frames * tokens * linears + 2 * config.width * tokens**2 * frames * (frames + 1) / 2
    spatial = (frames - 1) * (tokens * linears + 2 * config.width * tokens**2)
    return 3 * 2 * config.depth / 2 * (temporal + spatial) / (0.867 * (frames - 1) * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[7, 25], help="latent frames")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--grid", type=int, default=12, help="tokens per latent frame: the grid's square")
    known = parser.parse_args()
    keep_freed_memory()
    # The head keeps the paper's share of the trunk's work: 20.8 M of 1,383 M parameters.
    head_width = max(32, round((known.depth * 16 * known.width**2 * 0.0153 / 20) ** 0.5 / 16) * 16)
    config = ModelConfig(
        width=known.width, depth=known.depth, heads=known.width // 32, text_width=64, text_tokens=24, head_width=head_width
    )
    results = {str(frames): measure(config, frames, known.grid, known.pairs) for frames in known.frames}
    gated = [result["ratios"][name] / gate for result in results.values() for name, gate in (result["gates"] or {}).items()]
    paper = ModelConfig()
    publish(
        {
            "benchmark": "train_step",
            "ratio": min(result["ratios"]["c1"] for result in results.values()),
            "passed": all(share >= 1 for share in gated),
            "config": vars(config),
            "tokens_per_frame": known.grid**2,
            "frames": results,
            "gflops_per_supervised_token_of_videomar_1.4b": {n: flops_per_supervised_token(paper, n, 1440) for n in (7, 25)},
        }
    )


if __name__ == "__main__":
    main()
