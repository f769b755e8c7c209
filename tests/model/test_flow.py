"""The flow head against the exact transport of a Gaussian: its loss, its times, its two solvers, guidance, temperature, generators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.heads.flow import FlowHead
from model.sampling import SamplingConfig, generate
from model.supervision import TrainingBatch
from model.videomar import VideoMAR

from .conftest import CONFIG, stand_in
from .test_ddpm import CHANNELS, REPEATS, TOKENS, normal
from .test_ddpm_sampling import MEAN, STD, assert_samples_are_the_datas, draw

MakeBatch = Callable[..., TrainingBatch]
SOLVERS = ("euler", "heun")
CONFIGS = [replace(CONFIG, head="flow", flow_solver=solver) for solver in SOLVERS]


def make_head(**changes: Any) -> FlowHead:
    torch.manual_seed(0)
    return FlowHead(replace(CONFIG, head="flow", **changes)).double()


@pytest.fixture(params=SOLVERS)
def head(request: pytest.FixtureRequest) -> FlowHead:
    return make_head(flow_solver=request.param)


def draws(head: FlowHead, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(times [M, R], noise [M, R, C]) as training gives them to the loss."""
    times, noise = head.draw(np.random.default_rng(seed), TOKENS)
    return torch.from_numpy(times), torch.from_numpy(noise)


def of_gaussian(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """E[noise - x_0 | x_t] for data N(MEAN, STD^2); following it carries noise z to MEAN + STD z."""
    at = t.double()[..., None] / 1000
    covariance, variance = at - (1 - at) * STD**2, at**2 + (1 - at) ** 2 * STD**2
    return covariance / variance * (x - (1 - at) * MEAN) - MEAN


def transported(solver: str, steps: int, count: int, temperature: float = 1.0, seed: int = 3) -> Tensor:
    """Samples [count, 1] along the velocity of the Gaussian."""
    head = make_head(latent_channels=1, flow_solver=solver)
    stand_in(head.network, of_gaussian)
    hidden = torch.zeros(count, CONFIG.width, dtype=torch.float64)
    return head.sample(hidden, None, 1.0, steps, temperature, [np.random.default_rng(seed)])


def worst_error(solver: str, steps: int) -> float:
    """Largest distance of 500 samples from where their noise belongs."""
    noise = torch.from_numpy(np.random.default_rng(3).standard_normal((500, 1), dtype=np.float32)).double()
    return float((transported(solver, steps, 500) - (MEAN + STD * noise)).abs().max())


def assert_times_are_logit_normal(times: np.ndarray) -> None:
    """The share of times below a quantile, within four standard errors."""
    for share in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98):
        quantile = 1 / (1 + math.exp(-NormalDist().inv_cdf(share)))
        assert (times < quantile).mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / times.size))


def test_the_loss_is_zero_for_the_velocity_that_leads_to_the_latent(head: FlowHead, monkeypatch: pytest.MonkeyPatch) -> None:
    x0 = normal(TOKENS, CHANNELS, seed=1)
    stand_in(head.network, lambda x, t, condition: (x - x0[:, None]) / (t[..., None] / 1000))
    loss = head.loss(normal(TOKENS, CONFIG.width), x0, draws(head))
    assert loss.shape == (TOKENS,)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-20)


