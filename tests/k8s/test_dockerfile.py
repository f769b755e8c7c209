"""The Dockerfile keeps its rules: pinned, non-root, nothing left in layers. Hadolint judges it too where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "k8s" / "Dockerfile"
TARGETS = ("cpu", "gpu")


def instructions() -> dict[str, list[tuple[str, str]]]:
    """(instruction, arguments) by stage, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()))
    stages: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stages[rest.rpartition(" AS ")[2]] = []
        list(stages.values())[-1].append((name, rest))
    return stages


STAGES = instructions()


def test_the_base_is_pinned_to_a_patch_version_and_every_stage_has_a_name() -> None:
    base = dict(STAGES["base"])["FROM"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+ AS base", base)
    assert all(" AS " in dict(stage)["FROM"] for stage in STAGES.values())
    assert all(dict(stage)["FROM"].split()[0] in STAGES for name, stage in STAGES.items() if name != "base")


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_user_and_starts_the_command_line(target: str) -> None:
    stage = STAGES[target]
    names = [name for name, _ in stage]
    assert dict(stage)["USER"] == "10001:10001"
    assert names.index("USER") > max(index for index, name in enumerate(names) if name in ("RUN", "COPY"))
    assert dict(stage)["CMD"].startswith("[")
    assert "ENTRYPOINT" not in names  # KubeRay starts pods with its own command


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_holds_the_code_that_the_chart_starts_and_no_compiler_cache(target: str) -> None:
    copied = {arguments for name, arguments in STAGES[target] if name == "COPY"}
    assert copied == {
        "--from=packages /opt/venv /opt/venv",
        *(f"{part} /opt/videomar/{part}" for part in ("model", "data_pipeline", "trainer", "cluster")),
    }
    assert not any("pip install" in arguments for _, arguments in STAGES[target])


def test_every_package_comes_under_the_constraints_and_no_cache_stays() -> None:
    runs = [command for stage in STAGES.values() for name, arguments in stage if name == "RUN" for command in arguments.split("&&")]
    installs = [command for command in runs if "pip install" in command]
    assert len(installs) == 3
    assert all("-c constraints.txt" in command and "--no-cache-dir" in command for command in installs)
    for stage in STAGES.values():
        for name, arguments in stage:
            if name == "RUN" and "apt-get install" in arguments:
                assert "--no-install-recommends" in arguments
                assert arguments.strip().endswith("rm -rf /var/lib/apt/lists/*")
    assert not any(name == "ADD" or "curl" in arguments or "sudo" in arguments for stage in STAGES.values() for name, arguments in stage)


def test_no_secret_can_get_into_a_layer() -> None:
    told = [arguments for stage in STAGES.values() for name, arguments in stage if name in ("ARG", "ENV")]
    assert not any(word in arguments.upper() for arguments in told for word in ("TOKEN", "PASSWORD", "SECRET", "_KEY"))
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not any(line.startswith("!.") for line in ignored)


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = {line[1:] for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for stage in STAGES.values():
        for name, arguments in stage:
            if name == "COPY" and "--from" not in arguments:
                for source in arguments.split()[:-1]:
                    assert (REPOSITORY / source).exists()
                    assert source in allowed


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
