"""The diffusion head against formulas computed another way: schedule, posterior and loss, all in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model.heads import ddpm
from model.heads.ddpm import DDPMHead, Posterior, cosine_betas, discretised_log_likelihood, respaced

from .conftest import CONFIG

TOKENS, REPEATS, CHANNELS = 6, CONFIG.head_repeats, CONFIG.latent_channels
BETAS = cosine_betas(1000)


def make_head(**changes: Any) -> DDPMHead:
    torch.manual_seed(0)
    return DDPMHead(replace(CONFIG, **changes)).double()


@pytest.fixture
def head() -> DDPMHead:
    return make_head()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def alpha_bars(betas: np.ndarray) -> list[float]:
    """Products of alpha before every step, and after the last: [steps + 1]."""
    products = [1.0]
    for beta in betas:
        products.append(products[-1] * (1.0 - float(beta)))
    return products


def conditioned(betas: np.ndarray, t: int, x0: float, xt: float) -> tuple[float, float]:
    """(mean, variance) of x_{t-1} given x_t and x_0: the joint Gaussian of both given x_0, conditioned on x_t."""
    before, beta = alpha_bars(betas)[t], float(betas[t])
    # x_{t-1} and x_t are linear in two independent unit normals.
    mixing = np.array([[math.sqrt(1 - before), 0.0], [math.sqrt((1 - beta) * (1 - before)), math.sqrt(beta)]])
    mean = math.sqrt(before) * x0 * np.array([1.0, math.sqrt(1 - beta)])
    joint = mixing @ mixing.T
    gain = joint[0, 1] / joint[1, 1]
    return mean[0] + gain * (xt - mean[1]), joint[0, 0] - gain * joint[0, 1]


def assert_posterior_is_right(betas: np.ndarray) -> None:
    posterior, x0, xt = Posterior(betas), 0.7, -1.3
    for t in range(len(betas)):
        mean, variance = conditioned(betas, t, x0, xt)
        at = posterior.step(t)
        assert at.from_x0 * x0 + at.from_xt * xt == pytest.approx(mean, rel=1e-8, abs=1e-12)
        if t > 0:
            assert math.exp(at.log_smallest) == pytest.approx(variance, rel=1e-8)


def kl_of_normals(mean: float, variance: float, other_mean: float, other_variance: float) -> float:
    """KL in nats, by torch.distributions."""
    own, other = (
        torch.distributions.Normal(torch.tensor(m, dtype=torch.float64), math.sqrt(v))
        for m, v in ((mean, variance), (other_mean, other_variance))
    )
    return float(torch.distributions.kl_divergence(own, other))


def assert_variational_term_is_right(head: DDPMHead, t: int) -> None:
    """One token, one repeat: KL in bits of the brute-force posterior from p, whose x_0 comes from eps."""
    x0, xt, eps, variance = (normal(1, 1, CHANNELS, seed=seed) for seed in range(4))
    bits = head.variational_term(eps, variance, x0, xt, torch.tensor([[t]]))[0, 0]
    bar = alpha_bars(head.betas)[t + 1]
    smallest = conditioned(head.betas, t, 0.0, 0.0)[1]
    for channel in range(CHANNELS):
        x, y, e, v = (float(part[0, 0, channel]) for part in (x0, xt, eps, variance))
        mean, _ = conditioned(head.betas, t, x, y)
        guess, _ = conditioned(head.betas, t, (y - math.sqrt(1 - bar) * e) / math.sqrt(bar), y)
        between = math.exp((v + 1) / 2 * math.log(head.betas[t]) + (1 - v) / 2 * math.log(smallest))
        assert float(bits[channel]) == pytest.approx(kl_of_normals(mean, smallest, guess, between) / math.log(2), rel=1e-7)


def noised(head: DDPMHead, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_0, true noise, x_t, times) of a batch [M, R, C] at one time."""
    x0, noise = normal(TOKENS, REPEATS, CHANNELS, seed=1), normal(TOKENS, REPEATS, CHANNELS, seed=2)
    bar = alpha_bars(head.betas)[t + 1]
    return x0, noise, math.sqrt(bar) * x0 + math.sqrt(1 - bar) * noise, torch.full((TOKENS, REPEATS), t)


