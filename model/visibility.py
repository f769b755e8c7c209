"""Who attends to whom: one predicate per rule over frame numbers, and its two materialisations (dense mask, chunks of whole frames)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rule = Callable[[int, int], bool]


def frame_causal(query_frame: int, key_frame: int) -> bool:
    """Temporal causality, spatial bidirectionality: a token sees every token of its own and of earlier frames."""
    return key_frame <= query_frame


@dataclass(frozen=True)
class Visibility:
    """A rule applied to a sequence of whole frames of `tokens` tokens each; `frames` numbers the frames in sequence order."""

    rule: Rule
    frames: tuple[int, ...]
    tokens: int

    def seen(self, query: int) -> tuple[int, ...]:
        """Places in the sequence of the frames that the frame at place `query` sees."""
        return tuple(place for place, frame in enumerate(self.frames) if self.rule(self.frames[query], frame))

    def chunks(self) -> list[tuple[slice, list[slice]]]:
        """Per query frame its token range and the token ranges it sees, neighbours merged: all the work there is, and no more."""
        chunks = []
        for place in range(len(self.frames)):
            ranges: list[slice] = []
            for key in self.seen(place):
                if ranges and ranges[-1].stop == key * self.tokens:
                    ranges[-1] = slice(ranges[-1].start, (key + 1) * self.tokens)
                else:
                    ranges.append(slice(key * self.tokens, (key + 1) * self.tokens))
            chunks.append((slice(place * self.tokens, (place + 1) * self.tokens), ranges))
        return chunks

    def dense(self, device: torch.device | None = None) -> Tensor:
        """[L, L] bool, True where the query (row) sees the key (column)."""
        seen = [[self.rule(query, key) for key in self.frames] for query in self.frames]
        block = torch.tensor(seen, device=device)
        return block.repeat_interleave(self.tokens, 0).repeat_interleave(self.tokens, 1)

    def pairs(self) -> int:
        """Visible (query, key) token pairs: what attention has to compute."""
        return sum(len(self.seen(place)) for place in range(len(self.frames))) * self.tokens**2
