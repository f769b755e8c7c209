"""The chart's renderings that the tests check: every example, and every mode with every scheduler, storage and option."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import yaml

from trainer.config import read_recipe

K8S = Path(__file__).parents[2] / "k8s"
CHART = K8S / "chart"
NAMESPACE = "research"
RELEASE = "demo"

MODES = {mode: {"mode": mode} for mode in ("RayJob", "RayCluster")}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "none": {},
    "kueue": {"scheduling": {"kind": "kueue", "queue": "research", "kueue": {"clusterQueue": "all", "apiVersion": "v1beta2"}}},
    "volcano": {"scheduling": {"kind": "volcano", "queue": "research", "priorityClassName": "high"}},
    "yunikorn": {"scheduling": {"kind": "yunikorn", "queue": "root.research"}},
}
STORAGES: dict[str, dict[str, Any]] = {
    "new-claim": {"storage": {"kind": "pvc", "pvc": {"storageClassName": "fast"}}},
    "old-claim": {"storage": {"kind": "pvc", "path": "/mnt/data", "pvc": {"existingClaim": "videos"}}},
    "s3": {"storage": {"kind": "s3", "s3": {"uri": "s3://bucket/x", "endpoint": "https://s3.internal", "secretName": "keys"}}},
}
MONITORED = {part: {"enabled": True, "labels": {"release": "prometheus"}} for part in ("podMonitor", "rules", "dashboards")}
GPU = {"minReplicas": 2, "maxReplicas": 4, "cpu": 16, "gpus": 8, "memory": "64Gi", "spot": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "autoscaling": {"autoscaling": {"enabled": True}, "pools": {"train": {"maxReplicas": 8}, "encodeCpu": {"enabled": True}}},
    "gcs": {"gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6379", "redisSecretName": "redis"}},
    "gpus": {
        "run": {"recipe": "videomar-256"},
        "pools": {"train": GPU, "encodeGpu": {"enabled": True}},
        "network": {"rdma": {"enabled": True, "count": 8}},
    },
    "own-recipe": {"run": {"content": read_recipe("toy"), "overrides": {"seed": 3}, "videos": "s3://v/x"}},
    "open": {
        "security": {"auth": {"mode": "disabled"}},
        "network": {"policy": {"enabled": False}},
        "head": {"nodeSelector": {"pool": "cpu"}},
    },
    "monitored": {"monitoring": MONITORED, "image": {"pullSecrets": ["pull"]}, "job": {"activeDeadlineSeconds": 3600}},
    "renamed": {"nameOverride": "n" * 47, "run": {"name": "x" * 63}, "security": {"auth": {"mode": "token", "secretName": "ray"}}},
}


def merged(*values: dict[str, Any]) -> dict[str, Any]:
    """Values over values, as Helm merges them."""
    result: dict[str, Any] = {}
    for value in values:
        for key, new in value.items():
            old = result.get(key)
            result[key] = merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return result


def renderings() -> dict[str, dict[str, Any]]:
    """Values by a name that says what they try."""
    found = {f"example {path.stem}": yaml.safe_load(path.read_text()) for path in sorted((CHART / "examples").glob("*.yaml"))}
    for (mode, one), (scheduler, two), (storage, three) in product(MODES.items(), SCHEDULERS.items(), STORAGES.items()):
        found[f"{mode} {scheduler} {storage}"] = merged(one, two, three)
    for (mode, one), (option, two) in product(MODES.items(), OPTIONS.items()):
        found[f"{mode} {option}"] = merged(one, two)
    return found


def objects(chart: Any, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Every Kubernetes object of a rendering."""
    files = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [found for text in texts for found in yaml.safe_load_all(text) if found]


def pods(rendered: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pod templates by their group's name, lifted out of the Ray resource as Pods."""
    ray = next(found for found in rendered if found["kind"] in ("RayJob", "RayCluster"))
    cluster = ray["spec"].get("rayClusterSpec", ray["spec"])
    templates = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    templates["head"] = cluster["headGroupSpec"]["template"]
    if "submitterPodTemplate" in ray["spec"]:
        templates["submitter"] = ray["spec"]["submitterPodTemplate"]
    return {
        name: {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": name, **template["metadata"]}}
        for name, template in templates.items()
    }
