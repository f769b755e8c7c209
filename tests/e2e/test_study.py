"""`study` from outside: two small runs one after the other, a law and a page; the same command again repeats nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.job import SMALL, STAGES, TIMEOUT, assert_every_step_once, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2 * TIMEOUT)]
STEPS = 24
STAGE = json.dumps([STAGES[0] | {"promotion": {"max_steps": STEPS}}])


def test_two_runs_are_made_once_and_compared(tmp_path: Path) -> None:
    fixed = ["recipe=toy", *SMALL[:-1], f"curriculum.stages={STAGE}", "train.warmup_steps=2"]
    command = ["study", *fixed, "--axis", "width=64,96"]
    code, out, err = run(command, tmp_path)
    assert code == 0, out + err
    folder = tmp_path / "runs" / "toy-study"
    assert re.findall(r"^run (\d of 2: .+)$", out, re.MULTILINE) == ["1 of 2: width-64", "2 of 2: width-96"]
    told = json.loads((folder / "study.json").read_text())
    assert [(one["run"], one["state"], one["steps"]) for one in told["runs"]] == [
        (name, "finished", STEPS) for name in ("width-64", "width-96")
    ]
    assert [len(one["curve"]) for one in told["runs"]] == [STEPS // 4] * 2
    assert told["runs"][0]["flops"] < told["runs"][1]["flops"]
    assert told["laws"][0]["points"] >= 1
    assert "<svg" in (folder / "study.html").read_text()
    written = {path: path.read_bytes() for path in folder.glob("*/metrics.jsonl")}
    assert len(written) == 2
    code, out, err = run(command, tmp_path)
    assert code == 0, out + err
    assert "run 1 of 2" not in out
    assert {path: path.read_bytes() for path in written} == written
    for path in written:
        assert_every_step_once(path.parent, STEPS)
