"""An exported model is a folder that gives the same model back, and says in one line what is wrong with it when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import export
from model.supervision import TrainingBatch
from model.videomar import VideoMAR

from .conftest import CONFIG, awake

MakeBatch = Callable[..., TrainingBatch]


@pytest.fixture
def trained() -> VideoMAR:
    """A float32 model, as training leaves it."""
    torch.manual_seed(0)
    return awake(VideoMAR(CONFIG))


@pytest.fixture
def folder(trained: VideoMAR, tmp_path: Path) -> Path:
    export.save(trained, tmp_path / "made" / "export")
    return tmp_path / "made" / "export"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of an exported folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_folder_holds_two_files_that_anyone_can_read(folder: Path, trained: VideoMAR) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == json.loads(json.dumps(asdict(CONFIG)))
    assert set(load_file(folder / "model.safetensors")) == set(dict(trained.named_parameters()))


def test_weights_and_config_come_back_bit_for_bit(folder: Path, trained: VideoMAR) -> None:
    loaded = export.load(folder)
    assert loaded.config == CONFIG
    assert not loaded.training
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert list(loaded.state_dict()) == list(trained.state_dict())


def test_outputs_are_bit_equal(folder: Path, trained: VideoMAR, make_batch: MakeBatch) -> None:
    batch = make_batch()
    times, noise = batch.head_draws
    single = replace(batch, latents=batch.latents.float(), text=batch.text.float(), head_draws=(times, noise.float()))
    assert torch.equal(export.load(str(folder))(single), trained(single))


def test_saving_again_replaces_what_was_there(folder: Path, trained: VideoMAR) -> None:
    with torch.no_grad():
        trained.mask_token.add_(1.0)
    export.save(trained, folder)
    assert torch.equal(export.load(folder).mask_token, trained.mask_token)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=file.replace(".", r"\.")):
        export.load(folder)


def test_a_missing_and_an_unknown_tensor_are_named_in_one_line(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update(mask_tokens=tensors.pop("mask_token")))
    with pytest.raises(ValueError, match=r"model\.safetensors .*mask_token is None, not \(32,\) \(2 tensors differ\)") as caught:
        export.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_whose_values_cannot_be_is_named_by_field(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"heads": 3}))
    with pytest.raises(ValueError, match=r"model\.width 32 is not divisible by model\.heads 3"):
        export.load(folder)


def test_a_tensor_of_another_shape_is_named(trained: VideoMAR, tmp_path: Path) -> None:
    export.save(trained, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"mask_token": torch.zeros(31)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"mask_token is \(31,\), not \(32,\) \(1 tensors differ\)"):
        export.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"rope_split": [2, 1, 1], "colour": 3}'])
def test_a_config_that_describes_no_model_is_named(trained: VideoMAR, tmp_path: Path, text: str) -> None:
    export.save(trained, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json does not describe a model"):
        export.load(tmp_path)
