"""The whole path with the data set in S3: encode, train, be killed, resume. Against moto here, against a real RadosGW in the slow tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.loader import open_dataset
from data_pipeline.storage import S3Path
from tests.e2e.job import SMALL, STAGES, TIMEOUT, assert_every_step_once, lines, run, start, wait_until
from tests.radosgw import KEY, SECRET, RadosGateway, UnreliableProxy, is_installed
from tests.s3 import new_bucket, pointed_at

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3 * TIMEOUT)]
TWO_STAGES = [*SMALL[:-1], f"curriculum.stages={json.dumps([STAGES[0], STAGES[2]])}"]
STEPS = 12


def data_sets(root: S3Path | Path) -> dict[str, bytes]:
    """Everything below a root but the drawn videos, by name."""
    names = ((str(path)[len(str(root)) + 1 :], path) for path, _ in storage.list_files(root))
    return {name: storage.read_bytes(path) for name, path in names if not name.startswith("synthetic-videos")}


def train_killed_and_resumed(tmp_path: Path, bucket: S3Path) -> Path:
    """The run's folder after a job on S3 was killed in its first stage and started again."""
    arguments = [*TWO_STAGES, f"data.root={bucket}/sets", f"data.cache={tmp_path / 'cache'}"]
    folder = tmp_path / "runs" / "toy"
    process = start(arguments, tmp_path)
    wait_until(lambda: len(lines(folder / "metrics.jsonl")) >= 4, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    code, out, err = run(arguments, tmp_path)
    assert code == 0, out + err
    assert f"reused {bucket}/sets" in out
    assert_every_step_once(folder, STEPS)
    return folder


def test_a_job_on_s3_is_killed_and_goes_on_and_its_data_set_is_sound(tmp_path: Path, bucket: S3Path) -> None:
    train_killed_and_resumed(tmp_path, bucket)
    (folder,) = {path.parent for path, _ in storage.list_files(bucket / "sets") if path.name == "manifest.json"}
    dataset = open_dataset(folder)
    assert dataset.manifest.clips("5x32x32", "train") + dataset.manifest.clips("5x32x32", "held_out") == 48
    assert list((tmp_path / "cache").glob("*.tar"))
    code, out, _ = run(["doctor", str(folder)], tmp_path)
    assert (code, "sound: every byte has its checksum" in out) == (0, True)


@pytest.fixture(scope="module")
def gateway() -> Iterator[RadosGateway]:
    if not is_installed():
        pytest.skip("radosgw, ceph-mon and ceph-osd are not installed")
    folder = tempfile.mkdtemp(prefix="vm-rgw-")  # short: it holds sockets
    server = RadosGateway(Path(folder))
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same job with its data on a disk."""
    folder = tmp_path_factory.mktemp("local")
    code, out, err = run(TWO_STAGES, folder)
    assert code == 0, out + err
    return folder / "runs"


@pytest.mark.slow
def test_radosgw_serves_the_same_training_as_a_disk_through_failing_requests_and_a_kill(
    tmp_path: Path, gateway: RadosGateway, undisturbed: Path
) -> None:
    proxy = UnreliableProxy(gateway.port, share=0.05)
    with pointed_at(proxy.endpoint, KEY, SECRET):
        bucket = new_bucket()
        run_folder = train_killed_and_resumed(tmp_path, bucket)
        assert data_sets(bucket / "sets") == data_sets(undisturbed / "datasets")
    proxy.stop()
    assert proxy.refused > 3
    losses = [[line["loss"] for line in lines(folder / "metrics.jsonl")] for folder in (run_folder, undisturbed / "toy")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_radosgw_killed_and_restarted_while_it_is_written_to_loses_nothing(tmp_path: Path, gateway: RadosGateway) -> None:
    with pointed_at(gateway.endpoint, KEY, SECRET):
        bucket = new_bucket()
        process = start(["encode", *TWO_STAGES, "data.sources_per_shard=1", f"data.root={bucket}/sets"], tmp_path)
        done = wait_until(lambda: [path for path, _ in storage.list_files(bucket) if path.parent.name == "sources"], process)
        gateway.kill_gateway()
        assert process.poll() is None
        restart = threading.Timer(4, gateway.start_gateway)
        restart.start()
        out, err = process.communicate(timeout=TIMEOUT)
        restart.join()
        assert process.returncode == 0, out + err
        code, out, err = run(["encode", *TWO_STAGES, "data.sources_per_shard=1", f"data.root={tmp_path / 'local'}"], tmp_path)
        assert code == 0, out + err
        whole = data_sets(tmp_path / "local")
        assert data_sets(bucket / "sets") == whole
        assert len(done) < sum("/sources/" in name for name in whole)  # it was killed while there was something left to write


@pytest.mark.slow
def test_radosgw_refuses_wrong_keys_and_unknown_buckets_in_one_line(tmp_path: Path, gateway: RadosGateway) -> None:
    with pointed_at(gateway.endpoint, KEY, SECRET):
        bucket = new_bucket()
    for key, secret, reason in ((KEY, "wrong", "access denied"), ("nobody", SECRET, "access denied"), (KEY, SECRET, "there is no bucket")):
        with pointed_at(gateway.endpoint, key, secret):
            root = bucket if reason == "access denied" else S3Path("no-such-bucket")
            code, _, err = run(["encode", *TWO_STAGES, f"data.root={root}/sets"], tmp_path)
        assert (code, err.count("\n"), err.startswith("error: s3://")) == (2, 1, True), err
        assert reason in err
