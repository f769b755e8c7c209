"""The pool's driver: it takes chunks as it has room for them, and its sizes follow the cluster."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster import encode_pool
from cluster.encode import is_hopeless
from cluster.encode_actors import Decoder, Encoder
from cluster.encode_pool import EncodePool, PoolState
from cluster.encode_scaling import Limits, Sizes, limits_of
from data_pipeline.chunks import Chunk

from .test_encode import SPEC, Data, copy_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


def test_the_pools_grow_and_shrink_with_their_limits_and_lose_nothing(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_pool, "SCALE_SECONDS", 0.0)
    decoder, encoder = (ray.remote(kind).options(num_cpus=0) for kind in (Decoder, Encoder))
    many = ((index, copy_of(data, index), "work") for index in range(150))
    cluster = [limits_of(1)]
    pool = EncodePool(
        many, lambda: decoder.remote(SPEC, tmp_path), lambda: encoder.remote(SPEC, data.tokenizer), lambda: cluster[-1], is_hopeless
    )
    seen: list[PoolState] = []

    def change(state: PoolState) -> None:
        """First one more CPU, then two fewer."""
        seen.append(state)
        cluster.append(Limits((3, 3), (2, 2)) if 50 < len(state.records) < 100 else Limits((1, 1), (1, 1)))

    monkeypatch.setattr(encode_pool, "WAIT_SECONDS", 0.01)
    pool.run(change)
    assert len(pool.records) == 150
    assert not pool.failures
    assert {Sizes(3, 2), Sizes(1, 1)} <= {state.sizes for state in seen}


def test_chunks_are_made_when_there_is_room_for_them_and_let_go_when_they_are_done(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_pool, "QUEUE_BYTES", 1)  # a decoder waits while any piece does
    decoder, encoder = (ray.remote(kind).options(num_cpus=0) for kind in (Decoder, Encoder))
    made: list[weakref.ref[Chunk]] = []
    ahead: list[int] = []

    def chunks() -> Iterator[tuple[int, Chunk, str]]:
        for index in range(60):
            chunk = copy_of(data, index)
            made.append(weakref.ref(chunk))
            ahead.append(len(made) - len(pool.records))
            yield index, chunk, "work"

    pool = EncodePool(
        chunks(), lambda: decoder.remote(SPEC, tmp_path), lambda: encoder.remote(SPEC, data.tokenizer), lambda: limits_of(1), is_hopeless
    )
    held: list[int] = []
    pool.run(lambda state: held.append(sum(chunk() is not None for chunk in made)))
    assert sorted(pool.records) == list(range(60))
    assert max(ahead) <= 12
    gc.collect()
    assert sum(chunk() is not None for chunk in made) <= 1, "the pool lets go of what is written"
    assert max(held) <= 16
    assert not any(source.values or source.caption for record in pool.records.values() for source in record.sources)
