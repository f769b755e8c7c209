"""A data set that changes: every change is a generation of its own, latents are never encoded twice."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import manifest
from data_pipeline.chunks import is_held_out, plan_chunks
from data_pipeline.encode import encode_chunk
from data_pipeline.errors import UserError
from data_pipeline.filters import FilterThresholds
from data_pipeline.living import choose, grow, merge, plan_growth, read_records, recaption, remove
from data_pipeline.loader import Dataset, open_dataset
from data_pipeline.records import SourceRecord
from data_pipeline.sources import Source, _source_id, list_sources
from data_pipeline.synthetic import write_synthetic
from data_pipeline.text import caption_hash
from data_pipeline.text.hashing import HashingText

from .conftest import SPEC, Encoded, bytes_by_name, encode_folder

BUCKETS = ("5x32x32", "9x48x48")


@dataclass(frozen=True)
class Living:
    """A data set of its own to change, and where its videos are."""

    videos: Path
    made: Encoded

    @property
    def folder(self) -> Path:
        return Path(str(self.made.dataset.folder))


@pytest.fixture
def living(synthetic_videos: Path, tmp_path: Path) -> Living:
    shutil.copytree(synthetic_videos, tmp_path / "videos")
    return Living(tmp_path / "videos", encode_folder(tmp_path / "videos", tmp_path / "dataset"))


def keys(dataset: Dataset, bucket: str = BUCKETS[0]) -> set[str]:
    sets = [dataset.split(bucket, split, seed=0) for split in ("train", "held_out")]
    return {samples.sample_key(position) for samples in sets for position in range(len(samples))}


def commit(living: Living, made: manifest.Manifest) -> Dataset:
    manifest.write(made, living.folder)
    return open_dataset(living.folder)


def add_videos(living: Living, names: tuple[str, ...] = ("new-0.mp4", "new-1.mp4", "new-2.mp4")) -> Dataset:
    write_synthetic(living.videos.parent / "more", clips=len(names), seed=9, size=64, frames=20)
    for number, name in enumerate(names):
        shutil.copy(living.videos.parent / "more" / f"clip-{number:05d}.mp4", living.videos / name)
    sources = list_sources(living.videos, living.videos / "captions.csv").sources
    old = open_dataset(living.folder).manifest
    for chunk in plan_growth(sources, old, read_records(living.folder)):
        encode_chunk(chunk, old.spec, living.made.tokenizer, living.made.text, living.folder)
    return commit(living, grow(old, read_records(living.folder)))


def test_records_are_read_back_from_the_folder_as_they_were_made(living: Living) -> None:
    assert sorted(read_records(living.folder), key=lambda r: r.name) == sorted(living.made.records, key=lambda r: r.name)


def test_adding_encodes_only_what_is_new_and_rewrites_nothing(living: Living) -> None:
    before, old = bytes_by_name(living.folder), keys(living.made.dataset)
    dataset = add_videos(living)
    after = bytes_by_name(living.folder)
    assert {name for name in before if after[name] != before[name]} == {"manifest.json"}
    assert dataset.manifest.generation == 1
    assert keys(dataset) > old
    assert dataset.manifest.sources.total == 15
    new = {key.partition("-")[0] for key in keys(dataset) - old}
    assert new == {source.id for source in list_sources(living.videos).sources if source.name.startswith("new")}
    assert dataset.manifest.statistics == living.made.dataset.manifest.statistics
    assert dataset.manifest.latent_statistics == living.made.dataset.manifest.latent_statistics
    with pytest.raises(UserError, match="nothing to add"):
        grow(dataset.manifest, read_records(living.folder))


def test_growing_twice_gives_the_same_bytes(living: Living, synthetic_videos: Path, tmp_path: Path) -> None:
    shutil.copytree(synthetic_videos, tmp_path / "again" / "videos")
    other = Living(tmp_path / "again" / "videos", encode_folder(tmp_path / "again" / "videos", tmp_path / "again" / "dataset"))
    add_videos(living)
    add_videos(other)
    assert bytes_by_name(other.folder) == bytes_by_name(living.folder)


def test_training_can_pin_a_generation(living: Living) -> None:
    first = living.made.dataset
    newest = add_videos(living)
    pinned = open_dataset(living.folder, generation=0)
    assert (pinned.id, pinned.manifest) == (first.id, first.manifest)
    assert newest.id != first.id
    samples, again = (dataset.split(BUCKETS[1], "train", 3) for dataset in (first, pinned))
    np.testing.assert_array_equal(samples.fetch(range(6)).latents, again.fetch(range(6)).latents)
    with pytest.raises(UserError, match="manifest-000007"):
        open_dataset(living.folder, generation=7)


def test_a_copy_that_is_added_is_a_duplicate_of_what_is_there(synthetic_videos: Path, tmp_path: Path) -> None:
    shutil.copytree(synthetic_videos, tmp_path / "videos")
    spec = replace(SPEC, thresholds=FilterThresholds(duplicate_bits=10), held_out=1e-9)
    living = Living(tmp_path / "videos", encode_folder(tmp_path / "videos", tmp_path / "dataset", spec))
    shutil.copy(living.videos / "clip-00004.mp4", living.videos / "copy.mp4")
    old = living.made.dataset
    (chunk,) = plan_growth(list_sources(living.videos).sources, old.manifest, read_records(living.folder))
    encode_chunk(chunk, spec, living.made.tokenizer, living.made.text, living.folder)
    dataset = commit(living, grow(old.manifest, read_records(living.folder)))
    assert keys(dataset) == keys(old)
    assert dataset.manifest.exclusions[BUCKETS[0]][chunk.name] == {"duplicate": [0, 1, 2, 3]}


def test_a_held_out_clip_that_looks_like_a_train_clip_that_came_later_is_measured_no_more(synthetic_videos: Path, tmp_path: Path) -> None:
    shutil.copytree(synthetic_videos, tmp_path / "videos")
    spec = replace(SPEC, thresholds=FilterThresholds(duplicate_bits=0), held_out=0.3)
    living = Living(tmp_path / "videos", encode_folder(tmp_path / "videos", tmp_path / "dataset", spec))
    likeness = next(record for record in living.made.records if record.split == "held_out").sources[0]
    names = (f"copy-{number}.mp4" for number in range(99))
    name = next(name for name in names if not is_held_out(Source(_source_id(name), "", "", name), spec))
    shutil.copy(living.videos / likeness.name, living.videos / name)
    old = living.made.dataset
    (chunk,) = plan_growth(list_sources(living.videos).sources, old.manifest, read_records(living.folder))
    assert chunk.split == "train"
    encode_chunk(chunk, spec, living.made.tokenizer, living.made.text, living.folder)
    commit(living, grow(old.manifest, read_records(living.folder)))
    measured = old.split(BUCKETS[0], "held_out", 0)
    everything = list(range(len(measured)))
    assert measured.still_read(0, 99) == everything
    assert measured.still_read(0, 1) == [0]
    others = [position for position in everything if not measured.sample_key(position).startswith(likeness.id)]
    assert measured.still_read(1, 99) == others != everything


@pytest.mark.parametrize("by", ["id", "name", "caption"])
def test_removing_leaves_out_every_clip_of_the_chosen_sources_and_nothing_else(living: Living, by: str) -> None:
    first = living.made.sources[2]
    chosen = {
        "id": choose([first.id]),
        "name": choose([first.name]),
        "caption": choose(caption=r"\bRED\b"),
    }[by]
    expected = {s.id for s in living.made.sources if (by == "caption" and " red " in f" {s.caption} ") or (by != "caption" and s == first)}
    assert 0 < len(expected) < 12
    old = living.made.dataset
    dataset = commit(living, remove(old.manifest, living.folder, chosen))
    for bucket in BUCKETS:
        assert keys(old, bucket) - keys(dataset, bucket) == {key for key in keys(old, bucket) if key.partition("-")[0] in expected}
    assert keys(open_dataset(living.folder, generation=0)) == keys(old)


def test_sources_are_chosen_by_id_name_caption_or_licence() -> None:
    source = SourceRecord("0a", "dir/a.mp4", "ok", caption="A red car.", licence="CC BY-NC")
    assert all(chosen(source) for chosen in (choose(["0a"]), choose(["dir/a.mp4"]), choose(caption="RED c"), choose(licence="CC BY-NC")))
    assert not any(chosen(source) for chosen in (choose(["a.mp4"]), choose(caption="^red"), choose(licence="CC BY"), choose()))


def test_removing_nothing_or_everything_is_refused(living: Living) -> None:
    old = living.made.dataset.manifest
    with pytest.raises(UserError, match="nothing to remove"):
        remove(old, living.folder, choose(["no such source"]))
    with pytest.raises(UserError, match="would leave no train clip in bucket 5x32x32"):
        remove(old, living.folder, choose(caption="."))
    with pytest.raises(UserError, match=r"'\(' is not a regular expression"):
        choose(caption="(")


def test_new_captions_change_the_text_and_no_latent(living: Living) -> None:
    old, text = living.made.dataset, living.made.text
    first, second, third = living.made.sources[:3]
    before = bytes_by_name(living.folder)
    made = recaption(old.manifest, living.folder, {first.name: "something new", second.id: "something new", third.id: ""}, text)
    dataset = commit(living, made)
    changed = {name for name, data in bytes_by_name(living.folder).items() if before.get(name) != data}
    assert {name.split("/")[0] for name in changed} == {"text", "generations", "manifest.json"}
    for split in ("train", "held_out"):
        one, other = (data.split(BUCKETS[0], split, 0) for data in (old, dataset))
        batches = [samples.fetch(range(len(samples))) for samples in (one, other)]
        np.testing.assert_array_equal(batches[0].latents, batches[1].latents)
        for item, key in enumerate(batches[1].keys):
            source = next(source for source in living.made.sources if key.startswith(source.id))
            caption = {first: "something new", second: "something new", third: ""}.get(source, source.caption)
            vectors = text.encode(caption)
            assert batches[1].text_length[item] == len(vectors)
            np.testing.assert_allclose(batches[1].text[item, : len(vectors)], vectors, rtol=2**-8)
            assert other.caption(item) == caption
    again = commit(living, recaption(dataset.manifest, living.folder, {first.id: "newer"}, text))
    assert again.new_captions[first.id][0].meta(again.new_captions[first.id][1])["caption"] == "newer"
    assert again.new_captions[second.id][0].meta(again.new_captions[second.id][1])["caption"] == "something new"


def test_equal_captions_are_stored_once_and_the_empty_one_is_always_there(living: Living) -> None:
    captions = {source.id: "the same" for source in living.made.sources}
    dataset = commit(living, recaption(living.made.dataset.manifest, living.folder, captions, living.made.text))
    (entry,) = dataset.manifest.captions
    (reader,) = {id(place[0]): place[0] for place in dataset.new_captions.values()}.values()
    assert entry.count == 2
    assert set(reader.keys) == {caption_hash(""), caption_hash("the same")}


def test_captions_of_another_encoder_or_for_an_unknown_source_are_refused(living: Living) -> None:
    old = living.made.dataset.manifest
    with pytest.raises(UserError, match="from another text encoder"):
        recaption(old, living.folder, {}, HashingText(32, 24))
    with pytest.raises(UserError, match=r"has no source gone\.mp4"):
        recaption(old, living.folder, {"gone.mp4": "x"}, living.made.text)


def test_every_sample_leads_back_to_its_file_times_and_settings(living: Living) -> None:
    samples = living.made.dataset.split(BUCKETS[1], "train", 0)
    shard = living.made.dataset.manifest.buckets[BUCKETS[1]]["train"][0]
    meta = samples._reader(shard).meta(1)
    source = next(source for source in living.made.sources if source.id == meta["source"])
    assert (meta["name"], meta["caption"], meta["kind"], meta["licence"]) == (source.name, source.caption, "video", "")
    assert meta["stop"] - meta["start"] == pytest.approx(9 / 8)
    assert meta["fps"] == 8
    assert meta["motion"] == meta["values"]["motion"] > 0
    assert meta["config"] == living.made.spec.fingerprint
    record = next(record for record in read_records(living.folder) if record.name == shard.name)
    assert source.id in {outcome.id for outcome in record.sources}


def test_merging_exclusions_keeps_each_row_once() -> None:
    one, other = {"b": {"s": {"removed": [1, 3]}}}, {"b": {"s": {"removed": [3, 2], "duplicate": [0]}, "t": {"removed": [5]}}}
    assert merge(one, other) == {"b": {"s": {"removed": [1, 2, 3], "duplicate": [0]}, "t": {"removed": [5]}}}


def test_a_plan_of_growth_without_news_is_empty(living: Living) -> None:
    assert plan_growth(living.made.sources, living.made.dataset.manifest, read_records(living.folder)) == []
    assert plan_chunks(living.made.sources, SPEC)
