"""The chart renders to what Kubernetes and the operators accept, whatever is asked of it, and refuses what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.checks import check_stages
from k8s.generate.documents import commented
from trainer.config import load

from .matrix import CHART, NAMESPACE, RELEASE, objects, pods, renderings
from .policy import scan
from .validation import Schemas, problems

RENDERINGS = renderings()
JOBS = [name for name, values in RENDERINGS.items() if values.get("mode", "RayJob") == "RayJob"]
# Findings of the policy scan that are meant, and why.
EXPLAINED = {
    ("head", "-", "service-account-token"): "Ray's autoscaler runs in the head pod and talks to Kubernetes; only with autoscaling.enabled",
    ("train", "ray-worker", "capabilities-added"): "RDMA pins memory (IPC_LOCK); only with network.rdma.enabled, in pods with GPUs",
    ("encode-gpu", "ray-worker", "capabilities-added"): "the same",
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a typo in a key": ({"pools": {"train": {"gpu": 1}}}, "'/pools/train': additional properties 'gpu'"),
    "a typo at the top": ({"storge": {}}, "additional properties 'storge'"),
    "another mode": ({"mode": "RayService"}, "'/mode'"),
    "text for a number": ({"monitoring": {"port": "8090"}}, "'/monitoring/port'"),
    "a quantity without sense": ({"pools": {"train": {"memory": "8 GB"}}}, "'/pools/train/memory'"),
    "negative replicas": ({"pools": {"train": {"minReplicas": -1}}}, "'/pools/train/minReplicas'"),
    "fewer at most than at least": ({"pools": {"train": {"minReplicas": 4}}}, "pools.train.maxReplicas"),
    "nobody to train": ({"pools": {"train": {"enabled": False}}}, "pools.train.minReplicas"),
    "s3 without a bucket": ({"storage": {"kind": "s3"}}, "'/storage/s3/uri'"),
    "a bucket that is none": ({"storage": {"s3": {"uri": "https://x"}}}, "'/storage/s3/uri'"),
    "keys inside an endpoint": ({"storage": {"s3": {"endpoint": "https://user:key@s3"}}}, "'/storage/s3/endpoint'"),
    "a scheduler without its queue": ({"scheduling": {"kind": "volcano"}}, "'/scheduling/queue'"),
    "another scheduler": ({"scheduling": {"kind": "slurm"}}, "'/scheduling/kind'"),
    "kueue and autoscaling": ({"scheduling": {"kind": "kueue", "queue": "q"}, "autoscaling": {"enabled": True}}, "'/autoscaling/enabled'"),
    "kueue and a cluster that stays": (
        {"scheduling": {"kind": "kueue", "queue": "q"}, "job": {"shutdownAfterJobFinishes": False}},
        "'/job/shutdownAfterJobFinishes'",
    ),
    "fault tolerance without redis": ({"gcsFaultTolerance": {"enabled": True}}, "'/gcsFaultTolerance/redisAddress'"),
    "token authentication on an old ray": ({"rayVersion": "2.40.0"}, "'/rayVersion'"),
    "less grace than a commit": ({"spot": {"stopWaitSeconds": 200}}, "spot.terminationGracePeriodSeconds"),
    "a key of the chart's own": ({"run": {"overrides": {"run.root": "/x"}}}, "'run.root'"),
    "a command in an override": ({"run": {"overrides": {"seed": "1; rm -rf /"}}}, "'/run/overrides/seed'"),
    "root": ({"security": {"runAsUser": 0}}, "'/security/runAsUser'"),
    "a name that KubeRay refuses": ({"nameOverride": "n" * 48}, "'/nameOverride'"),
    "an environment that is not NCCL's": ({"network": {"nccl": {"LD_PRELOAD": "x"}}}, "'LD_PRELOAD'"),
}


def test_there_are_enough_renderings() -> None:
    assert len(RENDERINGS) >= 24
    assert len([name for name in RENDERINGS if name.startswith("example")]) == 4


@pytest.mark.parametrize("name", RENDERINGS)
def test_every_object_of_a_rendering_is_valid(chart: Any, crds: Schemas, name: str) -> None:
    rendered = objects(chart, RENDERINGS[name])
    assert [problem for thing in (*rendered, *pods(rendered).values()) for problem in problems(thing, crds)] == []
    assert len({(thing["kind"], thing["metadata"]["name"]) for thing in rendered}) == len(rendered)
    assert {thing["metadata"]["namespace"] for thing in rendered} == {NAMESPACE}


@pytest.mark.parametrize("name", RENDERINGS)
def test_a_rendering_passes_helms_own_strict_lint(helm: Any, name: str) -> None:
    told = helm.lint(str(CHART), RENDERINGS[name], strict=True, namespace=NAMESPACE)
    assert told["errors"] == []
    assert [message for message in told["messages"] if message["severity"] > 1] == []  # 1: an icon is recommended


@pytest.mark.parametrize("name", RENDERINGS)
def test_no_finding_of_the_policy_scan_is_left_unexplained(chart: Any, name: str) -> None:
    values, rendered = RENDERINGS[name], objects(chart, RENDERINGS[name])
    expected = set(EXPLAINED)
    if not values.get("autoscaling", {}).get("enabled"):
        expected = {finding for finding in expected if finding[2] != "service-account-token"}
    if not values.get("network", {}).get("rdma", {}).get("enabled"):
        expected = {finding for finding in expected if finding[2] != "capabilities-added"}
    assert {finding for pod in pods(rendered).values() for finding in scan(pod)} <= expected


def test_the_validators_notice_what_is_wrong(chart: Any, crds: Schemas) -> None:
    rendered = objects(chart, {})
    job = next(thing for thing in rendered if thing["kind"] == "RayJob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]
    for place, change in (
        (job["spec"], {"entryPoint": "x"}),
        (job["spec"], {"submissionMode": "Kubernetes"}),
        (job["spec"], {"ttlSecondsAfterFinished": "soon"}),
        (job["spec"], {"shutdownAfterJobFinishes": False}),
        (head, {"rayStartParams": {"num-cpus": 0}}),
        (head["template"]["spec"], {"containers": [{"nome": "x"}]}),
        (job["metadata"], {"name": "n" * 48}),
    ):
        kept = dict(place)
        place.update(change)
        assert problems(job, crds), change
        place.clear()
        place.update(kept)
    assert problems(job, crds) == []
    account = next(thing for thing in rendered if thing["kind"] == "ServiceAccount")
    assert problems({**account, "automount": True}, crds)


def test_the_scan_notices_what_is_wrong(chart: Any) -> None:
    pod = pods(objects(chart, {}))["train"]
    pod["spec"]["hostNetwork"] = True
    container = pod["spec"]["containers"][0]
    container["securityContext"] = {"privileged": True}
    container["image"] = "videomar"
    container["env"] = [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]
    rules = {rule for _, _, rule in scan(pod)}
    assert rules >= {"host-namespaces", "privileged", "writable-root", "capabilities-kept", "moving-image-tag", "secret-in-plain-text"}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_refused_by_its_key(helm: Any, chart: Any, name: str) -> None:
    values, key = BAD[name]
    with pytest.raises(helm.HelmError) as refused:
        chart.render(values, name=RELEASE, namespace=NAMESPACE)
    assert key in str(refused.value)


def test_a_release_name_that_is_too_long_is_refused(helm: Any, chart: Any) -> None:
    with pytest.raises(helm.HelmError, match="nameOverride"):
        chart.render({}, name="r" * 48, namespace=NAMESPACE)


def test_every_value_is_explained() -> None:
    text = (CHART / "values.yaml").read_text()
    explained = {key for key, _ in commented(text)}

    def leaves(values: Any, path: str) -> set[str]:
        if not isinstance(values, dict) or not values:
            return {path}
        return set().union(*(leaves(inner, f"{path}.{key}".strip(".")) for key, inner in values.items()))

    unexplained = {leaf for leaf in leaves(yaml.safe_load(text), "") if not any(leaf.startswith(key) for key in explained)}
    assert unexplained == set()


def test_the_run_asks_for_what_the_train_pool_holds(chart: Any) -> None:
    def entrypoint(pool: dict[str, Any]) -> str:
        rendered = objects(chart, {"pools": {"train": pool}})
        return next(thing for thing in rendered if thing["kind"] == "RayJob")["spec"]["entrypoint"]

    on_cpu = entrypoint({"cpu": "4", "minReplicas": 2})
    on_gpu = entrypoint({"cpu": "64", "minReplicas": 3, "maxReplicas": 3, "gpus": 8})
    assert "cluster.workers=2 cluster.cpus_per_worker=4 metrics" in on_cpu
    assert "cluster.workers=24 cluster.cpus_per_worker=8 cluster.gpus_per_worker=1" in on_gpu


@pytest.mark.parametrize("name", JOBS)
def test_a_job_runs_a_recipe_whose_stages_can_be_spread_over_its_workers(chart: Any, tmp_path: Path, name: str) -> None:
    rendered = objects(chart, RENDERINGS[name])
    command = next(thing for thing in rendered if thing["kind"] == "RayJob")["spec"]["entrypoint"].split()
    words = command[command.index("train") + 1 :]
    for own in (thing for thing in rendered if thing["kind"] == "ConfigMap" and "recipe.yaml" in thing["data"]):
        (tmp_path / "recipe.yaml").write_text(own["data"]["recipe.yaml"])
        words = [f"recipe={tmp_path / 'recipe.yaml'}" if word.startswith("recipe=") else word for word in words]
    config = load(words)
    assert config.run_folder.is_absolute()
    check_stages(config)


def test_workers_get_time_to_stop_and_a_retry_finds_the_same_run(chart: Any) -> None:
    for values in RENDERINGS.values():
        rendered = objects(chart, values)
        for pod in pods(rendered).values():
            wait = next(int(one["value"]) for one in pod["spec"]["containers"][0]["env"] if one["name"] == "RAY_JOB_STOP_WAIT_TIME_S")
            assert pod["spec"]["terminationGracePeriodSeconds"] > wait
        again = objects(chart, values)
        assert again == rendered
