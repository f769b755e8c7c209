"""What a run starts with: read weights, frozen parts, adapters; and what of it is refused, in one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.errors import UserError
from model import export
from model.config import ModelConfig
from model.supervision import TrainingBatch
from model.videomar import VideoMAR
from tests.model.conftest import CONFIG, awake, config, make_batch, model  # noqa: F401 (fixtures)
from trainer import initial, weights
from trainer.config import RunConfig
from trainer.weights import Match

MakeBatch = Callable[..., TrainingBatch]
STAGE = {"name": "s", "frames": 5, "height": 32, "width": 32, "tokens_per_step": 256, "promotion": {"max_steps": 1}}


@pytest.fixture
def trained() -> VideoMAR:
    torch.manual_seed(1)
    return awake(VideoMAR(CONFIG))


@pytest.fixture
def folder(trained: VideoMAR, tmp_path: Path) -> Path:
    export.save(trained, tmp_path / "export")
    return tmp_path / "export"


def recipe(**train: Any) -> RunConfig:
    return weights.resolved(RunConfig.model_validate({"train": train, "curriculum": {"stages": [STAGE]}}))


def fresh(train: RunConfig, model_config: ModelConfig = CONFIG, resumed: bool = False) -> VideoMAR:
    torch.manual_seed(2)
    return initial.prepare(VideoMAR(model_config), train.train, resumed)


def refused(model_config: ModelConfig = CONFIG, **train: Any) -> str:
    """The line that refuses a recipe before anything is started."""
    with pytest.raises(UserError) as caught:
        initial.check(recipe(**train), model_config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(a: VideoMAR, b: VideoMAR) -> list[str]:
    """Names of the tensors that both have and that are equal."""
    other = b.state_dict()
    return [name for name, tensor in a.state_dict().items() if name in other and torch.equal(tensor, other[name])]


def test_an_exported_folder_is_taken_bit_for_bit(trained: VideoMAR, folder: Path) -> None:
    settings = recipe(init={"from": str(folder)})
    assert initial.check(settings, CONFIG) == Match({name: name for name in trained.state_dict()})
    assert len(same(fresh(settings), trained)) == len(trained.state_dict())


def test_another_naming_in_shards_is_taken_through_a_key_map(trained: VideoMAR, tmp_path: Path) -> None:
    foreign = {f"net.{name.replace('blocks.', 'layers.').replace('.ffn.', '.mlp.')}": x for name, x in trained.state_dict().items()}
    for number in (0, 1):
        half = dict(list(foreign.items())[number::2])
        save_file(half | {f"optimizer.{number}": torch.zeros(2)}, tmp_path / f"{number}.safetensors")
    key_map = {r"^net\.": "", r"layers\.": "blocks.", r"\.mlp\.": ".ffn.", "^optimizer.*": ""}
    settings = recipe(init={"from": str(tmp_path), "map": key_map})
    assert len(same(fresh(settings), trained)) == len(trained.state_dict())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"latent_channels": 8}, "latent_channels is 4, not 8 (another tokenizer's latents) (and "),
        ({"width": 64}, "width is 32, not 64 (a model of another size) (and "),
        ({"heads": 4}, "heads is 2, not 4 (a model of another size) (and "),
        ({"rope_base": (20.0, 20.0, 20.0)}, "rope_base is [10000.0, 10000.0, 10000.0], not [20.0, 20.0, 20.0] (other positions);"),
    ],
)
def test_weights_of_another_model_are_refused_by_field(changes: dict[str, Any], line: str, folder: Path) -> None:
    message = refused(replace(CONFIG, **changes), init={"from": str(folder)})
    assert message.startswith(f"train.init.from={folder}: {line}")
    assert message.endswith("train.init.strict=false starts with the tensors that fit")


def test_weights_without_a_config_are_refused_by_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    wider = refused(replace(CONFIG, latent_channels=8), init={"from": str(file)})
    assert "embed.weight is (32, 4), not (32, 8) (and " in wider
    deeper = refused(replace(CONFIG, depth=4), init={"from": str(file)})
    assert "no tensor for blocks.3.attention_norm.weight (and " in deeper
    shallower = refused(replace(CONFIG, depth=2), init={"from": str(file)})
    assert "blocks.2.attention.k.weight is no tensor of the model (and " in shallower


def test_not_strict_takes_what_fits_and_says_what_does_not(trained: VideoMAR, folder: Path) -> None:
    settings, wider = recipe(init={"from": str(folder), "strict": False}), replace(CONFIG, latent_channels=8)
    found = initial.check(settings, wider)
    assert found is not None
    assert (found.missing, found.left_over, len(found.other_fields)) == ((), (), 1)
    assert [line.split(" is ")[0] for line in found.other_shape] == [
        "embed.weight",
        "head.network.embed.weight",
        "head.network.final.weight",
        "head.network.final.bias",
    ]
    assert len(same(fresh(settings, wider), trained)) == len(found.taken) == len(trained.state_dict()) - 4


def test_weights_of_which_nothing_fits_are_refused_even_then(tmp_path: Path) -> None:
    save_file({"foreign.w": torch.zeros(3)}, tmp_path / "w.safetensors")
    message = refused(init={"from": str(tmp_path), "strict": False})
    assert "none of its tensors fits" in message
    assert "train.init.map" in message


def test_files_that_change_after_the_start_are_refused(trained: VideoMAR, folder: Path) -> None:
    settings = recipe(init={"from": str(folder)}, freeze=["embed.*"])
    with torch.no_grad():
        trained.mask_token.add_(1)
    export.save(trained, folder)
    with pytest.raises(UserError, match=r"was changed: its sha256 is"):
        fresh(settings, resumed=True)


def test_a_resumed_run_that_trains_everything_needs_no_files(folder: Path) -> None:
    settings = recipe(init={"from": str(folder)})
    (folder / "model.safetensors").unlink()
    assert all(parameter.requires_grad for parameter in fresh(settings, resumed=True).parameters())


def test_frozen_parts_are_named_by_globs() -> None:
    network = fresh(recipe(freeze=["blocks.0.*", "*.bias"]))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert {"blocks.0.ffn.up.weight", "embed.bias", "head.network.final.bias"} <= frozen
    assert all(name.startswith("blocks.0.") or name.endswith(".bias") for name in frozen)


def test_what_cannot_be_trained_is_refused(folder: Path) -> None:
    init = {"from": str(folder)}
    assert "train.freeze: 'block.*' fits nothing in the model; its names are like mask_token or " in refused(freeze=["block.*"])
    assert refused(freeze=["*"]) == "train.freeze leaves nothing to train: narrow it"
    assert "train.lora.targets: 'norm' fits nothing" in refused(init=init, lora={"rank": 2, "targets": ["norm"]})
    assert refused(lora={"rank": 2}) == "train.lora adapts trained weights: name them in train.init.from"
    assert "train.freeze says nothing beside train.lora" in refused(init=init, freeze=["embed.*"], lora={"rank": 2})


def test_adapters_over_tensor_parallelism_are_refused(folder: Path) -> None:
    settings = recipe(init={"from": str(folder)}, lora={"rank": 2})
    split = settings.model_copy(update={"parallel": settings.parallel.model_copy(update={"tp": 2})})
    with pytest.raises(UserError, match=r"^train\.lora cannot be split over parallel\.tp=2: use parallel\.tp=1"):
        initial.check(split, CONFIG)


def test_adapters_change_nothing_at_first_and_are_merged_away(trained: VideoMAR, folder: Path, make_batch: MakeBatch) -> None:  # noqa: F811
    adapted = fresh(recipe(init={"from": str(folder)}, lora={"rank": 2, "alpha": 8})).double()
    batch, plain = make_batch(), trained.double()
    assert torch.equal(adapted(batch), plain(batch))
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 8 * CONFIG.depth
    assert all("lora_" in name and "attention" in name for name in names)
    losses = awake(adapted, 0.2)(batch)
    assert not torch.allclose(losses, plain(batch))
    whole = initial.merged(adapted)
    torch.testing.assert_close(whole(batch), losses, rtol=1e-10, atol=1e-10)
    assert list(whole.state_dict()) == list(trained.state_dict())
    assert len(trained.state_dict()) - len(same(whole, plain)) == 8 * CONFIG.depth
