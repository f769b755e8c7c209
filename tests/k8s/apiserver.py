"""A small API server for Helm: discovery, and objects in memory that POST and PATCH validate as the real one would.

HTTP on a loopback port; knows the kinds of the chart and nothing of operators.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from .validation import Schemas, problems

# group version -> plural -> kind; all are namespaced, as all that the chart makes is
RESOURCES = {
    "v1": {
        "secrets": "Secret",
        "configmaps": "ConfigMap",
        "serviceaccounts": "ServiceAccount",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
        "services": "Service",
    },
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "rbac.authorization.k8s.io/v1": {"roles": "Role", "rolebindings": "RoleBinding"},
    "ray.io/v1": {"rayjobs": "RayJob", "rayclusters": "RayCluster"},
    "monitoring.coreos.com/v1": {"podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"},
    "kueue.x-k8s.io/v1beta1": {"localqueues": "LocalQueue"},
}
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
Place = tuple[str, str, str, str]  # group version, namespace, plural, name


class ApiServer(ThreadingHTTPServer):
    """Serves at `url` from its making until close(). requests: (method, path) of all that changed something."""

    daemon_threads = True

    def __init__(self, crds: Schemas) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.crds, self.objects, self.requests = crds, dict[Place, dict[str, Any]](), list[tuple[str, str]]()
        self.revision, self.lock = 0, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def kinds(self) -> list[tuple[str, str]]:
        """(kind, name) of everything there."""
        return sorted((thing["kind"], thing["metadata"]["name"]) for thing in self.objects.values())

    def store(self, place: Place, thing: dict[str, Any]) -> dict[str, Any]:
        self.revision += 1
        old = self.objects.get(place, {}).get("metadata", {})
        thing["metadata"] |= {"resourceVersion": str(self.revision), "uid": old.get("uid", f"uid-{self.revision}")}
        thing["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        self.objects[place] = thing
        return thing


def merge(old: Any, change: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(change, dict):
        return change
    base = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = merge(base.get(key), value)
    return base


class Handler(BaseHTTPRequestHandler):
    server: ApiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, place = self.where()
        if place is None:
            return self.answer(*self.discovery(path))
        version, namespace, plural, name = place
        if name:
            return self.found(place)
        selector = parse_qs(urlsplit(self.path).query).get("labelSelector", [""])[0]
        wanted = dict(part.split("=", 1) for part in selector.split(",") if "=" in part and "!=" not in part)
        items = [
            thing
            for (*home, _), thing in self.server.objects.items()
            if home == [version, namespace, plural] and wanted.items() <= thing["metadata"].get("labels", {}).items()
        ]
        kind = f"{RESOURCES[version][plural]}List"
        return self.answer(200, {"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})

    def do_POST(self) -> None:
        self.write(lambda place, body: body)

    def do_PUT(self) -> None:
        self.write(lambda place, body: body)

    def do_PATCH(self) -> None:
        def changed(place: Place, body: dict[str, Any]) -> dict[str, Any]:
            applied = "apply-patch" in self.headers["Content-Type"]  # server-side apply sends the whole object as its manager sees it
            return body if applied else merge(self.server.objects[place], body)

        self.write(changed)

    def do_DELETE(self) -> None:
        _, place = self.where()
        self.drop_body()
        assert place is not None
        self.server.requests.append(("DELETE", self.path))
        if self.server.objects.pop(place, None) is None:
            return self.answer(*status(404, "NotFound", f"{place[3]} not found"))
        return self.answer(200, {"apiVersion": "v1", "kind": "Status", "status": "Success"})

    def write(self, change: Any) -> None:
        """Validate what the object would become, and keep it."""
        _, place = self.where()
        assert place is not None
        body = yaml.safe_load(self.rfile.read(int(self.headers["Content-Length"])))
        place = (*place[:3], place[3] or body["metadata"]["name"])
        with self.server.lock:
            if self.command == "POST" and place in self.server.objects:
                return self.answer(*status(409, "AlreadyExists", f"{place[3]} already exists"))
            thing = change(place, body)
            bare = {key: value for key, value in thing.items() if key != "status"}
            wrong = problems(bare, self.server.crds)
            if thing["kind"] != RESOURCES[place[0]][place[2]] or thing["metadata"].get("namespace", place[1]) != place[1]:
                wrong.append(f"{thing['kind']} does not belong at {self.path}")
            if wrong:
                return self.answer(*status(422, "Invalid", "; ".join(wrong)))
            new = place not in self.server.objects
            self.server.requests.append((self.command, self.path))
            thing["metadata"]["namespace"] = place[1]
            return self.answer(201 if new else 200, self.server.store(place, thing))

    def found(self, place: Place) -> None:
        thing = self.server.objects.get(place)
        self.answer(*((200, thing) if thing else status(404, "NotFound", f"{place[2]} {place[3]!r} not found")))

    def where(self) -> tuple[str, Place | None]:
        """(path, the place it names or None): /api/v1/namespaces/n/secrets/x, /apis/ray.io/v1/namespaces/n/rayjobs/x."""
        path = urlsplit(self.path).path
        before, found, after = path.partition("/namespaces/")
        if not found or after.count("/") < 1:
            return path, None
        namespace, plural, *name = after.split("/")
        return path, (before.removeprefix("/apis/").removeprefix("/api/"), namespace, plural, "/".join(name))

    def discovery(self, path: str) -> tuple[int, dict[str, Any]]:
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if path.startswith("/openapi/v3"):
            return 200, openapi(path.removeprefix("/openapi/v3/"))
        if path == "/version":
            return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(name) for name in RESOURCES if "/" in name]}
        if version in RESOURCES:
            resources = [
                {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": VERBS}
                for plural, kind in RESOURCES[version].items()
            ]
            return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
        if path.startswith("/api/v1/namespaces/"):
            return 200, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": path.rpartition("/")[2]}}
        return status(404, "NotFound", path)

    def drop_body(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *told: Any) -> None:
        """Silent."""


def prefix(version: str) -> str:
    return f"apis/{version}" if "/" in version else f"api/{version}"


def openapi(path: str) -> dict[str, Any]:
    """What Helm asks it for: whether a PATCH of each kind can validate fields. It can."""
    version = next((known for known in RESOURCES if prefix(known) == path), None)
    if version is None:
        return {"paths": {prefix(known): {"serverRelativeURL": f"/openapi/v3/{prefix(known)}?hash=1"} for known in RESOURCES}}
    paths = {}
    for plural, kind in RESOURCES[version].items():
        name = {"group": version.rpartition("/")[0], "version": version.rpartition("/")[2], "kind": kind}
        parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
        patch = {"x-kubernetes-group-version-kind": name, "parameters": [parameter], "responses": {}}
        paths[f"/{prefix(version)}/namespaces/{{namespace}}/{plural}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": paths}


def group(version: str) -> dict[str, Any]:
    entry = {"groupVersion": version, "version": version.rpartition("/")[2]}
    return {"name": version.partition("/")[0], "versions": [entry], "preferredVersion": entry}


def status(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code}
