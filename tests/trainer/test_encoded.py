"""What the report tells of the encoded clips: counts as the manifest has them, small pictures of what the latents decode to."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.loader import Dataset, open_dataset
from tests.trainer.report_page import Page
from trainer.config import load
from trainer.inspection import encoded, report
from trainer.inspection.showcase import show_encoded


@pytest.fixture
def dataset(tiny_dataset: Path) -> Dataset:
    return open_dataset(tiny_dataset)


@pytest.fixture
def run(dataset: Dataset, tmp_path: Path) -> Path:
    """A run's folder after its samples were made, with pictures of the 5x32x32 clips."""
    stage = {"name": "only", "frames": 5, "height": 32, "width": 32, "tokens_per_step": 320, "promotion": {"max_steps": 1}}
    show_encoded(tmp_path, load([f"curriculum.stages={json.dumps([stage])}"]), dataset)
    return tmp_path


def test_the_pictures_are_first_frames_of_clips_of_several_sources(run: Path, dataset: Dataset) -> None:
    told = json.loads((run / encoded.FILE).read_text())
    assert len(told["pictures"]) == encoded.SHOWN
    clips = dataset.split("5x32x32", "train", seed=0)
    firsts = [(clips.caption(place), dataset.decode(clips.fetch([place]).latents[0])[0]) for place in range(len(clips))]
    for picture in told["pictures"]:
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["jpeg"]))), int)
        assert min(np.abs(shown - first).mean() for caption, first in firsts if caption == picture["caption"]) < 6  # JPEG's own error
    assert len({picture["jpeg"] for picture in told["pictures"]}) == encoded.SHOWN


def test_the_report_shows_them_with_their_captions_and_the_counts(run: Path, dataset: Dataset) -> None:
    page = Page(report.page(run, [], []))
    assert page.of("h2") == ["Data"]
    cells = page.of("td")
    for bucket in dataset.manifest.buckets:
        place = cells.index(bucket)
        assert cells[place + 1 : place + 3] == [str(dataset.manifest.clips(bucket, split)) for split in ("train", "held_out")]
    told = json.loads((run / encoded.FILE).read_text())
    texts = [value for name, value in page.attributes if name == "alt"]
    assert texts == [f"first picture of a clip: {picture['caption']}" for picture in told["pictures"]]
    assert all(value.startswith("data:image/jpeg;base64,") for name, value in page.attributes if name == "src")


def test_what_is_left_out_is_counted_by_reason(dataset: Dataset) -> None:
    shard, *_ = dataset.manifest.buckets["5x32x32"]["train"]
    without = replace(dataset.manifest, exclusions={"5x32x32": {shard.name: {"duplicate": [0, 2], "removed": [1]}}})
    (row,) = [row for row in encoded.counts(replace(dataset, manifest=without)) if row["bucket"] == "5x32x32"]
    assert row["train"] == dataset.manifest.clips("5x32x32", "train") - 3
    assert encoded.reasons(row["left_out"]) == "duplicate: 2, removed: 1"


def test_the_pictures_together_stay_below_300_kb_whatever_they_show() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 480, 3), np.uint8)
    loud = np.random.default_rng(0).integers(0, 2, (encoded.SIDE, encoded.SIDE, 3), np.uint8) * 255
    assert max(len(encoded.jpeg(noise)), len(encoded.jpeg(loud))) * encoded.SHOWN < 300_000
    assert Image.open(io.BytesIO(base64.b64decode(encoded.jpeg(noise[:, :240])))).size == (encoded.SIDE // 2, encoded.SIDE)


def test_a_caption_of_any_kind_stays_text() -> None:
    evil = '"><script>alert(1)</script>'
    page = Page(encoded.figure(evil, "AAAA"))
    assert page.tags == ["figure", "img", "figcaption"]
    assert ("alt", f"first picture of a clip: {evil}") in page.attributes
