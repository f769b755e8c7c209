"""The endpoint: one per host whoever is there, readable by Prometheus's own parser, cheap in CPU time, and never in a step's way."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_port
from trainer import exporter
from trainer.exporter import Endpoint, Pool, serving
from trainer.instruments import RunInstruments, pulse
from trainer.meter import Meter
from trainer.metrics import LABEL_VALUES, METRICS

from .test_instruments import STAGES, step

PULSE = {
    "rank_step_seconds": 1.0,
    "rank_forward_seconds": 0.25,
    "rank_reduction_seconds": 0.1,
    "rank_data_wait_seconds": 0.0,
    "rank_memory_bytes": 5e9,
}
STEPS = 500


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def endpoints(port: int) -> Iterator[Callable[[Meter], Endpoint]]:
    opened: list[Endpoint] = []

    def open_endpoint(meter: Meter) -> Endpoint:
        opened.append(Endpoint(meter, "127.0.0.1", port))
        return opened[-1]

    yield open_endpoint
    for endpoint in opened:
        endpoint.close()


def scrape(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and label values, as a Prometheus client reads them; empty while nobody serves."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    families = text_string_to_metric_families(text)
    return {
        (sample.name, (sample.labels["run"], *(value for label, value in sample.labels.items() if label != "run"))): sample.value
        for family in families
        for sample in family.samples
    }


def until(port: int, key: tuple[str, tuple[str, ...]], value: float | None) -> None:
    deadline = time.monotonic() + 30
    while scrape(port).get(key) != value or not scrape(port):
        assert time.monotonic() < deadline, scrape(port)
        time.sleep(0.05)


def busy_pod() -> Pool:
    """The fullest pod there is: a controller with every label value, and the pod's ranks."""
    run = RunInstruments(Meter("run"), STAGES)
    for metric in METRICS:
        for number in range(max((LABEL_VALUES[label] for label in metric.labels), default=1)):
            run.meter.add(metric.name.removeprefix("videomar_"), 1.0, **dict.fromkeys(metric.labels, f"value-{number}"))
    pool = Pool(run.meter)
    for rank in range(LABEL_VALUES["rank"]):
        seat = Meter("run")
        pulse(seat, {"rank": rank, **PULSE})
        pool.take(f"seat-{rank}", "run", [list(series) for series in seat.series()])
    return pool


def test_several_processes_share_an_endpoint_and_it_outlives_the_one_that_served(port: int, endpoints: Callable[[Meter], Endpoint]) -> None:
    controller, seat = Meter("one"), Meter("one")
    controller.set("run_step", 7)
    seat.set("rank_step_seconds", 0.5, rank="1")
    first = endpoints(controller)
    until(port, ("videomar_run_step", ("one",)), 7)
    endpoints(seat)
    until(port, ("videomar_rank_step_seconds", ("one", "1")), 0.5)
    assert scrape(port)["videomar_exporter_processes", ("one",)] == 2
    first.close()
    until(port, ("videomar_run_step", ("one",)), None)
    until(port, ("videomar_rank_step_seconds", ("one", "1")), 0.5)


def test_a_rank_that_has_moved_is_there_once() -> None:
    pool = Pool(Meter("run"))
    pool.take("old seat", "run", [["rank_step_seconds", ["0"], 9.0]])
    pool.take("new seat", "run", [["rank_step_seconds", ["0"], 1.0]])
    assert [sample[3] for sample in pool.samples() if sample[1] == "rank_step_seconds"] == [1.0]


def test_what_is_not_declared_or_not_from_here_is_not_published(port: int, endpoints: Callable[[Meter], Endpoint]) -> None:
    meter = Meter("run")
    meter.set("run_step", 1)
    endpoints(meter)
    until(port, ("videomar_run_step", ("run",)), 1)
    for body in (b"not json", b'{"source": 1}', b'{"source": "x", "run": "run", "series": [["loss", ["a"], "much"]]}'):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/push", body, timeout=5)
    pushed = b'{"source": "x", "run": "run", "series": [["made_up", [], 1.0], ["loss", [], 1.0]]}'
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/push", pushed, timeout=5).status == 204
    assert {name for name, _ in scrape(port)} == {"videomar_run_step", "videomar_exporter_processes"}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/else", timeout=5)


def test_a_scraper_that_hangs_holds_up_neither_a_step_nor_another_scrape(port: int, endpoints: Callable[[Meter], Endpoint]) -> None:
    run = RunInstruments(Meter("run"), STAGES)
    endpoints(run.meter)
    until(port, ("videomar_run_stages", ("run",)), 2)
    with socket.create_connection(("127.0.0.1", port)) as hanging, socket.create_connection(("127.0.0.1", port)) as deaf:
        hanging.sendall(b"GET /metrics HTTP/1.1\r\n")  # and never the end of the request
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and never reads the answer
        for number in range(1, 6):
            run.step(step(number), number)
            assert scrape(port)["videomar_run_step", ("run",)] == number


def test_without_a_port_there_is_no_endpoint(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "LINGER_SECONDS", 0.0)  # for a scrape that does not come
    with serving(Meter("run"), "127.0.0.1", None):
        assert scrape(port) == {}
    with serving(Meter("run"), "127.0.0.1", port):
        until(port, ("videomar_exporter_processes", ("run",)), 1)
    assert scrape(port) == {}


def test_a_run_that_is_scraped_waits_at_its_end_for_its_last_values_to_be_seen(port: int) -> None:
    meter, seen = Meter("run"), list[float | None]()
    scraper = threading.Timer(0.5, lambda: seen.append(scrape(port).get(("videomar_run_step", ("run",)))))
    with serving(meter, "127.0.0.1", port):
        until(port, ("videomar_exporter_processes", ("run",)), 1)
        meter.set("run_step", 9)
        scraper.start()
    scraper.join()
    assert seen == [9]
    assert scrape(port) == {}


def test_a_step_costs_at_most_a_fifth_of_a_millisecond_of_cpu() -> None:
    run, seat = RunInstruments(Meter("run"), STAGES), Meter("run")
    told = [step(number, loss_by_frame=[1.0] * 7) for number in range(STEPS)]
    started = time.process_time()
    for number, message in enumerate(told):
        run.step(message, number)
        pulse(seat, {"rank": 0, **PULSE})
    assert (time.process_time() - started) / STEPS <= 0.2e-3


def test_a_scrape_of_the_fullest_pod_costs_at_most_five_milliseconds_of_cpu() -> None:
    registry = CollectorRegistry()
    registry.register(busy_pod())
    generate_latest(registry)
    started = time.process_time()
    for _ in range(50):
        generate_latest(registry)
    assert (time.process_time() - started) / 50 <= 5e-3
