"""Fragments of logical tensors to files and back: one safetensors file per rank, whose keys say which range of which tensor they hold.

Loading looks up ranges, never ranks: any number of ranks may read what any other number has written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.checkpoint.commit import fsync
from trainer.checkpoint.fragments import Fragment


def key_of(name: str, kind: str, start: int, stop: int) -> str:
    return f"{kind}|{name}|{start}:{stop}"


def parse_key(key: str) -> tuple[str, str, int, int]:
    kind, name, span = key.split("|")
    start, stop = span.split(":")
    return kind, name, int(start), int(stop)


def save_fragments(path: Path, fragments: list[Fragment]) -> None:
    """Write this rank's fragments, all kinds, as flat fp32 ranges; on the disk when it returns."""
    tensors = {
        key_of(fragment.name, kind, fragment.start, fragment.stop): tensor.contiguous().cpu()
        for fragment in fragments
        for kind, tensor in fragment.tensors.items()
    }
    save_file(tensors, path)
    fsync(path)


def stored_ranges(folder: Path) -> Iterator[tuple[str, str, int, int, safe_open]]:
    """(kind, name, start, stop, open file) of every range in a commit's files."""
    for path in sorted(folder.glob("rank-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in list(file.keys()):
                yield (*parse_key(key), file)


def load_fragments(folder: Path, fragments: list[Fragment]) -> None:
    """Fill the fragments' tensors from a commit. Raises ValueError when the commit does not cover one of them."""
    wanted: dict[str, list[Fragment]] = {}
    for fragment in fragments:
        wanted.setdefault(fragment.name, []).append(fragment)
    missing = {(f.name, kind): f.stop - f.start for f in fragments for kind in f.tensors}
    for kind, name, start, stop, file in stored_ranges(folder):
        for fragment in wanted.get(name, []):
            low, high = max(start, fragment.start), min(stop, fragment.stop)
            if low < high and kind in fragment.tensors:
                stored = file.get_slice(key_of(name, kind, start, stop))[low - start : high - start]
                fragment.tensors[kind][low - fragment.start : high - fragment.start].copy_(stored)
                missing[(name, kind)] -= high - low
    for (name, kind), count in missing.items():
        if count:
            raise ValueError(f"{folder}: {count} elements of {kind} of {name} are missing: the commit is of another model")


def load_tensors(folder: Path, kind: str, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Whole logical tensors of one kind, e.g. the moving average for sampling. Raises ValueError naming a tensor that is not there."""
    flat = {name: torch.full((math.prod(shape),), float("nan")) for name, shape in shapes.items()}
    for stored_kind, name, start, stop, file in stored_ranges(folder):
        if stored_kind == kind and name in flat:
            flat[name][start:stop] = file.get_tensor(key_of(name, kind, start, stop))
    for name, tensor in flat.items():
        if tensor.isnan().any():
            raise ValueError(f"{folder}: no complete {kind} of {name}: the commit is of another model")
    return {name: tensor.view(shapes[name]) for name, tensor in flat.items()}
