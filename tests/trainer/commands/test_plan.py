"""The `plan` command as a user calls it: fast, without torch, for any world, and with one clear line when a stage cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from trainer.commands.plan import parse_bytes, report, with_recipe
from trainer.config import load

REPOSITORY = Path(__file__).parents[3]
STAGES = ["5-frames", "13-frames", "25-frames", "49-frames"]


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "trainer" / "main.py"), "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY)


def test_the_issues_command_prints_a_table_of_every_stage_and_what_binds_it() -> None:
    done = plan("model.size=videomar-1.4b", "plan.world=64", "plan.memory=80GB", "plan.per_node=8")
    assert done.returncode == 0
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["stage", *STAGES]
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "largest useful world" in line] == STAGES


@pytest.mark.parametrize("world", [1, 7, 100, 512, 16_384])
@pytest.mark.parametrize("recipe", ["videomar-1.4b", "videomar-256", "toy"])
def test_every_shipped_recipe_is_planned_on_any_world(recipe: str, world: int) -> None:
    text = report(load([f"recipe={recipe}", f"plan.world={world}"]))
    assert "largest useful world" in text


def test_a_device_that_is_too_small_is_one_line_of_refusal() -> None:
    done = plan("model.size=videomar-1.4b", "plan.world=1", "plan.memory=16GB")
    assert done.returncode == 2
    assert done.stderr.startswith("error: stage 5-frames: its leanest layout on 1 devices")
    assert done.stderr.count("\n") == 1


def test_planning_imports_no_torch_and_takes_a_fraction_of_its_two_seconds() -> None:
    code = (
        "import resource, sys; from trainer.commands.plan import command; "
        "command(['model.size=videomar-1.4b', 'plan.world=16384'], {}); used = resource.getrusage(resource.RUSAGE_SELF); "
        "sys.exit('torch' in sys.modules or used.ru_utime + used.ru_stime > 2)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, timeout=60, env=dict(os.environ)).returncode == 0


def test_the_recipe_of_the_models_size_is_taken_when_none_is_named() -> None:
    assert with_recipe(["model.size=videomar-1.4b"])[0] == "recipe=videomar-1.4b"
    assert with_recipe(["model.size=videomar-1.4b", "recipe=toy"]) == ["model.size=videomar-1.4b", "recipe=toy"]
    assert with_recipe(["model.size=small"]) == ["model.size=small"]


@pytest.mark.parametrize(("text", "size"), [("80GB", 80e9), ("80 GiB", 80 * 2**30), ("1.5tb", 1.5e12), ("1024", 1024)])
def test_sizes_are_read_as_they_are_written(text: str, size: float) -> None:
    assert parse_bytes("plan.memory", text) == size


@pytest.mark.parametrize("text", ["", "GB", "eighty", "-1GB", "0GB", "80XB"])
def test_what_is_no_size_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(UserError, match=r"plan\.memory=.*: not a size in bytes"):
        parse_bytes("plan.memory", text)
