"""Whether two resolved recipes are the same run: everything counts but the keys that change where and how fast it runs. Pure.

A start compares with the folder's recipe, a commit holds the hash of its own.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trainer.config import RunConfig

# Keys that may differ between two starts of one run: they change where and how fast it runs, never its numbers (the guard's: only from
# here on, what it has decided stands).
FREE_KEYS = (
    "run.root",
    "cluster",
    "parallel.tp",
    "parallel.megatron_sp",
    "parallel.sp",
    "parallel.zero",
    "parallel.offload",
    "train.init.from",
    "train.micro_batch",
    "train.checkpointing",
    "train.compile",
    "train.commit_every",
    "train.permanent_every",
    "train.keep_commits",
    "train.max_restarts",
    "guard",
    "profile",
    "sample",
    "data.root",
)


def fixed_keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a resolved recipe without FREE_KEYS: what a run's numbers depend on."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if prefix + key not in FREE_KEYS:
            found |= fixed_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def recipe_hash(config: RunConfig) -> str:
    """A name for what a run's numbers depend on."""
    fixed = fixed_keys(config.model_dump(mode="json", exclude={"recipe": True, "run": True}))
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first dotted key, outside FREE_KEYS, in which two resolved recipes differ."""
    there, here = fixed_keys(old), fixed_keys(new)
    different = (key for key in [*here, *there] if here.get(key) != there.get(key))
    return next((f"{key} ({there.get(key)} there, {here.get(key)} now)" for key in different), None)
