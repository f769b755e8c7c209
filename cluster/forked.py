"""A forked process as its seat sees it: what it reports, whether it is alive, how it ended. Only cluster/seats.py makes them."""

import json
import multiprocessing
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from cluster import child, stacks
from cluster.memory_kills import memory_kills
from cluster.vigil import Vigil
from trainer import instruments
from trainer.meter import Meter

Message = dict[str, Any]


class Process:
    """A thread takes in the process's messages, so that it never waits for a reader. silence: seconds, see Vigil."""

    def __init__(self, target: str, payload: Message, listener: socket.socket | None, meter: Meter | None, silence: float) -> None:
        receiving, sending = forking().Pipe(duplex=False)
        self._kept: deque[Message] = deque()  # until they are known to have arrived
        self._gone = 0  # messages that were
        self._news = threading.Condition()
        self._asked = False
        self._meter = meter
        self._log = Path(payload["log"])
        self._memory_kills = memory_kills()
        self._vigil = Vigil(silence, time.monotonic())
        self._process = forking().Process(target=child.run, args=(target, payload, sending, listener), daemon=True)
        self._process.start()
        sending.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self._watcher = threading.Thread(target=self._watch, args=(receiving,), daemon=True)
        self._watcher.start()

    def messages(self, timeout: float, seen: int) -> tuple[int, list[Message]]:
        """See Seat.wait."""
        with self._news:
            while self._gone < seen and self._kept and self._kept[0]["kind"] != "exit":
                self._kept.popleft()
                self._gone += 1
            self._news.wait_for(lambda: self._kept, timeout)
            found, told = [*self._kept], self._gone + len(self._kept)
        if not (found and found[-1]["kind"] == "exit") and (seconds := self._vigil.silent(time.monotonic())):
            found.append({"kind": "silent", "seconds": seconds})
        return told, found

    def account(self) -> Message:
        """See Seat.account."""
        stopped = stacks.is_stopped(self.pid)
        return self._life() | {"stopped": stopped, "stack": stacks.dump(self.pid, self._log) if self._watcher.is_alive() else ""}

    def stop(self, grace: float) -> int:
        """See Seat.stop."""
        self._asked = self._asked or self._watcher.is_alive()
        if grace > 0:
            self._process.terminate()
            self._watcher.join(grace)
        self._process.kill()
        self._watcher.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def _life(self) -> Message:
        """Its section and the Unix time of its last sign of life."""
        return {"section": self._vigil.section, "happened": time.time() - (time.monotonic() - self._vigil.last)}

    def _watch(self, receiving: Connection) -> None:
        for message in _received(receiving, self._process.sentinel):
            if message["kind"] == "beat":
                self._vigil.enter(message["section"], time.monotonic())
                continue
            self._vigil.alive(time.monotonic())
            if message["kind"] != "rank":
                self._keep(message)
            elif self._meter:
                instruments.pulse(self._meter, message)
        self._process.join()
        if self._meter:
            self._meter.forget(*instruments.PULSE)
        receiving.close()
        self._keep(self._end())

    def _keep(self, message: Message) -> None:
        with self._news:
            self._kept.append(message)
            self._news.notify_all()

    def _end(self) -> Message:
        code, asked = self._process.exitcode, self._asked
        killed = code == -signal.SIGKILL and not asked and memory_kills() > self._memory_kills
        life = {"section": self._vigil.section, "happened": time.time()}
        return {"kind": "exit", "code": code, "asked": asked, "memory_kill": killed, **life}


def _received(receiving: Connection, sentinel: int) -> Iterator[Message]:
    """Messages until the process has ended; a grandchild that still holds the pipe open delays nothing."""
    while receiving in wait([receiving, sentinel]):
        try:
            yield json.loads(receiving.recv_bytes())
        except EOFError:
            return


def forking() -> ForkServerContext:
    return multiprocessing.get_context("forkserver")
