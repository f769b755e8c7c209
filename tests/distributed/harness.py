"""Run a function on N real processes that may form a gloo group: results by rank, errors tagged with their rank, a hard time limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PRELOAD = ["torch.distributed", "trainer.process", "trainer.parallel.layers", "torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer"]


class RankFailed(Exception):
    """A rank raised, died or took too long; says which and how."""


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """[function(rank, world, host, port, listener, *arguments) for every rank], each in a process of its own. Raises RankFailed."""
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    port, channels, processes = listener.getsockname()[1], [], []
    for rank in range(world):
        receiving, sending = context.Pipe(duplex=False)
        served = listener if rank == 0 else None
        process = context.Process(target=_rank, args=(function, rank, world, port, served, sending, arguments), daemon=True)
        process.start()
        sending.close()
        channels.append(receiving)
        processes.append(process)
    listener.close()
    try:
        return _results(channels, processes, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _results(channels: list[Connection], processes: list[Any], deadline: float) -> list[Any]:
    results: list[Any] = [None] * len(channels)
    open_ranks = dict(enumerate(channels))
    while open_ranks:
        left = deadline - time.monotonic()
        ready = multiprocessing.connection.wait(list(open_ranks.values()), timeout=max(0.0, left))
        if not ready:
            raise RankFailed(f"ranks {sorted(open_ranks)} did not finish in time")
        for rank in [rank for rank, channel in open_ranks.items() if channel in ready]:
            try:
                failed, results[rank] = open_ranks.pop(rank).recv()
            except EOFError:
                processes[rank].join(5)
                raise RankFailed(f"rank {rank} died with exit code {processes[rank].exitcode}") from None
            if failed:
                raise RankFailed(f"rank {rank}:\n{results[rank]}")
    return results


def _rank(
    function: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    listener: socket.socket | None,
    channel: Connection,
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        channel.send((False, function(rank, world, "127.0.0.1", port, listener, *arguments)))
    except BaseException:
        channel.send((True, traceback.format_exc()))
