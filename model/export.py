"""The only file of model/ that touches files: a trained model as a folder of model.safetensors + config.json, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from model.videomar import VideoMAR


def save(model: VideoMAR, folder: Path) -> None:
    """Write weights and config into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n")


def load(folder: str | Path) -> VideoMAR:
    """The model of an exported folder, in evaluation mode.

    Raises FileNotFoundError or ValueError naming what is missing or does not fit.
    """
    folder = Path(folder)
    fields = json.loads((folder / "config.json").read_text())
    fields["rope_split"] = tuple(fields["rope_split"])
    model = VideoMAR(ModelConfig(**fields))
    missing = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        raise ValueError(
            f"{folder}/model.safetensors does not fit its config.json: missing {missing.missing_keys}, unexpected {missing.unexpected_keys}"
        )
    return model.eval()
