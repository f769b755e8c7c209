"""Which model a recipe and its data mean. Pure; called by process.py, by the driver's checks, and by whatever plans for a model."""

from __future__ import annotations

from typing import Any

from data_pipeline.spec import EncodeSpec
from model.config import ModelConfig, named_size
from trainer.config import RunConfig


def model_of(config: RunConfig, spec: EncodeSpec) -> ModelConfig:
    """The named size with what the recipe and the data set dictate: heads, objective, latent channels, text width and length.

    Raises ValueError when they do not fit together.
    """
    changes: dict[str, Any] = {"latent_channels": spec.channels, "text_width": spec.text_width, "text_tokens": spec.text_tokens}
    changes |= {"head": config.train.head, "conditions": config.train.conditions, "block": config.train.block}
    return named_size(config.model.size, **changes, **({"heads": config.model.heads} if config.model.heads else {}))
