"""Whether Kubernetes and the operators would take an object: core kinds strictly, custom ones by CRD, Ray's also by KubeRay's rules."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate

CORE = kubernetes_validate.latest_version()
NAME_LIMIT = 47
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")


class Crd:
    """A custom resource's schema as its file has it, and a validator that takes no unknown field."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.validator = jsonschema.Draft202012Validator(strict(schema))


Schemas = dict[tuple[str, str], Crd]


def problems(thing: dict[str, Any], crds: Schemas) -> list[str]:
    """What is wrong with an object, one line each."""
    key = (thing["apiVersion"], thing["kind"])
    if key in crds:
        found = list(of_schema(thing, crds[key]))
        return found or (list(of_kuberay(thing)) if key[0].startswith("ray.io/") else [])
    try:
        kubernetes_validate.validate(thing, CORE, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{key}: {'.'.join(map(str, error.path))}: {error.message}"]
    return []


def of_schema(thing: dict[str, Any], crd: Crd) -> Iterator[str]:
    """Against a CRD's schema, as the API server does it: defaults first, unknown fields are errors."""
    filled = copy.deepcopy(thing)
    fill(filled, crd.schema)
    for error in crd.validator.iter_errors(filled):
        yield f"{thing['kind']}: {'.'.join(map(str, error.absolute_path))}: {error.message}"


def fill(value: Any, schema: dict[str, Any]) -> None:
    """Put the schema's defaults where a value has none."""
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                fill(value[name], inner)
    elif isinstance(value, list):
        for item in value:
            fill(item, schema.get("items", {}))


def strict(schema: Any) -> Any:
    """A CRD's schema as plain JSON Schema that takes no unknown field."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    made = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes") and key not in ("default", "format")}
    if "properties" in schema and isinstance(schema["properties"], dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        made.setdefault("additionalProperties", False)
    return made


def of_kuberay(thing: dict[str, Any]) -> Iterator[str]:
    """What KubeRay's operator refuses though its CRD allows it."""
    spec, name = thing["spec"], thing["metadata"]["name"]
    if len(name) > NAME_LIMIT or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"metadata.name: {name}"
    if thing["kind"] == "RayJob":
        yield from of_job(spec)
    yield from of_cluster(spec["rayClusterSpec"] if thing["kind"] == "RayJob" else spec)


def of_job(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("submissionMode") not in MODES:
        yield f"submissionMode: {spec.get('submissionMode')}"
    if "rayClusterSpec" not in spec and "clusterSelector" not in spec:
        yield "one of rayClusterSpec and clusterSelector is needed"
    if not spec.get("shutdownAfterJobFinishes") and (spec.get("ttlSecondsAfterFinished") or spec.get("suspend")):
        yield "ttlSecondsAfterFinished and suspend need shutdownAfterJobFinishes"
    if spec.get("backoffLimit", 0) < 0 or spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "backoffLimit and ttlSecondsAfterFinished are not negative"
    if "activeDeadlineSeconds" in spec and spec["activeDeadlineSeconds"] <= 0:
        yield "activeDeadlineSeconds is positive"
    if spec.get("submissionMode") != "K8sJobMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "only K8sJobMode has a submitter"
    if "submitterPodTemplate" in spec and spec["submitterPodTemplate"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        yield "the submitter's restartPolicy is Never or OnFailure"


def of_cluster(spec: dict[str, Any]) -> Iterator[str]:
    groups, head = spec.get("workerGroupSpecs", []), spec["headGroupSpec"]
    templates = [head["template"], *(group["template"] for group in groups)]
    names = [group["groupName"] for group in groups]
    if len(set(names)) != len(names):
        yield f"groupName: {names}"
    if any(not template["spec"]["containers"] for template in templates):
        yield "a group needs a container"
    for group in groups:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: minReplicas <= replicas <= maxReplicas"
    if spec.get("autoscalerOptions", {}).get("version") == "v2" and any(
        template["spec"].get("restartPolicy") != "Never" for template in templates
    ):
        yield "the autoscaler v2 needs restartPolicy Never"
    if spec.get("authOptions", {}).get("mode") == "token" and tuple(map(int, spec["rayVersion"].split("."))) < (2, 52, 0):
        yield "token authentication needs rayVersion 2.52.0"
    if "gcsFaultToleranceOptions" in spec:
        environment = {variable["name"] for container in head["template"]["spec"]["containers"] for variable in container.get("env", [])}
        if {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"} & environment or "redis-password" in head["rayStartParams"]:
            yield "gcsFaultToleranceOptions and Redis's own environment exclude each other"
    if any(not isinstance(value, str) for group in (head, *groups) for value in group["rayStartParams"].values()):
        yield "rayStartParams are strings"
