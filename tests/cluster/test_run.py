"""What a run does between its generations, on process groups that end as they are told: whom it blames, what it reads, whom it looks at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import resumption, run_folder
from cluster.gang import Held
from cluster.generation import Outcome
from cluster.health import Sight
from cluster.progress import Board
from cluster.resumption import LIVES, LIVES_SECONDS, Resumption, check_lives, standing
from cluster.run import FRUITLESS, Run, RunFailed
from data_pipeline.errors import UserError
from trainer import config as configs
from trainer import events, lease
from trainer.checkpoint.commit import Commit, commit_folder, write_marker
from trainer.checkpoint.files import write_data
from trainer.curriculum import RunState
from trainer.instruments import RunInstruments
from trainer.meter import Meter
from trainer.metrics import metrics_path

STAGES = "[{name: only, frames: 5, height: 32, width: 32, tokens_per_step: 256, promotion: {max_steps: 9}}]"


@dataclass(frozen=True)
class Life:
    """A generation: what it commits, how it ends, who joins meanwhile. cause "": it finishes, and says `event`."""

    cause: str = ""
    rank: int = 0
    commits: bool = False
    event: str = "promotion"
    joins: str = ""


PROMOTED = Life(commits=True)


def make_commit(run: Path, state: RunState, generation: int, recipe: str) -> Commit:
    folder = commit_folder(run, state.step, generation)
    metrics_path(run).write_text("".join(json.dumps({"step": step + 1}) + "\n" for step in range(state.step)))
    files = (write_data(folder / "rank-00000.safetensors", [memoryview(b"whole")]),)
    commit = Commit(folder, state, generation, "data", recipe, "periodic", False, files)
    write_marker(commit, lambda: None)
    return commit


class Seats:
    """The gang: a seat on each of some nodes. told: what it was told of them."""

    leaving: Sequence[Held] = ()

    def __init__(self, *nodes: str) -> None:
        self.ready = [Held(node, node, None) for node in nodes]  # type: ignore[arg-type]
        self.told: list[tuple[str, str]] = []

    def blame(self, node: str, why: str, minimum: int) -> None:
        self.told.append(("blame", node))

    def absolve(self) -> None:
        self.told.append(("absolve", "all"))

    def mark(self, node: str, why: str) -> None:
        self.told.append(("mark", node))
        self.ready = [held for held in self.ready if held.node != node]

    def gather(self, *given: Any) -> None: ...

    def drop(self, seats: Sequence[Any]) -> None: ...

    def release(self) -> None: ...


class Rehearsal(Run):
    """A run of one stage whose generations are told in advance. unseen: nodes that do not share the storage."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *lives: Life, unseen: str = "") -> None:
        own = [f"run.root={root}", "run.name=mine", f"curriculum.stages={STAGES}", "train.max_restarts=9", "cluster.min_workers=1"]
        config = configs.load(own)
        folder, number = run_folder.take(config)
        self.lives, self.now, self.unseen, self.looked_at = [*lives], RunState(), unseen, list[str]()
        self.seated, self.paused = Seats("a", "b"), list[int]()
        data: Any = SimpleNamespace(origins=["data"], share=lambda used: None, look=lambda: None)
        gang: Any = self.seated
        instruments = RunInstruments(Meter("run"), config.curriculum.stages)
        super().__init__(config, folder, number, data, gang, Board(), instruments, lambda: None)
        self.dataset: Any = SimpleNamespace(folder=root, manifest=SimpleNamespace(spec=SimpleNamespace(stride=(4, 8, 8))))
        monkeypatch.setattr("cluster.run.generation.run", self.live)
        monkeypatch.setattr("cluster.run.health.examine", self.sights_of)

    def pause(self, failures: int) -> None:
        self.paused.append(failures)

    def train(self) -> Commit | None:
        return self.attempt(self.config.curriculum.stages[0], self.next_commit())

    def sights_of(self, seats: Mapping[str, Any], folders: Sequence[Path]) -> list[Sight]:
        self.looked_at += seats
        return [Sight("host", node, ("/runs",) if node in self.unseen else (), 0.0, 8 << 30, 0.01, None) for node in seats]

    def live(self, seats: Any, target: str, payloads: Any, on_message: Callable[[int, dict[str, Any]], None], **named: Any) -> Outcome:
        life = self.lives.pop(0)
        if life.commits:
            self.now = replace(self.now, step=self.now.step + 1)
            self.now = self.now.promoted() if life == PROMOTED else self.now
            make_commit(self.folder, self.now, named["generation"], configs.recipe_hash(self.config))
            on_message(0, {"kind": "event", "event": "commit", "step": self.now.step, "seconds": 0.1, "bytes": 5})
        self.seated.ready += [Held(node, node, None) for node in life.joins]  # type: ignore[arg-type]
        last = {"kind": "event", "event": life.event}
        finished, silent = not life.cause, [None] * (len(seats) - 1)
        return Outcome(finished, None if finished else life.rank, "planted", "", (), (last, *silent), cause=life.cause)


