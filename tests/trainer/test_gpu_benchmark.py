"""The GPU benchmark where there is no GPU: it says so, needs no more than the model does, and a rehearsal runs all but the CUDA kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu

REPOSITORY = Path(__file__).parents[2]
PARTS = ["parity flex", "parity flash", "parity sdpa-chunked", "sampling with guidance", "sampling without guidance"]


def published(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """The JSON of the last line, and the lines before it."""
    *lines, last = capsys.readouterr().out.strip().splitlines()
    return json.loads(last), lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the benchmark would run")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    result, _ = published(capsys)
    assert result["ran"] is False
    assert "no CUDA device" in result["reason"]
    assert result["machine"]["torch"] == torch.__version__


def test_a_rehearsal_on_a_cpu_runs_everything_but_the_cuda_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--size", "toy", "--device", "cpu", "--frames", "3", "--repeats", "1"]) == 0
    result, lines = published(capsys)
    cases = result["cases"]
    steps = [f"step {backend} {mode}" for backend in ("flex", "flash", "sdpa-chunked") for mode in ("none", "selective", "full")]
    assert sorted(cases) == sorted(PARTS + steps)
    assert len(lines) == len(cases)
    for name, case in cases.items():
        if "flex" in name or "flash" in name:
            assert case["skipped"].endswith("needs CUDA")
        else:
            assert case.keys() & {"step_seconds", "seconds_per_frame", "errors"}, case
    assert cases["parity sdpa-chunked"]["passed"]
    assert cases["step sdpa-chunked full"]["loss_is_finite"]
    assert cases["sampling with guidance"]["is_finite"]


def test_a_case_that_fails_or_comes_too_late_leaves_the_others_alone() -> None:
    cases = gpu.Cases(torch.device("cpu"), budget=3600)
    cases.run("step dense full", "dense", lambda: {"mfu": 1 / 0})
    cases.run("parity dense", "dense", lambda: gpu.parity(cases.device, "dense"))
    cases.deadline = 0.0
    cases.run("late", "dense", lambda: {})
    assert cases.results["step dense full"]["error"] == "ZeroDivisionError: division by zero"
    assert cases.results["parity dense"]["passed"]
    assert cases.results["late"]["skipped"] == "out of time"
    assert len(gpu.table(cases.results).splitlines()) == 3


def test_gates_hold_only_for_what_was_measured() -> None:
    assert not any(gate["passed"] for gate in gpu.verdicts({"step flex selective": {"error": "OOM"}}).values())
    step = {"mfu": 0.45, "peak_bytes": 60 * 10**9}
    good: dict[str, dict[str, Any]] = {
        "parity flex": {"passed": True},
        "step flex selective": step,
        "sampling with guidance": {"seconds_per_frame": 0.4},
    }
    assert all(gate["passed"] for gate in gpu.verdicts(good).values())
    slow = gpu.verdicts(good | {"step flex selective": {**step, "mfu": 0.1}, "step sdpa-chunked selective": step})
    assert [name for name, gate in slow.items() if not gate["passed"]] == ["MFU with flex or flash"]


def test_it_imports_nothing_but_what_the_model_does() -> None:
    code = (
        "import sys; blocked = ('deepspeed', 'ray', 'pydantic', 'yaml', 'av', 'PIL', 'transformers', 'peft', 'megatron', 'psutil')\n"
        "sys.modules.update(dict.fromkeys(blocked)); import tests.benchmarks.gpu"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=120).returncode == 0