def assert_loss_is_the_formula(head: FlowHead, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token, for a network that is linear in latent, time and condition."""
    x0, hidden, (times, noise) = normal(TOKENS, CHANNELS, seed=1), normal(TOKENS, CONFIG.width, seed=2), draws(head)
    stand_in(head.network, lambda x, t, condition: 0.7 * x + 0.003 * t[..., None] + condition[..., :CHANNELS])
    loss = head.loss(hidden, x0, (times, noise)).detach()
    for token in range(TOKENS):
        condition = (head.network.condition.weight @ hidden[token] + head.network.condition.bias).detach()
        squares = []
        for repeat, channel in np.ndindex(REPEATS, CHANNELS):
            t, z, latent = float(times[token, repeat]), float(noise[token, repeat, channel]), float(x0[token, channel])
            said = 0.7 * (latent + t * (z - latent)) + 3 * t + float(condition[channel])
            squares.append((said - z + latent) ** 2)
        assert float(loss[token]) == pytest.approx(math.fsum(squares) / len(squares), rel=1e-12)


def test_the_loss_is_the_squared_error_of_the_velocity(head: FlowHead, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_loss_is_the_formula(head, monkeypatch)


def test_the_loss_of_a_token_depends_on_that_token_alone(head: FlowHead) -> None:
    x0, hidden, (times, noise), rows = normal(TOKENS, CHANNELS), normal(TOKENS, CONFIG.width, seed=1), draws(head), [4, 1]
    torch.testing.assert_close(head.loss(hidden, x0, (times, noise))[rows], head.loss(hidden[rows], x0[rows], (times[rows], noise[rows])))


def test_times_are_logit_normal_and_noise_is_normal() -> None:
    times, noise = make_head().draw(np.random.default_rng(0), 20_000)
    assert (times.shape, noise.shape) == ((20_000, REPEATS), (20_000, REPEATS, CHANNELS))
    assert ((times > 0) & (times < 1)).all()
    assert_times_are_logit_normal(times)
    assert noise.mean() == pytest.approx(0, abs=4 / math.sqrt(noise.size))
    assert noise.std() == pytest.approx(1, abs=4 / math.sqrt(2 * noise.size))


@pytest.mark.parametrize(("solver", "steps"), [("euler", 400), ("heun", 40)])
def test_the_velocity_of_a_gaussian_carries_noise_to_it(solver: str, steps: int) -> None:
    assert_samples_are_the_datas(transported(solver, steps, 20_000))


def test_twice_the_steps_halve_eulers_error_and_quarter_heuns() -> None:
    errors = {solver: [worst_error(solver, steps) for steps in (20, 40, 80, 160)] for solver in SOLVERS}
    orders = {solver: -np.diff(np.log2(values)) for solver, values in errors.items()}
    assert orders["euler"] == pytest.approx([1, 1, 1], abs=0.1)
    assert orders["heun"] == pytest.approx([2, 2, 2], abs=0.1)
    assert errors["heun"][0] < errors["euler"][1]  # 39 evaluations against 40


@pytest.mark.parametrize(("solver", "times"), [("euler", [1000, 750, 500, 250]), ("heun", [1000, 750, 750, 500, 500, 250, 250])])
def test_the_velocity_is_asked_at_equal_steps_and_never_at_time_zero(
    solver: str, times: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, asked = make_head(flow_solver=solver), []

    def forward(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        asked.append(t)
        return x

    stand_in(head.network, forward)
    head.sample(normal(TOKENS, CONFIG.width), None, 1.0, 4, 1.0, [np.random.default_rng(0)])
    assert [float(t[0]) for t in asked] == pytest.approx(times)
    assert all((t == t[0]).all() for t in asked)


@pytest.mark.parametrize("solver", SOLVERS)
def test_temperature_scales_the_spread_and_zero_leaves_nothing_to_chance(solver: str) -> None:
    whole, half, still = (transported(solver, 50, 200, temperature) for temperature in (1.0, 0.5, 0.0))
    assert torch.equal(still, still[:1].expand_as(still))
    assert float(still[0]) == pytest.approx(MEAN, abs=0.01)
    torch.testing.assert_close(half - still, (whole - still) / 2, rtol=1e-9, atol=1e-9)


def test_at_temperature_zero_every_noise_gives_the_same_sample(head: FlowHead) -> None:
    def sample(seed: int, temperature: float) -> Tensor:
        return head.sample(normal(TOKENS, CONFIG.width), None, 1.0, 5, temperature, [np.random.default_rng(seed)])

    assert torch.equal(sample(0, 0.0), sample(1, 0.0))
    assert not torch.isclose(sample(0, 0.5), sample(1, 0.5)).any()


def test_a_smaller_temperature_spreads_less(head: FlowHead) -> None:
    hidden = normal(1, CONFIG.width).repeat(300, 1)
    spreads = [head.sample(hidden, None, 1.0, 5, heat, [np.random.default_rng(0)]).std(dim=0) for heat in (0.0, 0.3, 0.6, 1.0)]
    assert all((less < more).all() for less, more in pairwise(spreads))


def test_guidance_of_one_is_no_guidance(head: FlowHead) -> None:
    null = normal(TOKENS, CONFIG.width, seed=9)
    torch.testing.assert_close(draw(head, null=null, guidance=1.0), draw(head), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(draw(head, null=null, guidance=2.0), draw(head), rtol=1e-3)


def test_guidance_extrapolates_the_velocity_from_the_null_branch(head: FlowHead, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(own: float, null: float) -> Callable[..., Tensor]:
        return lambda x, t, condition: x + null + (own - null) * (torch.arange(len(x)) < TOKENS).to(x.dtype)[:, None]

    stand_in(head.network, said(0.3, 0.1))
    guided = draw(head, null=normal(TOKENS, CONFIG.width), guidance=2.5)
    stand_in(head.network, said(0.1 + 2.5 * (0.3 - 0.1), 0.0))
    torch.testing.assert_close(guided, draw(head))


def test_a_samples_rows_depend_on_its_own_generator_alone(head: FlowHead) -> None:
    half = TOKENS // 2
    one, other = draw(head, seeds=(0, 1)), draw(head, seeds=(0, 2))
    torch.testing.assert_close(one[:half], other[:half], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(one[half:], other[half:]).any()


def generated(model: VideoMAR, batch: TrainingBatch, rows: slice, config: SamplingConfig) -> Tensor:
    """Videos [B, 4, 2, 3, C] that continue one given frame."""
    given = normal(3, 1, 2, 3, CHANNELS, seed=2)
    rngs = [np.random.default_rng(row) for row in range(3)][rows]
    return generate(model, given[rows], batch.text[rows], batch.text_length[rows], 4, config, rngs)


@pytest.mark.parametrize("config", CONFIGS)
def test_videos_are_generated_with_a_flow_head(model: VideoMAR, make_batch: MakeBatch) -> None:
    batch, sampling = make_batch(), SamplingConfig(iterations=3, head_steps=4, guidance=2.0)
    video = generated(model, batch, slice(0, 3), sampling)
    assert video.shape == (3, 4, 2, 3, CHANNELS)
    assert torch.equal(video[:, :1], normal(3, 1, 2, 3, CHANNELS, seed=2))
    assert video.isfinite().all()
    assert torch.equal(video, generated(model, batch, slice(0, 3), sampling))
    torch.testing.assert_close(generated(model, batch, slice(1, 2), sampling), video[1:2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("config", CONFIGS)
def test_generated_tokens_are_draws_of_the_flow(model: VideoMAR, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(model.get_submodule("head.network"), of_gaussian)
    sampling = SamplingConfig(iterations=3, head_steps=100, guidance=2.0, temperature=1.0)
    assert_samples_are_the_datas(generated(model, make_batch(), slice(0, 3), sampling)[:, 1:].flatten())


@pytest.mark.parametrize("config", CONFIGS)
def test_the_training_forward_reaches_every_parameter_of_a_flow_head(model: VideoMAR, make_batch: MakeBatch, config: ModelConfig) -> None:
    model(make_batch()).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_uniform_times_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        assert_times_are_logit_normal(np.random.default_rng(0).random((20_000, REPEATS)))


def test_a_path_from_latent_to_noise_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FlowHead.loss
    monkeypatch.setattr(FlowHead, "loss", lambda self, hidden, x0, draws: right(self, hidden, x0, (1 - draws[0], draws[1])))
    with pytest.raises(AssertionError):
        assert_loss_is_the_formula(make_head(), monkeypatch)


@pytest.mark.parametrize("solver", SOLVERS)
def test_times_on_another_scale_would_be_noticed_in_the_samples(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.heads.flow.TIME_SCALE", 900.0)
    with pytest.raises(AssertionError):
        assert_samples_are_the_datas(transported(solver, 100, 1000))
