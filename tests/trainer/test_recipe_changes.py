"""What differs between two recipes, key by key, and which of it a run may go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UserError
from trainer.config import load
from trainer.recipe_changes import changes, check_continues


def tree(*arguments: str) -> dict[str, Any]:
    return load(list(arguments)).model_dump(mode="json")


def test_every_key_that_differs_is_named_with_both_values() -> None:
    new = tree("train.lr=0.5", "cluster.workers=1", "curriculum.stages.1.promotion.max_steps=7", "run.name=other")
    assert [str(change) for change in changes(tree(), new)] == [
        "cluster.workers 2 -> 1",
        "train.lr 0.002 -> 0.5",
        "curriculum.stages.1.promotion.max_steps 100 -> 7",
    ]
    assert changes(new, new) == []


@pytest.mark.parametrize(
    "argument",
    [
        *("cluster.workers=1", "cluster.cpus_per_worker=2", "parallel.tp=2", "parallel.sp=2", "parallel.zero=3", "train.micro_batch=3"),
        *(
            "train.commit_every=3",
            "train.checkpointing=full",
            "profile.steps=3..4",
            "sample.videos=1",
            "metrics.port=9090",
            "guard.sigma=9",
        ),
        *("data.cache_bytes=1", "plan.world=16", "train.max_restarts=9"),
    ],
)
def test_keys_that_say_where_and_how_fast_may_change(argument: str) -> None:
    found = changes(tree(), tree(argument))
    assert len(found) == 1
    check_continues(Path("run"), found)


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "seed=1",
            "train.lr=0.5",
            "train.ema=0.5",
            "train.clip=2",
            "train.evaluate_every=3",
            "train.head=flow",
            "parallel.precision=bf16",
        ),
        *("model.size=small", "data.fps=4", "curriculum.stages.0.tokens_per_step=4096", "train.supervision=all_frames"),
    ],
)
def test_keys_that_change_the_numbers_refuse_with_the_remedy(argument: str) -> None:
    found = changes(tree(), tree(argument, "cluster.workers=1"))
    with pytest.raises(UserError, match=r"^run was made by another recipe: .* -> .*; start it with the old values, .* fork run ") as caught:
        check_continues(Path("run"), found)
    assert "cluster.workers" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_more_is_told_key_by_key() -> None:
    old, new = tree(), tree()
    old["curriculum"]["stages"].pop()
    assert {change.key.split(".")[2] for change in changes(old, new)} == {"3"}
    assert not any(change.free for change in changes(old, new))
