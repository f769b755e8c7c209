"""Seconds per generated latent frame against the published sampler, and what a few-step setting costs in error.

    python -m tests.benchmarks.sampling [--run runs/toy] [--pairs 5]

The published sampler: 64 iterations x 100 head steps, both branches in a doubled batch, context frames pushed one by one, keys and values
of the caption projected in every pass, a cache that grows by concatenation, and guided-diffusion's p_sample with its tables looked up in
every step. Ours makes the same draws from one prefill, text keys computed once and a cache written in place; few-step is ours with fewer of
both. Error: mean squared error of generated against true held-out latents, same seeds. The trained model is the toy recipe's (or --run's).
With sink + window the keys and FLOPs of every frame from 5 to 60 are counted, not timed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.loader import Dataset, SampleSet, open_dataset
from data_pipeline.order import keyed_generator
from model.cache import KVCache
from model.heads.ddpm import cosine_betas, respaced
from model.reveal import reveal_schedule
from model.rope3d import grid_positions
from model.sampling import FrameSampler, SamplingConfig, generate, linear_guidance
from model.videomar import VideoMAR
from tests.benchmarks.machine import publish
from trainer.allocator import keep_freed_memory
from trainer.checkpoint.commit import last_commit
from trainer.config import load
from trainer.events import read_events
from trainer.inspection.showcase import averaged_model

REPOSITORY = Path(__file__).parents[2]
BUCKET = "17x64x64"  # the toy's: 5 latent frames of 64 tokens
PUBLISHED = (64, 100)  # iterations, head steps
FEW = (12, 20)
GUIDANCE = 1.5
GATES = {"few_steps": 10.0, "equal_steps": 1.5, "error": 1.02}


class GrowingCache(KVCache):
    """Keys and values that are concatenated anew in every pass."""

    def write(self, block: int, k_BNLd: Tensor, v_BNLd: Tensor) -> tuple[Tensor, Tensor]:
        both = [torch.cat([kept[block], new], dim=2) for kept, new in ((self.keys, k_BNLd), (self.values, v_BNLd))]
        self.latest[block] = both
        return both[0], both[1]

    def keep(self, frames: int, tokens: int) -> None:
        for block, (keys, values) in self.latest.items():
            self.keys[block], self.values[block] = keys, values


def growing_cache(model: VideoMAR, batch: int) -> GrowingCache:
    cache = GrowingCache.allocate(model.config.depth, (batch, model.config.heads, model.config.head_dim), 0, 0, 0, torch.empty(0))
    cache.latest = {}  # type: ignore[attr-defined]
    return cache


def published_head(model: VideoMAR, hidden: Tensor, null: Tensor, guidance: float, steps: int, temperature: float) -> Tensor:
    """guided-diffusion's p_sample_loop over a doubled batch: every table is taken from numpy in every step."""
    head = model.head
    kept, betas = respaced(cosine_betas(1000), steps)
    bars = np.cumprod(1 - betas)
    before = np.append(1.0, bars[:-1])
    variance = betas * (1 - before) / (1 - bars)
    tables = {
        "recip": np.sqrt(1 / bars),
        "recipm1": np.sqrt(1 / bars - 1),
        "x0": betas * np.sqrt(before) / (1 - bars),
        "xt": (1 - before) * np.sqrt(1 - betas) / (1 - bars),
        "low": np.log(np.append(variance[1], variance[1:])),
        "high": np.log(betas),
        "signal": np.sqrt(bars),
        "noise": np.sqrt(1 - bars),
    }

    def extract(name: str, t: Tensor, x: Tensor) -> Tensor:
        return torch.from_numpy(tables[name])[t].float()[..., None].expand_as(x)

    conditions, channels = head.network.condition(torch.cat([hidden, null])), head.channels
    x = torch.cat([torch.randn(len(hidden), channels)] * 2)
    for step in reversed(range(steps)):
        t = torch.full((len(x),), step)
        output = head.network(x, head.network.modulations(head.network.time_features(torch.from_numpy(kept)[t], x.dtype), conditions))
        said, fraction = output.chunk(2, dim=-1)
        eps = extract("noise", t, x) * x + extract("signal", t, x) * said if head.emits_v else said
        own, other = eps.chunk(2)
        eps = torch.cat([other + guidance * (own - other)] * 2)
        fraction = (fraction + 1) / 2
        log_variance = fraction * extract("high", t, x) + (1 - fraction) * extract("low", t, x)
        x0 = extract("recip", t, x) * x - extract("recipm1", t, x) * eps
        mean = extract("x0", t, x) * x0 + extract("xt", t, x) * x
        nonzero = (t != 0).float()[:, None]
        x = mean + nonzero * torch.exp(0.5 * log_variance) * torch.randn_like(x) * temperature
    return x.chunk(2)[0]


