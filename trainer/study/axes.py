"""What a study runs: its axes, and the product of their values as overrides of the recipe. Pure; called by the study command."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from data_pipeline.errors import UserError
from trainer.config import known_keys, split_override

OWN = ("run.name", "run.root")  # keys by which a study keeps its runs apart
CLIPS = re.compile(r"data\..+|curriculum\.stages\..+\.(frames|height|width|stride)(\.\d+)?")  # keys that decide what clips are


@dataclass(frozen=True)
class Axis:
    """A key of the recipe, under a short name, and the values that it takes in turn, as an override writes them."""

    name: str
    key: str
    values: tuple[str, ...]

    def read(self, value: str) -> Any:
        """A value as the recipe reads it."""
        return split_override(f"{self.key}={value}")[1]

    @property
    def is_scale(self) -> bool:
        """Whether a law is fitted across the values, where others have laws of their own: numbers, and none that decide which clips are
        held out or what they look like, for losses of unlike clips follow no one law."""
        numbers = all(isinstance(read := self.read(value), int | float) and not isinstance(read, bool) for value in self.values)
        return numbers and not CLIPS.fullmatch(self.key)

    @property
    def labels(self) -> list[str]:
        """The values as parts of a folder's name, all different."""
        plain = [re.sub(r"[^\w.-]+", "-", value).strip("-.") for value in self.values]
        return plain if len(set(plain)) == len(plain) else [f"{place}-{label}" for place, label in enumerate(plain)]


@dataclass(frozen=True)
class Point:
    """One run of a study: its name, and a value per axis."""

    name: str
    values: dict[str, str]  # by the axis' name
    overrides: tuple[str, ...]
    family: str  # its values on the axes that are no scales, "" without such axes


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """The axes of ["width=96,128", ...]. Raises UserError for what is no key, or no list of values that differ."""
    split = [text.partition("=")[::2] for text in texts]
    keys = [resolve(name) for name, _ in split]
    if doubled := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"--axis: {doubled} stands twice; give all its values at once, separated by commas")
    short = [key.rpartition(".")[2] for key in keys]
    names = [last if short.count(last) == 1 else key for last, key in zip(short, keys, strict=True)]
    return [Axis(name, key, values_of(key, text)) for name, key, (_, text) in zip(names, keys, split, strict=True)]


def resolve(name: str) -> str:
    """The dotted key that a name means: itself, or the one key that ends in it. Raises UserError with the candidates."""
    known = known_keys()
    leaves = [key for key in known if not any(other.startswith(f"{key}.") for other in known)]
    found = [name] if name in leaves or name.startswith("curriculum.stages.") else [k for k in leaves if k.endswith(f".{name}")]
    if len(found) == 1 and found[0] not in OWN:
        return found[0]
    if len(found) > 1:
        raise UserError(f"--axis {name}: several keys end in it; write one of {', '.join(found)}")
    if found:
        raise UserError(f"--axis {found[0]}: it tells the runs of a study apart; choose another key")
    ends = {key.rpartition(".")[2]: key for key in leaves}
    near = [ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], ends, 3, 0.6)]
    raise UserError(f"--axis {name}: no key of the recipe ends in it" + (f"; did you mean {' or '.join(near)}?" if near else ""))


def values_of(key: str, text: str) -> tuple[str, ...]:
    """The values of "96,128" or "[4,8,8],[4,16,16]", as overrides write them. Raises UserError."""
    try:
        read = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        read = []
    values = tuple(value if isinstance(value, str) else json.dumps(value, default=str) for value in read)
    if not values or len(set(values)) < len(values):
        raise UserError(f"--axis {key}={text}: give values that differ, separated by commas, as in --axis width=96,128,192")
    return values


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every combination of the axes' values, the last axis fastest."""
    made = []
    for chosen in product(*(zip(axis.values, axis.labels, strict=True) for axis in axes)):
        named = list(zip(axes, chosen, strict=True))
        made.append(
            Point(
                name="_".join(f"{axis.name}-{label}" for axis, (_, label) in named),
                values={axis.name: value for axis, (value, _) in named},
                overrides=tuple(f"{axis.key}={value}" for axis, (value, _) in named),
                family=", ".join(f"{axis.name} {value}" for axis, (value, _) in named if not axis.is_scale),
            )
        )
    return made
