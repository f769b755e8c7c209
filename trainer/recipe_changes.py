"""How a recipe differs from the one a run was made with, and whether the run may go on with it. Pure; called before a run is started
again, and by `fork`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from trainer.config import FREE_KEYS


@dataclass(frozen=True)
class Change:
    """A dotted key with its value in the run's recipe and in the new one; None where there is no such key."""

    key: str
    old: Any
    new: Any

    @property
    def free(self) -> bool:
        """Whether a run may go on with it: it changes where and how fast the run goes, not its numbers."""
        return covered(self.key, FREE_KEYS)

    def __str__(self) -> str:
        return f"{self.key} {self.old} -> {self.new}"


def covered(key: str, keys: Sequence[str]) -> bool:
    """Whether one of the keys is this one or a section that it is in."""
    return any(key == each or key.startswith(f"{each}.") for each in keys)


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """Every key in which two resolved recipes differ, in the new one's order; the run's own name is none."""
    there, here = dict(leaves(old)), dict(leaves(new))
    found = (Change(key, there.get(key), here.get(key)) for key in dict.fromkeys([*here, *there]))
    return [change for change in found if change.old != change.new and change.key != "run.name"]


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a tree of mappings and of lists of mappings, as overrides name them."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict) or not tree:
        yield key, tree
        return
    for name, value in tree.items():
        yield from leaves(value, f"{key}.{name}" if key else str(name))


def check_continues(run: Path, found: Sequence[Change]) -> None:
    """Raises UserError naming every change with which the run must not go on, and what to do instead."""
    fixed = [change for change in found if not change.free]
    if fixed:
        raise UserError(
            f"{run} was made by another recipe: {', '.join(map(str, fixed))}; start it with the old values, choose another run.name, or go "
            f"on from one of its commits with the new ones: python trainer/main.py fork {run} {fixed[0].key}=... run.name=..."
        )