@torch.no_grad()
def published(model: VideoMAR, given_BTHWC: Tensor, text: Tensor, length: Tensor, frames: int, iterations: int, head_steps: int) -> float:
    """Seconds per generated frame of the published sampler, batch 1."""
    _, given, height, width, channels = given_BTHWC.shape
    tokens, cache = height * width, growing_cache(model, 2)
    drop = torch.tensor([False, True])
    conditions = torch.full((2, len(model.config.conditions)), torch.nan)

    def forward(latents: Tensor, masked: Tensor, frame: int) -> Tensor:
        keys, text_mask = model.text_keys(torch.cat([text] * 2), torch.cat([length] * 2), drop, conditions)
        positions = grid_positions([frame], height, width)
        return model.trunk(torch.cat([latents] * 2), torch.cat([masked] * 2), positions, keys, text_mask, None, cache)

    def push(latents: Tensor, frame: int) -> None:
        forward(latents, torch.zeros(1, tokens, dtype=torch.bool), frame)
        cache.keep(1, tokens)

    started = time.perf_counter()
    for frame in range(given):
        push(given_BTHWC[:, frame].flatten(1, 2), frame)
    for frame in range(given, frames):
        order, latents = torch.randperm(tokens), torch.zeros(1, tokens, channels)
        masked = torch.ones(1, tokens, dtype=torch.bool)
        for start, stop in reveal_schedule(iterations, tokens):
            hidden = forward(latents, masked, frame)[:, order[start:stop]]
            weight = linear_guidance(GUIDANCE, tokens - stop, tokens)
            latents[0, order[start:stop]] = published_head(model, hidden[0], hidden[1], weight, head_steps, 1.0)
            masked[0, order[start:stop]] = False
        push(latents, frame)
    return (time.perf_counter() - started) / (frames - given)


def ours(model: VideoMAR, given: Tensor, text: Tensor, length: Tensor, frames: int, iterations: int, head_steps: int) -> float:
    """Seconds per generated frame of ours, batch 1; the last frame's clean pass, which we do without, is the saving it looks like."""
    config = SamplingConfig(iterations, head_steps, GUIDANCE, temperature=1.0)
    started = time.perf_counter()
    generate(model, given, text, length, frames, config, [np.random.default_rng(0)])
    return (time.perf_counter() - started) / (frames - given.shape[1])


def timed(model: VideoMAR, data: SampleSet, pairs: int) -> dict[str, Any]:
    """Medians over interleaved runs that continue 3 given frames by 2."""
    batch = data.fetch([0])
    inputs = (torch.from_numpy(batch.latents[:, :3]), torch.from_numpy(batch.text), torch.from_numpy(batch.text_length), 5)
    rounds = []
    for number in range(pairs):
        run = {
            "published": published(model, *inputs, *PUBLISHED),
            "equal_steps": ours(model, *inputs, *PUBLISHED),
            "few_steps": ours(model, *inputs, *FEW),
        }
        rounds.append(run)
        print(number, run, file=sys.stderr)
    seconds = {name: median(run[name] for run in rounds) for name in rounds[0]}
    ratios = {name: median(run["published"] / run[name] for run in rounds) for name in ("equal_steps", "few_steps")}
    return {"seconds_per_latent_frame": seconds, "times_cheaper": ratios}


