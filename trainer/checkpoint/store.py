"""Fragments of logical tensors to files and back: one safetensors file per rank, whose keys say which box of which tensor they hold.

Loading looks up boxes, never ranks: any number of ranks, in any layout, may read what any other has written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.errors import UserError
from trainer.checkpoint.files import read_range
from trainer.checkpoint.fragments import Box, Fragment, Shape, pieces, whole

ITEM = 4  # bytes of an fp32 element


@dataclass(frozen=True)
class Chunk:
    """A stored box of a logical tensor: its place and its first byte in a file."""

    path: Path
    begin: int
    box: Box
    shape: Shape  # of the logical tensor


def file_header(fragments: Sequence[Fragment]) -> bytes:
    """The safetensors header of the fragments' tensors in order, `kind|name|offset`, each box an fp32 tensor."""
    entries: dict[str, object] = {"__metadata__": {fragment.name: numbers(fragment.shape) for fragment in fragments}}
    begin = 0
    for fragment in fragments:
        for kind in fragment.tensors:
            for box, _ in pieces(fragment):
                end = begin + ITEM * box.size
                place = {"dtype": "F32", "shape": box.extent, "data_offsets": (begin, end)}
                entries[f"{kind}|{fragment.name}|{numbers(box.offset)}"] = place
                begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def numbers(shape: Shape) -> str:
    return ",".join(map(str, shape))


def parse_numbers(text: str) -> Shape:
    return tuple(int(number) for number in text.split(",") if number)


def stored_chunks(folder: Path) -> dict[tuple[str, str], list[Chunk]]:
    """All boxes in a commit's files, by (kind, name)."""
    found: dict[tuple[str, str], list[Chunk]] = {}
    for path in sorted(folder.glob("rank-*.safetensors")):
        length = int.from_bytes(read_range(path, 0, 8), "little")
        entries = json.loads(read_range(path, 8, 8 + length))
        shapes = entries.pop("__metadata__", {})
        for key, entry in entries.items():
            kind, name, offset = key.split("|")
            box = Box(parse_numbers(offset), tuple(entry["shape"]))
            chunk = Chunk(path, 8 + length + entry["data_offsets"][0], box, parse_numbers(shapes[name]))
            found.setdefault((kind, name), []).append(chunk)
    return found


def read_box(chunk: Chunk, box: Box) -> Tensor:
    """A box that lies in a chunk, read as the rows that hold it."""
    index = box.inside(chunk.box)
    if not index:
        rows, row = slice(0, 1), 1
    else:
        rows, row = index[0], chunk.box.size // chunk.box.extent[0]
    data = read_range(chunk.path, chunk.begin + ITEM * rows.start * row, chunk.begin + ITEM * rows.stop * row)
    tensor = torch.frombuffer(data, dtype=torch.float32).view((rows.stop - rows.start, *chunk.box.extent[1:]) if index else ())
    return tensor[(slice(None), *index[1:])] if index else tensor


def load_fragments(folder: Path, fragments: Sequence[Fragment]) -> None:
    """Fill the fragments' tensors from a commit. Raises UserError when it is of another model."""
    stored = stored_chunks(folder)
    for fragment in fragments:
        for kind, view in fragment.tensors.items():
            chunks = stored.get((kind, fragment.name), [])
            if chunks and chunks[0].shape != fragment.shape:
                there, here = numbers(chunks[0].shape), numbers(fragment.shape)
                raise UserError(f"{folder}: {fragment.name} is [{there}] there and [{here}] here: {REMEDY}")
            for box, place in pieces(fragment):
                missing = fill(view[place].view(box.extent), box, chunks)
                if missing:
                    raise UserError(f"{folder}: {missing} elements of {kind} of {fragment.name} are missing: {REMEDY}")


REMEDY = "it holds another model; start with the recipe that made it, or choose another run.name"


def fill(tensor: Tensor, box: Box, chunks: Sequence[Chunk]) -> int:
    """Copy what the chunks hold of a box into its tensor; returns how many elements none of them holds."""
    missing = torch.ones(box.extent, dtype=torch.bool)
    for chunk in chunks:
        if common := box.overlap(chunk.box):
            tensor[common.inside(box)] = read_box(chunk, common).to(tensor.device)
            missing[common.inside(box)] = False
    return int(missing.sum())


def load_tensors(folder: Path, kind: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Whole logical tensors of one kind, e.g. the moving average for sampling. Raises UserError as `load_fragments` does."""
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    load_fragments(folder, [whole(name, shapes[name], {kind: tensor.view(-1)}) for name, tensor in tensors.items()])
    return tensors
