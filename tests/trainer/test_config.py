"""The recipe grammar: shipped recipes load, overrides are dotted, and every mistake is one line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import UserError
from trainer.config import RECIPES, RunConfig, dump, load
from trainer.sizing import planned_model


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_loads(recipe: str) -> None:
    assert load([f"recipe={recipe}"]).run.name == recipe


def test_overrides_reach_sections_lists_and_numbers_in_any_notation() -> None:
    config = load(["train.lr=1e-3", "curriculum.stages.1.promotion.max_steps=7", "run.name=mine", "data.captions=null"])
    assert config.train.lr == 0.001
    assert config.curriculum.stages[1].promotion.max_steps == 7
    assert config.run_folder == Path("runs/mine")


def test_a_run_on_own_videos_is_named_after_their_folder() -> None:
    assert load(["data.videos=/some/where/cats"]).run.name == "toy-cats"


def test_a_dumped_config_loads_to_itself() -> None:
    config = load(["seed=3"])
    assert RunConfig.model_validate(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.lrr=1", r"train\.lrr: unknown key; did you mean train\.lr\?"),
        ("dta.videos=x", r"dta: unknown key; did you mean data\?"),
        ("curriculum.stages.0.widht=64", r"curriculum\.stages\.0\.widht: unknown key; did you mean curriculum\.stages\.0\.width\?"),
        ("curriculum.stages.9.width=64", r"curriculum\.stages\.9\.width: '9' is not one of the 4 entries"),
        ("train.lr=fast", r"train\.lr=fast: "),
        ("train.lr=-1", r"train\.lr=-1: "),
        ("cluster.workers=0", r"cluster\.workers=0: "),
        ("parallel.tp=0", r"parallel\.tp=0: "),
        ("parallel={zero: 0, precision: bf16}", r"parallel: zero=0 keeps no fp32 masters"),
        ("curriculum.stages=[]", r"curriculum\.stages"),
        ("sample.conditions={motion: 0.1}", r"^sample\.conditions names motion, which train\.conditions does not: add it there$"),
        ("train.conditions=[tempo]", r"train\.conditions\.0=tempo: input should be 'fps', 'motion' or 'context_noise'"),
        ("curriculum.stages.0.mix=[{frames: 1, height: 64, width: 64, share: 1.5}]", r"share is 1\.5: it must be above 0 and below 1"),
        ("curriculum.stages.0.mix=[{frames: 5, height: 64, width: 64, share: 0.5}]", r"mix names a bucket twice, or the stage's own"),
        ("nonsense", r"'nonsense' is not key=value"),
        ("recipe=none", r"recipe=none: no such recipe; .* toy"),
        ("curriculum.stages.0.promotion.min_steps=100000", r"min_steps 100000 is above max_steps"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load([argument])
    assert "\n" not in str(caught.value)


def test_the_model_s_own_keys_change_the_named_size() -> None:
    model = planned_model(load(["model.width=96", "model.depth=2"]))
    assert (model.width, model.depth, model.heads, model.head_width) == (96, 2, 4, 128)
    with pytest.raises(UserError, match=r"^model\.width 98 is not divisible by model\.heads 4$"):
        planned_model(load(["model.width=98"]))


def test_a_recipe_file_that_is_not_a_mapping_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- 1\n")
    with pytest.raises(UserError, match=r"mine\.yaml: a recipe is a mapping"):
        load([f"recipe={path}"])
