"""The alerts, as a Prometheus rule file: the chart's PrometheusRule holds it, promtool tests it. `python -m k8s.generate` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from k8s.generate.expressions import by, series

RUNBOOK = "k8s/README.md#{}"
TRAINING = f"max {by()} ({series('run_state', state='training')}) == 1"
ENCODING = f"max {by()} ({series('run_state', state='encoding')}) == 1"


@dataclass(frozen=True)
class Alert:
    """name, the expression in which {w} stands for `window` seconds, how long it must hold (seconds), how bad, one sentence, what to do."""

    name: str
    expression: str
    window: int
    hold: int
    severity: str
    summary: str
    runbook: str


def increased(name: str) -> str:
    return f"sum {by()} (increase({series(name)}[{{w}}]))"


def share(activity: str) -> str:
    """Of the wall time."""
    part, whole = series("time_seconds_total", activity=activity), series("time_seconds_total")
    return f"sum {by()} (rate({part}[{{w}}])) / sum {by()} (rate({whole}[{{w}}]))"


FORWARD, MFU, LOSS = series("rank_forward_seconds"), series("model_flops_utilization_ratio"), series("loss")
ALERTS = (
    Alert(
        "VideomarNoProgress",
        f"{TRAINING} unless on (run, namespace) ({increased('steps_total')} > 0)",
        600,
        300,
        "critical",
        "no optimiser step for more than 10 minutes",
        "Look at the newest logs/generation-*-rank-*.log of the run: a rank hangs while its peers wait in a collective. Kill that process: "
        "the run starts a new generation from the last commit by itself.",
    ),
    Alert(
        "VideomarLossNotFinite",
        f"{increased('skipped_steps_total')} > 0",
        600,
        0,
        "warning",
        "skipped steps: gradients that are not finite, or far above the recent ones",
        "Single ones change nothing and do no harm. Several in a row: lower train.lr, or look for broken samples: events.jsonl names those "
        "of every skipped step.",
    ),
    Alert(
        "VideomarRollBack",
        f"{increased('roll_backs_total')} > 0",
        1800,
        0,
        "warning",
        "the guard took the run back to its last commit",
        "Too many steps in a row were skipped; the data in between is passed over. Again and again: events.jsonl names the samples of the "
        "skipped steps; mend or leave them out, lower train.lr, or raise guard.sigma. After guard.roll_backs returns to one commit the "
        "run fails.",
    ),
    Alert(
        "VideomarLossSpike",
        f"{LOSS} > 2 * avg_over_time({LOSS}[{{w}}])",
        1800,
        60,
        "warning",
        "the loss is twice its mean of half an hour",
        "If it does not come back within some hundred steps, stop the run and continue with a lower train.lr from the last commit.",
    ),
    Alert(
        "VideomarCheckpointOld",
        f"{TRAINING} and on (run, namespace) time() - {series('last_commit_timestamp_seconds')} > {{w}}",
        7200,
        60,
        "warning",
        "the last commit is more than 2 hours old",
        "A failure now loses that much. Lower train.commit_every; if Seconds per commit has grown, the storage is slow or full.",
    ),
    Alert(
        "VideomarCheckpointFailing",
        f"{increased('failures_total')} > 0 unless on (run, namespace) ({increased('commits_total')} > 0)",
        1800,
        600,
        "critical",
        "generations fail and nothing has been committed for half an hour",
        "events.jsonl names the reason. Often the volume is full or the bucket's credentials have expired; the last good commit is kept.",
    ),
    Alert(
        "VideomarStraggler",
        f"max {by()} ({FORWARD}) / quantile {by()} (0.5, {FORWARD}) > 1.3",
        0,
        600,
        "warning",
        "one rank is 30 % slower than the median, and all wait for it",
        "Forward by rank names it. Check that device's temperature, power and errors in Cluster; cordon its node and delete its pod.",
    ),
    Alert(
        "VideomarMfuDrop",
        f"{MFU} > 0 and {MFU} < 0.7 * max_over_time({MFU}[{{w}}])",
        3600,
        900,
        "warning",
        "model FLOPs utilisation fell by more than 30 % within an hour",
        "Expected after a change of stage or layout. Else look at Stragglers, Data wait and the GPUs' clocks.",
    ),
    Alert(
        "VideomarDataWait",
        f"{share('data')} > 0.1",
        600,
        600,
        "warning",
        "training waits for data more than 10 % of the time",
        "Storage is slower than training: keep data.root on a faster volume, or give the pods more CPUs.",
    ),
    Alert(
        "VideomarStorageErrors",
        f"{increased('storage_errors_total')} > 20",
        600,
        0,
        "warning",
        "more than 20 requests to S3 met a fault within 10 minutes",
        "Storage errors, in Data, names the kind. transient: the service throttles or the network drops; requests are repeated for 2 "
        "minutes, so that the run only slows down: raise the bucket's limits, or use fewer encoders. denied, refused, no bucket: check the "
        "credentials, the bucket's policy and its name.",
    ),
    Alert(
        "VideomarEncodeStalled",
        f"{ENCODING} unless on (run, namespace) (sum {by()} (delta({series('encode_sources_done')}[{{w}}])) > 0)",
        600,
        300,
        "warning",
        "no video was encoded for more than 10 minutes",
        "Look for pending encoder pods and for one huge video. Starting again loses nothing: finished chunks are kept.",
    ),
    Alert(
        "VideomarRestartLoop",
        f"{increased('failures_total')} >= 3",
        1800,
        0,
        "critical",
        "3 or more failed generations in half an hour",
        "events.jsonl and the generations' logs name the first rank that failed, and why. After train.max_restarts without a commit the "
        "run gives up.",
    ),
    Alert(
        "VideomarTargetDown",
        'up{job="videomar"} == 0',
        0,
        300,
        "warning",
        "a pod's metrics endpoint does not answer",
        "The pod is going, or the NetworkPolicy does not let Prometheus in: set network.policy.monitoringNamespace.",
    ),
    Alert(
        "VideomarGoodputLow",
        f"{share('step')} < 0.8 and on (run, namespace) {TRAINING}",
        3600,
        1800,
        "warning",
        "less than 80 % of the last hour went into steps that count",
        "Where the time goes, in Curriculum and elasticity, names the thief: start and recompute are failures, checkpoint is "
        "train.commit_every, data is storage.",
    ),
)


def rules(scale: float = 1.0) -> dict[str, Any]:
    """The rule file. scale: of all durations; the tests run them faster than life."""
    return {"groups": [{"name": "videomar", "rules": [rule(alert, scale) for alert in ALERTS]}]}


def rule(alert: Alert, scale: float) -> dict[str, Any]:
    seconds = max(1, round(alert.window * scale))
    window = str(seconds) if "> {w}" in alert.expression else f"{seconds}s"
    return {
        "alert": alert.name,
        "expr": alert.expression.replace("{w}", window),
        "for": f"{round(alert.hold * scale)}s",
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": "{{ or $labels.run $labels.instance }} in {{ $labels.namespace }}: " + alert.summary,
            "runbook_url": RUNBOOK.format(alert.name.lower()),
        },
    }
