"""A Ray cluster of its own on this machine, for tests and for `chaos`: a head and several hosts, each a raylet that can be killed with all
it has started, and started again. With two hosts in network namespaces the link between them can be cut.

It never touches another Ray: own ports, own folder, and processes are found by a mark that they inherit.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.child import PR_SET_PDEATHSIG
from data_pipeline.errors import UserError

MARK = "VIDEOMAR_HOST"
JOINED = "Ray runtime started."
JOIN_SECONDS = 180.0
INTERFACE = "eth0"
NOBODY = "02:00:00:00:00:01"  # a hardware address that no interface has


class Network:
    """Two network namespaces and the link between them, 10.77.0.1 and 10.77.0.2. Linux with iproute2, as root."""

    def __init__(self) -> None:
        """Raises UserError saying why where it is not permitted."""
        name = f"vm{secrets.token_hex(3)}"
        self._names = (f"{name}a", f"{name}b")
        self.addresses = ("10.77.0.1", "10.77.0.2")
        try:
            for own in self._names:
                _ip("netns", "add", own)
            _ip("link", "add", INTERFACE, "netns", self._names[0], "type", "veth", "peer", "name", INTERFACE, "netns", self._names[1])
            for own, address in zip(self._names, self.addresses, strict=True):
                _ip("-n", own, "address", "add", f"{address}/24", "dev", INTERFACE)
                for device in (INTERFACE, "lo"):
                    _ip("-n", own, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            said = (getattr(error, "stderr", None) or str(error)).strip()
            raise UserError(f"no network namespaces here ({said}): needs Linux, root and iproute2") from None

    def within(self, side: int) -> list[str]:
        """What to put before a command that is to run on a side."""
        return ["ip", "netns", "exec", self._names[side]]

    def cut(self) -> None:
        """Everything sent from now on is lost, and neither side is told."""
        for own, other in zip(self._names, reversed(self.addresses), strict=True):
            _ip("-n", own, "neighbour", "replace", other, "lladdr", NOBODY, "dev", INTERFACE, "nud", "permanent")

    def mend(self) -> None:
        """The link is as before."""
        for own, other in zip(self._names, reversed(self.addresses), strict=True):
            _ip("-n", own, "neighbour", "delete", other, "dev", INTERFACE)

    def close(self) -> None:
        for own in self._names:
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip("netns", "delete", own)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)


class Hosts:
    """A head without CPUs for trainers, and `count` hosts with `cpus` each. With a network: the head and host 0 on one side, host 1 on the
    other."""

    def __init__(self, count: int, cpus: int, environment: Mapping[str, str], network: Network | None = None) -> None:
        assert network is None or count == 2, "a network has two sides"
        self._cpus, self._network = cpus, network
        self._mark = secrets.token_hex(8)
        self._folder = Path(tempfile.mkdtemp(prefix="vm-"))  # short: a socket's path holds 107 bytes
        own = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
        security = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = own | security | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "180"}
        if network:
            self.environment["GLOO_SOCKET_IFNAME"] = INTERFACE
        self._port = _free_port()
        self.address = f"{self._ip(0)}:{self._port}"
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.count = count

    def __enter__(self) -> Hosts:
        try:
            head = ["--head", f"--port={self._port}", "--include-dashboard=false"]
            self._start("head", 0, [*head, f"--ray-client-server-port={_free_port()}", "--num-cpus=0"])
            self.wait("head")
            for host in range(self.count):
                self.add(host)
            for host in range(self.count):
                self.wait(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything that any host has started, the head's Ray last."""
        for name in sorted(self._started, reverse=True):
            self._end(name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, host: int) -> None:
        """Start a host; it joins in the background, see `wait`."""
        self._start(str(host), self.side(host), [f"--address={self.address}", f"--num-cpus={self._cpus}"])

    def kill(self, host: int) -> None:
        """The machine is gone: SIGKILL for everything on it at once."""
        self._end(str(host))

    def wait(self, host: int | str) -> None:
        """Until a host has joined. Raises RuntimeError with its output when it does not."""
        deadline, log = time.monotonic() + JOIN_SECONDS, self._log(str(host))
        while JOINED not in log.read_text():
            if self._started[str(host)].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"host {host} does not join: {log.read_text()[-2000:]}")
            time.sleep(0.1)

    def tend(self) -> None:
        """Start every host again whose Ray has ended by itself, as it does when the cluster has given it up."""
        for host in range(self.count):
            if self._started[str(host)].poll() is not None:
                self.kill(host)
                self.add(host)

    def pids(self, host: int | str) -> list[int]:
        """Of everything that a host has started, itself included."""
        return self._of(str(host))

    def side(self, host: int) -> int:
        return host if self._network else 0

    def within(self, side: int) -> list[str]:
        """What to put before a command that is to run on a side of the network."""
        return self._network.within(side) if self._network else []

    def _ip(self, side: int) -> str:
        return self._network.addresses[side] if self._network else "127.0.0.1"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _mark_of(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def _start(self, name: str, side: int, options: list[str]) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        common = [f"--node-ip-address={self._ip(side)}", "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        common.append(f"--temp-dir={self._folder / name}")  # each its own, or two that start at once give their sockets the same name
        command = [*self.within(side), *ray, *common, "--object-store-memory=200000000", *options]
        environment = self.environment | {MARK: self._mark_of(name)}
        with self._log(name).open("wb") as log:
            self._started[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_parent
            )

    def _of(self, name: str) -> list[int]:
        """By the mark that processes inherit, or by the session: one that gives itself a title may write it over the mark."""
        mark, session = f"{MARK}={self._mark_of(name)}".encode(), self._started[name].pid
        return [pid for pid in _processes() if mark in _read(pid, "environ").split(b"\0") or _session(pid) == session]

    def _end(self, name: str) -> None:
        while pids := self._of(name):
            for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that nobody notices that others are gone
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            time.sleep(0.02)
        self._started[name].wait()


def _end_with_parent() -> None:
    """In a child: SIGTERM, at which Ray ends what it has started, when this process is killed and cannot do it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def trainers(run: Path) -> dict[int, int]:
    """{rank: pid} of the newest generation's processes on this machine, known by the log that they write to."""
    found: dict[int, dict[int, int]] = {}
    logs = run.resolve() / "logs"
    for pid in _processes():
        with contextlib.suppress(OSError, ValueError):
            log = Path(f"/proc/{pid}/fd/1").readlink()
            _, generation, _, rank = log.stem.split("-")
            if log.parent == logs:
                found.setdefault(int(generation), {})[int(rank)] = pid
    return found[max(found)] if found else {}


def parent(pid: int) -> int:
    """Raises OSError when there is no such process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _session(pid: int) -> int | None:
    """None when there is no such living process."""
    state, *fields = _read(pid, "stat").decode().rpartition(")")[2].split() or ["Z"]
    return None if state in "ZX" else int(fields[2])


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