class Emits(nn.Module):
    """A last layer that says the same whatever it is asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, h: Tensor) -> Tensor:
        return self.output


@pytest.mark.parametrize("steps", [4, 1000])
def test_the_cosine_schedule_is_equation_17(steps: int) -> None:
    def f(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [min(1 - (f(t) / f(0)) / (f(t - 1) / f(0)), 0.999) for t in range(1, steps + 1)]
    np.testing.assert_allclose(cosine_betas(steps), expected, rtol=1e-10)
    assert cosine_betas(steps)[-1] == 0.999


def test_keeping_all_steps_is_the_schedule_itself() -> None:
    kept, betas = respaced(BETAS, 1000)
    assert kept.tolist() == list(range(1000))
    np.testing.assert_allclose(betas, BETAS, rtol=1e-9)


@given(st.integers(2, 1000))
def test_respacing_keeps_the_products_of_alpha_and_both_ends(steps: int) -> None:
    kept, betas = respaced(BETAS, steps)
    assert (kept[0], kept[-1]) == (0, 999)
    assert (np.diff(kept) > 0).all()
    np.testing.assert_allclose(np.cumprod(1 - betas), np.cumprod(1 - BETAS)[kept], rtol=1e-9, atol=1e-15)
    assert ((betas > 0) & (betas < 1)).all()


@pytest.mark.parametrize("steps", [2, 10, 1000])
def test_the_posterior_is_the_joint_gaussian_conditioned(steps: int) -> None:
    assert_posterior_is_right(respaced(BETAS, steps)[1])


def test_the_first_step_borrows_the_variance_of_the_second() -> None:
    posterior = Posterior(BETAS).table
    assert posterior.log_smallest[0] == posterior.log_smallest[1]
    np.testing.assert_allclose(posterior.log_largest, np.log(BETAS))
    np.testing.assert_allclose(posterior.signal**2 + posterior.noise**2, 1.0)


@pytest.mark.parametrize("t", [1, 3, 500, 998, 999])
def test_the_variational_term_is_zero_for_the_true_noise_and_the_posteriors_variance(head: DDPMHead, t: int) -> None:
    x0, noise, xt, times = noised(head, t)
    term = head.variational_term(noise, torch.full_like(x0, -1.0), x0, xt, times)
    torch.testing.assert_close(term, torch.zeros_like(term), rtol=0, atol=1e-9)


@pytest.mark.parametrize("t", [1, 3, 500])
def test_the_variational_term_grows_with_the_error_of_noise_and_of_variance(head: DDPMHead, t: int) -> None:
    x0, noise, xt, times = noised(head, t)
    by_noise = [head.variational_term(noise + error, torch.full_like(x0, -1.0), x0, xt, times).mean() for error in (0.0, 0.1, 0.2, 0.4)]
    by_variance = [head.variational_term(noise, torch.full_like(x0, output), x0, xt, times).mean() for output in (-1.0, -0.5, 0.0, 1.0)]
    too_small = head.variational_term(noise, torch.full_like(x0, -1.5), x0, xt, times).mean()
    assert by_noise == sorted(by_noise)
    assert by_variance == sorted(by_variance)
    assert min(by_noise[1], by_variance[1], too_small) > 0


@pytest.mark.parametrize("t", [1, 2, 40, 500, 900])
def test_the_variational_term_is_the_kl_of_two_gaussians_in_bits(head: DDPMHead, t: int) -> None:
    assert_variational_term_is_right(head, t)


def test_the_first_step_is_scored_by_the_mass_of_the_bin_around_the_latent(head: DDPMHead) -> None:
    x0, noise, xt, times = noised(head, 0)
    eps, variance = noise + 0.3 * normal(*x0.shape, seed=5), normal(*x0.shape, seed=6)
    bits = head.variational_term(eps, variance, x0, xt, times)
    bar, second = 1 - float(head.betas[0]), conditioned(head.betas, 1, 0.0, 0.0)[1]
    for place in np.ndindex(*x0.shape):
        mean = (float(xt[place]) - math.sqrt(1 - bar) * float(eps[place])) / math.sqrt(bar)
        fraction = (float(variance[place]) + 1) / 2
        std = math.exp(0.5 * (fraction * math.log(head.betas[0]) + (1 - fraction) * math.log(second)))
        upper, lower = (math.erf((float(x0[place]) - mean + side / 255) / (std * math.sqrt(2))) for side in (1, -1))
        assert float(bits[place]) == pytest.approx(-math.log2((upper - lower) / 2), rel=1e-6)


def test_the_masses_of_all_bins_sum_to_one() -> None:
    bins = torch.arange(-2000, 2001, dtype=torch.float64) * (2 / 255)
    total = discretised_log_likelihood(bins, torch.tensor(0.2), torch.tensor(math.log(0.5))).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("t", [0, 7, 500, 990])
def test_heads_that_emit_eps_and_v_have_the_same_loss(t: int) -> None:
    heads = {output: make_head(head_output=output) for output in ("eps", "v")}
    x0, hidden = normal(TOKENS, CHANNELS, seed=1), normal(TOKENS, CONFIG.width, seed=9)
    noise, eps, variance = (normal(TOKENS, REPEATS, CHANNELS, seed=seed) for seed in (2, 3, 4))
    bar = alpha_bars(BETAS)[t + 1]
    xt = math.sqrt(bar) * x0[:, None] + math.sqrt(1 - bar) * noise
    said = {"eps": eps, "v": (eps - math.sqrt(1 - bar) * xt) / math.sqrt(bar)}
    losses = {}
    for output, head in heads.items():
        head.network.final = Emits(torch.cat([said[output], variance], dim=-1))  # type: ignore[assignment]
        losses[output] = head.loss(hidden, x0, (torch.full((TOKENS, REPEATS), t), noise))
    assert losses["eps"].shape == (TOKENS,)
    torch.testing.assert_close(losses["eps"], losses["v"], rtol=1e-8, atol=1e-10)


def test_the_true_v_of_a_v_head_is_the_true_noise() -> None:
    head, (t, x0) = make_head(head_output="v"), (300, normal(TOKENS, CHANNELS, seed=1))
    noise, bar = normal(TOKENS, REPEATS, CHANNELS, seed=2), alpha_bars(BETAS)[301]
    v = math.sqrt(bar) * noise - math.sqrt(1 - bar) * x0[:, None]
    head.network.final = Emits(torch.cat([v, -torch.ones_like(v)], dim=-1))  # type: ignore[assignment]
    loss = head.loss(normal(TOKENS, CONFIG.width), x0, (torch.full((TOKENS, REPEATS), t), noise))
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-9)


def test_the_variational_term_sends_no_gradient_into_eps(head: DDPMHead) -> None:
    x0, noise, _, times = noised(head, 40)
    times[0] = 0
    output = normal(TOKENS, REPEATS, 2 * CHANNELS, seed=4).requires_grad_()
    head.network.final = Emits(output)  # type: ignore[assignment]
    head.loss(normal(TOKENS, CONFIG.width), x0[:, 0], (times, noise)).sum().backward()
    assert output.grad is not None
    of_eps, of_variance = output.grad.chunk(2, dim=-1)
    squared_error_alone = 2 * (output.detach()[..., :CHANNELS] - noise) / (REPEATS * CHANNELS)
    torch.testing.assert_close(of_eps, squared_error_alone)
    assert of_variance.abs().min() > 0


def test_the_loss_of_a_token_depends_on_that_token_alone(head: DDPMHead) -> None:
    x0, hidden = normal(TOKENS, CHANNELS), normal(TOKENS, CONFIG.width, seed=1)
    times, noise = map(torch.from_numpy, head.draw(np.random.default_rng(0), TOKENS))
    assert times.shape == (TOKENS, REPEATS)
    assert noise.shape == (TOKENS, REPEATS, CHANNELS)
    rows = [4, 1]
    torch.testing.assert_close(head.loss(hidden, x0, (times, noise))[rows], head.loss(hidden[rows], x0[rows], (times[rows], noise[rows])))


def swap(posterior: type[Posterior], patch: pytest.MonkeyPatch) -> None:
    """Plant a mistake: the weights of x_0 and x_t in the posterior's mean change places."""
    right = posterior.__init__

    def swapped(self: Posterior, betas: np.ndarray) -> None:
        right(self, betas)
        self.table = self.table._replace(from_x0=self.table.from_xt, from_xt=self.table.from_x0)

    patch.setattr(posterior, "__init__", swapped)
    patch.setattr(ddpm, "shortened", ddpm.shortened.__wrapped__)  # not the right ones that it remembers


def test_a_swapped_posterior_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_posterior_is_right(BETAS)
    swap(Posterior, monkeypatch)
    with pytest.raises(AssertionError):
        assert_posterior_is_right(BETAS)


def test_a_variational_term_in_nats_would_be_noticed(head: DDPMHead, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_variational_term_is_right(head, 40)
    in_nats = SimpleNamespace(**vars(math) | {"log": lambda x: 1.0 if x == 2.0 else math.log(x)})
    monkeypatch.setattr("model.heads.ddpm.math", in_nats)
    with pytest.raises(AssertionError):
        assert_variational_term_is_right(head, 40)
