"""Who brought a group down, and why: tables of what errors really say."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.causes import Account, End, first_cause, hung, main_thread
from trainer.metrics import CAUSES

GLOO_ECHO = "RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]"

ends = st.builds(
    End,
    rank=st.integers(0, 7),
    code=st.sampled_from([0, 1, 3, -9, None]),
    asked=st.booleans(),
    detail=st.sampled_from(["", "Traceback\nValueError: clip 7 is broken", GLOO_ECHO]),
    silent=st.sampled_from([0.0, 31.0]),
)


@given(st.lists(ends))
def test_the_cause_is_the_first_own_fault_else_the_first_fault(arrived: list[End]) -> None:
    failed = [end for end in arrived if end.failed]
    own = [end for end in failed if not end.echo]
    assert first_cause(arrived) == next(iter(own or failed), None)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (End(1, -9), "rank 1 was killed by SIGKILL"),
        (End(1, -9, memory_kill=True), "rank 1 was killed by SIGKILL, out of memory"),
        (End(0, 3), "rank 0 exited with code 3"),
        (End(2, 1, detail="Traceback\n  File\nValueError: clip 7\n"), "rank 2 raised ValueError: clip 7"),
        (End(3, None, detail="The actor died.\nnode was lost"), "the seat of rank 3 died: node was lost"),
        (End(1, -9, silent=31.4, section="step"), "rank 1 hung: no sign of life for 31 s in section step"),
    ],
)
def test_a_reason_is_one_line_that_names_the_rank(end: End, reason: str) -> None:
    assert end.reason == reason


RAISED = {
    "trainer.preflight.OutOfMemory: stage a: out of memory with 8 samples per pass; planning again with 4": "out_of_memory",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB": "out_of_memory",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried": "out_of_memory",
    "OSError: [Errno 12] Cannot allocate memory": "out_of_memory",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2006, unhandled cuda error, out of memory": "out_of_memory",
    "RuntimeError: CUDA error: uncorrectable ECC error encountered": "hardware",
    "torch.AcceleratorError: CUDA error: an uncorrectable NVLink error was detected": "hardware",
    "data_pipeline.shard_index.ShardError: shard /d/shard-000000.tar is damaged: the latent of sample a-0 differs": "data",
    "trainer.checkpoint.saver.WriteFailed: /r/step-1/0001/rank-00000.safetensors cannot be written (No space left on device)": "data",
    "OSError: [Errno 5] Input/output error: '/d/shard-000000.tar'": "data",
    "botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL": "data",
    GLOO_ECHO: "communication",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2006, remote process exited": "communication",
    "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms": "communication",
    "ValueError: clip 7 is broken": "exception",
    "KeyError: 'nothing of the kind'": "exception",
}


@pytest.mark.parametrize(("said", "cause"), RAISED.items())
def test_what_a_traceback_ends_with_names_the_cause(said: str, cause: str) -> None:
    assert End(0, 1, detail=f"Traceback (most recent call last):\n  gloo in some path\n{said}").cause == cause


def test_a_long_path_hides_no_cause_and_is_cut_out_of_the_reason() -> None:
    end = End(0, 1, detail=f"Traceback\ntrainer.checkpoint.saver.WriteFailed: /{'run/' * 200}rank-00000 cannot be written: full")
    assert end.cause == "data"
    assert end.reason.endswith("cannot be written: full")
    assert len(end.reason) <= len("rank 0 raised ") + 200


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (End(1, -9, silent=40.0), "hang"),
        (End(1, -9, memory_kill=True), "out_of_memory"),
        (End(1, -9), "signal"),
        (End(1, -signal.SIGTERM), "preempted"),
        (End(1, 143), "preempted"),
        (End(1, 3), "exit"),
        (End(1, None, detail="gone"), "seat"),
        (
            End(1, None, detail="its worker process has died. Some common causes: killed by the OOM killer, its node died"),
            "seat",
        ),
        (End(1, None, detail="The actor is dead because its node has died. Node Id: 7a"), "node"),
        (End(1, None, detail="its node does not answer: nothing was heard from it for 8 s"), "node"),
        (End(1, None, detail="The actor died.\nits node was preempted"), "preempted"),
        (End(1, None, detail="Task was killed due to the node running low on memory."), "out_of_memory"),
    ],
)
def test_how_a_process_or_seat_ends_names_the_cause(end: End, cause: str) -> None:
    assert end.cause == cause


@given(ends)
def test_every_cause_is_declared(end: End) -> None:
    assert end.cause in CAUSES


def test_an_error_that_only_mentions_a_connection_in_its_traceback_is_no_echo() -> None:
    assert not End(0, 1, detail="Connection closed by peer\nValueError: clip 7 is broken").echo


COLLECTIVE = """Process 7: python
Python v3.11.7

Thread 9 (idle): "prefetch_0"
    read (data_pipeline/shard_reader.py:70)
Thread 7 (idle): "MainThread"
    all_reduce (torch/distributed/distributed_c10d.py:2989)
    finish_step (trainer/engine.py:120)
"""
READING = COLLECTIVE.replace("all_reduce (torch/distributed/distributed_c10d.py:2989)", "fetch (data_pipeline/loader.py:150)")
FAULTHANDLER = """Thread 0x1 (most recent call first):
  File "/x/shard_reader.py", line 70 in read

Current thread 0x2 (most recent call first):
  File "/x/torch/distributed/distributed_c10d.py", line 2989 in all_reduce
"""


def test_the_main_thread_is_found_in_dumps_of_both_kinds() -> None:
    assert main_thread(COLLECTIVE)[-1] == "finish_step (trainer/engine.py:120)"
    assert main_thread(FAULTHANDLER) == ['File "/x/torch/distributed/distributed_c10d.py", line 2989 in all_reduce']


@pytest.mark.parametrize(
    ("accounts", "rank"),
    [
        ({0: Account("step", 1.0, False, COLLECTIVE), 1: Account("step", 2.0, True, COLLECTIVE)}, 1),
        ({0: Account("step", 1.0, False, FAULTHANDLER), 1: Account("step", 2.0, False, READING)}, 1),
        ({0: Account("step", 2.0, False, COLLECTIVE), 1: Account("step", 1.0, False, COLLECTIVE)}, 1),
    ],
)
def test_the_rank_that_holds_up_the_others_is_found(accounts: dict[int, Account], rank: int) -> None:
    assert hung(accounts) == rank
