"""What the tests run on seats: small stand-ins for a trainer. Only targets that say so import torch."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cluster.child import Report

Payload = dict[str, Any]
Listener = socket.socket | None


def hello(payload: Payload, report: Report, listener: Listener) -> None:
    print("printed by", payload["name"])
    report({"kind": "hello", "name": payload["name"], "pid": os.getpid(), "ray": "ray" in sys.modules})


def raise_error(payload: Payload, report: Report, listener: Listener) -> None:
    raise ValueError("clip 7 is broken")


def exit_with(payload: Payload, report: Report, listener: Listener) -> None:
    sys.exit(payload["code"])


def chatter(payload: Payload, report: Report, listener: Listener) -> None:
    """Far more than a pipe holds."""
    for number in range(payload["count"]):
        report({"kind": "number", "number": number, "padding": "x" * 1000})
    Path(payload["done"]).touch()


def sleep(payload: Payload, report: Report, listener: Listener) -> None:
    report({"kind": "up", "pid": os.getpid(), "server": os.getppid()})
    time.sleep(600)


def commit_on_sigterm(payload: Payload, report: Report, listener: Listener) -> None:
    def commit(*_: object) -> None:
        Path(payload["commit"]).write_text("whole")
        sys.exit(0)

    signal.signal(signal.SIGTERM, commit)
    report({"kind": "up", "pid": os.getpid()} | payload.get("told", {}))
    time.sleep(600)


def commit_after_a_while(payload: Payload, report: Report, listener: Listener) -> None:
    report({"kind": "up", "pid": os.getpid()})
    time.sleep(2)
    report({"kind": "event", "event": "commit"})
    time.sleep(600)


def eat_memory(payload: Payload, report: Report, listener: Listener) -> None:
    eaten = []
    while True:
        eaten.append(b"x" * (8 << 20))


def ignore_sigterm(payload: Payload, report: Report, listener: Listener) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report({"kind": "up", "pid": os.getpid()})
    time.sleep(600)


def leave_a_grandchild(payload: Payload, report: Report, listener: Listener) -> None:
    """The grandchild inherits every descriptor and outlives its parent."""
    grandchild = subprocess.Popen(["sleep", "600"], close_fds=False)
    report({"kind": "grandchild", "pid": grandchild.pid})


def ring(payload: Payload, report: Report, listener: Listener) -> None:
    """A process group in miniature: every rank is connected to rank 0. Rank payload["at"] then fails in the way that
    payload["fault"] names; the others lose the connection, and fail of it unless they are deaf."""
    peers = _connect(payload, listener)
    report({"kind": "beat", "section": "start"})
    report({"kind": "beat", "section": "step"})
    report({"kind": "beat", "section": "step"})
    report({"kind": "up", "rank": payload["rank"], "world": payload["world"], "generation": payload["generation"]})
    if payload.get("at") == payload["rank"]:
        _fail(payload["fault"])
    if "fault" in payload:
        time.sleep(0.5)
        report({"kind": "beat", "section": "step"})  # the others go on for a moment, so that the one that fails is silent for longest
        _await_end(peers, payload)


def _connect(payload: Payload, listener: Listener) -> list[socket.socket]:
    if listener is None:
        return [socket.create_connection((payload["host"], payload["port"]))]
    return [listener.accept()[0] for _ in range(payload["world"] - 1)]


def _fail(fault: str) -> None:
    if fault == "raise":
        raise ValueError("clip 7 is broken")
    if fault == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "exit 3":
        sys.exit(3)
    if fault == "hang":
        hang_here()
    if fault == "SIGSTOP":
        os.kill(os.getpid(), signal.SIGSTOP)


def hang_here() -> None:
    time.sleep(600)


def _await_end(peers: list[socket.socket], payload: Payload) -> None:
    for peer in peers:
        if peer.recv(1) == b"" and not payload.get("deaf"):
            raise ConnectionError("Connection closed by peer")
    time.sleep(600)


def all_reduce(payload: Payload, report: Report, listener: Listener) -> None:
    """Imports torch. Rank 0 serves the store on the socket that its seat opened."""
    report({"kind": "before", "torch": "torch" in sys.modules, "threads": _threads(os.getppid())})
    import torch
    import torch.distributed as dist

    store = dist.TCPStore(
        payload["host"],
        payload["port"],
        payload["world"],
        is_master=listener is not None,
        master_listen_fd=listener.detach() if listener else None,
    )
    dist.init_process_group("gloo", store=store, rank=payload["rank"], world_size=payload["world"])
    total = torch.tensor([payload["rank"] + 1.0])
    dist.all_reduce(total)
    report({"kind": "sum", "sum": total.item(), "threads": torch.get_num_threads()})
    if payload.get("at") == payload["rank"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if "at" in payload:
        dist.all_reduce(total)


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
