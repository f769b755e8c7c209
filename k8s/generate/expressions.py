"""How dashboards and alerts write PromQL: only declared metrics can be named. Imports trainer.metrics and nothing else."""

from __future__ import annotations

from trainer.metrics import METRICS, PREFIX

DECLARED = {metric.name: metric for metric in METRICS}
RUN = ("run", "namespace")  # what makes a series belong to one run
SHOWN = 'run=~"$run", namespace=~"$namespace"'


def series(name: str, *selectors: str, **equal: str) -> str:
    """A declared metric, given without its prefix, with selectors and equal labels. KeyError when not declared."""
    return select(DECLARED[PREFIX + name].name, *selectors, **equal)


def select(name: str, *selectors: str, **equal: str) -> str:
    """Any metric, with selectors."""
    wanted = ", ".join((*selectors, *(f'{label}="{value}"' for label, value in equal.items())))
    return f"{name}{{{wanted}}}" if wanted else name


def shown(name: str, **equal: str) -> str:
    """As series, of the runs that a dashboard shows; a rank's series also of the ranks it shows."""
    ranks = ('rank=~"$rank"',) if "rank" in DECLARED[PREFIX + name].labels else ()
    return series(name, SHOWN, *ranks, **equal)


def rate(name: str, **equal: str) -> str:
    """A shown counter per second."""
    return f"rate({shown(name, **equal)}[$__rate_interval])"


def of_namespace(name: str, **equal: str) -> str:
    """A metric of another exporter (Ray's, DCGM's), which knows no runs."""
    return select(name, 'namespace=~"$namespace"', **equal)


def by(*labels: str) -> str:
    """The grouping of an aggregation: runs, and `labels`."""
    return f"by ({', '.join((*RUN, *labels))})"


SPENT = f"sum {by()} ({rate('time_seconds_total')})"  # wall seconds per second: 1 while a run lives
