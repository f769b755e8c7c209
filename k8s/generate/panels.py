"""What a dashboard is made of, as data. dashboards.py makes Grafana's JSON of it, the tests ask a real Prometheus for each query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["stat", "lines", "stack", "steps"]


@dataclass(frozen=True)
class Panel:
    """title, why to look at it, Grafana's unit, (expression, legend) pairs, how it is drawn, columns of 24. gpu: needs DCGM's exporter."""

    title: str
    description: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: Kind = "lines"
    width: int = 12
    gpu: bool = False


@dataclass(frozen=True)
class Board:
    """A dashboard: its file's name, title, panels."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def stat(title: str, description: str, unit: str, *queries: tuple[str, str]) -> Panel:
    return Panel(title, description, unit, queries, "stat", 4)


def lines(title: str, description: str, unit: str, *queries: tuple[str, str], kind: Kind = "lines", width: int = 12) -> Panel:
    return Panel(title, description, unit, queries, kind, width)
