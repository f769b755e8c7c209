"""A seat: one Ray actor per device that keeps a fork server with the heavy imports done, so that a trainer process
starts in milliseconds. cluster/gang.py makes them, cluster/generation.py uses them. A seat never imports torch."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from multiprocessing import forkserver
from typing import Any

import ray

from cluster import child, health
from cluster.forked import Process, forking
from cluster.session import REPOSITORY
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
        self._leaving = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: self._leaving.set())
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

    def look(self, folders: list[str], token: str) -> dict[str, Any]:
        """What this place sees; see health.looked_at."""
        return health.looked_at(folders, token)

    def take(self, payload: bytes) -> int:
        """Be sent something. Returns its length."""
        return len(payload)

    def remain(self) -> None:
        """Returns once somebody has told this process to end (SIGTERM): whoever uses the seat should make it leave in order."""
        self._leaving.wait()

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

    def wait(self, timeout: float, seen: int) -> tuple[int, list[Message]]:
        """(how many messages the process has sent, those behind the first `seen`): at least one, unless `timeout` seconds pass.

        `seen` says that so many have arrived, and they are forgotten; others are kept, for an answer may be lost on its way.
        The end comes as {"kind": "exit", "code": int, "asked": bool, ...} (asked: after kill or stop) and is repeated
        by every later call; a silence that is too long as {"kind": "silent", "seconds": float, ...}, which does not count.
        """
        return self._started().messages(timeout, seen)

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
