"""Which model a recipe and its data mean. Pure; called by process.py, by the driver's checks, and by whatever plans for a model."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.spec import EncodeSpec
from model.config import ModelConfig, named_size
from trainer.config import RunConfig
from trainer.curriculum import Latents, Stage


def latents_of(config: RunConfig, stage: Stage) -> Latents:
    """What the latents of a stage are made with. Stages of equal ones share a data set."""
    return Latents(stage.tokenizer or config.data.tokenizer, stage.stride or config.data.stride)


def all_latents(config: RunConfig) -> list[Latents]:
    """Those of all stages, in the order in which they are needed."""
    return list(dict.fromkeys(latents_of(config, stage) for stage in config.curriculum.stages))


def stream_of(config: RunConfig, stage: Stage, bucket: str) -> str:
    """The name under which a run counts the samples of a bucket: each of its data sets has an order of its own."""
    latents = latents_of(config, stage)
    same = latents == Latents(config.data.tokenizer, config.data.stride)
    return bucket if same else f"{bucket}@{latents.name}"


def model_of(config: RunConfig, spec: EncodeSpec) -> ModelConfig:
    """The named size with what the recipe and the data set dictate: shape, objective, latent channels, text width and length.

    Raises ValueError when they do not fit together.
    """
    return sized(config, spec.channels, spec.text_width, spec.text_tokens)


def planned_model(config: RunConfig) -> ModelConfig:
    """The same before any data exists: what data would dictate is as the recipe says. Raises UserError."""
    data = config.data
    try:
        return sized(config, data.latent_channels, data.text_width, data.text_tokens)
    except ValueError as error:
        raise UserError(str(error)) from None


def sized(config: RunConfig, channels: int, text_width: int, text_tokens: int) -> ModelConfig:
    changes: dict[str, Any] = {"latent_channels": channels, "text_width": text_width, "text_tokens": text_tokens}
    changes |= {"head": config.train.head, "conditions": config.train.conditions, "block": config.train.block}
    changes |= {name: value for name in ("width", "depth", "heads") if (value := getattr(config.model, name)) is not None}
    return named_size(config.model.size, **changes)
