"""Each alert fires on its story and stays silent on the same story gone well, by Prometheus's own rule tester."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.generate.alerts import ALERTS, rules

RUN = 'run="r", namespace="n"'
TRAINING = {f'videomar_run_state{{{RUN}, state="training"}}': "1x300"}
ENCODING = {f'videomar_run_state{{{RUN}, state="encoding"}}': "1x300"}


def series(name: str, values: str, labels: str = "") -> dict[str, str]:
    return {f"videomar_{name}{{{RUN}{labels}}}": values}


def spent(step: int, **others: int) -> dict[str, str]:
    """Seconds per minute that go into steps and other activities."""
    counted = {"step": step} | others
    return {f'videomar_time_seconds_total{{{RUN}, activity="{name}"}}': f"0+{seconds}x300" for name, seconds in counted.items()}


def ranks(*seconds: float) -> dict[str, str]:
    return {f'videomar_rank_forward_seconds{{{RUN}, rank="{rank}"}}': f"{value}x300" for rank, value in enumerate(seconds)}


FAILED = ', cause="signal"'
# Minute to look at, one sample a minute of what goes wrong, and of what goes well.
STORIES: dict[str, tuple[int, dict[str, str], dict[str, str]]] = {
    "VideomarNoProgress": (20, TRAINING | series("steps_total", "50x300"), TRAINING | series("steps_total", "0+10x300")),
    "VideomarLossNotFinite": (15, series("skipped_steps_total", "0x10 1x300"), series("skipped_steps_total", "1x300")),
    "VideomarRollBack": (20, series("roll_backs_total", "0x10 1x300"), series("roll_backs_total", "1x300")),
    "VideomarLossSpike": (33, series("loss", "1x30 3x300", ', stage="a"'), series("loss", "1x30 1.5x300", ', stage="a"')),
    "VideomarCheckpointOld": (
        130,
        TRAINING | series("last_commit_timestamp_seconds", "0x300"),
        TRAINING | series("last_commit_timestamp_seconds", "0+60x300"),
    ),
    "VideomarCheckpointFailing": (
        25,
        series("failures_total", "0x10 1x300", FAILED) | series("commits_total", "3x300"),
        series("failures_total", "0x10 1x300", FAILED) | series("commits_total", "0+1x300"),
    ),
    "VideomarStraggler": (15, ranks(1, 1, 2), ranks(1, 1, 1.2)),
    "VideomarMfuDrop": (
        50,
        series("model_flops_utilization_ratio", "0.4x30 0.2x300"),
        series("model_flops_utilization_ratio", "0.4x30 0.3x300"),
    ),
    "VideomarDataWait": (25, spent(48, data=12), spent(57, data=3)),
    "VideomarStorageErrors": (
        20,
        series("storage_errors_total", "0+3x300", ', fault="transient"'),
        series("storage_errors_total", "0x15 9x300", ', fault="transient"'),
    ),
    "VideomarEncodeStalled": (20, ENCODING | series("encode_sources_done", "5x300"), ENCODING | series("encode_sources_done", "0+2x300")),
    "VideomarRestartLoop": (
        20,
        series("failures_total", "0x5 1x4 2x4 4x300", FAILED),
        series("failures_total", "0x5 1x300", FAILED),
    ),
    "VideomarTargetDown": (10, {'up{job="videomar", instance="i"}': "0x300"}, {'up{job="videomar", instance="i"}': "1x300"}),
    "VideomarGoodputLow": (95, TRAINING | spent(30, start=30), TRAINING | spent(55, start=5)),
}
LABELS = {"VideomarTargetDown": {"job": "videomar", "instance": "i"}, "VideomarLossSpike": {"run": "r", "namespace": "n", "stage": "a"}}


def expected(rule: dict[str, Any]) -> dict[str, Any]:
    """The alert as promtool reports it."""
    labels = LABELS.get(rule["alert"], {"run": "r", "namespace": "n"})
    text = rule["annotations"]["summary"]
    for template, value in (
        ("{{ or $labels.run $labels.instance }}", labels.get("run") or labels.get("instance", "")),
        ("{{ $labels.namespace }}", labels.get("namespace", "")),
    ):
        text = text.replace(template, value)
    return {"exp_labels": labels | rule["labels"], "exp_annotations": rule["annotations"] | {"summary": text}}


def case(rule: dict[str, Any], told: dict[str, str], minute: int, fires: bool) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in told.items()],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": rule["alert"], "exp_alerts": [expected(rule)] if fires else []},
        ],
    }


def test_every_alert_has_its_story() -> None:
    assert set(STORIES) == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("name", STORIES)
def test_an_alert_fires_when_it_should_and_only_then(name: str, program: Callable[[str], str], tmp_path: Path) -> None:
    minute, bad, good = STORIES[name]
    rule = next(rule for rule in rules()["groups"][0]["rules"] if rule["alert"] == name)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules()))
    told = {"rule_files": ["rules.yml"], "tests": [case(rule, bad, minute, True), case(rule, good, minute, False)]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(told))
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_charts_rule_file_is_one(program: Callable[[str], str]) -> None:
    path = Path(__file__).parents[2] / "k8s" / "chart" / "alerts.yaml"
    done = subprocess.run([program("promtool"), "check", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
