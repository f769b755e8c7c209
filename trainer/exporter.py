"""The Prometheus endpoint of a pod or host, shared by its processes: the first serves, the others push to it once a second.

The controller and the seats open one each. Nothing here is ever called from a training step.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from trainer.meter import BY_NAME, Meter, Series
from trainer.metrics import PREFIX

PUSH_SECONDS = 1.0
PUSH_TIMEOUT = 5.0
FORGET_SECONDS = 10.0  # after which a process that no longer pushes is gone
LINGER_SECONDS = 30.0  # that a run waits at its end for a scrape; above the usual interval
PUSH_LIMIT = 1 << 20  # bytes
Sample = tuple[str, str, tuple[str, ...], float]  # (run, name, label values, value)


class Pool:
    """What the processes of the pod say: this one's meter, and the last word of each that pushes."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._guests: dict[str, tuple[float, str, list[Series]]] = {}

    def take(self, source: str, run: str, series: list[Any]) -> None:
        """A process's series; they replace those it pushed before. TypeError or ValueError when they are none."""
        read = [(str(name), tuple(map(str, labels)), float(value)) for name, labels, value in series]
        self._guests = {known: told for known, told in self._guests.items() if self._present(told)} | {
            str(source): (time.monotonic(), str(run), read)
        }

    def samples(self) -> list[Sample]:
        """One value per series: where two processes have it, the one that spoke last is right (a rank moves to another seat)."""
        heard = sorted(filter(self._present, self._guests.values()), key=lambda told: told[0])
        merged = {
            (run, name, labels): value
            for run, series in [(self._meter.run, self._meter.series()), *((run, series) for _, run, series in heard)]
            for name, labels, value in series
        }
        merged[self._meter.run, "exporter_processes", ()] = 1.0 + len(heard)
        return [(*key, value) for key, value in merged.items()]

    @staticmethod
    def _present(told: tuple[float, str, list[Series]]) -> bool:
        return time.monotonic() - told[0] < FORGET_SECONDS

    def collect(self) -> Iterator[Metric]:
        """Prometheus's families, of the samples."""
        return families(self.samples())


def families(samples: Iterable[Sample]) -> Iterator[Metric]:
    """The declared families that have samples; what is not declared is left out."""
    found: dict[str, Any] = {}
    for run, name, labels, value in samples:
        metric = BY_NAME.get(name)
        if metric is None or len(labels) != len(metric.labels):
            continue
        if name not in found:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            found[name] = kind(PREFIX + name, metric.help, labels=("run", *metric.labels))
        found[name].add_metric((run, *labels), value)
    yield from found.values()


class Endpoint:
    """Keeps `meter` readable at http://host:port/metrics from now on; close() ends that."""

    def __init__(self, meter: Meter, host: str, port: int) -> None:
        self._meter, self._address = meter, (host, port)
        self._source = f"{os.getpid()}-{time.time_ns()}"
        self._server: Server | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def linger(self) -> None:
        """If somebody scrapes here, wait for them to come once more: a run's last values are nowhere else."""
        if self._server and (begun := self._server.begun):
            deadline = time.monotonic() + LINGER_SECONDS
            while self._server.answered <= begun and time.monotonic() < deadline:
                time.sleep(0.05)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(PUSH_TIMEOUT + PUSH_SECONDS)
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def _run(self) -> None:
        """Serve if the address is free, else push to who serves; when that one ends, the next try finds the address free."""
        while not self._closed.is_set() and not self._serve():
            self._push()
            self._closed.wait(PUSH_SECONDS)

    def _serve(self) -> bool:
        try:
            self._server = Server(self._address, Pool(self._meter))
        except OSError:
            return False
        threading.Thread(target=self._server.serve_forever, name="metrics-server", daemon=True).start()
        return True

    def _push(self) -> None:
        body = {"source": self._source, "run": self._meter.run, "series": self._meter.series()}
        host, port = self._address
        url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{port}/push"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError, HTTPException):  # whoever serves is ending, or is no videomar: metrics are never worth an error
            opener.open(request, timeout=PUSH_TIMEOUT).close()


@contextlib.contextmanager
def serving(meter: Meter, host: str, port: int | None) -> Iterator[None]:
    """The meter's endpoint for the length of a `with` block, if there is a port for it; after a good end until its last scrape."""
    endpoint = Endpoint(meter, host, port) if port else None
    try:
        yield
        if endpoint:
            endpoint.linger()
    finally:
        if endpoint:
            endpoint.close()


class Server(ThreadingHTTPServer):
    """GET /metrics for Prometheus, GET /healthz for probes, POST /push for the pod's own processes."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], pool: Pool) -> None:
        self.pool = pool
        self.begun = self.answered = 0  # scrapes, by number: one that began before a value was set does not show it
        self.registry = CollectorRegistry()
        self.registry.register(pool)
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30.0  # seconds that a client may leave a request unfinished

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.server.begun += 1
            number = self.server.begun
            self._answer(200, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self.server.registry))
            self.server.answered = max(self.server.answered, number)
        elif self.path == "/healthz":
            self._answer(200, "text/plain", b"ok\n")
        else:
            self._answer(404, "text/plain", b"try /metrics\n")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/push" or self.client_address[0] not in ("127.0.0.1", self.server.server_address[0]):
            return self._answer(403, "text/plain", b"only this host's processes push\n")
        if length > PUSH_LIMIT:
            return self._answer(413, "text/plain", b"too large\n")
        try:
            self.server.pool.take(**json.loads(self.rfile.read(length)))
        except (ValueError, TypeError):
            return self._answer(400, "text/plain", b"not a push\n")
        return self._answer(204, "text/plain", b"")

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *told: Any) -> None:
        """Scrapes are not news."""
