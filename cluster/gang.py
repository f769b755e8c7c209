"""The seats that a run holds, node by node: they come as nodes join and leave as nodes die. The controller asks `refresh` once a second;
generation.py gets the seats themselves. What the number of seats means for training is not decided here."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray._private.state import state as ray_state  # the one place that says which nodes Ray is draining
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.seats import Seat
from data_pipeline.errors import UserError

START_SECONDS = 180.0  # that a seat may need to be placed and to import
START_FAILURES = 3  # on one node, of seats or of generations in a row, after which it gets no more
SAY_SECONDS = 2.0  # before a user is told that seats are missing
LEAVE_SECONDS = 60.0  # that a node whose seat was told to end gets no new one
PROBE_SECONDS = 0.5  # for a node that has lost a seat to show that it lives
PROBES = 64  # nodes asked at once
TICK_SECONDS = 0.2
CALLS = 8  # that a seat answers at once

Resources = Mapping[str, float]


def deal(free: Mapping[str, Resources], need: Resources, held: Mapping[str, int], count: int) -> list[str]:
    """The nodes for at most `count` more seats that `need` so much each: nodes that hold seats come first, then the roomiest."""
    room = {node: int(min(there.get(name, 0.0) // number for name, number in need.items())) for node, there in free.items()}
    order = sorted(room, key=lambda node: (-held.get(node, 0), -room[node], node))
    return [node for node in order for _ in range(room[node])][:count]


@dataclass(frozen=True)
class Node:
    """A node as Ray lists it; address: where its raylet listens."""

    address: tuple[str, int]
    draining: bool


@dataclass
class Held:
    """A seat on its node. waiting: the call that answers when it is warm, and from then on the one that answers when it must leave."""

    seat: ActorHandle
    node: str
    waiting: ray.ObjectRef
    warm: bool = False
    made: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)  # see Seat.warm


class Gang:
    """The seats of a run, `maximum` at most."""

    def __init__(self, preload: Sequence[str], need: Resources, threads: int, maximum: int) -> None:
        self._arguments, self._need, self._maximum = (list(preload), threads), dict(need), maximum
        self._actor: Any = ray.remote(Seat)
        self._options = {f"num_{name.lower()}s": number for name, number in need.items()} | {"max_concurrency": CALLS}
        self._held: list[Held] = []
        self._nodes: dict[str, Node] = {}
        self._dead: set[str] = set()  # nodes that do not answer, though Ray still lists them
        self._leaving: dict[str, float] = {}  # nodes that say they go: until when they get no seat
        self._failures: Counter[str] = Counter()  # by node, of seats that did not start
        self._blames: Counter[str] = Counter()  # by node, of generations since the last commit
        self._sick: set[str] = set()  # nodes that live and are of no use
        self._said: dict[str, str] = {}  # what each node was last: joined, draining, marked or lost
        self._told: list[tuple[str, str]] = []  # changes of it
        self._probes = ThreadPoolExecutor(PROBES, "probe")
        self.problem = ""  # the last one: why a seat did not start, or why a node is marked
        self.refresh()

    @property
    def ready(self) -> list[Held]:
        """The seats that a generation may use, neighbours beside each other."""
        usable = [held for held in self._held if held.warm and self._stays(held.node)]
        counts = Counter(held.node for held in usable)
        return sorted(usable, key=lambda held: (-counts[held.node], held.node))

    @property
    def leaving(self) -> list[Held]:
        """The seats that live and whose nodes are leaving."""
        return [held for held in self._held if not self._stays(held.node)]

    @property
    def starting(self) -> int:
        """Seats that are not warm yet."""
        return sum(not held.warm for held in self._held)

    def refresh(self) -> None:
        """Take in what has happened to nodes and seats since the last call, and start seats where there is room for them."""
        self._look()
        self._settle()
        missing = self._maximum - len([held for held in self._held if self._stays(held.node)])
        if missing <= 0:
            return
        taken = Counter(held.node for held in self._held)
        for node in deal(self._room(), self._need, taken, missing):
            self._held.append(self._make(node))

    def news(self) -> list[tuple[str, str]]:
        """(node, what has become of it: joined, lost, draining or marked) since the last call."""
        told, self._told = self._told, []
        return told

    def blame(self, node: str, why: str, minimum: int) -> None:
        """A generation has failed on a node before it made a commit. START_FAILURES in a row mark the node, which may be sick in a way that
        its seats do not notice, where there are seats or room for `minimum` elsewhere."""
        self._blames[node] += 1
        elsewhere = {name: there for name, there in self._room().items() if name != node}
        others = sum(held.node != node for held in self.ready) + len(deal(elsewhere, self._need, {}, minimum))
        if self._blames[node] >= START_FAILURES and others >= minimum:
            self.mark(node, f"{self._blames[node]} generations in a row have failed on it: {why}")

    def absolve(self) -> None:
        """A commit was made: what failed before is held against no node."""
        self._blames.clear()

    def mark(self, node: str, why: str) -> None:
        """Use a node no more: its seats end, and it gets no others."""
        self._sick.add(node)
        self.problem = why
        for held in [held for held in self._held if held.node == node]:
            self._end(held)

    def drop(self, seats: Sequence[ActorHandle]) -> None:
        """End seats, most likely dead already, for good; others may come in their place where the node lives."""
        lost = [held for held in self._held if held.seat in seats]
        self._doubt([held.node for held in lost])
        for held in lost:
            self._end(held)

    def release(self) -> None:
        """End the seats of nodes that are leaving."""
        for held in self.leaving:
            self._end(held)

    def close(self) -> None:
        """End every seat with its process."""
        while self._held:
            self._end(self._held[0])
        self._probes.shutdown()

    def _look(self) -> None:
        """Which nodes there are."""
        draining = ray_state.get_draining_nodes()
        nodes = {
            node["NodeID"]: Node((node["NodeManagerAddress"], node["NodeManagerPort"]), node["NodeID"] in draining)
            for node in ray.nodes()
            if node["Alive"]
        }
        replies = self._replies(nodes, self._dead | {held.node for held in self._held})
        lost = {name for name, reply in replies.items() if reply == "refuses"}  # Ray would need many seconds to say so
        self._dead = lost | {name for name in self._dead & replies.keys() if replies[name] != "answers"}
        self._nodes = {name: node for name, node in nodes.items() if name not in self._dead}
        for name in self._nodes:
            self._say(name, "draining" if not self._stays(name) else "marked" if self._marked(name) else "joined")
        for name in set(self._said) - set(self._nodes):
            self._say(name, "lost")

    def _settle(self) -> None:
        """What has become of every seat: warm, gone, told to leave."""
        waiting = {held.waiting: held for held in self._held}
        answered = ray.wait([*waiting], num_returns=len(waiting), timeout=0)[0] if waiting else []
        answers = [(waiting[call], _answer(call)) for call in answered]
        self._doubt([held.node for held, answer in answers if isinstance(answer, Exception)])
        for held, answer in answers:
            self._answered(held, answer)
        for held in [held for held in self._held if held.node not in self._nodes]:
            self._end(held)
        late = time.monotonic() - START_SECONDS
        for held in [held for held in self._held if not held.warm and held.made < late]:
            self._failures[held.node] += 1
            self.problem = f"a seat did not start: it was not there after {START_SECONDS:.0f} s"
            self._end(held)

    def _answered(self, held: Held, answer: Any) -> None:
        if isinstance(answer, ActorUnavailableError):  # the network, or a node that Ray does not know to be dead yet
            held.waiting = (held.seat.remain if held.warm else held.seat.warm).remote()
        elif isinstance(answer, Exception):
            if not held.warm and held.node in self._nodes:
                self._failures[held.node] += 1
                self.problem = f"a seat did not start: {str(answer).strip().splitlines()[-1]}"
            self._end(held)
        else:
            if held.warm:
                self._leaving[held.node] = time.monotonic() + LEAVE_SECONDS
            else:
                held.warm, held.facts = True, answer
                self._failures.pop(held.node, None)
            held.waiting = held.seat.remain.remote()

    def _doubt(self, names: Iterable[str]) -> None:
        """Nodes have lost a seat: whether they live themselves is asked there."""
        for name, reply in self._replies(self._nodes, names).items():
            if reply != "answers":
                self._dead.add(name)
                del self._nodes[name]

    def _replies(self, nodes: Mapping[str, Node], names: Iterable[str]) -> dict[str, str]:
        """What those of `names` do that are among the nodes, asked all at once: one that is silent holds up no other."""
        asked = sorted(nodes.keys() & set(names))
        return dict(zip(asked, self._probes.map(_probe, [nodes[name].address for name in asked]), strict=True))

    def _make(self, node: str) -> Held:
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        seat = self._actor.options(**self._options, scheduling_strategy=where).remote(*self._arguments)
        return Held(seat, node, seat.warm.remote())

    def _end(self, held: Held) -> None:
        self._held.remove(held)
        ray.kill(held.seat)

    def _stays(self, node: str) -> bool:
        known = self._nodes.get(node)
        return known is not None and not known.draining and self._leaving.get(node, 0.0) < time.monotonic()

    def _marked(self, node: str) -> bool:
        return node in self._sick or self._failures[node] >= START_FAILURES

    def _room(self) -> dict[str, Resources]:
        """What is free on the nodes that may get seats."""
        pending = {held.node for held in self._held if not held.warm}  # Ray may not have counted them yet
        return {node: there for node, there in _free().items() if self._stays(node) and not self._marked(node) and node not in pending}

    def _say(self, node: str, word: str) -> None:
        if self._said.get(node) != word:
            self._said[node] = word
            self._told.append((node, word))

    def gather(self, minimum: int, seconds: float, all_of_them: bool, look: Callable[[], None], say: Callable[[str], None]) -> None:
        """Wait for `minimum` seats, or for all_of_them that are starting too. `look` refreshes, and may raise. Says what is missing.

        Raises UserError when no other has started for `seconds`, or no node takes any more.
        """
        began, told = time.monotonic(), False
        while True:
            look()
            if len(self.ready) >= minimum and not (all_of_them and self.starting):
                return
            began = time.monotonic() if self.starting else began
            waited = time.monotonic() - began
            hopeless = bool(self._nodes) and all(self._marked(node) for node in self._nodes)
            if not self.starting and (waited > seconds or hopeless):
                remedy = "lower cluster.min_workers or cluster.cpus_per_worker, or add nodes"
                raise UserError(f"{self._shortage(minimum)} after {waited:.0f} s: {remedy}")
            if not told and waited > SAY_SECONDS:
                told = True
                say(f"{self._shortage(minimum)}: waiting up to {seconds:.0f} s for more")
            time.sleep(TICK_SECONDS)

    def _shortage(self, minimum: int) -> str:
        free, total = ray.available_resources(), ray.cluster_resources()
        need = " and ".join(f"{minimum} x {number:g} {name}s" for name, number in self._need.items())
        there = " and ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s" for name in self._need)
        why = f" ({self.problem})" if self.problem else ""
        return f"cluster.min_workers={minimum} needs {need}, but {len(self.ready)} seats are there and Ray has {there} free{why}"


def _answer(call: ray.ObjectRef) -> Any:
    """Of a seat, or the error that came in its place."""
    try:
        return ray.get(call)
    except (RayActorError, RayTaskError) as error:
        return error


def _free() -> dict[str, dict[str, float]]:
    """What is free on every node."""
    return ray_state.available_resources_per_node()


def _probe(address: tuple[str, int]) -> Literal["answers", "refuses", "silent"]:
    """What a node's raylet does: it refuses where the machine lives without it, and is silent where nothing comes through."""
    try:
        socket.create_connection(address, timeout=PROBE_SECONDS).close()
    except ConnectionRefusedError:
        return "refuses"
    except OSError:
        return "silent"
    return "answers"
