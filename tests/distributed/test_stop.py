"""A stop in the middle of a save: the commit that is being written is finished first, and the step that is being made is committed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.distributed.harness import RankFailed, run_ranks
from tests.distributed.training import awake_model, payload, recipe, stage
from trainer import lease, loop, process
from trainer.checkpoint import saver
from trainer.checkpoint.commit import last_commit


def stopped_while_saving(rank: int, world: int, host: str, port: int, listener: Any, run: Path, dataset: Path) -> None:
    """The last rank alone gets SIGTERM in the step after the commit of step 2, and no file is on the disk before."""
    config, stopped, write = recipe([stage("long", 5)], commit_every=2), threading.Event(), saver.write_data

    def slow(*given: Any) -> Any:
        assert stopped.wait(20)
        time.sleep(0.2)
        return write(*given)

    def stop(*given: Any) -> Any:
        if given[2].step == 2:
            stopped.set()
            if rank == world - 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return STEP(*given)

    group = {"rank": rank, "world": world, "host": host, "port": port}
    with awake_model(), patch.object(saver, "write_data", slow), patch("trainer.loop.train_step", stop):
        process.run(payload(config, run, dataset) | group, lambda message: None, listener)


STEP = loop.train_step


def test_a_rank_that_is_told_to_leave_leaves_with_all_after_a_commit_of_the_same_step(tiny_dataset: Path, tmp_path: Path) -> None:
    lease.draw(tmp_path)
    with pytest.raises(RankFailed, match="SystemExit: 143"):
        run_ranks(2, stopped_while_saving, tmp_path, tiny_dataset)
    found = last_commit(tmp_path)
    assert found is not None
    assert found.state.step == 3
    assert len(list(tmp_path.glob("checkpoints/*/*/commit.json"))) == 1  # the one of step 2 was finished, and pruned
