"""What a recipe cannot mean is found before anything starts, in one line that says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.checks import check_samples, check_stages
from cluster.dataset import encode_spec
from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset, open_dataset
from trainer.config import RECIPES, RunConfig, load


def recipe(*arguments: str, frames: int = 5, side: int = 32, tokens: int = 64) -> RunConfig:
    """One stage "only" on two workers."""
    stage = f"{{name: only, frames: {frames}, height: {side}, width: {side}, tokens_per_step: {tokens}, promotion: {{max_steps: 1}}}}"
    return load([f"curriculum.stages=[{stage}]", *arguments])


def refusal(config: RunConfig) -> str:
    """The one line with which the stages are refused."""
    with pytest.raises(UserError) as caught:
        check_stages(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def dataset(tiny_dataset: Path) -> Dataset:
    return open_dataset(tiny_dataset)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_passes(name: str) -> None:
    check_stages(load([f"recipe={name}"]))


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    assert "model.size 'huge' is unknown: choose one of toy" in refusal(recipe("model.size=huge"))


def test_heads_that_do_not_divide_the_width_are_refused_by_key() -> None:
    assert "model.width 192 is not divisible by model.heads 5" in refusal(recipe("model.heads=5"))


def test_two_stages_of_one_name_are_refused() -> None:
    assert "the name two-frames stands twice" in refusal(load(["curriculum.stages.2.name=two-frames"]))


def test_a_stage_of_one_latent_frame_is_refused_with_the_shortest_that_is_not() -> None:
    assert refusal(recipe(frames=1)) == "stage only: 1 frames are one latent frame, and the first is given; use at least 5"
    check_stages(recipe(frames=5))


def test_fewer_samples_than_workers_are_refused() -> None:
    assert refusal(recipe("cluster.workers=3", tokens=64)).startswith("stage only: 2 samples per step cannot be spread over 3 workers")
    check_stages(recipe("cluster.workers=2", tokens=64))


def test_samples_that_would_need_much_padding_are_refused() -> None:
    assert "stage only: 16 samples per step do not divide over 5 workers" in refusal(recipe("cluster.workers=5", tokens=16 * 32))


@pytest.mark.parametrize(("changes", "named"), [({"frames": 6}, "6x32x32: 6 frames"), ({"side": 36}, "5x36x36: height 36")])
def test_a_shape_the_stride_does_not_divide_is_refused_by_bucket(changes: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        encode_spec(recipe(**changes))


def test_a_step_may_take_every_clip_of_its_bucket_but_not_one_more(dataset: Dataset) -> None:
    there = dataset.manifest.clips("5x32x32", "train")
    check_samples(recipe(tokens=there * 32).curriculum.stages, dataset.manifest)
    with pytest.raises(UserError, match=rf"stage only: a step takes {there + 1} clips of 5x32x32, but the data has {there};") as caught:
        check_samples(recipe(tokens=(there + 1) * 32).curriculum.stages, dataset.manifest)
    assert str(caught.value).endswith(f"tokens_per_step to at most {there * 32}")


@pytest.mark.parametrize("frames", [5, 9])
def test_the_advice_of_the_refusal_works(dataset: Dataset, frames: int) -> None:
    with pytest.raises(UserError) as caught:
        check_samples(recipe(frames=frames, tokens=10**6).curriculum.stages, dataset.manifest)
    advice = int(str(caught.value).rpartition(" ")[2])
    check_samples(recipe(frames=frames, tokens=advice).curriculum.stages, dataset.manifest)


def test_every_stage_is_checked(dataset: Dataset) -> None:
    stages = [
        f"{{name: s{frames}, frames: {frames}, height: 32, width: 32, tokens_per_step: {tokens}, promotion: {{max_steps: 1}}}}"
        for frames, tokens in ((5, 64), (9, 10**6))
    ]
    with pytest.raises(UserError, match="stage s9: a step takes"):
        check_samples(load([f"curriculum.stages=[{', '.join(stages)}]"]).curriculum.stages, dataset.manifest)
