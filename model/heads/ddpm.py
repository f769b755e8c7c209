"""The paper's head: a small adaLN MLP that denoises one token's latent (MAR 2406.11838 section 3.3; DDPM with learned variance 2102.09672).

1000-step cosine schedule, eps prediction, learned variance trained by the variational term, respaced ancestral sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.heads import row_noise
from model.heads.network import GuidedSteps, HeadNetwork


def cosine_betas(steps: int) -> np.ndarray:
    """betas [steps] (float64) of the cosine schedule, each at most 0.999 (2102.09672 equation 17)."""
    alpha_bar = np.cos((np.linspace(0.0, 1.0, steps + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def respaced(betas: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept timesteps [steps], their betas): `steps` evenly spaced steps of the schedule, with the products of alpha kept."""
    kept = np.round(np.linspace(0, len(betas) - 1, steps)).astype(np.int64)
    alpha_bar = np.cumprod(1.0 - betas)[kept]
    return kept, 1.0 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


class Coefficients(NamedTuple):
    """Of q(x_{t-1} | x_t, x_0) and of the reparameterised x_t at one time (floats) or at many (tensors that broadcast over channels)."""

    signal: Any  # x_t = signal x_0 + noise eps
    noise: Any
    from_x0: Any  # the posterior's mean = from_x0 x_0 + from_xt x_t
    from_xt: Any
    log_smallest: Any  # logarithms of the bounds of the variance: the posterior's, and beta
    log_largest: Any


class Posterior:
    """The coefficients of one beta schedule."""

    def __init__(self, betas: np.ndarray) -> None:
        alpha_bar = np.cumprod(1.0 - betas)
        previous = np.concatenate([[1.0], alpha_bar[:-1]])
        variance = betas * (1.0 - previous) / (1.0 - alpha_bar)
        self.table = Coefficients(
            signal=np.sqrt(alpha_bar),
            noise=np.sqrt(1.0 - alpha_bar),
            from_x0=betas * np.sqrt(previous) / (1.0 - alpha_bar),
            from_xt=(1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alpha_bar),
            # The first step has variance 0; its logarithm is replaced by the second's, as in 2102.09672.
            log_smallest=np.log(np.append(variance[1], variance[1:])) if len(betas) > 1 else np.log(betas),
            log_largest=np.log(betas),
        )
        self.tensors: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def step(self, step: int) -> Coefficients:
        """At one step, as floats."""
        return Coefficients(*(float(column[step]) for column in self.table))

    def at(self, t: Tensor, like: Tensor) -> Coefficients:
        """At integer times t [...], each [..., 1]."""
        key = (like.dtype, like.device)
        if key not in self.tensors:  # copied to the device once: a copy per call would make the device wait for the host
            self.tensors[key] = torch.as_tensor(np.stack(self.table), dtype=like.dtype, device=like.device)
        return Coefficients(*self.tensors[key][:, t][..., None])


