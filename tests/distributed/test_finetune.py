"""From a trained model's export to a fine-tuned one, through the real training process: what is trained, what a commit holds, what a kill
leaves, and what is sampled and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from data_pipeline.loader import open_dataset
from model import export
from model.videomar import VideoMAR
from tests.distributed.harness import RankFailed, run_ranks
from tests.distributed.training import recipe, stage, train
from trainer import lease, weights
from trainer.checkpoint.commit import last_commit
from trainer.config import RunConfig
from trainer.inspection.showcase import averaged_model, sample

STEPS = 8
LORA = {"lora": {"rank": 2, "alpha": 4, "targets": ["blocks.*attention.[qkv]", "blocks.1.ffn.*"]}}
FROZEN = {"freeze": ["blocks.0.*", "embed.*", "head.*"]}
METHODS = pytest.mark.parametrize("method", [{}, FROZEN, LORA], ids=["everything", "frozen parts", "LoRA"])


def train_on(world: int, run: Path, dataset: Path, config: RunConfig, die_at: int = 0) -> list[dict[str, Any]]:
    run.mkdir(exist_ok=True)
    lease.draw(run)
    return run_ranks(world, train, config, run, dataset, "", die_at)[0]


def averaged(run: Path, dataset: Path, config: RunConfig) -> VideoMAR:
    found = last_commit(run)
    assert found is not None
    return averaged_model(config, open_dataset(dataset), found)


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def base(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """An exported tiny model and the losses it was trained with."""
    folder, config = tmp_path_factory.mktemp("base"), recipe([stage("first", 20)])
    lines = train_on(2, folder / "run", tiny_dataset, config)
    export.save(averaged(folder / "run", tiny_dataset, config), folder / "export")
    return folder / "export", losses(lines)


def finetune(base: Path, **train: Any) -> RunConfig:
    settings = {"init": {"from": str(base)}, "commit_every": 3, **train}
    return weights.resolved(recipe([stage("second", STEPS)], **settings))


@METHODS
def test_a_killed_fine_tuning_goes_on_as_if_nothing_had_happened(
    method: dict[str, Any], base: tuple[Path, list[float]], tiny_dataset: Path, tmp_path: Path
) -> None:
    folder, before = base
    whole = train_on(1, tmp_path / "whole", tiny_dataset, finetune(folder, **method, zero=0))
    assert whole[0]["loss"] < before[5] < before[0], "it starts from what was learned"
    assert whole[-1]["loss"] < whole[0]["loss"]
    config = finetune(folder, **method)
    with pytest.raises(RankFailed, match="rank 0 died"):
        train_on(2, tmp_path / "killed", tiny_dataset, config, die_at=5)
    lines = train_on(2, tmp_path / "killed", tiny_dataset, config)
    assert losses(lines) == pytest.approx(losses(whole), rel=1e-5)
    ends = [averaged(tmp_path / name, tiny_dataset, config).state_dict() for name in ("whole", "killed")]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "layout"), [(FROZEN, {"tp": 2, "megatron_sp": True}), (FROZEN, {"zero": 3}), (LORA, {"zero": 3})], ids=str
)
def test_losses_do_not_depend_on_the_layout(
    method: dict[str, Any], layout: dict[str, Any], base: tuple[Path, list[float]], tiny_dataset: Path, tmp_path: Path
) -> None:
    config = finetune(base[0], **method)
    parallel = RunConfig.model_validate(config.model_dump() | {"parallel": layout})
    one, two = (train_on(world, tmp_path / str(world), tiny_dataset, each) for world, each in ((1, config), (2, parallel)))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert [line["grad_norm"] for line in two] == pytest.approx([line["grad_norm"] for line in one], rel=1e-4)


@pytest.mark.parametrize("method", [FROZEN, LORA], ids=["frozen parts", "LoRA"])
def test_a_commit_holds_what_is_trained_and_sampling_and_export_the_rest_too(
    method: dict[str, Any], base: tuple[Path, list[float]], tiny_dataset: Path, tmp_path: Path
) -> None:
    folder, config = base[0], finetune(base[0], **method)
    train_on(1, tmp_path / "run", tiny_dataset, config)
    found = last_commit(tmp_path / "run")
    assert found is not None
    with safe_open(found.folder / "rank-00000.safetensors", framework="pt") as file:
        held = {key.split("|")[1] for key in list(file.keys())}
    if "lora" in method:
        assert len(held) == 2 * (2 * 2 * 3 + 2)
        assert all("lora_" in name for name in held)
        trained = {name.partition(".lora_")[0] + ".weight" for name in held}
    else:
        assert not [name for name in held if name.startswith(("blocks.0.", "embed.", "head."))]
        trained = held
    model, start = averaged(tmp_path / "run", tiny_dataset, config), export.load(folder).state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert changed == trained
    export.save(model, tmp_path / "export")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in export.load(tmp_path / "export").state_dict().items())
    samples = sample(model, config, open_dataset(tiny_dataset), config.curriculum.stages[0])
    assert len(samples.generated) == config.sample.videos


def test_weights_that_change_during_a_run_end_it_with_one_line(base: tuple[Path, list[float]], tiny_dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    export.save(export.load(base[0]), copy)
    config = finetune(copy, **FROZEN)
    with pytest.raises(RankFailed, match="rank 0 died"):
        train_on(1, tmp_path / "run", tiny_dataset, config, die_at=5)
    model = export.load(copy)
    with torch.no_grad():
        model.mask_token.add_(1)
    export.save(model, copy)
    with pytest.raises(RankFailed, match=rf"UserError: train\.init\.from={copy} was changed: its sha256 is \w+, the run started from \w+"):
        train_on(1, tmp_path / "run", tiny_dataset, config)
