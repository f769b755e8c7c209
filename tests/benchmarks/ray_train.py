"""What Ray Train's own gang takes to get over the loss of a worker and of a node, for recovery.py to show beside ours.

As a user would write it: TorchTrainer on gloo, elastic between one worker and two, the smallest loop that steps, reports a checkpoint every
ten steps and resumes from it; nothing of ours but the hosts it runs on. Needs `pip install "ray[train]"`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cluster.hosts import Hosts
from cluster.session import REPOSITORY
from tests.e2e.job import wait_until

STEP_SECONDS = 0.05  # about the toy's


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("pandas", "tensorboardX"))


def train_loop(config: dict[str, Any]) -> None:
    """One worker: a line per step in a file of its own."""
    import tempfile

    import ray.train
    import torch
    import torch.distributed as dist

    rank, found, step = dist.get_rank(), ray.train.get_checkpoint(), 0
    if found:
        with found.as_directory() as folder:
            step = json.loads((Path(folder) / "step.json").read_text())
    while not (Path(config["folder"]) / "stop").exists():
        dist.all_reduce(torch.ones(1))
        time.sleep(STEP_SECONDS)
        step += 1
        with (Path(config["folder"]) / f"rank-{rank}.jsonl").open("a") as lines:
            lines.write(json.dumps({"at": time.time(), "step": step, "world": dist.get_world_size(), "pid": os.getpid()}) + "\n")
        if step % 10 == 0:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "step.json").write_text(json.dumps(step))
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder) if rank == 0 else None)


def drive(address: str, folder: str) -> None:
    """The driver, in a process of its own."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address=address, log_to_driver=False)
    TorchTrainer(
        train_loop,
        train_loop_config={"folder": folder},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=f"{folder}/storage", failure_config=FailureConfig(max_failures=-1)),
    ).fit()


def steps(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rank-0.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def seconds(hosts: Hosts, folder: Path) -> dict[str, float]:
    """From a start, from the death of a worker and from that of a node to the next completed step."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.benchmarks.ray_train", hosts.address, str(folder)]
    environment = hosts.environment | {"RAY_TRAIN_V2_ENABLED": "1"}
    with (folder / "driver.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True)
    found, began = {}, time.time()

    def step_after(moment: float, pids: set[int]) -> float | None:
        return next((line["at"] for line in steps(folder) if line["at"] > moment and line["pid"] not in pids), None)

    try:
        found["start"] = wait_until(lambda: step_after(began, set()), process) - began
        for kind in ("worker", "node"):
            wait_until(lambda: len(steps(folder)) and steps(folder)[-1]["step"] % 10 > 5 and steps(folder)[-1]["world"] == 2, process)
            old = {line["pid"] for line in steps(folder)}
            victim = json.loads((folder / "rank-1.jsonl").read_text().splitlines()[-1])["pid"]
            began = time.time()
            if kind == "worker":
                os.kill(victim, signal.SIGKILL)
            else:
                hosts.kill(1)
            found[kind] = wait_until(lambda began=began, old=old: step_after(began, old), process) - began
        return found
    finally:
        (folder / "stop").touch()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2])
