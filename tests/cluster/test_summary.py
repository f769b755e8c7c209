"""What a user is told of their videos and of their run: counts, and every file that was not used as it is, by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.dataset import EncodeJob
from cluster.summary import dataset_counts, dataset_lines, run_lines
from data_pipeline.codecs import Codecs
from data_pipeline.entry_table import Unmatched
from data_pipeline.loader import Dataset, open_dataset
from data_pipeline.manifest import SourcesSummary
from data_pipeline.sources import SourceList
from trainer import events

ALL_WELL = SourcesSummary(total=48, ok=48, rejected={}, failed={}, damaged={})


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Path) -> Dataset:
    return open_dataset(tiny_dataset)


def told(dataset: Dataset, sources: SourcesSummary = ALL_WELL, reused: bool = False, **listed: Any) -> list[str]:
    """The lines of a data set whose inputs fared like that."""
    job = EncodeJob(SourceList((), **listed), dataset.manifest.spec, "", dataset.folder, "videos", Codecs(None, None, 4, (4, 8, 8), 16))
    return dataset_lines(job, replace(dataset, manifest=replace(dataset.manifest, sources=sources)), reused)


def test_good_videos_are_three_lines_of_counts(dataset: Dataset) -> None:
    first, counts, clips = told(dataset)
    assert first == f"data  encoded {dataset.folder}"
    assert counts.strip() == "48 videos, 48 used, 0 rejected, 0 unreadable"
    for bucket in ("5x32x32", "9x32x32"):
        train, held_out = (dataset.manifest.clips(bucket, split) for split in ("train", "held_out"))
        assert f"{bucket}: {train} + {held_out} held out" in clips


def test_a_data_set_that_was_there_is_called_reused(dataset: Dataset) -> None:
    assert told(dataset, reused=True)[0] == f"data  reused {dataset.folder}"


def test_rejects_are_counted_by_reason(dataset: Dataset) -> None:
    lines = told(dataset, replace(ALL_WELL, ok=43, rejected={"too short": 2, "motion": 3}))
    assert lines[1].strip() == "48 videos, 43 used, 5 rejected, 0 unreadable"
    assert lines[3].strip() == "rejected  motion: 3, too short: 2"


def test_counts_are_by_outcome_reason_and_split(dataset: Dataset) -> None:
    sources = replace(ALL_WELL, ok=42, rejected={"motion": 5}, failed={"bad.mp4": "reason"})
    fared = replace(dataset, manifest=replace(dataset.manifest, sources=sources))
    outcomes, rejected, clips = dataset_counts(fared)
    assert outcomes == {"ok": 42, "rejected": 5, "failed": 1}
    assert rejected == {"motion": 5}
    assert clips == {
        split: sum(dataset.manifest.clips(bucket, split) for bucket in dataset.manifest.buckets) for split in ("train", "held_out")
    }


def test_every_unreadable_and_every_damaged_file_is_named_with_its_reason(dataset: Dataset) -> None:
    failed = {f"bad/{number}.mp4": f"reason {number}" for number in range(20)}
    lines = told(dataset, replace(ALL_WELL, ok=28, failed=failed, damaged={"cut.mp4": "2 broken packets or pictures were skipped"}))
    assert lines[1].strip() == "48 videos, 28 used, 0 rejected, 20 unreadable"
    assert [line.strip() for line in lines[3:]] == [
        *(f"unreadable  {name}: {reason}" for name, reason in failed.items()),
        "damaged  cut.mp4: 2 broken packets or pictures were skipped",
    ]


def test_captions_and_videos_that_do_not_match_are_named_up_to_a_few(dataset: Dataset) -> None:
    first = tuple(f"{number}.mp4" for number in range(5))
    lines = told(dataset, without_caption=Unmatched(7, first), unknown_captions=Unmatched(1, ("gone.mp4",)))
    assert lines[3].strip() == f"without a caption  {', '.join(first)} and 2 more"
    assert lines[4].strip() == "captions without a video  gone.mp4"
    assert told(dataset, without_caption=Unmatched(5, first))[3].strip() == f"without a caption  {', '.join(first)}"


def test_a_run_without_a_promotion_tells_its_samples_and_where_to_look(tmp_path: Path) -> None:
    events.record(tmp_path, "start")
    samples = {"psnr": 21.26, "psnr_copy_last_frame": 18.0, "clips": 4, "folder": str(tmp_path / "samples" / "step")}
    events.record(tmp_path, "samples", **samples)
    line, *places = run_lines(tmp_path)
    assert line == "samples: PSNR 21.3 dB over the generated frames of 4 held-out clips, 18.0 dB for repeating the given frame"
    assert [place.split()[-1] for place in places] == [
        str(tmp_path / "samples" / "step" / "00.mp4"),
        str(tmp_path / "samples" / "step" / "contact-sheet.png"),
        str(tmp_path / "report.html"),
    ]


def test_a_run_without_samples_tells_where_its_report_is(tmp_path: Path) -> None:
    events.record(tmp_path, "start")
    assert run_lines(tmp_path) == [f"report        {tmp_path / 'report.html'}"]
