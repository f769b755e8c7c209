"""Real services for the tests, each a process group of its own that ends with its `with` block: Prometheus, Alertmanager, a Ray head."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.ports import free_port

PATIENCE = 180.0


def answers(port: int) -> bool:
    """Whether something on this machine listens there; ConnectionError where not."""
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return True


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The condition's first true value; an error of the network counts as not yet."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def running(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process group for the length of the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)


def ask(url: str, body: Any = None, token: str = "") -> Any:
    """JSON of a GET, or of a POST when there is a body."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
        return json.loads(answer.read())


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that scrapes, judges rules, and tells an Alertmanager."""

    url: str
    alertmanager: str

    def range(self, expression: str, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """The series of an expression, as query_range gives them."""
        query = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": step})
        return ask(f"{self.url}/api/v1/query_range?{query}")["data"]["result"]

    def formatted(self, expression: str) -> str:
        """The expression as Prometheus itself writes it; an HTTP error when it does not parse."""
        return ask(f"{self.url}/api/v1/format_query?{urllib.parse.urlencode({'query': expression})}")["data"]

    def firing(self) -> set[str]:
        """Names of the alerts that have arrived at the Alertmanager."""
        return {alert["labels"]["alertname"] for alert in ask(f"{self.alertmanager}/api/v2/alerts")}


@contextlib.contextmanager
def prometheus(programs: tuple[str, str], folder: Path, targets: dict[str, int], rules: dict[str, Any]) -> Iterator[Prometheus]:
    """programs: paths of prometheus and alertmanager. targets: port by job; every series gets namespace, pod and that job."""
    server, manager = free_port(), free_port()
    jobs = [
        {"job_name": name, "honor_labels": True, "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels(name)}]}
        for name, port in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(folder / "rules.yml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{manager}"]}]}]},
        "scrape_configs": jobs,
    }
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "alertmanager.yml").write_text(yaml.safe_dump({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}))
    serve = [programs[0], f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    notify = [programs[1], f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alerts", "--cluster.listen-address="]
    with (
        running([*serve, f"--web.listen-address=127.0.0.1:{server}"], folder / "prometheus.log"),
        running([*notify, f"--web.listen-address=127.0.0.1:{manager}"], folder / "alertmanager.log"),
    ):
        made = Prometheus(f"http://127.0.0.1:{server}", f"http://127.0.0.1:{manager}")
        wait_for(lambda: ask(f"{made.url}/api/v1/status/runtimeinfo"), "Prometheus")
        wait_for(lambda: ask(f"{made.alertmanager}/api/v2/status"), "Alertmanager")
        yield made


def labels(job: str) -> dict[str, str]:
    return {"job": "videomar", "namespace": "local", "pod": job}


@dataclass(frozen=True)
class RayHead:
    """A Ray with its dashboard, behind a token."""

    url: str
    token: str
    metrics_port: int

    def submit(self, entrypoint: str, runtime_env: dict[str, Any], submission: str) -> None:
        """As KubeRay's submitter does: the Jobs API."""
        ask(f"{self.url}/api/jobs/", {"entrypoint": entrypoint, "runtime_env": runtime_env, "submission_id": submission}, self.token)

    def status(self, submission: str) -> str:
        return ask(f"{self.url}/api/jobs/{submission}", token=self.token)["status"]

    def logs(self, submission: str) -> str:
        return ask(f"{self.url}/api/jobs/{submission}/logs", token=self.token)["logs"]


@contextlib.contextmanager
def ray_head(folder: Path, token: str, secrets: dict[str, str]) -> Iterator[RayHead]:
    """A Ray head on free ports with 4 CPUs and token authentication; jobs find this interpreter as `python`, and `secrets` around them."""
    ports = {
        name: free_port()
        for name in ("port", "dashboard-port", "metrics-export-port", "dashboard-agent-listen-port", "ray-client-server-port")
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0", "DS_ACCELERATOR": "cpu"}
    environment |= secrets
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "RAY_raylet_start_wait_time_s": "180"}
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--head", "--block", "--num-cpus=4", "--object-store-memory=200000000", f"--temp-dir={folder}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with running(command, folder / "ray.log", environment):
        made = RayHead(f"http://127.0.0.1:{ports['dashboard-port']}", token, ports["metrics-export-port"])
        wait_for(lambda: ask(f"{made.url}/api/version", token=token), "Ray's dashboard")
        wait_for(lambda: answers(ports["dashboard-agent-listen-port"]), "the agent that takes Ray's jobs")
        yield made
