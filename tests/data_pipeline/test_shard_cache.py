import os
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import s3, storage
from data_pipeline.loader import Dataset, open_dataset
from data_pipeline.order import EpochOrder
from data_pipeline.shard_cache import ShardCache
from data_pipeline.shard_fetcher import locked
from data_pipeline.shard_index import ShardError
from data_pipeline.shard_reader import ShardReader
from data_pipeline.shards import ShardEntry, shard_path, write_shard
from data_pipeline.storage import S3Path
from tests.s3 import S3Server

from .conftest import Encoded
from .test_shards import samples


@pytest.fixture
def uploaded(encoded: Encoded, bucket: S3Path) -> S3Path:
    """The encoded data set in S3."""
    storage.copy_tree(encoded.dataset.folder, bucket / "sets" / "one", last="manifest.json")
    return bucket / "sets" / "one"


def shards(dataset: Dataset, bucket: str = "5x32x32") -> tuple[ShardEntry, ...]:
    return dataset.manifest.buckets[bucket]["train"]


def wait_for(cache: ShardCache | None, entry: ShardEntry) -> None:
    assert cache
    deadline = time.monotonic() + 20
    while (descriptor := cache.open(entry)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(descriptor)


def settle(cache: ShardCache) -> None:
    """All that was asked for is here, and the process that fetched it has ended."""
    cache.wait()
    cache.close()


@pytest.mark.parametrize("cached", [False, True], ids=["ranged reads", "through the cache"])
def test_a_data_set_in_s3_gives_the_batches_of_the_one_on_disk(encoded: Encoded, uploaded: S3Path, tmp_path: Path, cached: bool) -> None:
    cache = ShardCache(tmp_path, 1 << 30) if cached else None
    there, here = open_dataset(uploaded, cache), encoded.dataset
    assert there.id == here.id
    for bucket in here.manifest.buckets:
        remote, local = (dataset.split(bucket, "train", 3) for dataset in (there, here))
        for first in range(0, 2 * len(local), 7):
            mine, truth = remote.fetch(range(first, first + 7)), local.fetch(range(first, first + 7))
            np.testing.assert_array_equal(mine.latents, truth.latents)
            np.testing.assert_array_equal(mine.text, truth.text)
            assert mine.keys == truth.keys
    assert there.tokenizer.fingerprint == here.tokenizer.fingerprint
    for entry in (entry for name in here.manifest.buckets for entry in shards(here, name) if cache):
        wait_for(cache, entry)


def test_a_shard_that_has_come_is_read_from_the_disk_alone(uploaded: S3Path, tmp_path: Path, s3_server: S3Server) -> None:
    dataset = open_dataset(uploaded, ShardCache(tmp_path, 1 << 30))
    split = dataset.split("9x48x48", "train", 0)
    split.fetch(range(len(split)))
    for entry in shards(dataset, "9x48x48"):
        wait_for(dataset.cache, entry)
    before = len(s3_server.requests)
    split.fetch(range(len(split)))
    assert len(s3_server.requests) == before


def test_a_shard_that_has_come_is_opened_without_a_request(uploaded: S3Path, tmp_path: Path, s3_server: S3Server) -> None:
    dataset = open_dataset(uploaded, ShardCache(tmp_path, 1 << 30))
    entry, cache = shards(dataset)[0], dataset.cache
    assert cache
    cache.want([(shard_path(uploaded, entry), entry)])
    settle(cache)
    before = len(s3_server.requests)
    reader = ShardReader(shard_path(uploaded, entry), entry, cache)
    assert reader.latent(0).any()
    assert len(s3_server.requests) == before
    cache.place(entry).with_suffix(".idx").unlink()
    assert ShardReader(shard_path(uploaded, entry), entry, cache).keys == reader.keys


def test_a_shard_damaged_in_s3_is_named_whichever_way_it_is_read(uploaded: S3Path, tmp_path: Path) -> None:
    dataset = open_dataset(uploaded, ShardCache(tmp_path, 1 << 30))
    entry = shards(dataset)[0]
    path = shard_path(uploaded, entry)
    data = bytearray(storage.read_bytes(path))
    data[600] ^= 4  # in the first sample's latent
    storage.write_bytes(path, bytes(data))
    with pytest.raises(ShardError, match=rf"{path} is damaged: the latent of sample .* differs from its checksum"):
        ShardReader(path, entry).latent(0)
    assert dataset.cache
    dataset.cache.want([(path, entry)])
    settle(dataset.cache)
    reader = ShardReader(path, entry, dataset.cache)
    assert reader.latent(1).any()
    assert list(tmp_path.iterdir())
    with pytest.raises(ShardError, match=rf"{path} is damaged: the latent of sample .* differs from its checksum"):
        reader.latent(0)
    assert not list(tmp_path.iterdir())


def test_an_index_lost_in_s3_is_made_again_from_the_shard(uploaded: S3Path) -> None:
    entry = shards(open_dataset(uploaded))[0]
    truth = ShardReader(shard_path(uploaded, entry), entry).latent(2)
    storage.delete(shard_path(uploaded, entry).with_suffix(".idx"))
    np.testing.assert_array_equal(ShardReader(shard_path(uploaded, entry), entry).latent(2), truth)


def test_the_cache_stays_within_its_limit_and_drops_what_is_unused_for_longest(bucket: S3Path, tmp_path: Path) -> None:
    entries = [write_shard(bucket / "5x32x32", f"shard-{number:06d}", samples()[number : number + 2]) for number in range(4)]
    size = entries[0].bytes
    cache = ShardCache(tmp_path, 2 * size + 100)
    reader = ShardReader(shard_path(bucket, entries[0]), entries[0], cache)
    for entry in entries[:2]:
        cache.want([(shard_path(bucket, entry), entry)])
        wait_for(cache, entry)
    latent = reader.latent(0)
    wait_for(cache, entries[0])  # used last
    for entry in entries[2:]:
        cache.want([(shard_path(bucket, entry), entry)])
        wait_for(cache, entry)
        assert sum(copy.stat().st_size for copy in tmp_path.glob("*.tar")) <= cache.limit
    assert {copy.stem for copy in tmp_path.glob("*.tar")} == {entries[2].sha256, entries[3].sha256}
    np.testing.assert_array_equal(reader.latent(0), latent)  # the copy that it holds open is still readable
    cache.want([(shard_path(bucket, entries[0]), ShardEntry("5x32x32", entries[0].name, 2, 10**9, entries[0].sha256))])
    assert len(list(tmp_path.glob("*.tar"))) == 2


def test_none_of_what_is_wanted_makes_room_for_the_rest_of_it(bucket: S3Path, tmp_path: Path) -> None:
    entries = [write_shard(bucket / "5x32x32", f"shard-{number:06d}", samples()[number : number + 2]) for number in range(5)]
    cache = ShardCache(tmp_path, 3 * max(entry.bytes for entry in entries))
    for first, last in ((0, 5), (1, 5), (4, 5), (0, 2)):
        wanted = entries[first:last]
        cache.want([(shard_path(bucket, entry), entry) for entry in wanted])
        cache.wait()
        here = {copy.stem for copy in tmp_path.glob("*.tar")}
        assert {entry.sha256 for entry in wanted[:3]} <= here
        assert len(here) == 3
    cache.close()


def test_what_is_read_next_is_fetched_beyond_the_end_of_an_epoch(encoded: Encoded, bucket: S3Path, tmp_path: Path) -> None:
    entries = tuple(write_shard(bucket / "5x32x32", f"shard-{n:06d}", [replace(samples()[0], key=f"{n:016x}-0000")]) for n in range(40))
    manifest = replace(encoded.dataset.manifest, buckets={"5x32x32": {"train": entries, "held_out": ()}})
    split = Dataset(bucket, manifest, "", cache := ShardCache(tmp_path, 1 << 30)).split("5x32x32", "train", 0)
    orders = [EpochOrder([1] * 40, 0, "5x32x32", epoch) for epoch in range(2)]
    assert split.sample_key(39) == f"{orders[0][39][0]:016x}-0000"
    settle(cache)
    expected = {entries[shard].sha256 for shard in (*orders[0].window(39)[1], *orders[1].window(0)[1], *orders[1].window(4)[1])}
    assert {copy.stem for copy in tmp_path.glob("*.tar")} == expected


def test_what_many_share_is_fetched_once(bucket: S3Path, tmp_path: Path, s3_server: S3Server) -> None:
    entries = [write_shard(bucket / "5x32x32", f"shard-{number:06d}", samples()[number : number + 2]) for number in range(6)]
    caches, before = [ShardCache(tmp_path, 1 << 30) for _ in range(4)], len(s3_server.requests)
    for cache in caches:
        cache.want([(shard_path(bucket, entry), entry) for entry in entries])
    for cache in caches:
        settle(cache)
    assert {path.name for path in tmp_path.iterdir()} == {f"{entry.sha256}{kind}" for entry in entries for kind in (".tar", ".idx")}
    asked = Counter(path for method, path in s3_server.requests[before:] if method == "GET")
    assert set(asked.values()) == {1}
    assert len(asked) == 2 * len(entries)


def test_in_a_folder_that_holds_other_things_too_they_stay(bucket: S3Path, tmp_path: Path) -> None:
    entry = write_shard(bucket / "5x32x32", "shard-000000", samples())
    here = tmp_path / "here"
    here.mkdir()
    for name in ("poetry.lock", "backup.tar", ".poetry.tar.x.tmp"):
        (here / name).write_text("mine")
    (tmp_path / "elsewhere").write_text("mine")
    (here / f"{'0' * 64}.lock").symlink_to(tmp_path / "elsewhere")
    cache = ShardCache(here, entry.bytes)
    cache.want([(shard_path(bucket, entry), entry)])
    settle(cache)
    assert cache.place(entry).exists()
    assert [(here / name).read_text() for name in ("poetry.lock", "backup.tar", ".poetry.tar.x.tmp")] == ["mine"] * 3
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_whoever_has_waited_for_a_lock_holds_the_one_that_others_see(tmp_path: Path) -> None:
    copy, waiting, seen = tmp_path / f"{'0' * 64}.tar", threading.Event(), []

    def wait_and_look() -> None:
        waiting.set()
        with locked(copy):
            try:
                with locked(copy, wait=False):
                    seen.append("another lock")
            except BlockingIOError:
                seen.append("mine")

    with locked(copy):
        threads = [threading.Thread(target=wait_and_look) for _ in range(4)]
        for thread in threads:
            thread.start()
        waiting.wait()
        time.sleep(0.1)  # so that they wait for this one, which is deleted
    for thread in threads:
        thread.join()
    assert seen == ["mine"] * 4
    assert not list(tmp_path.iterdir())


def test_a_cache_may_be_named_from_where_the_user_is(bucket: S3Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = write_shard(bucket / "5x32x32", "shard-000000", samples())
    cache = ShardCache(Path("cache"), 1 << 30)
    cache.want([(shard_path(bucket, entry), entry)])
    settle(cache)
    assert (tmp_path / "cache" / f"{entry.sha256}.tar").exists()


def test_a_twentieth_of_the_requests_failing_loses_no_sample(
    encoded: Encoded, uploaded: S3Path, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "FIRST_PAUSE", 0.01)
    draw, lock, refused = random.Random(2), threading.Lock(), []

    def gate(request: object) -> str | None:
        with lock:
            if draw.random() < 0.05:
                refused.append(request)
                return "503 Slow Down"
        return None

    s3_server.gate = gate
    remote, local = (d.split("5x32x32", "train", 0) for d in (open_dataset(uploaded, ShardCache(tmp_path, 40_000)), encoded.dataset))
    for first in range(0, 3 * len(local), 4):
        np.testing.assert_array_equal(remote.fetch(range(first, first + 4)).latents, local.fetch(range(first, first + 4)).latents)
    assert refused
