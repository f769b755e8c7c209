"""Promises about the repository itself: who imports what, how long files and functions are, what starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("model", "data_pipeline", "trainer", "cluster")
SOURCES = [path for package in PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]
MODEL_MAY_IMPORT = {"model", "torch", "numpy", "einops", "safetensors"}


def imported(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted((REPOSITORY / "model").rglob("*.py")), ids=lambda path: path.name)
def test_the_model_is_pure_pytorch(path: Path) -> None:
    names = imported(path)
    roots = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert roots <= MODEL_MAY_IMPORT
    assert not any(name.startswith("torch.distributed") for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [node.name for node in functions if node.end_lineno and node.end_lineno - node.lineno > 60] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_only_the_command_line_reads_the_environment(path: Path) -> None:
    reads = [line for line in path.read_text().splitlines() if "os.environ" in line and "update" not in line and "] =" not in line]
    allowed = {"trainer/main.py", "cluster/session.py", "cluster/seats.py"}  # Ray and its children are started with an environment
    assert not reads or str(path.relative_to(REPOSITORY)) in allowed


@pytest.mark.parametrize("module", ["data_pipeline.encode", "cluster.train_command"])
def test_the_driver_and_the_encoders_never_import_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=120).returncode == 0


@pytest.mark.parametrize("module", ["trainer.commands.sample", "model.export"])
def test_who_only_samples_does_not_wait_for_the_compiler(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=120).returncode == 0
