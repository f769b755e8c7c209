"""Canaries: whatever secret reaches the chart's values, the environment or a URL stays out of manifests, recipes and metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .matrix import NAMESPACE, RELEASE, objects, pods, renderings

CANARY = "canary-3c1d5a90"


@pytest.mark.parametrize(
    "values",
    [
        {"storage": {"s3": {"accessKey": CANARY}}},
        {"storage": {"s3": {"endpoint": f"https://key:{CANARY}@s3"}}},
        {"storage": {"kind": "s3", "s3": {"uri": f"s3://key:{CANARY}@bucket"}}},
        {"gcsFaultTolerance": {"enabled": True, "redisAddress": f"redis://:{CANARY}@redis:6379"}},
        {"security": {"auth": {"token": CANARY}}},
        {"run": {"overrides": {"data.videos": f"https://key:{CANARY}@s3/x"}}},
        {"run": {"videos": f"https://key:{CANARY}@s3/x"}},
        {"network": {"nccl": {"AWS_SECRET_ACCESS_KEY": CANARY}}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_the_chart_takes_no_secret_as_a_value(helm: Any, chart: Any, values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        chart.render(values, name=RELEASE, namespace=NAMESPACE)


@pytest.mark.parametrize("name", ["example spot-64-gpus", "RayJob gcs", "RayJob renamed", "RayCluster none s3"])
def test_pods_get_secrets_by_reference_only(chart: Any, name: str) -> None:
    rendered = objects(chart, renderings()[name])
    assert all(thing["kind"] != "Secret" for thing in rendered)
    for pod in pods(rendered).values():
        for variable in pod["spec"]["containers"][0]["env"]:
            if any(word in variable["name"] for word in ("KEY", "TOKEN", "PASSWORD", "SECRET")):
                assert "value" not in variable
                assert "secretKeyRef" in variable["valueFrom"]


def test_the_environment_does_not_reach_a_rendering(chart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(variable, CANARY)
    assert all(CANARY not in json.dumps(objects(chart, values)) for values in renderings().values())
