"""What the platform's tests need: the real Helm, the schemas of the custom resources, Debian's Prometheus. Skips name what is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .matrix import CHART
from .validation import Crd, Schemas

CRDS = "VIDEOMAR_TEST_CRDS"
# Of the one file of helm-python-sdk 0.2.2 that is not text: nothing else is loaded as native code.
HELM_SHA256 = "9108c3a68d6ed3a394d02543bb4afeeb9f9e2bbcf9fbc228f48ac5576e3bdf83"


@pytest.fixture(scope="session")
def helm() -> Any:
    """The module helm_python, after its library proved to be the pinned one."""
    found = importlib.util.find_spec("helm_python")
    if found is None or found.origin is None:
        pytest.skip("helm-python-sdk is not installed (its wheels are for Linux)")
    library = Path(found.origin).parent / "lib" / "libhelm_c.so"
    with library.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == HELM_SHA256, f"{library} is not helm-python-sdk 0.2.2's"
    import helm_python

    return helm_python


@pytest.fixture(scope="session")
def chart(helm: Any) -> Any:
    """The chart, loaded by Helm."""
    return helm.Chart.load(str(CHART))


@pytest.fixture(scope="session")
def crds() -> Schemas:
    """The custom resources by (apiVersion, kind), from files <group>_<version>_<kind>.json."""
    folder = Path(os.environ.get(CRDS, ""))
    if CRDS not in os.environ or not folder.is_dir():
        pytest.skip(f"{CRDS} does not name a folder of CRD schemas")
    schemas = {}
    for path in folder.glob("*.json"):
        group, version, kind = path.stem.split("_")
        schemas[f"{group}/{version}", kind] = Crd(json.loads(path.read_text()))
    return schemas


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of a program, or a skip that names it."""

    def find(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed (Debian: prometheus, prometheus-alertmanager)")
        return found

    return find
