"""What runs in a process that a seat's fork server forks: follow the seat into death, log to a file, call the target.
Only cluster/seats.py starts it. It must not import ray: a trainer process knows nothing of the cluster."""

import contextlib
import ctypes
import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cluster import stacks

PR_SET_PDEATHSIG = 1
Report = Callable[[dict[str, Any]], None]


def run(target: str, payload: dict[str, Any], channel: Connection, listener: socket.socket | None) -> None:
    """Call target ("package.module:function") as target(payload, report, listener).

    report(message) sends a JSON-able dict to the seat, from any thread. stdout and stderr go to payload["log"]
    (appended). An exception is logged, reported as {"kind": "error", "traceback": ...} and ends with exit code 1.
    """
    _die_with_seat()
    sending = threading.Lock()

    def report(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        with sending:
            channel.send_bytes(data)

    try:
        _log_to(Path(payload["log"]))
        _resolve(target)(payload, report, listener)
    except Exception:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            report({"kind": "error", "traceback": text})
        sys.exit(1)


def preloaded(modules: list[str], channel: Connection) -> None:
    """Send "" once the fork server holds `modules`, or the traceback of the one that cannot be imported (the fork
    server itself swallows import errors)."""
    _die_with_seat()
    try:
        for name in modules:
            importlib.import_module(name)
        channel.send_bytes(b"")
    except BaseException:
        channel.send_bytes(traceback.format_exc().encode())


def _die_with_seat() -> None:
    """A child's parent is the fork server, so the kernel ends it with that one; the seat is one process further, and
    its end closes the pipe that a thread waits on."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    seat = multiprocessing.parent_process()
    assert seat is not None

    def follow() -> None:
        seat.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name="die-with-seat", daemon=True).start()


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable()
    stacks.answer()


def _resolve(target: str) -> Callable[[dict[str, Any], Report, socket.socket | None], None]:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)
