"""The paper's head: a small adaLN MLP that denoises one token's latent (MAR 2406.11838 section 3.3; DDPM with learned variance 2102.09672).

1000-step cosine schedule, eps prediction, learned variance trained by the variational term, respaced ancestral sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.heads import row_noise
from model.heads.network import HeadNetwork, guided


def cosine_betas(steps: int) -> np.ndarray:
    """betas [steps] (float64) of the cosine schedule, each at most 0.999 (2102.09672 equation 17)."""
    alpha_bar = np.cos((np.linspace(0.0, 1.0, steps + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


def respaced(betas: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept timesteps [steps], their betas): `steps` evenly spaced steps of the schedule, with the products of alpha kept."""
    kept = np.round(np.linspace(0, len(betas) - 1, steps)).astype(np.int64)
    alpha_bar = np.cumprod(1.0 - betas)[kept]
    return kept, 1.0 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


class Posterior:
    """Coefficients of q(x_{t-1} | x_t, x_0) and of the reparameterised x_t for one beta schedule; each table is [steps]."""

    def __init__(self, betas: np.ndarray) -> None:
        alpha_bar = np.cumprod(1.0 - betas)
        previous = np.concatenate([[1.0], alpha_bar[:-1]])
        variance = betas * (1.0 - previous) / (1.0 - alpha_bar)
        self.signal, self.noise = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
        self.from_x0 = betas * np.sqrt(previous) / (1.0 - alpha_bar)
        self.from_xt = (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alpha_bar)
        # The first step has variance 0; its logarithm is replaced by the second's, as in 2102.09672.
        self.log_smallest = np.log(np.append(variance[1], variance[1:])) if len(betas) > 1 else np.log(betas)
        self.log_largest = np.log(betas)
        self.tensors: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def table(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Values of one coefficient at integer times t, shaped to broadcast over channels."""
        key = (name, like.dtype, like.device)
        if key not in self.tensors:  # copied to the device once: a copy per call would make the device wait for the host
            self.tensors[key] = torch.as_tensor(getattr(self, name), dtype=like.dtype, device=like.device)
        return self.tensors[key][t][..., None]


class DDPMHead(nn.Module):
    """p(latent | trunk output) as a diffusion over C channels; predicts eps and the interpolation between the variance bounds."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.channels, self.repeats = config.latent_channels, config.head_repeats
        self.emits_v = config.head_output == "v"
        self.betas = cosine_betas(config.diffusion_steps)
        self.posterior = Posterior(self.betas)
        self.respacings: dict[int, tuple[np.ndarray, Posterior]] = {}
        self.network = HeadNetwork(config, 2 * config.latent_channels)

    def zero_init(self) -> None:
        self.network.zero_init()

    def eps_and_variance(self, output: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(eps, variance interpolation), each like x_t, from the network's output at times t.

        A network that emits v = alpha eps - sigma x0 gives eps = sigma x_t + alpha v: near t = T, where x0 follows from eps
        divided by an alpha of almost nothing, its errors are not magnified. A head trained for minutes needs that.
        """
        predicted, variance = output.chunk(2, dim=-1)
        if self.emits_v:
            predicted = self.posterior.table("noise", t, xt) * xt + self.posterior.table("signal", t, xt) * predicted
        return predicted, variance

    def draw(self, rng: np.random.Generator, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        times = rng.integers(0, len(self.betas), (tokens, self.repeats))
        return times, rng.standard_normal((tokens, self.repeats, self.channels), dtype=np.float32)

    def loss(self, hidden_MD: Tensor, latents_MC: Tensor, draws: tuple[Tensor, Tensor]) -> Tensor:
        t, noise = draws
        x0, posterior = latents_MC[:, None], self.posterior
        noise = noise.to(x0.dtype)
        xt = posterior.table("signal", t, x0) * x0 + posterior.table("noise", t, x0) * noise
        output = self.network(xt, t, self.network.condition(hidden_MD)[:, None])
        eps, variance = self.eps_and_variance(output, xt, t)
        return ((eps - noise).square() + self.variational_term(eps.detach(), variance, x0, xt, t)).mean(dim=(1, 2))

    def variational_term(self, eps: Tensor, variance: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """KL(q(x_{t-1} | x_t, x_0) || p) in bits per channel, a Gaussian likelihood in bins of 2/255 at t = 0; eps gets no gradient."""
        posterior = self.posterior
        true_mean = posterior.table("from_x0", t, x0) * x0 + posterior.table("from_xt", t, x0) * xt
        true_log = posterior.table("log_smallest", t, x0)
        mean, log_variance = self.reverse(posterior, eps, variance, xt, t)
        kl = 0.5 * (
            log_variance - true_log - 1 + torch.exp(true_log - log_variance) + (true_mean - mean).square() * torch.exp(-log_variance)
        )
        nll = -discretised_log_likelihood(x0.expand_as(mean), mean, 0.5 * log_variance)
        return torch.where((t == 0)[..., None], nll, kl) / math.log(2.0)

    def reverse(self, posterior: Posterior, eps: Tensor, variance: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of p(x_{t-1} | x_t): the variance lies between the posterior's and beta, in logarithms."""
        x0 = (xt - posterior.table("noise", t, xt) * eps) / posterior.table("signal", t, xt)
        mean = posterior.table("from_x0", t, xt) * x0 + posterior.table("from_xt", t, xt) * xt
        fraction = (variance + 1) / 2
        return mean, fraction * posterior.table("log_largest", t, xt) + (1 - fraction) * posterior.table("log_smallest", t, xt)

    def shortened(self, steps: int) -> tuple[np.ndarray, Posterior]:
        """Kept timesteps and their posterior for sampling in so many steps."""
        if steps not in self.respacings:
            kept, betas = respaced(self.betas, steps)
            self.respacings[steps] = kept, Posterior(betas)
        return self.respacings[steps]

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
        kept, posterior = self.shortened(steps)
        noise = row_noise(rngs, steps + 1, hidden_MD, self.channels)
        conditions = self.network.condition(hidden_MD if null_MD is None else torch.cat([hidden_MD, null_MD]))
        x = noise[0]
        for step in reversed(range(steps)):
            t = torch.full((len(x),), int(kept[step]), device=x.device)
            eps, variance = self.eps_and_variance(guided(self.network, x, float(kept[step]), conditions, guidance), x, t)
            mean, log_variance = self.reverse(posterior, eps, variance, x, torch.full_like(t, step))
            x = mean + torch.exp(0.5 * log_variance) * noise[1 + step] * temperature if step else mean
        return x


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of the Gaussian's mass in the bin of width 2/255 around x."""
    inverse_std, half_bin = torch.exp(-log_std), 1.0 / 255.0
    upper, lower = ((x - mean + side * half_bin) * inverse_std for side in (1.0, -1.0))
    return torch.log((normal_cdf(upper) - normal_cdf(lower)).clamp(min=1e-12))


def normal_cdf(x: Tensor) -> Tensor:
    """Distribution function of N(0, 1)."""
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
