"""What the README says is true: its keys, paths and targets exist, its help works. Its training commands are run by tests/e2e."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import known_keys
from trainer.main import COMMANDS, main

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
QUOTED = set(re.findall(r"`([^`\n]+)`", README))


def test_every_key_it_names_is_a_key() -> None:
    table = README[README.index("| key |") : README.index("Run the same command again")]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z_.]+)`", row.split("|")[1] if "|" in row else "")}
    assert len(named) > 10
    assert named <= set(known_keys())


def test_every_file_it_names_exists() -> None:
    named = {text for text in QUOTED if re.fullmatch(r"(tests|trainer|model|cluster|data_pipeline)/[\w/.-]+", text)}
    assert len(named) > 5
    assert [text for text in sorted(named) if not (REPOSITORY / text).exists()] == []


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m (tests\.benchmarks\.\w+)", README))))
def test_every_benchmark_it_names_can_be_called(module: str) -> None:
    code = f"import {module} as benchmark; assert callable(benchmark.main)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=120)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^    )make ([a-z-]+)", README, re.MULTILINE))))
def test_every_make_target_it_names_exists(target: str) -> None:
    planned = subprocess.run(["make", "-n", target], cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60).stdout
    assert planned or target == "install"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python trainer/main.py ")
    assert f"  python trainer/main.py {name}" in shown


def test_the_help_names_every_command() -> None:
    command = [sys.executable, str(REPOSITORY / "trainer" / "main.py"), "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "train (the default)" in shown
    assert "data.videos=/path/to/videos" in shown
