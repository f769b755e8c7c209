import os
import secrets
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
import ray

from cluster.session import REPOSITORY, connect
from data_pipeline.errors import UserError
from tests.cluster.conftest import MARK, until_gone

pytestmark = pytest.mark.timeout(180)

ANOTHER = """
import sys, ray
from cluster.session import connect
with connect(None, cpus=1) as session:
    print(session.address, flush=True)
    sys.stdin.readline()
    print(ray.get(ray.remote(num_cpus=1)(lambda: "still here").remote()), flush=True)
"""


def test_a_private_session_offers_the_cpus_asked_for_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = uuid.uuid4().hex
    folder = Path(tempfile.mkdtemp(prefix="vm-"))  # tmp_path is too long for a socket
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with connect(None, cpus=7) as session:
        assert session.private
        assert session.cpus == 7
    assert not ray.is_initialized()
    assert until_gone(mark) == []
    folder.rmdir()


def test_workers_import_the_packages_wherever_the_driver_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    @ray.remote(num_cpus=0)
    def where() -> str:
        import importlib

        return str(importlib.import_module("cluster.child").__file__)

    with connect(None, cpus=1):
        assert ray.get(where.remote()) == str(REPOSITORY / "cluster" / "child.py")


def test_another_ray_on_the_machine_is_joined_or_left_alone_but_never_stopped() -> None:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # both Rays have this one
    another = subprocess.Popen([sys.executable, "-c", ANOTHER], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert another.stdin is not None
    assert another.stdout is not None
    address = another.stdout.readline().strip()
    with connect(None, cpus=1) as session:
        assert session.address != address
    with connect(address, cpus=1) as session:
        assert not session.private
        assert session.address == address
    answer, _ = another.communicate("\n")
    assert answer.strip() == "still here"
    assert another.returncode == 0


def test_an_address_where_no_ray_answers_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"no Ray answers at 127\.0\.0\.1:1"), connect("127.0.0.1:1", cpus=1):
        pass
