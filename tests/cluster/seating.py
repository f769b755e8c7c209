"""Seats for the tests, on whatever Ray is joined."""

from __future__ import annotations

from typing import Any, overload

from ray.actor import ActorHandle

from cluster.gang import Gang


class Seats:
    """A fixed number of warm seats, by place."""

    def __init__(self, count: int, gang: Gang) -> None:
        self.gang = gang
        gang.gather(count, 60.0, True, gang.refresh, print)
        self.held = gang.ready

    @overload
    def __getitem__(self, place: int) -> ActorHandle: ...
    @overload
    def __getitem__(self, place: slice) -> list[ActorHandle]: ...
    def __getitem__(self, place: int | slice) -> Any:
        return [held.seat for held in self.held][place]

    def warm(self) -> list[dict[str, Any]]:
        return [held.facts for held in self.held]

    def replace(self, place: int) -> None:
        """Drop a seat and wait for the one that comes in its stead."""
        self.gang.drop([self[place]])
        self.gang.gather(len(self.held), 60.0, True, self.gang.refresh, print)
        (new,) = [held for held in self.gang.ready if held not in self.held]
        self.held[place] = new

    def close(self) -> None:
        self.gang.close()


def make_seats(count: int, cpus_per_seat: float, preload: list[str], threads: int) -> Seats:
    return Seats(count, Gang(preload, {"CPU": cpus_per_seat}, threads, count))
