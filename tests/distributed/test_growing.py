"""Training on a data set that grows, that changes its tokenizer, and whose mixture changes: whatever is killed, the history is one."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from data_pipeline import manifest as manifests
from data_pipeline.buckets import Bucket, Stride
from data_pipeline.chunks import plan_chunks
from data_pipeline.encode import encode_chunk, sample_for_fit
from data_pipeline.living import advance, merge
from data_pipeline.loader import TOKENIZER_FOLDER, open_dataset
from data_pipeline.manifest import Manifest
from data_pipeline.sources import list_sources
from data_pipeline.spec import EncodeSpec
from data_pipeline.synthetic import write_synthetic
from data_pipeline.text.hashing import HashingText
from data_pipeline.tokenizers.linear import LinearTokenizer
from tests.distributed.harness import RankFailed, run_ranks
from tests.distributed.training import awake_model, payload, recipe, stage
from trainer import lease, process
from trainer.checkpoint import store
from trainer.checkpoint.commit import commits, last_commit
from trainer.config import RunConfig
from trainer.events import read_events, record
from trainer.initial import reads_latents
from trainer.metrics import read_metrics

BUCKET = "9x32x32"


@dataclass(frozen=True)
class Growing:
    """A data set's folder and its generations; only the first is there at the start."""

    folder: Path
    generations: tuple[Manifest, ...]

    def fresh(self) -> None:
        for path in (self.folder / manifests.FILE, *self.folder.glob("generations/*")):
            path.unlink()
        manifests.write(self.generations[0], self.folder)


def encode(videos: Path, folder: Path, stride: Stride = (4, 8, 8)) -> Growing:
    """24 clips of 48 sources in three generations: a third of the shards, two thirds, all."""
    spec = EncodeSpec(
        fps=8, buckets=(Bucket(9, 32, 32), Bucket(17, 32, 32)), channels=4, stride=stride, text_tokens=8, text_width=16, sources_per_shard=6
    )
    sources = list_sources(videos, videos / "captions.csv").sources
    tokenizer, text = LinearTokenizer.fit(sample_for_fit(sources, spec), spec.channels, spec.stride), HashingText(16, 8)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    records = [encode_chunk(chunk, spec, tokenizer, text, folder) for chunk in plan_chunks(sources, spec)]
    held_out, train = [r for r in records if r.split == "held_out"], [r for r in records if r.split == "train"]
    names = {"fingerprint": f"stride {stride}", "tokenizer": tokenizer.fingerprint, "text": text.fingerprint}
    first = manifests.build([*held_out, *train[:2]], spec, str(videos), pending=30, **names)
    second = advance(first, [*held_out, *train[:4]], pending=10)
    made = Growing(folder, (first, second, advance(second, records)))
    for generation in made.generations:
        manifests.write(generation, folder)
    return made


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_synthetic(folder, clips=48, seed=1, size=32, frames=20, fps=8)
    return folder