def errors(model: VideoMAR, data: SampleSet, clips: int) -> dict[str, float]:
    """Mean squared error of the generated latents of held-out clips, by setting; every clip has the same seed in each."""
    batch = data.fetch(range(min(clips, len(data))))
    latents = torch.from_numpy(batch.latents)
    found = {}
    for name, (iterations, head_steps) in {"published_steps": PUBLISHED, "few_steps": FEW}.items():
        rngs = [keyed_generator(0, "sampling", key) for key in batch.keys]
        config = SamplingConfig(iterations, head_steps, GUIDANCE)
        text = (torch.from_numpy(batch.text), torch.from_numpy(batch.text_length))
        video = generate(model, latents[:, :1], *text, latents.shape[1], config, rngs)
        found[name] = float((video[:, 1:] - latents[:, 1:]).square().mean())
        print(name, found[name], file=sys.stderr)
    copied = latents[:, :1].expand_as(latents)[:, 1:]
    return found | {"copying_the_last_frame": float((copied - latents[:, 1:]).square().mean())}


@torch.no_grad()
def window_counts(model: VideoMAR, sink: int = 1, window: int = 4, frames: int = 61) -> dict[str, Any]:
    """Keys and FLOPs of one pass over frame 5, 6, ... 60, as they are counted while it runs."""
    config, tokens = model.config, 64
    told = (torch.zeros(1, config.text_tokens, config.text_width), torch.tensor([3]), torch.zeros(1, len(config.conditions)))
    sampler = FrameSampler(model, told, (8, 8), frames, 1, SamplingConfig(guidance=1.0, sink=sink, window=window))
    branch, keys, flops = sampler.branches[0], [], []
    assert branch.cache is not None
    clean = torch.zeros(1, tokens, dtype=torch.bool)
    for frame in range(frames):
        latents = torch.zeros(1, tokens, config.latent_channels)
        if frame >= 5:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                branch.hidden(latents, clean, sampler.positions(1))
            keys.append(branch.cache.length + tokens)
            flops.append(counter.get_total_flops())
        sampler.keep(latents[:, None], [])
    return {"sink": sink, "window": window, "keys": sorted(set(keys)), "flops": sorted(set(flops)), "frames": len(keys)}


def trained(run: Path | None, scratch: Path) -> tuple[VideoMAR, Dataset]:
    """The moving average of a finished toy run."""
    arguments = [f"run.root={run.parent}", f"run.name={run.name}"] if run else [f"run.root={scratch}", "run.name=sampling"]
    if run is None:
        subprocess.run([sys.executable, REPOSITORY / "trainer" / "main.py", *arguments], check=True, stdout=sys.stderr)
    config = load(arguments)
    dataset = open_dataset(next(event["data_folder"] for event in read_events(config.run_folder) if event["event"] == "start"))
    commit = last_commit(config.run_folder)
    assert commit is not None, f"{config.run_folder} holds no commit"
    return averaged_model(config, dataset, commit), dataset


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=None, help="a finished run of the toy recipe")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clips", type=int, default=48)
    known = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        model, dataset = trained(known.run.absolute() if known.run else None, Path(scratch))
        data = dataset.split(BUCKET, "held_out", 0)
        speed, error, counts = timed(model, data, known.pairs), errors(model, data, known.clips), window_counts(model)
    worse = error["few_steps"] / error["published_steps"]
    flat = len(counts["keys"]) == len(counts["flops"]) == 1
    cheaper = speed["times_cheaper"]
    passed = (
        cheaper["few_steps"] >= GATES["few_steps"] and cheaper["equal_steps"] >= GATES["equal_steps"] and worse <= GATES["error"] and flat
    )
    publish(
        {
            "benchmark": "sampling",
            "ratio": cheaper["few_steps"],
            "gates": GATES,
            "passed": passed,
            "settings": {"published": PUBLISHED, "few_steps": FEW, "guidance": GUIDANCE},
            **speed,
            "mean_squared_error": error,
            "error_of_few_steps": worse,
            "with_sink_and_window": counts,
        }
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
