"""Ancestral sampling: with the best possible network it draws from the data; guidance, temperature and generators do what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from model.heads import Head, ddpm
from model.heads.ddpm import DDPMHead, Posterior, respaced

from .conftest import CONFIG, stand_in
from .test_ddpm import TOKENS, alpha_bars, conditioned, make_head, normal, swap

MEAN, STD = 1.5, 0.4  # of the one-dimensional data that the oracle knows


@pytest.fixture
def head() -> DDPMHead:
    return make_head()


def oracle(head: DDPMHead, steps: int, exact_variance: bool) -> Callable[..., Tensor]:
    """The best network for data N(MEAN, STD^2): E[eps | x_t], and the posterior's variance or the reverse step's exact one."""
    kept, betas = respaced(head.betas, steps)
    bars = alpha_bars(betas)
    step_of = {int(t): step for step, t in enumerate(kept)}

    def forward(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        step = step_of[int(t[0])]
        bar = bars[step + 1]
        marginal = bar * STD**2 + 1 - bar
        eps = math.sqrt(1 - bar) * (x - math.sqrt(bar) * MEAN) / marginal
        fraction = 0.0
        if exact_variance and step:
            smallest, largest = conditioned(betas, step, 0.0, 0.0)[1], float(betas[step])
            unsure = STD**2 * (1 - bar) / marginal  # variance of x_0 given x_t
            wanted = smallest + conditioned(betas, step, 1.0, 0.0)[0] ** 2 * unsure
            fraction = math.log(wanted / smallest) / math.log(largest / smallest)
        return torch.cat([eps, torch.full_like(x, 2 * fraction - 1)], dim=-1)

    return forward


def oracle_samples(monkeypatch: pytest.MonkeyPatch, steps: int, exact_variance: bool, count: int) -> Tensor:
    head = make_head(latent_channels=1)
    stand_in(head.network, oracle(head, steps, exact_variance))
    return head.sample(torch.zeros(count, CONFIG.width, dtype=torch.float64), None, 1.0, steps, 1.0, [np.random.default_rng(3)])


def assert_samples_are_the_datas(samples: Tensor) -> None:
    """Mean and std within four standard errors."""
    count = len(samples)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(count))
    assert float(samples.std()) == pytest.approx(STD, abs=4 * STD / math.sqrt(2 * count))


@pytest.mark.parametrize(("steps", "exact_variance", "count"), [(1000, False, 4000), (100, True, 20_000), (10, True, 20_000)])
def test_ancestral_sampling_with_the_best_network_draws_from_the_data(
    monkeypatch: pytest.MonkeyPatch, steps: int, exact_variance: bool, count: int
) -> None:
    assert_samples_are_the_datas(oracle_samples(monkeypatch, steps, exact_variance, count))


def draw(head: Head, seeds: Sequence[int] = (0, 1), null: Tensor | None = None, guidance: float = 1.0) -> Tensor:
    hidden = normal(TOKENS, CONFIG.width, seed=8)
    return head.sample(hidden, null, guidance, 12, 1.0, [np.random.default_rng(seed) for seed in seeds])


def test_guidance_of_one_is_no_guidance(head: DDPMHead) -> None:
    null = normal(TOKENS, CONFIG.width, seed=9)
    torch.testing.assert_close(draw(head, null=null, guidance=1.0), draw(head), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(draw(head, null=null, guidance=2.0), draw(head), rtol=1e-3)


def test_guidance_extrapolates_eps_from_the_null_branch(head: DDPMHead, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(own: float, null: float) -> Callable[..., Tensor]:
        def forward(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            is_null = (torch.arange(len(x)) >= TOKENS)[:, None].expand_as(x).to(x.dtype)
            return torch.cat([own + (null - own) * is_null, is_null], dim=-1)  # the null branch's variance must not matter

        return forward

    stand_in(head.network, said(0.3, 0.1))
    guided = draw(head, null=normal(TOKENS, CONFIG.width), guidance=2.5)
    stand_in(head.network, said(0.1 + 2.5 * (0.3 - 0.1), 0.0))
    torch.testing.assert_close(guided, draw(head))


class Noise:
    """Stands in for a generator: the starting noise of one seed, the injected noise of another."""

    def __init__(self, start: int, rest: int) -> None:
        self.start, self.rest = start, rest

    def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        noise = np.random.default_rng(self.rest).standard_normal(shape, dtype=dtype)
        noise[0] = np.random.default_rng(self.start).standard_normal(shape[1:], dtype=dtype)
        return noise


def test_temperature_zero_leaves_the_starting_noise_as_the_only_chance(head: DDPMHead) -> None:
    def sample(start: int, rest: int, temperature: float) -> Tensor:
        return head.sample(normal(TOKENS, CONFIG.width), None, 1.0, 12, temperature, [Noise(start, rest)])  # type: ignore[list-item]

    assert torch.equal(sample(0, 1, 0.0), sample(0, 2, 0.0))
    assert not torch.allclose(sample(0, 1, 1.0), sample(0, 2, 1.0))
    assert not torch.allclose(sample(0, 1, 0.0), sample(3, 1, 0.0))


def test_a_samples_rows_depend_on_its_own_generator_alone(head: DDPMHead) -> None:
    half = TOKENS // 2
    one, other = draw(head, seeds=(0, 1)), draw(head, seeds=(0, 2))
    torch.testing.assert_close(one[:half], other[:half], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(one[half:], other[half:]).any()


def test_a_swapped_posterior_would_be_noticed_in_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    swap(Posterior, monkeypatch)
    with pytest.raises(AssertionError):
        assert_samples_are_the_datas(oracle_samples(monkeypatch, 100, True, 1000))


def test_an_unscaled_injected_noise_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ddpm.reverse
    monkeypatch.setattr(ddpm, "reverse", lambda *arguments: (right(*arguments)[0], 2 * right(*arguments)[1]))  # std^2 for std
    with pytest.raises(AssertionError):
        assert_samples_are_the_datas(oracle_samples(monkeypatch, 100, True, 1000))
