"""Which source goes to which chunk, and which are held out."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.chunks import by_id, held_out_rule, plan_chunks
from data_pipeline.records import HELD_OUT, TRAIN
from data_pipeline.sources import Source
from data_pipeline.spec import EncodeSpec

from .conftest import SPEC


def fake_sources(count: int) -> list[Source]:
    return [Source(f"{number:016x}", f"/videos/{number}.mp4", "", f"{number}.mp4") for number in range(count)]


def held_out_ids(sources: Sequence[Source], spec: EncodeSpec) -> set[str]:
    return {source.id for source in filter(held_out_rule(sources, spec), sources)}


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(1, 9), st.integers(0, 5))
def test_every_source_is_in_exactly_one_chunk_and_both_splits_have_some(count: int, held_out: float, per_shard: int, seed: int) -> None:
    spec = replace(SPEC, held_out=held_out, sources_per_shard=per_shard, seed=seed)
    chunks = plan_chunks(fake_sources(count), spec)
    dealt = [source.id for chunk in chunks for source in chunk.sources]
    assert sorted(dealt) == [source.id for source in fake_sources(count)]
    assert {chunk.split for chunk in chunks} == ({TRAIN, HELD_OUT} if count > 1 else {TRAIN})
    assert len({chunk.name for chunk in chunks}) == len(chunks)
    assert max(len(chunk.sources) for chunk in chunks) <= per_shard


def test_a_source_stays_held_out_when_others_join() -> None:
    few, many = (held_out_ids(fake_sources(count), replace(SPEC, held_out=0.3)) for count in (30, 200))
    assert few == {id for id in many if int(id, 16) < 30}
    assert 0.2 < len(many) / 200 < 0.4


def test_a_plan_is_read_like_the_list_that_it_stands_for() -> None:
    plan = plan_chunks(fake_sources(50), SPEC)
    chunks = list(plan)
    assert len(plan) == len(chunks)
    assert [plan[-1], *plan[1:3]] == [chunks[-1], *chunks[1:3]]


def test_the_order_by_id_is_that_of_the_hexadecimal_digits() -> None:
    sources = [replace(source, id=f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}") for number, source in enumerate(fake_sources(40))]
    assert list(by_id(sources)) == sorted(sources, key=lambda source: source.id)
