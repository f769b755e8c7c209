"""The only file of model/ that touches files: a trained model as a folder of model.safetensors + config.json, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ModelConfig
from model.videomar import VideoMAR


def save(model: VideoMAR, folder: Path) -> None:
    """Write weights and config into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n")


def load(folder: str | Path) -> VideoMAR:
    """The model of an exported folder, in evaluation mode.

    Raises FileNotFoundError or ValueError naming the file and what is missing or does not fit.
    """
    folder = Path(folder)
    try:
        fields = json.loads((folder / "config.json").read_text())
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        config = ModelConfig(**values)
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a model: {error}") from None
    model, weights = VideoMAR(config), load_file(folder / "model.safetensors")
    own = model.state_dict()
    wrong = sorted(name for name in own.keys() | weights.keys() if shape_of(own, name) != shape_of(weights, name))
    if wrong:
        found = f"{wrong[0]} is {shape_of(weights, wrong[0])}, not {shape_of(own, wrong[0])}"
        raise ValueError(f"{folder / 'model.safetensors'} does not fit its config.json: {found} ({len(wrong)} tensors differ)")
    model.load_state_dict(weights)
    return model.eval()


def shape_of(tensors: dict[str, Tensor], name: str) -> tuple[int, ...] | None:
    """Shape of a named tensor, None when there is none."""
    return tuple(tensors[name].shape) if name in tensors else None