class DDPMHead(nn.Module):
    """p(latent | trunk output) as a diffusion over C channels; predicts eps and the interpolation between the variance bounds."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.channels, self.repeats = config.latent_channels, config.head_repeats
        self.emits_v = config.head_output == "v"
        self.betas = cosine_betas(config.diffusion_steps)
        self.posterior = Posterior(self.betas)
        self.network = HeadNetwork(config, 2 * config.latent_channels)

    def zero_init(self) -> None:
        self.network.zero_init()

    def eps_and_variance(self, output: Tensor, xt: Tensor, at: Coefficients) -> tuple[Tensor, Tensor]:
        """(eps, variance interpolation), each like x_t, from the network's output.

        A network that emits v = alpha eps - sigma x0 gives eps = sigma x_t + alpha v: near t = T, where x0 follows from eps
        divided by an alpha of almost nothing, its errors are not magnified. A head trained for minutes needs that.
        """
        predicted, variance = output.chunk(2, dim=-1)
        return (at.noise * xt + at.signal * predicted if self.emits_v else predicted), variance

    def draw(self, rng: np.random.Generator, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        times = rng.integers(0, len(self.betas), (tokens, self.repeats))
        return times, rng.standard_normal((tokens, self.repeats, self.channels), dtype=np.float32)

    def loss(self, hidden_MD: Tensor, latents_MC: Tensor, draws: tuple[Tensor, Tensor]) -> Tensor:
        t, noise = draws
        x0, noise = latents_MC[:, None], noise.to(latents_MC.dtype)
        at = self.posterior.at(t, x0)
        xt = at.signal * x0 + at.noise * noise
        features, condition = self.network.time_features(t, xt.dtype), self.network.condition(hidden_MD)[:, None]
        output = self.network(xt, self.network.modulations(features, condition))
        eps, variance = self.eps_and_variance(output, xt, at)
        return ((eps - noise).square() + self.variational_term(eps.detach(), variance, x0, xt, t)).mean(dim=(1, 2))

    def variational_term(self, eps: Tensor, variance: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """KL(q(x_{t-1} | x_t, x_0) || p) in bits per channel, a Gaussian likelihood in bins of 2/255 at t = 0; eps gets no gradient."""
        at = self.posterior.at(t, x0)
        true_mean = at.from_x0 * x0 + at.from_xt * xt
        mean, log_variance = reverse(at, eps, variance, xt)
        kl = 0.5 * (
            log_variance
            - at.log_smallest
            - 1
            + torch.exp(at.log_smallest - log_variance)
            + (true_mean - mean).square() * torch.exp(-log_variance)
        )
        nll = -discretised_log_likelihood(x0.expand_as(mean), mean, 0.5 * log_variance)
        return torch.where((t == 0)[..., None], nll, kl) / math.log(2.0)

    def sample(
        self,
        hidden_MD: Tensor,
        null_MD: Tensor | None,
        guidance: float,
        steps: int,
        temperature: float,
        rngs: Sequence[np.random.Generator],
    ) -> Tensor:
        """Ancestral sampling over `steps` respaced steps.

        Guidance extrapolates eps from the null branch, temperature scales the injected noise.
        """
        kept, posterior = shortened(len(self.betas), steps)
        noise = row_noise(rngs, steps + 1, hidden_MD, self.channels)
        conditions = self.network.condition(hidden_MD if null_MD is None else torch.cat([hidden_MD, null_MD]))
        features = self.network.time_features(torch.as_tensor(kept, device=hidden_MD.device), hidden_MD.dtype)
        guided = GuidedSteps(self.network, features, conditions, guidance)
        x = noise[0]
        for step in reversed(range(steps)):
            at = posterior.step(step)
            eps, variance = self.eps_and_variance(guided(x, step), x, at)
            mean, log_variance = reverse(at, eps, variance, x)
            x = mean + torch.exp(0.5 * log_variance) * noise[1 + step] * temperature if step else mean
        return x


@lru_cache(maxsize=16)
def shortened(schedule: int, steps: int) -> tuple[np.ndarray, Posterior]:
    """Kept timesteps of a cosine schedule of `schedule` steps, and their posterior, for sampling in `steps`."""
    kept, betas = respaced(cosine_betas(schedule), steps)
    return kept, Posterior(betas)


def reverse(at: Coefficients, eps: Tensor, variance: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of p(x_{t-1} | x_t): the variance lies between the posterior's and beta, in logarithms."""
    scale = at.from_x0 / at.signal  # x_0 = (x_t - noise eps) / signal
    mean = (at.from_xt + scale) * xt - (scale * at.noise) * eps
    return mean, (at.log_largest + at.log_smallest) / 2 + (at.log_largest - at.log_smallest) / 2 * variance


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of the Gaussian's mass in the bin of width 2/255 around x."""
    inverse_std, half_bin = torch.exp(-log_std), 1.0 / 255.0
    upper, lower = ((x - mean + side * half_bin) * inverse_std for side in (1.0, -1.0))
    return torch.log((normal_cdf(upper) - normal_cdf(lower)).clamp(min=1e-12))


def normal_cdf(x: Tensor) -> Tensor:
    """Distribution function of N(0, 1)."""
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
