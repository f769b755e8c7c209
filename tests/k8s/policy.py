"""A policy scan of pods: Kubernetes' Pod Security Standard "restricted", and more. Findings are (pod, container, rule)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Finding = tuple[str, str, str]
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def scan(pod: dict[str, Any]) -> Iterator[Finding]:
    """Everything in a pod that needs an explanation."""
    name, spec = pod["metadata"]["name"], pod["spec"]
    outer = spec.get("securityContext", {})
    for rule, bad in (
        ("host-namespaces", any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))),
        ("volume-types", any(set(volume) - {"name"} - VOLUMES for volume in spec.get("volumes", []))),
        ("unbounded-memory-volume", any("sizeLimit" not in volume["emptyDir"] for volume in memory_volumes(spec))),
        ("service-account-token", spec.get("automountServiceAccountToken") is not False),
        ("default-service-account", spec.get("serviceAccountName", "default") == "default"),
        ("seccomp", outer.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost")),
        ("sysctls", bool(outer.get("sysctls"))),
    ):
        if bad:
            yield name, "-", rule
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        yield from ((name, container["name"], rule) for rule in scan_container(container, outer))


def scan_container(container: dict[str, Any], outer: dict[str, Any]) -> Iterator[str]:
    own = outer | container.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    resources = container.get("resources", {})
    tag = container["image"].rpartition("/")[2].partition(":")[2]
    for rule, bad in (
        ("privileged", own.get("privileged", False)),
        ("privilege-escalation", own.get("allowPrivilegeEscalation") is not False),
        ("run-as-root", own.get("runAsNonRoot") is not True or own.get("runAsUser", 1) == 0),
        ("writable-root", own.get("readOnlyRootFilesystem") is not True),
        ("capabilities-kept", "ALL" not in capabilities.get("drop", [])),
        ("capabilities-added", bool(set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"})),
        ("host-port", any(port.get("hostPort") for port in container.get("ports", []))),
        ("no-limits", not {"cpu", "memory"} <= set(resources.get("limits", {}))),
        ("no-requests", not {"cpu", "memory"} <= set(resources.get("requests", {}))),
        ("moving-image-tag", tag in ("", "latest")),
        ("secret-in-plain-text", any(secret_like(variable) for variable in container.get("env", []))),
    ):
        if bad:
            yield rule


def secret_like(variable: dict[str, Any]) -> bool:
    words = ("SECRET", "PASSWORD", "TOKEN", "KEY")
    return "value" in variable and any(word in variable["name"].upper() for word in words)


def memory_volumes(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (volume for volume in spec.get("volumes", []) if volume.get("emptyDir", {}).get("medium") == "Memory")
