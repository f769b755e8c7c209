"""Where seats go: pure arithmetic over what is free."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.gang import deal

nodes = st.dictionaries(st.sampled_from("abcdef"), st.fixed_dictionaries({"CPU": st.integers(0, 9), "GPU": st.integers(0, 4)}))
needs = st.fixed_dictionaries({"CPU": st.integers(1, 3)}, optional={"GPU": st.just(1)})


@given(nodes, needs, st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3)), st.integers(0, 12))
def test_no_node_is_given_more_than_it_has_and_no_room_is_left_unused(
    free: dict[str, dict[str, float]], need: dict[str, float], held: dict[str, int], count: int
) -> None:
    dealt = Counter(deal(free, need, held, count))
    for node, seats in dealt.items():
        assert all(seats * number <= free[node].get(name, 0) for name, number in need.items())
    room = sum(int(min(there.get(name, 0) // number for name, number in need.items())) for there in free.values())
    assert dealt.total() == min(room, count)


def test_seats_are_packed_where_some_are_then_on_the_roomiest_node() -> None:
    free = {"a": {"CPU": 2.0}, "b": {"CPU": 8.0}, "c": {"CPU": 4.0}}
    assert deal(free, {"CPU": 2.0}, {"c": 1}, 5) == ["c", "c", "b", "b", "b"]
