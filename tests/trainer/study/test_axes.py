"""Axes of a study: names find their keys, values their runs, and mistakes are one line with what to write instead."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from trainer.config import known_keys, load
from trainer.study.axes import Axis, parse_axes, points, resolve

VALUES = st.lists(
    st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Z")), min_size=1, max_size=8), min_size=1, max_size=4, unique=True
)
AXES = st.lists(VALUES, min_size=1, max_size=3).map(
    lambda lists: [Axis(f"axis{place}", f"train.axis{place}", tuple(values)) for place, values in enumerate(lists)]
)


def test_the_issues_command_makes_six_runs_in_two_families() -> None:
    axes = parse_axes(["width=96,128,192", "supervision=one_frame,all_frames"])
    assert [axis.key for axis in axes] == ["model.width", "train.supervision"]
    assert [axis.is_scale for axis in axes] == [True, False]
    made = points(axes)
    assert [point.name for point in made[:3]] == [
        "width-96_supervision-one_frame",
        "width-96_supervision-all_frames",
        "width-128_supervision-one_frame",
    ]
    assert len(made) == 6
    assert [point.family for point in made[:2]] == ["supervision one_frame", "supervision all_frames"]
    config = load(["recipe=toy", *made[-1].overrides])
    assert (config.model.width, config.train.supervision) == (192, "all_frames")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("width", "model.width"),
        ("lr", "train.lr"),
        ("seed", "seed"),
        ("model.size", "model.size"),
        ("curriculum.stages.0.promotion.max_steps", "curriculum.stages.0.promotion.max_steps"),
    ],
)
def test_a_name_is_a_key_or_the_last_part_of_just_one(name: str, key: str) -> None:
    assert resolve(name) == key


@given(st.sampled_from([key for key in known_keys() if "." in key]))
def test_every_dotted_key_of_a_value_means_itself(key: str) -> None:
    is_section = any(other.startswith(f"{key}.") for other in known_keys())
    if not is_section and key not in ("run.name", "run.root"):
        assert resolve(key) == key


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["size=toy,small"], r"--axis size: several keys end in it; write one of .*model\.size"),
        (["widht=1,2"], r"--axis widht: no key of the recipe ends in it; did you mean model\.width"),
        (["model=1,2"], r"--axis model: no key of the recipe ends in it"),
        (["qqqq=1"], r"--axis qqqq: no key of the recipe ends in it$"),
        (["run.name=a,b"], r"--axis run\.name: it tells the runs of a study apart"),
        (["width=96", "model.width=128"], r"--axis: model\.width stands twice"),
        (["width"], r"--axis model\.width=: give values that differ"),
        (["width=96,96"], r"--axis model\.width=96,96: give values that differ"),
        (["width=[96"], r"--axis model\.width=\[96: give values that differ"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_axes(texts)
    assert "\n" not in str(caught.value)


def test_lists_and_numbers_in_any_notation_are_values() -> None:
    stride, rate = parse_axes(["data.stride=[4,8,8],[4,16,16]", "lr=1e-3,0.002"])
    assert [stride.read(value) for value in stride.values] == [[4, 8, 8], [4, 16, 16]]
    assert [rate.read(value) for value in rate.values] == [0.001, 0.002]
    assert (stride.is_scale, rate.is_scale) == (False, True)
    assert points([stride])[0].name == "stride-4-8-8"


@pytest.mark.parametrize(
    "text",
    [
        "data.fps=4,8",
        "data.held_out=0.1,0.2",
        "data.filters.min_motion=0,0.1",
        "curriculum.stages.0.frames=9,17",
        "curriculum.stages.1.height=32,64",
        "curriculum.stages.1.width=32,64",
        "curriculum.stages.1.mix.0.frames=1,5",
        "curriculum.stages.0.stride.0=4,8",
    ],
)
def test_numbers_that_decide_what_the_clips_are_have_a_law_each(text: str) -> None:
    (axis,) = parse_axes([text])
    assert not axis.is_scale
    assert len({point.family for point in points([axis])}) == len(axis.values)


@pytest.mark.parametrize("text", ["model.width=96,128", "train.lr=1e-3,2e-3", "curriculum.stages.0.tokens_per_step=1024,2048"])
def test_numbers_that_leave_the_clips_alone_share_a_law(text: str) -> None:
    (axis,) = parse_axes([text])
    assert {point.family for point in points([axis])} == {""}


def test_axes_whose_keys_end_alike_are_told_apart() -> None:
    assert [axis.name for axis in parse_axes(["model.size=toy", "data.synthetic.size=64"])] == ["model.size", "data.synthetic.size"]


@given(AXES)
def test_every_combination_is_one_run_with_a_name_of_its_own(axes: list[Axis]) -> None:
    made = points(axes)
    assert len(made) == math.prod(len(axis.values) for axis in axes)
    assert len({point.name for point in made}) == len({tuple(point.values.values()) for point in made}) == len(made)
    assert all(re.fullmatch(r"[\w.-]+", point.name) for point in made)
    assert {point.values[axis.name] for point in made for axis in axes} == {value for axis in axes for value in axis.values}
