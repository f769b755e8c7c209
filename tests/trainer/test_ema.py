"""The moving average follows the masters by one fused update, wherever they are cut."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.ema import Ema


def test_it_starts_at_the_weights_and_leaves_them_alone() -> None:
    master = torch.nn.Parameter(torch.arange(4.0))
    average = Ema([master], 0.5)
    average.update()
    assert torch.equal(average.averages[0], torch.arange(4.0))
    with torch.no_grad():
        master += 2
    average.update()
    assert torch.equal(average.averages[0], torch.arange(4.0) + 1)
    assert torch.equal(master.detach(), torch.arange(4.0) + 2)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.floats(0, 0.999), st.integers(1, 5))
def test_cut_or_whole_the_numbers_are_the_same(sizes: list[int], decay: float, steps: int) -> None:
    torch.manual_seed(0)
    whole = torch.randn(sum(sizes))
    parts = list(whole.clone().split(sizes))
    one, many = Ema([whole], decay), Ema(parts, decay)
    for step in range(steps):
        change = torch.sin(torch.arange(float(sum(sizes))) + step)
        whole += change
        for part, piece in zip(parts, change.split(sizes), strict=True):
            part += piece
        one.update()
        many.update()
    assert torch.equal(torch.cat(many.averages), one.averages[0])
