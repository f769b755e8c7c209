"""On real clips: the first training step comes long before the last video is encoded, and the run ends with all of them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.e2e.job import TIMEOUT, finish, lines, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2 * TIMEOUT)]
STAGES = [
    {"name": "short", "frames": 5, "height": 64, "width": 64, "tokens_per_step": 512, "promotion": {"max_steps": 20}},
    {"name": "longer", "frames": 17, "height": 96, "width": 96, "tokens_per_step": 1440, "promotion": {"max_steps": 2}},
]


def test_real_clips_train_before_a_fifth_of_them_is_encoded(real_videos: Path, tmp_path: Path) -> None:
    small = ["data.sources_per_shard=1", "data.start_fraction=0.02", "train.evaluate_samples=1", "train.evaluate_every=10"]
    brief = ["sample.videos=1", "sample.iterations=2", "sample.head_steps=2", f"curriculum.stages={json.dumps(STAGES)}"]
    videos = [f"data.videos={real_videos}", f"data.captions={real_videos / 'captions.csv'}", "run.name=real"]
    process = start([*small, *brief, *videos], tmp_path)
    folder, sources = tmp_path / "runs" / "real", tmp_path / "runs" / "datasets"
    while not lines(folder / "metrics.jsonl") and process.poll() is None:
        time.sleep(0.005)
    encoded = len(list(sources.glob("*/sources/*.json")))
    code, out, err = finish(process)
    assert code == 0, out + err
    total = len(list(sources.glob("*/sources/*.json")))
    assert total >= 22
    assert encoded < total / 5, f"{encoded} of {total} videos were encoded at the first step"
    happened = lines(folder / "events.jsonl")
    told = [event for event in happened if event["event"] == "data"]
    assert [event["pending"] > 0 for event in told] == [True, False]
    assert told[-1]["sources"]["total"] == total
    assert len([event for event in happened if event["event"] == "promotion"]) == 2
