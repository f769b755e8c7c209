"""How a rank leaves when it is told to (SIGTERM): with all the others, after a commit of the same step. Made by process.py, asked by the
loop once a step."""

from __future__ import annotations

import signal
from typing import Any, NoReturn

import torch
import torch.distributed as dist


class Leave:
    """What this rank has been told since listen()."""

    def __init__(self, device: torch.device) -> None:
        self._told, self._device = False, device

    def listen(self) -> None:
        """Take SIGTERM for a request; until then it ends the process at once."""
        signal.signal(signal.SIGTERM, self._hear)

    def agreed(self) -> bool:
        """Whether any rank of the group was told to; the same on all of them, who ask together."""
        told = torch.tensor(float(self._told), device=self._device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def go(self) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    def _hear(self, number: int, frame: Any) -> None:
        self._told = True
