"""The generated parts of k8s/README.md: the table of the chart's values, the list of metrics, the runbook. Text in, text out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from k8s.generate.alerts import ALERTS
from trainer.metrics import METRICS

MARK, END = "<!-- generated: {} -->", "<!-- end of {} -->"
KEY = re.compile(r"^( *)([A-Za-z0-9]+):( |$)")


def replace(text: str, name: str, content: str) -> str:
    """The text with what stands between the marks of `name` replaced. ValueError when the marks are not there."""
    begin, end = MARK.format(name), END.format(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no {begin} ... {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def values_table(text: str) -> str:
    """A Markdown table of every commented key of values.yaml."""
    values = yaml.safe_load(text)
    rows = [f"| `{key}` | `{json.dumps(look_up(values, key))}` | {comment} |" for key, comment in commented(text)]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def commented(text: str) -> Iterator[tuple[str, str]]:
    """(dotted key, its comment) of every key with a `# --` comment above it."""
    path: list[tuple[int, str]] = []
    comment = ""
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = stripped.removeprefix("# -- ")
        elif found := KEY.match(line):
            indent = len(found[1])
            path = [entry for entry in path if entry[0] < indent] + [(indent, found[2])]
            if comment:
                yield ".".join(name for _, name in path), comment
            comment = ""


def look_up(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def metrics_table() -> str:
    """A Markdown table of the declared metrics."""
    rows = [f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '-'} | {metric.help} |" for metric in METRICS]
    return "\n".join(["| metric | kind | labels beside `run` | meaning |", "|---|---|---|---|", *rows])


def runbook() -> str:
    """A heading per alert, which its runbook_url points at, and what to do."""
    return "\n\n".join(
        f"#### {alert.name}\n{alert.summary[0].upper()}{alert.summary[1:]} ({alert.severity}). {alert.runbook}" for alert in ALERTS
    )
