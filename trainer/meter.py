"""The current values of the declared metrics in one process: set by whoever observes a run, read by the exporter.

Knows neither HTTP nor Prometheus; a series that would break a label's bound is dropped and counted, never an error.
"""

from __future__ import annotations

import threading
from collections import defaultdict

from trainer.metrics import LABEL_VALUES, METRICS, PREFIX

BY_NAME = {metric.name.removeprefix(PREFIX): metric for metric in METRICS}
DROPPED = "series_dropped_total"
Labels = tuple[str, ...]
Series = tuple[str, Labels, float]  # (name without prefix, label values in the declared order, value)


class Meter:
    """Values by metric and labels. Names are the declared ones without the prefix; safe from several threads."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in BY_NAME}
        self._seen: dict[str, set[str]] = defaultdict(set)  # values by label
        self._news: set[tuple[str, Labels]] = set()
        self._lock = threading.Lock()

    def set(self, name: str, value: float, **labels: str) -> None:
        """Put a gauge's series at a value. KeyError for an undeclared name or label."""
        self._put(name, labels, value, add=False)

    def only(self, name: str, value: float, **labels: str) -> None:
        """As set, and end the metric's other series: the label says which one is current."""
        self.forget(name)
        self.set(name, value, **labels)

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Count a counter's series up."""
        self._put(name, labels, amount, add=True)

    def forget(self, *names: str) -> None:
        """End all series of some metrics."""
        with self._lock:
            for name in names:
                self._values[name].clear()

    def series(self) -> list[Series]:
        """Everything, at one moment."""
        with self._lock:
            return [(name, key, value) for name, values in self._values.items() for key, value in values.items()]

    def news(self) -> list[Series]:
        """What was put since the last call and stands, whether or not its value is another."""
        with self._lock:
            put, self._news = self._news, set()
            return [(name, key, self._values[name][key]) for name, key in sorted(put) if key in self._values[name]]

    def _put(self, name: str, labels: dict[str, str], value: float, add: bool) -> None:
        key = self._key(name, labels)
        values = self._values[name]
        with self._lock:
            if key not in values and not self._admits(BY_NAME[name].labels, key):
                dropped = self._values[DROPPED]
                dropped[()] = dropped.get((), 0.0) + 1.0
            else:
                values[key] = float(value) + (values.get(key, 0.0) if add else 0.0)
                self._news.add((name, key))

    def _key(self, name: str, labels: dict[str, str]) -> Labels:
        """The label values in declared order."""
        declared = BY_NAME[name].labels
        if len(declared) != len(labels):
            raise KeyError(f"{name} has the labels {declared}, not {tuple(labels)}")
        return tuple([labels[label] for label in declared])

    def _admits(self, declared: tuple[str, ...], key: Labels) -> bool:
        """Whether no label gets a value too many by a new series."""
        new = [(label, value) for label, value in zip(declared, key, strict=True) if value not in self._seen[label]]
        if any(len(self._seen[label]) >= LABEL_VALUES[label] for label, _ in new):
            return False
        for label, value in new:
            self._seen[label].add(value)
        return True
