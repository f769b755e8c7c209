import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from trainer import lease

pytestmark = pytest.mark.timeout(60)


def test_a_run_without_a_lease_has_generation_zero_and_no_owner(tmp_path: Path) -> None:
    assert lease.current(tmp_path) == 0
    assert lease.owner(tmp_path) is None


def test_generations_count_up_from_one(tmp_path: Path) -> None:
    assert [lease.draw(tmp_path / "new" / "run") for _ in range(3)] == [1, 2, 3]


def test_a_writer_loses_the_run_when_another_draws(tmp_path: Path) -> None:
    first = lease.draw(tmp_path)
    assert lease.holds(tmp_path, first)
    second = lease.draw(tmp_path)
    assert not lease.holds(tmp_path, first)
    assert lease.holds(tmp_path, second)


def test_drawing_leaves_only_the_lease_files(tmp_path: Path) -> None:
    lease.draw(tmp_path)
    lease.draw(tmp_path)
    assert sorted(path.name for path in (tmp_path / "lease").iterdir()) == ["00000001.json", "00000002.json"]


def test_processes_that_race_never_draw_the_same_number(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        drawn = pool.map(lease.draw, [tmp_path] * 200, chunksize=1)
    assert sorted(drawn) == list(range(1, 201))


def test_the_owner_is_the_process_that_drew(tmp_path: Path) -> None:
    lease.draw(tmp_path)
    owner = lease.owner(tmp_path)
    assert owner is not None
    assert (owner.host, owner.pid) == (socket.gethostname(), os.getpid())
    assert lease.is_alive(owner)


def test_an_owner_that_has_exited_is_not_alive(tmp_path: Path) -> None:
    code = "import sys, pathlib; from trainer import lease; lease.draw(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=Path(__file__).parents[2])
    owner = lease.owner(tmp_path)
    assert owner is not None
    assert lease.is_alive(owner) is False


def test_a_later_process_with_the_same_pid_is_not_the_owner(tmp_path: Path) -> None:
    lease.draw(tmp_path)
    owner = lease.owner(tmp_path)
    assert owner is not None
    assert lease.is_alive(replace(owner, ticks=owner.ticks - 1)) is False


def test_whether_another_hosts_process_lives_is_unknown(tmp_path: Path) -> None:
    lease.draw(tmp_path)
    owner = lease.owner(tmp_path)
    assert owner is not None
    assert lease.is_alive(replace(owner, host="another")) is None


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"run/lease cannot be written .*run\.root"):
        lease.draw(tmp_path / "run")


def test_the_lives_since_a_moment_are_processes_and_not_numbers(tmp_path: Path) -> None:
    for _ in range(3):
        lease.draw(tmp_path)
    code = "import sys, pathlib; from trainer import lease; lease.draw(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=Path(__file__).parents[2])
    last = lease.owner(tmp_path)
    assert last is not None
    assert [lease.lives(tmp_path, since) for since in (0.0, last.drawn, last.drawn + 1)] == [2, 1, 0]
