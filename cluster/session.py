"""Connects to a Ray that runs already, or starts a small private one on this machine and stops it again.
The commands call `connect` once, in the main thread (a private Ray dies with the thread that started it).
It knows nothing of training or data; nothing else in the package calls ray.init or ray.shutdown."""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from data_pipeline.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
TOKEN = "token"  # of a private Ray, in its folder: for its user's other processes
BRIEFLY = {"RAY_gcs_server_port_wait_time_s": "1", "RAY_py_gcs_connect_timeout_s": "15"}  # to try to reach a private Ray; else minutes
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
}  # nobody reads them
OBJECT_STORE_BYTES = 512 << 20  # decoded frames and latents on their way; the encode pool bounds them


@dataclass(frozen=True)
class Session:
    """A live connection. folder: of a private Ray, which was started here and stops with the context; None of one that was joined.
    seconds: what connecting took."""

    address: str
    folder: str | None
    cpus: int
    seconds: float

    @property
    def private(self) -> bool:
        return self.folder is not None


class Unreachable(UserError):
    """No Ray answers at an address."""


@contextlib.contextmanager
def connect(address: str | None, cpus: int, temp_dir: str | None = None) -> Iterator[Session]:
    """A Ray session for the length of a `with` block.

    address   None starts a private Ray on this machine; "auto" or "host:port" joins a running one, which is left
              running. Other Rays on the machine are never touched: a private one has its own folder and ports.
    cpus      CPUs that a private Ray offers at least, even when the machine has fewer cores.
    temp_dir  folder for a private Ray's sockets and logs (short: a socket path holds 107 bytes); by default a new
              folder under the system's, removed at the end. With an address: the folder of the private Ray to join.
    Raises UserError when the address cannot be reached.
    """
    started = time.monotonic()
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.ExitStack() as cleanup:
        if address is None:
            if temp_dir is None:
                temp_dir = tempfile.mkdtemp(prefix="videomar-")
                cleanup.callback(shutil.rmtree, temp_dir, ignore_errors=True)
            cpus = max(cpus, os.cpu_count() or 1)
            _start_private(cpus, temp_dir)
        else:
            if temp_dir is not None:
                os.environ["RAY_AUTH_TOKEN"] = _token(Path(temp_dir))
                maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # Ray read its environment when it was imported
                os.environ |= BRIEFLY  # it may end with its run at any moment
                cleanup.callback(lambda: [os.environ.pop(name, None) for name in BRIEFLY])
                temp_dir = None
            _join(address)
        cleanup.callback(ray.shutdown)
        # Ray has put a handler before Python's that prints a stack and aborts the process three seconds later.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        yield Session(
            address=ray.get_runtime_context().gcs_address,
            folder=temp_dir,
            cpus=int(ray.cluster_resources().get("CPU", 0)),
            seconds=time.monotonic() - started,
        )


def _start_private(cpus: int, temp_dir: str) -> None:
    # Ray listens on every interface: the token, which only this process and its children know, keeps others out.
    # Ray itself then turns authentication on, unless RAY_AUTH_MODE says otherwise.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    (Path(temp_dir) / TOKEN).write_text(os.environ["RAY_AUTH_TOKEN"])
    (Path(temp_dir) / TOKEN).chmod(0o600)
    os.environ |= QUIET | {"RAY_raylet_start_wait_time_s": "180"}
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        _temp_dir=temp_dir,
        **_common(),
    )


def _join(address: str) -> None:
    try:
        _probe(address)
        ray.init(address=address, **_common())
    except (OSError, RuntimeError) as error:
        raise Unreachable(f"no Ray answers at {address}: start one (ray start --head) or unset RAY_ADDRESS") from error
    except ValueError as error:  # a malformed address, or a job whose runtime_env sets PYTHONPATH itself
        raise UserError(f"Ray at {address} cannot be joined: {str(error).splitlines()[0]}") from error


def _token(folder: Path) -> str:
    try:
        return (folder / TOKEN).read_text()
    except OSError as error:
        raise Unreachable(f"{folder / TOKEN} cannot be read ({error.strerror}): the Ray there has ended, or is another user's") from error


def answers(address: str) -> bool:
    """Whether anybody listens at host:port."""
    try:
        _probe(address)
    except (OSError, ValueError):
        return False
    return True


def _probe(address: str) -> None:
    """Raise OSError if nobody listens at host:port; Ray itself would try for minutes."""
    host, separator, port = address.rpartition(":")
    if separator and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10.0).close()


def _common() -> dict[str, Any]:
    """Settings of every connection: workers import this repository's packages; Ray's notes to its developers and what
    its workers print stay in its log files."""
    return {
        "runtime_env": {"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
        "log_to_driver": False,
        "configure_logging": False,
    }
