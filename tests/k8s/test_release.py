"""The life of a release by Helm's own code against an API server that validates every object it is given."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .apiserver import ApiServer
from .matrix import CHART, NAMESPACE, objects
from .validation import Schemas

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test, namespace: {namespace}}}}}]
clusters: [{{name: test, cluster: {{server: "{url}"}}}}]
users: [{{name: test, user: {{}}}}]
"""


@pytest.fixture
def server(crds: Schemas) -> Iterator[ApiServer]:
    made = ApiServer(crds)
    yield made
    made.close()


@pytest.fixture
def cluster(helm: Any, server: ApiServer) -> Iterator[Any]:
    with helm.Config(
        kubeconfig_content=KUBECONFIG.format(url=server.url, namespace=NAMESPACE), namespace=NAMESPACE, storage_driver="memory"
    ) as config:
        yield config


def names(chart: Any, values: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted((thing["kind"], thing["metadata"]["name"]) for thing in objects(chart, values))


def stored_job(server: ApiServer) -> dict[str, Any]:
    return next(thing for thing in server.objects.values() if thing["kind"] == "RayJob")["spec"]


def test_install_upgrade_rollback_and_uninstall(chart: Any, cluster: Any, server: ApiServer) -> None:
    first, second = {"run": {"content": {"seed": 1}}}, {"autoscaling": {"enabled": True}, "job": {"backoffLimit": 7}}
    assert cluster.install(str(CHART), "demo", first)["status"] == "deployed"
    assert server.kinds() == names(chart, first)
    assert stored_job(server)["backoffLimit"] == 3

    assert cluster.upgrade(str(CHART), "demo", second)["revision"] == 2
    assert server.kinds() == names(chart, second)  # the role came, the recipe's ConfigMap went
    assert stored_job(server)["backoffLimit"] == 7

    cluster.rollback("demo", version=1)
    assert server.kinds() == names(chart, first)
    assert stored_job(server)["backoffLimit"] == 3
    assert [revision["status"] for revision in cluster.history("demo")][-1] == "deployed"

    cluster.uninstall("demo")
    assert server.kinds() == [("PersistentVolumeClaim", "demo-data")]  # the checkpoints stay


def test_the_server_refuses_what_is_not_valid(helm: Any, cluster: Any, server: ApiServer, tmp_path: Path) -> None:
    broken = tmp_path / "chart"
    shutil.copytree(CHART, broken)
    template = broken / "templates" / "ray.yaml"
    template.write_text(template.read_text().replace("  entrypoint:", "  entryPoint:"))
    with pytest.raises(helm.HelmError, match="entryPoint"):
        cluster.install(str(broken), "demo", {})
