"""Who attends to whom: one predicate per rule over the parts of a sequence, and its materialisations (chunks of parts, dense mask)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of a sequence that see the same keys: one copy of one unit (a frame, or a block of frames).

    copy 0 is the clean copy, copies from 1 on are masked; `tokens` counts those of all its frames.
    """

    unit: int
    copy: int
    tokens: int


Rule = Callable[[Part, Part], bool]


def frame_causal(query: Part, key: Part) -> bool:
    """Causal in time, bidirectional inside a unit: a token sees every token of its own and of earlier units."""
    return key.unit <= query.unit


def skip_causal(query: Part, key: Part) -> bool:
    """Clean copies are frame-causal; a masked copy sees the clean units before its own, and itself. Nobody else sees a masked copy."""
    if key.copy:
        return (query.unit, query.copy) == (key.unit, key.copy)
    return key.unit < query.unit + (query.copy == 0)


@dataclass(frozen=True)
class Visibility:
    """A rule applied to a sequence of parts."""

    rule: Rule
    parts: tuple[Part, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First token of every part, and the sequence's length at the end."""
        starts = [0]
        for part in self.parts:
            starts.append(starts[-1] + part.tokens)
        return tuple(starts)

    def seen(self, query: int) -> list[int]:
        """Places of the parts that the part at place `query` sees."""
        return [place for place, part in enumerate(self.parts) if self.rule(self.parts[query], part)]

    @cached_property
    def clean(self) -> list[int]:
        """Places of the clean parts: laid end to end, what any part sees of them is one run under either rule."""
        return [place for place, part in enumerate(self.parts) if not part.copy]

    @cached_property
    def chunks(self) -> list[tuple[list[tuple[int, int]], list[int]]]:
        """What each part sees: token ranges of the clean parts laid end to end, neighbours merged, and places of masked parts."""
        starts = accumulate((self.parts[place].tokens for place in self.clean), initial=0)
        start_of = dict(zip(self.clean, starts, strict=False))
        chunks = []
        for query in range(len(self.parts)):
            runs: list[tuple[int, int]] = []
            for place in self.seen(query):
                if place in start_of:
                    start, stop = start_of[place], start_of[place] + self.parts[place].tokens
                    runs.append((runs.pop()[0] if runs and runs[-1][1] == start else start, stop))
            chunks.append((runs, [place for place in self.seen(query) if place not in start_of]))
        return chunks

    def part_of_token(self, device: torch.device | None = None) -> Tensor:
        """[L]: the place of the part that each token belongs to."""
        sizes = torch.tensor([part.tokens for part in self.parts], device=device)
        return torch.arange(len(self.parts), device=device).repeat_interleave(sizes)

    def part_mask(self, device: torch.device | None = None) -> Tensor:
        """[P, P] bool, True where the query part (row) sees the key part (column)."""
        seen = [[self.rule(query, key) for key in self.parts] for query in self.parts]
        return torch.tensor(seen, device=device)

    def dense(self, device: torch.device | None = None) -> Tensor:
        """[L, L] bool, True where the query (row) sees the key (column)."""
        part = self.part_of_token(device)
        return self.part_mask(device)[part][:, part]

    def pairs(self) -> int:
        """Visible (query, key) token pairs: what attention has to compute."""
        return sum(part.tokens * sum(self.parts[key].tokens for key in self.seen(place)) for place, part in enumerate(self.parts))