def test_a_node_is_blamed_for_what_fails_on_it_before_a_commit_and_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = Life("signal", 1), Life("signal", 1, commits=True), Life("data"), Life("node"), Life("out_of_memory"), Life("hang")
    run = Rehearsal(tmp_path, monkeypatch, *failures, PROMOTED)
    run.train()
    assert run.seated.told == [("blame", "b"), ("absolve", "all"), ("blame", "a"), ("absolve", "all")]


def test_nodes_that_go_without_end_make_it_wait_longer_and_longer_then_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Life("node")
    run = Rehearsal(tmp_path, monkeypatch, *[gone] * 15, Life("preempted", commits=True), *[gone] * (FRUITLESS + 9))
    with pytest.raises(RunFailed, match=rf"planted, {FRUITLESS} times at step 1"):
        run.train()
    assert run.paused[:16] == [0, 0, *range(13), 0]
    assert len(run.lives) == 10


def test_every_node_is_looked_at_once_before_it_is_used_and_a_later_one_that_cannot_train_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Rehearsal(tmp_path, monkeypatch, Life("node", joins="c"), Life("node", joins="d"), PROMOTED, unseen="c")
    run.train()
    assert run.looked_at == ["a", "b", "c", "d"]
    assert ("mark", "c") in run.seated.told
    assert [held.node for held in run.gang.ready] == ["a", "b", "d"]


def test_a_node_that_cannot_train_at_the_runs_start_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="/runs is not the same, writable folder on host as here"):
        Rehearsal(tmp_path, monkeypatch, PROMOTED, unseen="b").train()


def test_the_commit_to_go_on_from_is_looked_for_once_per_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, search = list[Any](), resumption.resume_point
    monkeypatch.setattr(resumption, "resume_point", lambda *given: found.append(search(*given)) or found[-1])
    run = Rehearsal(tmp_path, monkeypatch, Life("node"), Life("node", commits=True), PROMOTED)
    last = run.train()
    assert [standing(point.commit).step for point in found] == [0, 0, 1, 2]
    assert standing(last).stage == 1
    assert lease.current(run.folder) == run.number == 5


def test_events_say_why_a_generation_follows_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Life(commits=True, event="mixture"), Life(event="roll_back"), Life("node"), PROMOTED
    run = Rehearsal(tmp_path, monkeypatch, *lives)
    run.train()
    told = [event["why"] for event in events.read_events(run.folder) if event["event"] == "generation"]
    assert [*told, run.why] == ["start", "mixture", "roll_back", "failure", "stage"]


def test_a_commit_that_was_made_in_this_life_is_not_read_again_and_any_other_is(tmp_path: Path) -> None:
    number = lease.draw(tmp_path)
    here = Resumption(tmp_path, number, lambda text: None)
    commit = make_commit(tmp_path, RunState(step=3), number, "recipe")
    here.seal(3)
    (commit.folder / commit.files[0].name).write_bytes(b"wh0le")
    assert here.commit() == commit
    with pytest.raises(UserError, match="every other commit is damaged"):
        Resumption(tmp_path, number, lambda text: None).commit()
    here.doubt()
    with pytest.raises(UserError, match="every other commit is damaged"):
        here.commit()
    here.seal(3)
    assert here.commit() == commit
    (commit.folder / commit.files[0].name).write_bytes(b"who")
    with pytest.raises(UserError, match="every other commit is damaged"):
        here.commit()


def test_what_is_passed_over_is_said_once(tmp_path: Path) -> None:
    said = list[str]()
    here = Resumption(tmp_path, lease.draw(tmp_path), said.append)
    commit_folder(tmp_path, 3, 1).mkdir(parents=True)
    assert (here.commit(), here.commit()) == (None, None)
    assert said == ["commit step-00000003/0001 is passed over: it was not finished"]


def die(run: Path, times: int) -> None:
    """So many controllers have drawn a number and died."""
    for _ in range(times):
        number = lease.draw(run)
        path = run / "lease" / f"{number:08d}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": -number}))


def test_a_controller_that_dies_again_and_again_without_a_commit_is_not_made_for_ever(tmp_path: Path) -> None:
    die(tmp_path, LIVES)
    check_lives(tmp_path, time.time())
    die(tmp_path, 1)
    with pytest.raises(RunFailed, match="its controller has died 5 times within an hour without a new commit"):
        check_lives(tmp_path, time.time())
    check_lives(tmp_path, time.time() + LIVES_SECONDS)


@pytest.mark.parametrize("kind", ["commit", "start"])
def test_a_commit_or_a_start_by_hand_begins_the_count_of_controllers_anew(tmp_path: Path, kind: str) -> None:
    die(tmp_path, LIVES + 1)
    events.record(tmp_path, "start", happened=time.time())
    with pytest.raises(RunFailed):
        check_lives(tmp_path, time.time())
    time.sleep(0.01)  # times of events are told in milliseconds
    events.record(tmp_path, kind)
    check_lives(tmp_path, time.time())
