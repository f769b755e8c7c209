"""Seats: one Ray actor per device that keeps a fork server with the heavy imports done, so that a trainer process
starts in milliseconds. The controller makes them, cluster/generation.py uses them. A seat never imports torch."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from typing import Any, overload

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster import child
from cluster.forked import Process, forking
from cluster.session import REPOSITORY
from data_pipeline.errors import UserError
from trainer.exporter import Endpoint
from trainer.meter import Meter

Message = dict[str, Any]


class Seat:
    """A place for one trainer process at a time. Its methods are called through Ray, from several threads."""

    def __init__(self, preload: list[str], threads: int) -> None:
        """Start importing `preload` in the background, in a fork server where OpenMP has `threads` threads."""
        self._born = time.monotonic()
        self._preload = preload
        self._listener: socket.socket | None = None
        self._process: Process | None = None
        self._meter: Meter | None = None
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        if not ray.get_gpu_ids():
            # Ray leaves the devices visible to an actor that asked for none; torch and DeepSpeed must agree on what there is.
            os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        # multiprocessing would run this worker's main file, and with it import ray, again in every child
        vars(sys.modules["__main__"]).pop("__file__", None)
        multiprocessing.set_forkserver_preload(["cluster.child", *preload])
        forkserver.ensure_running()

    def warm(self) -> dict[str, Any]:
        """Wait until the fork server has imported everything. Returns seconds (since the seat was made), address
        (IP of the node), node (Ray's id), pid. Raises ImportError with the traceback of a module that fails."""
        receiving, sending = forking().Pipe(duplex=False)
        probe = forking().Process(target=child.preloaded, args=(self._preload, sending), daemon=True)
        probe.start()
        sending.close()
        problem = receiving.recv_bytes().decode()
        probe.join()
        if problem:
            raise ImportError(problem)
        return {
            "seconds": time.monotonic() - self._born,
            "address": ray.util.get_node_ip_address(),
            "node": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
        }

    def listen(self) -> tuple[str, int]:
        """Open the socket of the next process group's rendezvous. The next process inherits it, already listening:
        no other process can take the port in between, and peers may connect before the process runs."""
        host = ray.util.get_node_ip_address()
        self._listener = socket.create_server((host, 0), backlog=1024)
        return host, self._listener.getsockname()[1]

    def start(self, target: str, payload: Message, silence: float = 30.0) -> int:
        """Fork a process that runs child.run(target, payload); returns its pid. One left from before is killed.
        silence: see Vigil."""
        self.kill()
        listener, self._listener = self._listener, None
        self._process = Process(target, payload, listener, self._publish(payload), silence)
        if listener is not None:
            listener.close()
        return self._process.pid

    def wait(self, timeout: float) -> list[Message]:
        """What the process has reported since the last call: at least one message, unless `timeout` seconds pass.

        The end comes as {"kind": "exit", "code": int, "asked": bool, ...} (asked: after kill or stop) and is repeated
        by every later call; a silence that is too long as {"kind": "silent", "seconds": float, ...}.
        """
        return self._started().messages(timeout)

    def account(self) -> Message:
        """What the process is doing: the fields of causes.Account."""
        return self._started().account()

    def kill(self) -> int | None:
        """SIGKILL. Returns the exit code, None if nothing was ever started."""
        return self.stop(0.0)

    def stop(self, grace: float) -> int | None:
        """SIGTERM, and SIGKILL after `grace` seconds. Returns as `kill` does."""
        return self._process.stop(grace) if self._process else None

    def _publish(self, payload: Message) -> Meter | None:
        """The meter of this seat's rank, readable at the pod's endpoint if the run has one; opened once."""
        metrics = payload.get("config", {}).get("metrics", {})
        if not metrics.get("port"):
            return None
        if self._meter is None:
            self._meter = Meter(payload["config"]["run"]["name"])
            Endpoint(self._meter, metrics["host"], metrics["port"])
        return self._meter

    def _started(self) -> Process:
        assert self._process is not None, "nothing was started on this seat"
        return self._process


class Seats(Sequence[ActorHandle]):
    """Seat actors in one placement group; indexed by place, which is not the rank (a generation may use a few)."""

    def __init__(self, count: int, resources: dict[str, float], group: PlacementGroup, preload: list[str], threads: int) -> None:
        self._group = group
        self._actor: Any = ray.remote(Seat)
        self._resources = {f"num_{name.lower()}s": number for name, number in resources.items()}
        self._arguments = (preload, threads)
        self._handles = [self._make(place) for place in range(count)]

    @overload
    def __getitem__(self, place: int) -> ActorHandle: ...
    @overload
    def __getitem__(self, place: slice) -> list[ActorHandle]: ...
    def __getitem__(self, place: int | slice) -> ActorHandle | list[ActorHandle]:
        return self._handles[place]

    def __len__(self) -> int:
        return len(self._handles)

    def warm(self) -> list[dict[str, Any]]:
        """Wait until every seat is warm; see Seat.warm."""
        return ray.get([seat.warm.remote() for seat in self._handles])

    def replace(self, place: int) -> None:
        """Put a new seat where one has died; it warms up in the background."""
        ray.kill(self._handles[place])
        self._handles[place] = self._make(place)

    def close(self) -> None:
        """End every seat with its process and give the CPUs back."""
        for seat in self._handles:
            ray.kill(seat)
        remove_placement_group(self._group)

    def _make(self, place: int) -> ActorHandle:
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=place)
        return self._actor.options(**self._resources, max_concurrency=4, scheduling_strategy=where).remote(*self._arguments)


def make_seats(count: int, cpus_per_seat: float, preload: list[str], threads: int, gpus_per_seat: int = 0, timeout: float = 30.0) -> Seats:
    """Seats, packed on as few nodes as possible, that import `preload` in the background.

    Raises UserError when the cluster cannot hold them within `timeout` seconds.
    """
    wanted = {"CPU": cpus_per_seat} | ({"GPU": gpus_per_seat} if gpus_per_seat else {})
    group = placement_group([wanted] * count, strategy="PACK")
    if not group.wait(timeout):
        remove_placement_group(group)
        free, total = ray.available_resources(), ray.cluster_resources()
        needed = " and ".join(f"{count} x {number:g} {name}s" for name, number in wanted.items())
        there = " and ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g}" for name in wanted)
        raise UserError(
            f"cluster.workers={count} needs {needed}, but Ray has {there} free: "
            "lower cluster.workers or cluster.cpus_per_worker, or add nodes"
        )
    return Seats(count, wanted, group, preload, threads)
