import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import manifest
from data_pipeline.buckets import Bucket
from data_pipeline.errors import UserError
from data_pipeline.filters import FilterThresholds
from data_pipeline.manifest import LatentStatistics, denormalise, normalise
from data_pipeline.records import TRAIN, ChunkRecord, LatentSums, SourceRecord

from .conftest import SPEC, Encoded, encode_folder


def build(records: list[ChunkRecord]) -> manifest.Manifest:
    return manifest.build(records, SPEC, "some/videos", fingerprint="f", tokenizer="k", text="t")


def test_a_manifest_is_read_back_as_it_was_written(encoded: Encoded, tmp_path: Path) -> None:
    manifest.write(encoded.dataset.manifest, tmp_path)
    assert manifest.read(tmp_path) == encoded.dataset.manifest
    assert manifest.dataset_id(tmp_path) == encoded.dataset.id


def test_counts_are_those_of_the_shards(encoded: Encoded) -> None:
    found = encoded.dataset.manifest
    for bucket in ("5x32x32", "9x48x48"):
        total = sum(shard.count for record in encoded.records for shard in record.shards if shard.bucket == bucket)
        assert found.clips(bucket, "train") + found.clips(bucket, "held_out") == total
    assert found.sources.total == found.sources.ok == 12


def test_statistics_are_those_of_the_train_latents(encoded: Encoded) -> None:
    sets = [encoded.dataset.split(bucket.id, "train", seed=0) for bucket in SPEC.buckets]
    raw = [encoded.dataset.denormalise(samples.fetch(range(len(samples))).latents) for samples in sets]
    statistics = encoded.dataset.manifest.statistics
    for kind, part in enumerate((slice(0, 1), slice(1, None))):
        values = np.concatenate([latents[:, part].reshape(-1, SPEC.channels) for latents in raw])
        np.testing.assert_allclose(values.mean(axis=0), statistics.mean[kind], atol=1e-4)
        np.testing.assert_allclose(values.std(axis=0), statistics.std[kind], rtol=1e-4)


def test_latent_statistics_are_those_of_all_frames_per_channel(encoded: Encoded) -> None:
    sets = [encoded.dataset.split(bucket.id, "train", seed=0) for bucket in SPEC.buckets]
    raw = [encoded.dataset.denormalise(samples.fetch(range(len(samples))).latents) for samples in sets]
    values = np.concatenate([latents.reshape(-1, SPEC.channels) for latents in raw])
    mean, std = encoded.dataset.latent_statistics
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(values.mean(axis=0), mean, atol=1e-4)
    np.testing.assert_allclose(values.std(axis=0), std, rtol=1e-4)


def test_brief_records_make_the_same_manifest_and_are_less_than_half_as_large(encoded: Encoded) -> None:
    spec, names = replace(SPEC, thresholds=FilterThresholds(duplicate_bits=4)), {"fingerprint": "f", "tokenizer": "k", "text": "t"}
    broken = replace(encoded.records[0].sources[0], id="b", name="b.mp4", status="failed", reason="Invalid data", hashes={}, sums=None)
    records = [replace(encoded.records[0], sources=(broken, *encoded.records[0].sources)), *encoded.records[1:]]
    brief = [record.brief() for record in records]
    assert manifest.build(brief, spec, "some/videos", **names) == manifest.build(records, spec, "some/videos", **names)
    assert [record.brief() for record in brief] == brief
    small, large = (sum(len(pickle.dumps(record)) for record in each) for each in (brief, records))
    assert small < large / 2, (small, large)


def test_near_duplicates_over_the_whole_set_are_excluded_by_name_and_never_read(synthetic_videos: Path, tmp_path: Path) -> None:
    """A copy of a train clip under another name, one of a held-out clip, and a re-encoded one: each clip is left once."""
    videos = tmp_path / "videos"
    shutil.copytree(synthetic_videos, videos)
    spec = replace(SPEC, thresholds=FilterThresholds(duplicate_bits=10))
    alone = encode_folder(videos, tmp_path / "alone", spec).dataset
    for number in (1, 5):
        shutil.copy(videos / f"clip-{number:05d}.mp4", videos / f"copy-{number}.mp4")
    made = encode_folder(videos, tmp_path / "copies", spec)
    assert made.dataset.manifest.sources.total == 14
    for bucket in ("5x32x32", "9x48x48"):
        clips = [{split: data.manifest.clips(bucket, split) for split in ("train", "held_out")} for data in (alone, made.dataset)]
        assert sum(clips[0].values()) == sum(clips[1].values())
        hashes = [value for record in made.records for source in record.sources for value in source.hashes[bucket]]
        excluded = sum(len(rows) for shard in made.dataset.manifest.exclusions[bucket].values() for rows in shard.values())
        assert len(hashes) - excluded == sum(clips[1].values())
        keys = {made.dataset.split(bucket, split, 0).sample_key(n) for split in clips[1] for n in range(clips[1][split])}
        assert len(keys) == sum(clips[1].values())
    assert manifest.read(made.dataset.folder) == made.dataset.manifest


def test_excluded_rows_are_skipped_and_the_others_keep_their_order(encoded: Encoded) -> None:
    shard = encoded.dataset.manifest.buckets["5x32x32"]["train"][0]
    excluded = replace(encoded.dataset.manifest, exclusions={"5x32x32": {shard.name: {"duplicate": [0, 3], "removed": [3, 5]}}})
    assert list(excluded.rows(shard)) == [row for row in range(shard.count) if row not in (0, 3, 5)]
    assert excluded.clips("5x32x32", "train") == encoded.dataset.manifest.clips("5x32x32", "train") - 3
    assert excluded.clips("9x48x48", "train") == encoded.dataset.manifest.clips("9x48x48", "train")


