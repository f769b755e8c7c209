from dataclasses import replace
from typing import Any

import pytest

from data_pipeline.buckets import Bucket
from data_pipeline.filters import FilterThresholds
from data_pipeline.spec import EncodeSpec

from .conftest import SPEC


def test_a_spec_survives_json() -> None:
    spec = replace(SPEC, thresholds=FilterThresholds(min_motion=0.1), stride=(2, 8, 8))
    assert EncodeSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fps": 0}, "fps 0"),
        ({"fps": float("inf")}, "fps inf"),
        ({"text_width": 0}, "text_width 0"),
        ({"text_width": 7}, "text_width 7 must be even"),
        ({"stride": (0, 8, 8)}, r"stride \[0, 8, 8\]"),
        ({"stride": (4, 8, -8)}, r"stride \[4, 8, -8\]"),
        ({"held_out": 1.0}, "held_out 1.0"),
        ({"buckets": ()}, "at least one"),
        ({"buckets": (Bucket(5, 32, 32),) * 2}, "none twice"),
        ({"buckets": (Bucket(6, 32, 32),)}, "6x32x32"),
        ({"max_clips": 0}, "max_clips 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(SPEC, **change)
