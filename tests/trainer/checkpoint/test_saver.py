"""Saving beside training: what is written is the moment of the call, only a change of the weights waits, a failure is everyone's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.checkpoint.kill import Gathering
from trainer.checkpoint import saver as savers
from trainer.checkpoint.fragments import Fragment, whole
from trainer.checkpoint.saver import Saver, WriteFailed
from trainer.checkpoint.store import load_tensors

SHAPE = torch.Size([3, 4])


def fragment(name: str = "w") -> Fragment:
    return whole(name, SHAPE, {"weight": torch.zeros(12)})


def alone(value: Any) -> list[Any]:
    return [value]


def ignore(files: object) -> None:
    """A seal that makes nothing valid."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes nothing until the event is set."""
    ready, write = threading.Event(), savers.write_data

    def slow(path: Path, parts: Any) -> Any:
        assert ready.wait(20)
        return write(path, parts)

    monkeypatch.setattr(savers, "write_data", slow)
    yield ready
    ready.set()


def test_what_training_changes_after_the_call_is_not_saved(tmp_path: Path, disk: threading.Event) -> None:
    held = fragment()
    saver = Saver([held], 0, alone)
    held.tensors["weight"].fill_(1.0)
    saver.save(tmp_path, ignore)
    saver.copied()
    held.tensors["weight"].fill_(2.0)
    disk.set()
    saver.wait()
    assert load_tensors(tmp_path, "weight", {"w": SHAPE})["w"].unique().tolist() == [1.0]
    saver.close()


def test_training_waits_for_the_copy_before_it_changes_a_weight_and_for_nothing_else(
    tmp_path: Path, disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_copy, copy = threading.Event(), savers.copy_to_host
    monkeypatch.setattr(savers, "copy_to_host", lambda *arguments: may_copy.wait(20) and copy(*arguments))
    saver = Saver([fragment()], 0, alone)
    saver.save(tmp_path, ignore)
    with ThreadPoolExecutor(1) as pool:
        update = pool.submit(saver.copied)
        time.sleep(0.1)
        assert not update.done()
        may_copy.set()
        update.result(20)  # the disk has taken nothing yet
    assert saver.stall() >= 0.1
    assert saver.stall() == 0.0
    disk.set()
    saver.close()


def test_a_copy_that_fails_holds_up_no_update_and_surfaces_in_the_steps_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(savers, "copy_to_host", fail)
    saver = Saver([fragment()], 0, alone)
    saver.save(tmp_path, ignore)
    saver.copied()
    with pytest.raises(MemoryError, match="no room"):
        check_for_a_while(saver)
    assert not list(tmp_path.iterdir())
    saver.close()


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, disk: threading.Event) -> None:
    saver, sealed = Saver([fragment()], 0, alone), []
    saver.save(tmp_path / "1", lambda files: sealed.append(1))
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(saver.save, tmp_path / "2", lambda files: sealed.append(2))
        saver.check()
        assert not second.done()
        disk.set()
        second.result(20)
        assert sealed[0] == 1
    saver.close()
    assert sealed == [1, 2]


def test_the_way_out_finishes_what_is_being_saved(tmp_path: Path, disk: threading.Event) -> None:
    saver, sealed = Saver([fragment()], 0, alone), []
    saver.save(tmp_path, lambda files: sealed.append([file.name for file in files]))
    threading.Timer(0.05, disk.set).start()
    saver.close()
    assert sealed == [["rank-00000.safetensors"]]


def save_on_two_ranks(folders: list[Path], fragments: list[list[Fragment]], seal: Callable[[Any], None] = ignore) -> list[str]:
    """Saves on two ranks at once; returns what each failed with."""
    gathering = Gathering()

    def rank(number: int) -> str:
        saver = Saver(fragments[number], number, gathering.by(number))
        try:
            saver.save(folders[number], seal if number == 0 else ignore)
            saver.wait()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            saver.close()
        return ""

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(rank, range(2)))


def test_a_file_that_cannot_be_written_fails_every_rank_and_makes_no_commit(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file, not a folder")
    sealed: list[Any] = []
    folders = [tmp_path / "free", tmp_path / "blocked" / "step"]
    failed = save_on_two_ranks(folders, [[fragment("a")], [fragment("b")]], sealed.append)
    expected = f"WriteFailed: {tmp_path}/blocked/step/rank-00001.safetensors cannot be written (Not a directory)"
    assert (failed, sealed) == ([expected] * 2, [])


def check_for_a_while(saver: Saver) -> None:
    """As the loop does, once a step."""
    for _ in range(2000):
        saver.check()
        time.sleep(0.01)


def test_a_failure_surfaces_in_the_steps_that_follow_and_in_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file, not a folder")
    saver = Saver([fragment()], 0, alone)
    saver.save(tmp_path / "blocked" / "step", ignore)
    with pytest.raises(WriteFailed, match="Not a directory"):
        saver.save(tmp_path / "free", ignore)
    saver.save(tmp_path / "blocked" / "step", ignore)
    with pytest.raises(WriteFailed, match="Not a directory"):
        check_for_a_while(saver)
    saver.close()


def test_what_both_ranks_hold_is_written_once(tmp_path: Path) -> None:
    both = [fragment("a"), fragment("b")]
    assert save_on_two_ranks([tmp_path] * 2, [both, [replace(part, tensors=dict(part.tensors)) for part in both]]) == ["", ""]
    data = 2 * 12 * 4
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert data < sum(sizes) < data + 600
    assert set(load_tensors(tmp_path, "weight", {"a": SHAPE, "b": SHAPE})) == {"a", "b"}
