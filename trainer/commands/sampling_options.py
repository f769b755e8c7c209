"""The options that say how to sample, of the commands that do: what is not given is as the model's recipe has it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from data_pipeline.errors import UserError
from model.conditions import UNITS
from model.sampling import SamplingConfig, constant_guidance, linear_guidance
from trainer.commands.options import Options


def add_sampling(options: Options) -> None:
    """The options that say how to sample; what is not given is as the model's recipe has it."""
    group = options.add_argument_group("how to sample (default: as the model's recipe says)")
    group.add_argument("--iterations", type=int, metavar="N", help="reveals per frame (the paper: 64)")
    group.add_argument("--head-steps", type=int, metavar="N", help="denoising steps per token (the paper: 100)")
    group.add_argument("--guidance", type=float, metavar="W", help="final guidance weight; 1 switches guidance off")
    group.add_argument("--guidance-schedule", choices=("linear", "constant"), help="how the weight grows over a frame's iterations")
    group.add_argument("--away-from", choices=("text", "history", "both"), help="what the second branch of guidance lacks")
    group.add_argument("--temperature", metavar="T", help="a number, or progressive: 0.9 + 10^-(t+1) for the t-th generated frame")
    group.add_argument("--sink", type=int, metavar="N", help="first latent frames that stay visible when there is a window")
    group.add_argument("--window", type=int, metavar="N", help="newest latent frames that are visible; 0: all")
    group.add_argument("--context-noise", type=float, metavar="S", help="noise on finished frames, for models trained with it")
    group.add_argument("--context-masked", type=float, metavar="F", help="fraction of finished frames masked again, likewise")
    group.add_argument(
        "--condition", action="append", metavar="NAME=VALUE", help=f"what the model is told: any of {', '.join(UNITS)} it was trained with"
    )


def sampling_of(options: argparse.Namespace, recipe: SamplingConfig) -> SamplingConfig:
    """The recipe's way to sample with what the options change. Raises UserError."""
    plain = ("iterations", "head_steps", "guidance", "away_from", "sink", "window", "context_noise", "context_masked")
    changes: dict[str, Any] = {name: value for name in plain if (value := getattr(options, name)) is not None}
    if options.guidance_schedule:
        changes["guidance_schedule"] = linear_guidance if options.guidance_schedule == "linear" else constant_guidance
    if options.temperature == "progressive":
        changes["temperature"] = None
    elif options.temperature is not None:
        changes["temperature"] = number("--temperature", options.temperature)
    told = dict(condition(text) for text in options.condition or ())
    try:
        return replace(recipe, **changes, conditions={**recipe.conditions, **told})
    except ValueError as error:
        raise UserError(str(error)) from None


def condition(text: str) -> tuple[str, float]:
    """('motion', 0.1) of 'motion=0.1'."""
    name, equals, value = text.partition("=")
    if name not in UNITS or not equals:
        raise UserError(f"--condition {text}: write NAME=VALUE with a name of {', '.join(UNITS)}")
    return name, number(f"--condition {name}", value)


def number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{option} {text}: this is not a number") from None
