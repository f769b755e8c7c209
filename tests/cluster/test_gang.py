"""Where seats go: arithmetic over what is free, and which nodes get none, on a cluster that is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import gang as gangs
from cluster.gang import START_FAILURES, Gang, deal

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


@dataclass(eq=False)
class Call:
    """A method of a seat, and its answer, which is there at once where it is `warm` and never where it is `remain`."""

    name: str

    def remote(self) -> Call:
        return Call(self.name)


class Seat:
    def __init__(self) -> None:
        self.warm, self.remain = Call("warm"), Call("remain")


class Cluster:
    """What the gang asks Ray for: nodes with so many CPUs, and seats that take one each and live until they are killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **cpus: int) -> None:
        self.cpus, self.seats, self.replies = cpus, dict[Seat, str](), dict[str, str]()  # replies: of a node that does not just answer
        known = {"wait": self.wait, "get": lambda call: {}, "kill": self.seats.pop, "nodes": self.nodes, "remote": lambda actor: self}
        monkeypatch.setattr(gangs, "ray", SimpleNamespace(**known))
        monkeypatch.setattr(gangs, "ray_state", SimpleNamespace(get_draining_nodes=dict))
        monkeypatch.setattr(gangs, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
        monkeypatch.setattr(gangs, "_free", self.free)
        monkeypatch.setattr(gangs, "_probe", lambda address: self.replies.get(address[0], "answers"))

    def gang(self, seats: int) -> Gang:
        """With so many seats, all of them warm."""
        made = Gang([], {"CPU": 1}, 1, seats)
        made.refresh()
        assert len(made.ready) == seats
        return made

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "NodeManagerAddress": node, "NodeManagerPort": 1, "Alive": True} for node in self.cpus]

    def free(self) -> dict[str, dict[str, float]]:
        taken = Counter(self.seats.values())
        return {node: {"CPU": float(number - taken[node])} for node, number in self.cpus.items()}

    def wait(self, calls: list[Call], **_: Any) -> tuple[list[Call], list[Call]]:
        return [call for call in calls if call.name == "warm"], []

    def options(self, scheduling_strategy: str, **_: Any) -> Any:
        def remote(*given: Any) -> Seat:
            self.seats[seat := Seat()] = scheduling_strategy
            return seat

        return SimpleNamespace(remote=remote)


def places(gang: Gang) -> list[str]:
    return sorted(held.node for held in gang.ready)


def fail(gang: Gang, node: str, times: int, minimum: int) -> None:
    for _ in range(times):
        gang.blame(node, "rank 0 was killed by SIGKILL", minimum)
        gang.refresh()
        gang.refresh()


def test_a_node_on_which_generations_fail_in_a_row_is_used_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    gang = Cluster(monkeypatch, sick=2, well=1).gang(3)
    fail(gang, "sick", START_FAILURES - 1, minimum=1)
    assert places(gang) == ["sick", "sick", "well"]
    fail(gang, "sick", 1, minimum=1)
    assert places(gang) == ["well"]
    assert ("sick", "marked") in gang.news()
    assert gang.problem == "3 generations in a row have failed on it: rank 0 was killed by SIGKILL"


def test_it_is_replaced_where_there_is_room_and_kept_where_too_few_would_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gang = Cluster(monkeypatch, a=1, b=1, c=1).gang(2)
    first, second = places(gang)
    fail(gang, first, START_FAILURES, minimum=2)
    assert places(gang) == sorted({"a", "b", "c"} - {first})
    fail(gang, second, START_FAILURES, minimum=2)
    assert places(gang) == sorted({"a", "b", "c"} - {first})


def test_a_commit_clears_a_node_of_what_failed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    gang = Cluster(monkeypatch, a=1, b=1).gang(2)
    fail(gang, "a", START_FAILURES - 1, minimum=1)
    gang.absolve()
    fail(gang, "a", START_FAILURES - 1, minimum=1)
    assert places(gang) == ["a", "b"]


def test_a_marked_node_gets_no_seat_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gang = Cluster(monkeypatch, a=1, b=1).gang(2)
    gang.mark("a", "its storage is another one")
    for _ in range(3):
        gang.refresh()
    assert places(gang) == ["b"]
    assert [word for node, word in gang.news() if node == "a"] == ["joined", "marked"]


def test_nodes_are_asked_all_at_once_so_that_silent_ones_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"n{number}" for number in range(8)]
    cluster = Cluster(monkeypatch, **dict.fromkeys(names, 1))
    gang = cluster.gang(8)
    together = Barrier(8)

    def silent(address: tuple[str, int]) -> str:
        together.wait(30)  # which nobody passes before all are asked
        return "silent"

    monkeypatch.setattr(gangs, "_probe", silent)
    gang.refresh()
    assert len(gang.ready) == 8, "silence alone is no death: the seats may answer still"
    gang.drop([held.seat for held in gang.ready])
    monkeypatch.setattr(gangs, "_probe", lambda address: "silent")
    gang.refresh()
    assert (gang.ready, {state for _, state in gang.news()}) == ([], {"joined", "lost"})


def test_a_raylet_that_refuses_is_a_node_that_is_lost_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, a=1, b=1)
    gang = cluster.gang(2)
    cluster.replies["a"] = "refuses"
    gang.refresh()
    assert places(gang) == ["b"]
    del cluster.replies["a"]
    gang.refresh()
    gang.refresh()
    assert places(gang) == ["a", "b"]
