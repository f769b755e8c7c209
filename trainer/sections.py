"""The parts of a recipe that say what training starts from, and what every part is. config.py puts them together."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the recipe: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, serialize_by_alias=True)


class InitSection(Section):
    """Weights to start from instead of random ones."""

    source: str | None = Field(None, alias="from")  # an exported folder, a .safetensors file, or a folder of them
    sha256: str | None = None  # of the files; filled in when the run is made, so that changed files are noticed
    map: dict[str, str] | str = {}  # regex -> replacement, applied in turn to the names of their tensors ("": left out), or a YAML file
    strict: bool = True  # false: start with the tensors that fit, whatever else differs


class LoraSection(Section):
    """Train low-rank adapters of linear layers, and nothing else."""

    rank: int = Field(0, ge=0)  # 0: none
    alpha: int = Field(16, ge=1)  # an adapter's output is scaled by alpha / rank
    targets: list[str] = Field(["blocks.*attention.*"], min_length=1)  # globs of the layers' names
