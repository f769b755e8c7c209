"""The controller: a detached, named Ray actor that steers one run. Its only state is the run's folder: Ray restarts it after a kill, and
it goes on from what it finds there. attach.py starts it and follows it; what it does with the seats stands in run.py.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from cluster import dataset as datasets
from cluster import run_folder
from cluster.feeding import Feeding, Stopped
from cluster.gang import Gang
from cluster.progress import Board
from cluster.readiness import Feed
from cluster.resumption import check_lives
from cluster.run import Run, RunFailed
from data_pipeline.errors import UserError
from trainer import events, lease, weights
from trainer.config import RunConfig
from trainer.sinks import published
from trainer.status import last_word

LINGER_SECONDS = 10.0  # that the actor can still be asked how the run ended
RENEW_SECONDS = 30.0  # between two signs of life of one whose process cannot be seen
# What a trainer imports before its first step; the last two are DeepSpeed's and AdamW's own late imports, seconds each.
PRELOAD = [
    "torch.distributed",
    "trainer.process",
    "trainer.inspection.showcase",
    "torch._dynamo",
    "deepspeed.runtime.zero.muon.muon_optimizer",
]


@dataclass(frozen=True)
class Order:
    """What a controller is started with. cwd: what relative paths of the recipe mean; ray_folder: of the starter's private Ray."""

    config: RunConfig
    matched: weights.Match | None
    cwd: str
    ray_folder: str | None


@dataclass(frozen=True)
class End:
    """How the run ended: the exit code of `train`, and the line for its errors."""

    code: int
    error: str = ""


def preload(config: RunConfig) -> list[str]:
    """What the seats of a run import ahead; PEFT and Megatron only where they are used."""
    used = {"peft": config.train.lora.rank > 0, "trainer.parallel.layers": config.parallel.tp > 1}
    return PRELOAD + [module for module, needed in used.items() if needed]


class Controller:
    """The actor. The run goes on in a thread from the moment it is made, or made again by Ray."""

    def __init__(self, order: Order) -> None:
        if Path(order.cwd).is_dir():  # not so on another node: paths are absolute there
            os.chdir(order.cwd)
        self._order, self._config = order, order.config
        self._restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._itself = ray.get_runtime_context().current_actor
        self._board, self._stopping = Board(), threading.Event()
        self._end: End | None = None
        self._number = 0  # of the generation that was drawn first
        self._training: Run | None = None
        self._followers: dict[str, float] = {}  # who follows and has not heard of the end: when it asked last
        self._thread = threading.Thread(target=self._live, name="run", daemon=True)
        self._thread.start()

    def follow(self, follower: str, life: str, seen: int) -> tuple[str, int, list[tuple[str, str]], End | None]:
        """What there is to tell since the first `seen` lines of `life` (see Board.since), and how the run has ended if it has; waits a
        moment for news."""
        self._followers[follower] = time.monotonic()
        told = self._board.since(life, seen, 0.0 if self._end else 1.0)
        end = self._end if not told[2] else None  # all lines first
        if end:
            del self._followers[follower]
        return *told, end

    def leave(self, follower: str) -> None:
        """The follower will not ask again."""
        self._followers.pop(follower, None)

    def followers(self) -> int:
        """How many follow who have not heard of the end."""
        return sum(time.monotonic() - asked < 3.0 for asked in [*self._followers.values()])

    def status(self) -> dict[str, Any]:
        """Where the run stands, as seen from here: what the folder does not say."""
        return {"folder": str(self._config.run_folder.absolute()), "line": self._board.live, "ended": self._end and asdict(self._end)}

    def stop(self) -> None:
        """End the run: its trainers are asked to leave, and a commit that is being written is finished. Returns when it has ended."""
        self._stopping.set()
        self._thread.join()

    def _live(self) -> None:
        try:
            self._train()
            end = End(0)
        except Stopped:
            end = End(1, "stopped; the same command continues from the last commit")
        except RunFailed as failure:
            self._board.say(f"failed: {failure}")
            end = End(1)
        except UserError as error:
            end = End(2, f"error: {error}")
        except OSError as error:
            place = f"{error.filename}: {error.strerror}" if error.filename else traceback.format_exc()
            end = End(2, f"error: {place}; what was done so far is kept, mend it and run again")
        except BaseException:
            end = End(1, traceback.format_exc())
        run_folder.give_back(self._config, self._drawn)
        self._end = end
        threading.Thread(target=self._leave, daemon=True).start()

    @property
    def _drawn(self) -> int:
        """The last generation that was drawn here, 0 for none."""
        return self._training.number if self._training else self._number

    def _renew(self, run: Path) -> None:
        while self._end is None:
            with contextlib.suppress(OSError):
                lease.renew(run, self._drawn)
            time.sleep(RENEW_SECONDS)

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Stopped

    def _leave(self) -> None:
        time.sleep(LINGER_SECONDS)
        ray.kill(self._itself, no_restart=True)

    def _train(self) -> None:
        """The whole job. Seats warm up while the first videos are encoded."""
        config, board = self._config, self._board
        workers, cpus = config.cluster.workers, config.cluster.cpus_per_worker
        died = last_word(config.run_folder)  # where this one is in the place of another
        run, self._number = run_folder.take(config, restarted=self._restarted)
        run_folder.note_residence(config, ray.get_runtime_context().gcs_address, self._order.ray_folder)
        threading.Thread(target=self._renew, args=(run,), daemon=True).start()
        if self._restarted:
            check_lives(run, time.time())

        with published(config, run, board.say) as instruments:
            gpus = {"GPU": config.cluster.gpus_per_worker} if config.cluster.gpus_per_worker else {}
            gang = Gang(preload(config), {"CPU": cpus} | gpus, cpus, config.cluster.most)
            with contextlib.ExitStack() as closing:
                closing.callback(gang.close)
                jobs = datasets.find_all(config)
                job = next(iter(jobs.values()))
                board.say(f"data  {len(job.sources.sources)} videos in {job.videos}")
                feed = closing.enter_context(contextlib.closing(Feed(config, jobs, workers * cpus).start()))
                data = Feeding(feed, run, workers * cpus, board, instruments, self._check)
                training = self._training = Run(config, run, self._number, data, gang, board, instruments, self._check)
                training.begin(**({"happened": died} if self._restarted else {}))
                if self._order.matched:
                    for line in weights.summary(self._order.matched, config.train.init):
                        board.say(line)
                    events.record(run, "initial", **vars(config.train.init), **vars(self._order.matched))
                training.to_the_end()
