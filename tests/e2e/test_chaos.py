"""A run that meets faults at seeded times is the run that meets none: losses, steps and every sample's visits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.hosts import Network
from data_pipeline.errors import UserError
from tests.e2e.job import MAIN, STAGES, environment, lines, marked_processes

pytestmark = pytest.mark.e2e
CAUSES = {"worker": "signal", "seat": "seat", "hang": "hang", "shard": "data", "storage": "data"}  # that a run names for a fault


def chaos(folder: Path, minutes: float, *arguments: str, patience: float = 300.0) -> dict[str, Any]:
    """The verdict of the command, which must have exited with 0."""
    command = [sys.executable, str(MAIN), "chaos", f"--minutes={minutes}", f"--root={folder}", *arguments]
    patience += 360 * minutes
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=patience, check=False)
    [path] = folder.glob("*/verdict.json") or [None]
    verdict = json.loads(path.read_text()) if path else {}
    assert done.returncode == 0, done.stdout + done.stderr
    assert marked_processes() == []
    return verdict


def told(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind of the run that met the faults."""
    [path] = folder.glob("*/chaos/events.jsonl")
    return [event for event in lines(path) if event["event"] == kind]


def assert_proven(verdict: dict[str, Any], least: int) -> None:
    assert verdict["equal"]
    assert verdict["exactly_once"]
    assert len(verdict["faults"]) == verdict["planned"] >= least
    named = [(fault["kind"], fault["cause"]) for fault in verdict["faults"] if fault["kind"] in CAUSES and "cause" in fault]
    assert [(kind, CAUSES[kind]) for kind, _ in named] == named


@pytest.mark.timeout(1500)
def test_three_minutes_of_chaos_change_nothing(tmp_path: Path) -> None:
    assert_proven(chaos(tmp_path, 3, "--seed=3"), least=6)


@pytest.mark.slow
@pytest.mark.timeout(4200)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ten_minutes_of_chaos_change_nothing(tmp_path: Path, seed: int) -> None:
    assert_proven(chaos(tmp_path, 10, f"--seed={seed}"), least=12)


@pytest.fixture
def permitted() -> None:
    """Skips where network namespaces are not permitted."""
    try:
        Network().close()
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
@pytest.mark.timeout(1200)
def test_two_hosts_whose_link_is_cut_for_half_a_minute_make_the_same_run(tmp_path: Path) -> None:
    verdict = chaos(tmp_path, 0.5, "--network", "--kinds=link")
    assert_proven(verdict, least=1)
    assert [fault["cause"] for fault in verdict["faults"]] == ["node"]


@pytest.mark.slow
@pytest.mark.usefixtures("permitted")
@pytest.mark.timeout(3000)
def test_a_host_that_is_cut_off_for_five_minutes_is_fenced_and_joins_again(tmp_path: Path) -> None:
    # Steps that two hosts make faster than one, and enough of them after the cut to be worth a move.
    long = json.dumps([STAGES[2] | {"tokens_per_step": 1296, "promotion": {"max_steps": 1500}}])
    keys = [f"curriculum.stages={long}", "train.micro_batch=6"]  # one pass for two workers, two for one: the same bits
    verdict = chaos(tmp_path, 0.5, "--network", "--kinds=link", "--cut-seconds=300", *keys, patience=2400)
    assert_proven(verdict, least=1)
    detected = told(tmp_path, "failure")[0]["detected"]
    mended = max(event["time"] for event in told(tmp_path, "node") if event["state"] == "joined")
    assert mended > detected + 260  # it took up to 40 s to be detected
    passed = [event for event in told(tmp_path, "milestone") if event["name"] == "stepped" and event["at"] > detected]
    worlds = {event["generation"]: event["world"] for event in told(tmp_path, "generation")}
    assert passed[0]["at"] - detected < 20
    assert {worlds[event["generation"]] for event in passed if event["at"] < mended} == {1}
    assert worlds[passed[-1]["generation"]] == 2
    cut_off = told(tmp_path, "failure")[0]["generation"]
    assert all(event["generation"] > cut_off for event in told(tmp_path, "commit") if event["time"] > detected)
