"""Tensors that are made anew every step are not mapped anew by the kernel."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource, sys
import torch
from trainer.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(40):
    if step == 20:  # by then the heap has grown to what a step needs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(24 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of twenty steps that each make a tensor of 96 MB."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True, timeout=120).stdout)


def test_a_tensor_of_every_step_is_given_the_memory_of_the_last_one() -> None:
    assert faults("keep") * 20 < faults("as it is")