def test_normalising_centres_channels_and_keeps_their_relative_sizes() -> None:
    statistics = LatentStatistics(mean=((1.0, -2.0), (0.5, 0.0)), std=((3.0, 4.0), (6.0, 8.0)))
    np.testing.assert_allclose(statistics.scale(), np.sqrt([12.5, 50]))
    latents = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    values = normalise(latents, statistics)
    np.testing.assert_allclose(values[:, 0], (latents[:, 0] - [1, -2]) / np.sqrt(12.5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values[:, 2], (latents[:, 2] - [0.5, 0]) / np.sqrt(50), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(denormalise(values, statistics), latents, atol=1e-5)


def test_a_kind_of_latent_that_never_occurs_is_left_alone() -> None:
    statistics = manifest.statistics(LatentSums.of(np.ones((1, 2, 3, 3), np.float32)))
    assert statistics.mean == ((1, 1), (0, 0))
    assert statistics.std == ((0, 0), (1, 1))
    assert list(statistics.scale()) == [1, 1]


def test_a_bucket_that_no_train_clip_fits_is_named_with_the_counts_by_reason() -> None:
    rejected = {"9x48x48": {"too_short": 2, "too_small": 1}}
    sources = (
        SourceRecord("a", "a.mp4", "ok", clips={"5x32x32": 1, "9x48x48": 0}, rejected=rejected),
        SourceRecord("b", "b.mp4", "failed", "Invalid data"),
    )
    with pytest.raises(UserError, match=r"bucket 9x48x48 \(too_short 2, too_small 1, unreadable 1\)"):
        build([ChunkRecord(TRAIN, 0, "", sources, ())])


def test_a_folder_without_a_readable_video_is_named() -> None:
    sources = tuple(SourceRecord(name, f"{name}.mp4", "failed", "Invalid data") for name in "abcde")
    with pytest.raises(UserError, match=r"some/videos: a\.mp4: Invalid data; .*; and 2 more"):
        build([ChunkRecord(TRAIN, 0, "", sources, ())])


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "No such file"), ("{", "damaged"), ("[]", "schema None"), ('{"schema": 99}', "schema 99")],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, named: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=rf"manifest\.json.*{named}"):
        manifest.read(tmp_path)


def test_the_fingerprint_follows_inputs_and_settings_but_not_places_or_times(encoded: Encoded, tmp_path: Path) -> None:
    sources = encoded.sources
    name = manifest.dataset_fingerprint(sources, SPEC)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(sources[0].path).read_bytes())
    moved = [replace(sources[0], path=str(copy)), *sources[1:]]
    assert manifest.dataset_fingerprint(moved, SPEC) == name
    others = [
        manifest.dataset_fingerprint(sources[1:], SPEC),
        manifest.dataset_fingerprint([replace(sources[0], caption="x"), *sources[1:]], SPEC),
        manifest.dataset_fingerprint(sources, replace(SPEC, buckets=(Bucket(5, 32, 32),))),
    ]
    copy.write_bytes(copy.read_bytes() + b"more")
    others.append(manifest.dataset_fingerprint(moved, SPEC))
    assert len({name, *others}) == 5


def test_the_file_is_plain_json_that_people_can_read(encoded: Encoded) -> None:
    value = json.loads((encoded.dataset.folder / "manifest.json").read_text())
    assert (value["schema"], value["generation"], value["spec"]["buckets"]) == (2, 0, ["5x32x32", "9x48x48"])
    assert value["buckets"]["5x32x32"]["train"][0]["name"] == "shard-000000"


def generations(encoded: Encoded, count: int) -> list[manifest.Manifest]:
    return [replace(encoded.dataset.manifest, generation=number) for number in range(count)]


def test_a_generation_is_written_once_and_a_second_writer_is_told(encoded: Encoded, tmp_path: Path) -> None:
    (first,) = generations(encoded, 1)
    assert manifest.write(first, tmp_path)
    assert manifest.write(first, tmp_path), "the same again is nobody's loss"
    assert not manifest.write(replace(first, pending=3), tmp_path)
    assert manifest.read(tmp_path) == manifest.read(tmp_path, 0) == first


def test_an_older_generation_never_takes_the_place_of_a_newer_one(encoded: Encoded, tmp_path: Path) -> None:
    made = generations(encoded, 3)
    for generation in (*made, made[1]):
        manifest.write(generation, tmp_path)
    assert manifest.read(tmp_path) == made[2]


def test_what_a_killed_writer_has_left_unpublished_is_published_by_the_next(encoded: Encoded, tmp_path: Path) -> None:
    made = generations(encoded, 2)
    for generation in made:
        manifest.write(generation, tmp_path)
    (tmp_path / manifest.FILE).write_bytes((tmp_path / "generations" / "manifest-000000.json").read_bytes())
    assert not manifest.write(replace(made[1], pending=3), tmp_path)
    assert manifest.read(tmp_path) == made[1]


def test_of_writers_at_once_one_wins_each_generation_and_the_newest_is_published(encoded: Encoded, tmp_path: Path) -> None:
    def writer(number: int) -> list[bool]:
        return [manifest.write(replace(generation, pending=number), tmp_path) for generation in generations(encoded, 8)]

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(writer, range(1, 5)))
    assert [sum(each) for each in zip(*won, strict=True)] == [1] * 8
    assert manifest.read(tmp_path) == manifest.read(tmp_path, 7)
