"""The process that fetches shards for a cache: killed, left alone, closed, refused, without room."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_pipeline import storage
from data_pipeline.shard_cache import ShardCache
from data_pipeline.shard_fetcher import SERVE
from data_pipeline.shard_reader import ShardReader
from data_pipeline.shards import shard_path, write_shard
from data_pipeline.storage import S3Path
from tests.s3 import S3Server

from .test_shard_cache import settle, wait_for
from .test_shards import check, samples


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fetchers(of: int) -> set[psutil.Process]:
    """The living fetching processes that a process has started."""
    alive = (child for child in psutil.Process(of).children() if child.status() != psutil.STATUS_ZOMBIE)
    return {child for child in alive if SERVE in child.cmdline()}


@pytest.fixture
def held(s3_server: S3Server) -> Iterator[threading.Event]:
    """While it is not set, whoever asks for a part of an object waits for it."""
    go_on = threading.Event()

    def gate(request: dict[str, Any]) -> None:
        if "HTTP_RANGE" in request:
            go_on.wait(60)

    s3_server.gate = gate
    yield go_on
    go_on.set()


def test_a_fetcher_that_is_killed_leaves_ranged_reads_and_another_one_takes_over(
    bucket: S3Path, tmp_path: Path, held: threading.Event
) -> None:
    entry = write_shard(bucket / "5x32x32", "shard-000000", samples())
    path, cache, before = shard_path(bucket, entry), ShardCache(tmp_path, 1 << 30), fetchers(os.getpid())
    cache.want([(path, entry)])
    [fetcher] = fetchers(os.getpid()) - before
    until(lambda: list(tmp_path.glob(".*.tmp")))
    fetcher.send_signal(signal.SIGKILL)
    until(lambda: fetchers(os.getpid()) == before)
    held.set()
    check(ShardReader(path, entry, cache))
    assert not cache.place(entry).exists()
    assert list(tmp_path.glob(".*.tmp"))
    cache.want([(path, entry)])
    wait_for(cache, entry)
    settle(cache)
    assert {file.name for file in tmp_path.iterdir()} == {f"{entry.sha256}{kind}" for kind in (".tar", ".idx")}
    assert fetchers(os.getpid()) == before


def test_what_another_process_is_fetching_is_not_swept_away(bucket: S3Path, tmp_path: Path, held: threading.Event) -> None:
    entries = [write_shard(bucket / "5x32x32", f"shard-{number:06d}", samples()[number : number + 2]) for number in range(2)]
    caches = [ShardCache(tmp_path, 1 << 30) for _ in entries]
    for cache, entry in zip(caches, entries, strict=True):
        cache.want([(shard_path(bucket, entry), entry)])
        until(lambda entry=entry: list(tmp_path.glob(f".{entry.sha256}.tar.*.tmp")))
    held.set()
    for cache, entry in zip(caches, entries, strict=True):
        wait_for(cache, entry)
        settle(cache)


def test_a_cache_that_is_closed_drops_what_it_is_at_and_asks_for_nothing_more(
    bucket: S3Path, tmp_path: Path, held: threading.Event
) -> None:
    entry = write_shard(bucket / "5x32x32", "shard-000000", samples())
    path, cache, before = shard_path(bucket, entry), ShardCache(tmp_path, 1 << 30), fetchers(os.getpid())
    cache.want([(path, entry)])
    until(lambda: list(tmp_path.glob(".*.tmp")))
    cache.close()
    assert not held.is_set()
    assert not list(tmp_path.iterdir())
    cache.want([(path, entry)])
    assert fetchers(os.getpid()) == before


ASKER = """
import sys, time
from pathlib import Path
from data_pipeline.shard_cache import ShardCache
from data_pipeline.shards import ShardEntry
from data_pipeline.storage import location
path, folder = location(sys.argv[1]), Path(sys.argv[2])
ShardCache(folder, 1 << 30).want([(path, ShardEntry("5x32x32", "shard-000000", 1, 1, "0" * 64))])
time.sleep(60)
"""


def test_a_fetcher_ends_with_who_asked_it_whatever_it_is_at(bucket: S3Path, tmp_path: Path, held: threading.Event) -> None:
    entry = write_shard(bucket / "5x32x32", "shard-000000", samples())
    asker = subprocess.Popen([sys.executable, "-c", ASKER, str(shard_path(bucket, entry)), str(tmp_path)])
    until(lambda: list(tmp_path.glob(".*.tmp")))
    [fetcher] = fetchers(asker.pid)
    asker.kill()
    asker.wait()
    assert not held.is_set()
    fetcher.wait(10)


def test_what_a_fetcher_meets_is_counted_with_what_its_asker_meets(bucket: S3Path, tmp_path: Path, s3_server: S3Server) -> None:
    entry = write_shard(bucket / "5x32x32", "shard-000000", samples())
    refusals = ["503 Slow Down"]
    s3_server.gate = lambda request: refusals.pop() if refusals else None
    storage.FAULTS.take()
    cache = ShardCache(tmp_path, 1 << 30)
    cache.want([(shard_path(bucket, entry), entry)])
    settle(cache)
    assert cache.place(entry).exists()
    assert storage.FAULTS.take() == {"transient": 1}


def test_a_cache_whose_disk_is_full_leaves_the_ranged_reads_and_says_so_once(
    bucket: S3Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = write_shard(bucket / "5x32x32", "shard-000000", samples())
    (tmp_path / "cache").write_text("a file in the way")
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    for _ in range(2):
        cache.want([(shard_path(bucket, entry), entry)])
        check(ShardReader(shard_path(bucket, entry), entry, cache))
        cache.wait()
    cache.close()
    check(ShardReader(shard_path(bucket, entry), entry, cache))
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"shards are not fetched ahead into {tmp_path / 'cache'}, but read from S3 in parts: ")