@pytest.fixture(scope="module")
def growing(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Growing:
    return encode(videos, tmp_path_factory.mktemp("growing"))


def live(
    rank: int,
    world: int,
    host: str,
    port: int,
    listener: Any,
    config: RunConfig,
    run: Path,
    data: Growing,
    grows: dict[int, int],
    die_at: int,
) -> None:
    """One generation of a run on a data set whose further generations appear after certain steps."""
    torch.set_num_threads(1)

    def report(message: dict[str, Any]) -> None:
        if message["kind"] == "step" and message["step"] in grows:
            manifests.write(data.generations[grows[message["step"]]], data.folder)
        if message["kind"] == "step" and message["step"] == die_at:
            while last_commit(run) is None:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    with awake_model():
        process.run(payload(config, run, data.folder) | {"rank": rank, "world": world, "host": host, "port": port}, report, listener)


def train(
    config: RunConfig, run: Path, data: Growing, lives: list[tuple[int, int]], grows: dict[int, int] | None = None
) -> list[dict[str, Any]]:
    """A generation for each (step to die at, 0 for none; world); returns the metrics."""
    for die_at, world in lives:
        lease.draw(run)
        try:
            run_ranks(world, live, config, run, data, grows or {}, die_at)
        except RankFailed:
            if not die_at:
                raise
    return read_metrics(run)


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm"):
            assert line[key] == pytest.approx(other[key], rel=1e-5)


def test_a_killed_run_replays_the_epochs_that_were_decided_while_the_data_grew(growing: Growing, tmp_path: Path) -> None:
    config, grows = recipe([stage("only", 16, samples=10)], commit_every=3, evaluate_every=5), {4: 1, 8: 2}
    growing.fresh()
    found = train(config, tmp_path / "broken", growing, [(7, 2), (12, 3), (0, 1)], grows)
    decided = [event for event in read_events(tmp_path / "broken") if event["event"] == "epoch"]
    assert [event["epoch"] for event in decided] == list(range(len(decided)))
    assert (decided[0]["data_generation"], decided[-1]["data_generation"], decided[-1]["last"]) == (0, 2, True)
    (tmp_path / "unbroken").mkdir()
    for event in decided:  # the same decisions, in a run that nothing disturbs and whose data is complete
        record(tmp_path / "unbroken", "epoch", **{name: value for name, value in event.items() if name not in ("time", "event")})
    assert_same(found, train(config, tmp_path / "unbroken", growing, [(0, 2)]))
    counts = [event["samples"] for event in decided]
    assert counts == sorted(counts)
    state = last_commit(tmp_path / "broken")
    other = last_commit(tmp_path / "unbroken")
    assert state
    assert other
    assert state.state.epochs == other.state.epochs
    assert state.state.samples == other.state.samples == {BUCKET: 160}


def without_the_first_held_out(data: Growing, seed: int) -> Growing:
    """The same data set, but its last generation has found the held-out clip that is measured first to be like a train clip."""
    data.fresh()
    _, entry, row = open_dataset(data.folder).split(BUCKET, "held_out", seed)._place(0)
    last = data.generations[2]
    exclusions = merge(last.exclusions, {BUCKET: {entry.name: {"duplicate": [row]}}})
    return replace(data, generations=(*data.generations[:2], replace(last, exclusions=exclusions)))


def test_what_newer_data_excludes_is_measured_no_more_whatever_is_killed(growing: Growing, tmp_path: Path) -> None:
    config = recipe([stage("only", 12, samples=10)], commit_every=3, evaluate_every=1)
    excluding = without_the_first_held_out(growing, config.seed)
    losses: dict[str, dict[int, float]] = {}
    decided: list[dict[str, Any]] = []
    for name, data, lives in (
        ("broken", excluding, [(5, 1), (9, 2), (0, 1)]),
        ("unbroken", excluding, [(0, 1)]),
        ("plain", growing, [(0, 1)]),
    ):
        manifests.write(data.generations[2], data.folder)
        data.fresh()
        (tmp_path / name).mkdir()
        for event in decided:  # by the first of the runs, for all
            record(tmp_path / name, "epoch", **{key: value for key, value in event.items() if key not in ("time", "event")})
        train(config, tmp_path / name, data, lives, {1: 2})
        happened = read_events(tmp_path / name)
        losses[name] = {event["step"]: event["held_out_loss"] for event in happened if event["event"] == "evaluation"}
        decided = decided or [event for event in happened if event["event"] == "epoch"]
    begins = sum(event["samples"] for event in decided if event["data_generation"] == 0)
    before = [step for step in losses["plain"] if 10 * step <= begins]
    assert 0 < len(before) < 12
    assert losses["broken"] == pytest.approx(losses["unbroken"], rel=1e-5)
    for step, loss in losses["plain"].items():
        assert (losses["unbroken"][step] == pytest.approx(loss, rel=1e-5)) == (step in before)


def test_a_run_ends_when_every_clip_was_visited(growing: Growing, tmp_path: Path) -> None:
    growing.fresh()
    only = stage("only", 99, samples=10) | {"promotion": {"max_steps": 99, "epochs": 1}}
    lines = train(recipe([only]), tmp_path / "run", growing, [(0, 1)], {1: 2})
    happened = read_events(tmp_path / "run")
    samples = [event["samples"] for event in happened if event["event"] == "epoch"]
    assert samples[0] < samples[-1] == growing.generations[2].clips(BUCKET, "train")
    assert len(lines) == -(-sum(samples) // 10)
    assert [event["reason"] for event in happened if event["event"] == "promotion"] == ["every clip was visited 1 times"]
    told = [EncodeSpec.from_json(event["spec"]) for event in happened if event["event"] == "layout"]
    assert told == [growing.generations[0].spec]  # by which a study counts FLOPs


def test_what_is_mixed_in_for_some_steps_leaves_and_a_kill_changes_nothing(growing: Growing, tmp_path: Path) -> None:
    mixed = stage("mixed", 8, samples=20) | {"mix": [{"frames": 17, "height": 32, "width": 32, "share": 0.5, "steps": 4}]}
    config = recipe([mixed], commit_every=3)
    manifests.write(growing.generations[2], growing.folder)
    expected = train(config, tmp_path / "unbroken", growing, [(0, 2), (0, 2)])
    found = train(config, tmp_path / "broken", growing, [(4, 2), (0, 1), (6, 2), (0, 2)])
    assert len(expected) == 8
    assert_same(found, expected)
    assert [len(line["loss_by_source"]) for line in found] == [2] * 4 + [1] * 4
    assert [line["tokens"] for line in found[:1] + found[-1:]] == [960, 960]
    told = [event for event in read_events(tmp_path / "broken") if event["event"] == "mixture"]
    assert [(event["step"], event["mix"]) for event in told] == [(4, [])]


@pytest.fixture(scope="module")
def coarse(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Growing:
    return encode(videos, tmp_path_factory.mktemp("coarse"), (8, 8, 8))


def two_tokenizers() -> RunConfig:
    later = {"stride": (8, 8, 8), "tokens_per_step": 12 * 32, "promotion": {"max_steps": 6}}
    return recipe([stage("fine", 3, samples=12), stage("coarse", 6) | later], commit_every=2, conditions=())


def probe(*given: Any) -> None:
    """In place of a stage's training: a commit of what was loaded for it."""
    _, _, state, keeper, *_ = given
    keeper.commit(replace(state, step=state.step), "probe", permanent=True)
    keeper.saver.wait()


def live_probed(*given: Any) -> None:
    with patch.object(process, "run_stage", probe):
        live(*given)


def tensors(run: Path, reason: str) -> dict[tuple[str, str], torch.Tensor]:
    """The logical tensors, by kind and name, of the newest commit of a reason."""
    commit = next(found for found in commits(run) if found.reason.startswith(reason))
    shapes: dict[str, dict[str, torch.Size]] = {}
    for (kind, name), chunks in store.stored_chunks(commit.folder).items():
        shapes.setdefault(kind, {})[name] = torch.Size(chunks[0].shape)
    return {(kind, name): t for kind, names in shapes.items() for name, t in store.load_tensors(commit.folder, kind, names).items()}


def test_with_a_new_tokenizer_what_reads_latents_begins_anew_and_all_else_goes_on(
    growing: Growing, coarse: Growing, tmp_path: Path
) -> None:
    config, run = two_tokenizers(), tmp_path / "run"
    manifests.write(growing.generations[2], growing.folder)
    train(config, run, growing, [(0, 2)])
    before = tensors(run, "end of stage fine")
    lease.draw(run)
    run_ranks(2, live_probed, config, run, coarse, {}, 0)
    after = tensors(run, "probe")
    renewed = {name for _, name in after if reads_latents(name)}
    assert renewed == {f"{part}.{kind}" for part in ("embed", "head.network.embed", "head.network.final") for kind in ("weight", "bias")}
    for (kind, name), tensor in after.items():
        if name not in renewed:
            torch.testing.assert_close(tensor, before[kind, name], rtol=0, atol=0)
        elif kind in ("exp_avg", "exp_avg_sq"):
            assert not tensor.any()
        else:
            torch.testing.assert_close(tensor, after["weight", name], rtol=0, atol=0)
    assert not torch.equal(after["weight", "embed.weight"], before["weight", "embed.weight"])
    told = [event for event in read_events(run) if event["event"] == "tokenizer"]
    assert [(event["stage"], event["step"], set(event["renewed"])) for event in told] == [("coarse", 3, renewed)]


def test_a_kill_after_the_change_of_tokenizer_resumes_as_if_there_was_none(growing: Growing, coarse: Growing, tmp_path: Path) -> None:
    config = two_tokenizers()
    manifests.write(growing.generations[2], growing.folder)
    histories = []
    for name, lives in (("unbroken", [(0, 1)]), ("broken", [(5, 2), (7, 1), (0, 2)])):
        train(config, tmp_path / name, growing, [(0, 2)])
        histories.append(train(config, tmp_path / name, coarse, lives))
    assert [line["stage"] for line in histories[0]] == ["fine"] * 3 + ["coarse"] * 6
    assert_same(histories[1], histories[0])
    state = last_commit(tmp_path / "broken")
    assert state
    assert state.state.samples == {BUCKET: 36, f"{BUCKET}@8x8x8-linear": 72}
    told = [event["step"] for event in read_events(tmp_path / "broken") if event["event"] == "tokenizer"]
    assert set(told) == {3}
